"""The runner as it is, with the seams of the fault tests and a trainer: `python runner_program.py <module>`."""

import asyncio
import sys

import seams

from gpu_runner.worker import preload, serve
from jobs import logs
from jobs.errors import Misconfigured
from jobs.settings import REFUSED, Settings

if __name__ == "__main__":
    (trainer,) = sys.argv[1:]
    settings = Settings.from_environment()
    logs.set_up(settings.log_level)
    seams.put_into("runner", settings.data_folder)
    modules = (trainer,) if trainer == "fake_trainer" else (*preload(has_cuda=False), trainer)
    try:
        asyncio.run(serve(settings, modules, trainer))
    except Misconfigured as error:
        sys.stderr.write(f"{error.message}\n")
        sys.exit(REFUSED)
