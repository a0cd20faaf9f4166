"""The command `training-api`: starts the programs of this service. Each subcommand has `--help`.

Exit status: 0 done, 1 something failed, 2 it cannot run as it is set up; the last line says why.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from types import FrameType

from jobs.errors import Misconfigured, TrainingError
from jobs.settings import REFUSED, Settings, described, variable
from service import access
from service.programs import Programs

_OPTIONS = ("data_root", "host", "port")


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; its exit status."""
    chosen = _parser().parse_args(arguments)
    for field in _OPTIONS:
        if getattr(chosen, field, None) is not None:
            os.environ[variable(field)] = str(getattr(chosen, field))
    command: Callable[[argparse.Namespace], int] = chosen.command
    try:
        return command(chosen)
    except Misconfigured as error:
        print(f"training-api: {error.message}", file=sys.stderr)
        return REFUSED
    except TrainingError as error:
        print(f"training-api: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="training-api", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add(commands, "up", _up, "Start Redis, service and runner on this host; Ctrl-C stops all of them.")
    _add(commands, "demo", _demo, "Do the whole path on a sample export and prove that images are used.")
    _add(commands, "serve", _serve, "Start the HTTP service alone.")
    _add(commands, "runner", _runner, "Start a runner alone, for the data root it shares with the service.")
    commands.add_parser("version", help="Print the version.").set_defaults(command=_version)
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, command: object, text: str
) -> None:
    settings = "\n".join(f"  {name:32} {sentence}" for name, _, sentence in described())
    sub = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"environment:\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("--data-root", help="folder that holds everything (default: data)")
    if name != "runner":
        sub.add_argument("--host", help="address to bind (default: 127.0.0.1)")
        sub.add_argument("--port", type=int, help="port of the HTTP service (default: 8000)")
    sub.set_defaults(command=command)


def _up(_: argparse.Namespace) -> int:
    settings = Settings.from_environment()
    access.check_settings(settings)  # before anything is started
    wanted = _Ending()
    with Programs(settings) as programs:
        programs.wait_until_ready(on_wait=wanted.check)
        print(_banner(programs.address, settings.token), flush=True)
        while not wanted.now:
            programs.revive()
            wanted.sleep(1)
        print("Stopping …", flush=True)
    return 0


def _banner(address: str, token: str | None) -> str:
    page = "page" if token is None else "page, asks for the token"
    return f"The service is up: {address}/ui/ ({page}), {address}/docs (API). Ctrl-C stops it."


def _demo(_: argparse.Namespace) -> int:
    from service.demo import run_demo  # rich is imported where it is shown

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what the demo started is stopped
    return run_demo(Settings.from_environment())


def _serve(_: argparse.Namespace) -> int:
    os.execv(sys.executable, [sys.executable, "-m", "service.serve"])


def _runner(_: argparse.Namespace) -> int:
    os.execv(sys.executable, [sys.executable, "-m", "gpu_runner.worker"])


def _version(_: argparse.Namespace) -> int:
    print(version("training-api"))
    return 0


class _Ending:
    """Whether Ctrl-C or SIGTERM asked this process to end."""

    def __init__(self) -> None:
        self.now = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def check(self) -> None:
        if self.now:
            raise SystemExit(0)

    def sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.now and time.monotonic() < deadline:
            time.sleep(0.1)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.now = True


if __name__ == "__main__":
    sys.exit(main())
