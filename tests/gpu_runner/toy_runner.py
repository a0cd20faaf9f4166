"""The runner as a program of its own, with toy recipes and no model stack: what a test can kill."""

import asyncio
import sys

from gpu_runner.worker import serve
from jobs import logs
from jobs.errors import Misconfigured
from jobs.settings import Settings

if __name__ == "__main__":
    settings = Settings.from_environment()
    logs.set_up(settings.log_level)
    try:
        asyncio.run(serve(settings, (), "toy_recipes"))
    except Misconfigured as error:
        sys.exit(error.message)
