"""The service as it is, with the seams of the fault tests: `python service_program.py`."""

import sys

import seams

from jobs.settings import Settings
from service.serve import main

if __name__ == "__main__":
    seams.put_into("service", Settings.from_environment().data_folder)
    sys.exit(main(sys.argv[1:]))
