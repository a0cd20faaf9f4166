"""The command `training-api`: starts the programs of this service, and speaks with it. Each subcommand has `--help`.

Exit status: 0 done, 1 something failed, 2 it cannot run as it is set up, 3 the job was cancelled; the last line says
why.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from jobs import logs
from jobs.errors import Misconfigured, TrainingError
from jobs.lifecycle import Status
from jobs.settings import REFUSED, Settings, described, variable
from jobs.specs import ExportFormat, Kind, TargetTask
from service import access
from service.programs import Programs

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_OPTIONS = ("data_root", "host", "port", "url")
_JOB = "the job's id, or four characters or more of its begin or end that no other recent job has"
_TOKEN = "The service's token is read from TRAINING_TOKEN or TRAINING_TOKEN_FILE."


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
    _add_remote_commands(commands)
    commands.add_parser("version", help="Print the version.").set_defaults(command=_version)
    return parser


def _add_remote_commands(commands: Commands) -> None:
    submit = _add_remote(
        commands,
        "submit",
        "Submit a job and print its id: a spec as JSON, or a training by its options.",
        "training-api submit --model demo-llava --train datasets/demo-split/train.jsonl --set num_epochs=5 --watch\n"
        "  training-api submit spec.json",
    )
    submit.add_argument("spec", nargs="?", help="JSON file with the job's spec, - for stdin; without `kind` a finetune")
    submit.add_argument("--preset", help="begin with the settings of this preset (GET /api/train/presets)")
    submit.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="set a field; repeatable")
    submit.add_argument("--model", help="what to fine-tune: model_name")
    submit.add_argument("--train", metavar="PATH", help="rows to learn: train_data_path, a name below the data root")
    submit.add_argument("--val", metavar="PATH", help="rows to evaluate on: val_data_path")
    submit.add_argument("--name", help="the experiment's name")
    submit.add_argument("--tag", action="append", help="a tag of the experiment; repeatable")
    submit.add_argument("--watch", action="store_true", help="show the job to its end, on stderr")

    text = "Turn an export into a checked, divided dataset; print the path of its rows to learn from."
    prepare = _add_remote(
        commands, "prepare", text, "training-api prepare birds.zip --name birds --task detect --set level=strict"
    )
    prepare.add_argument("file", type=Path, metavar="FILE.zip", help="the export of the annotation tool")
    prepare.add_argument(
        "--name", help="the dataset's name (default: that of the file, with a number where it is taken)"
    )
    prepare.add_argument("--task", choices=[task.value for task in TargetTask], help="what a model is to answer")
    prepare.add_argument("--model", help="what is to learn it, for the recommendation: model_name")
    prepare.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="set a field; repeatable")

    text = "Show a job to its end. Exit status: 0 completed, 1 failed, 3 cancelled."
    watch = _add_remote(commands, "watch", text, "training-api watch job_019ab3c4d5e6")
    watch.add_argument("job", help=_JOB)

    jobs = _add_remote(commands, "jobs", "List jobs, newest first.", "training-api jobs --status running")
    jobs.add_argument("--kind", choices=[kind.value for kind in Kind])
    jobs.add_argument("--status", choices=[status.value for status in Status])
    jobs.add_argument("--limit", type=int, default=20, help="how many at most (default: 20)")
    jobs.add_argument("--json", action="store_true", help="everything known of them, as JSON")

    cancel = _add_remote(commands, "cancel", "Ask jobs to end.", "training-api cancel job_019ab3c4d5e6")
    cancel.add_argument("jobs", nargs="+", metavar="job", help=_JOB)

    text = "Print what a job's newest attempt printed."
    logs = _add_remote(commands, "logs", text, "training-api logs -f job_019ab3c4d5e6")
    logs.add_argument("job", help=_JOB)
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")

    text = "Export a completed training, wait, and download the ZIP; print its path."
    export = _add_remote(
        commands, "export", text, "training-api export job_019ab3c4d5e6 --format lora_adapter -o adapter.zip"
    )
    export.add_argument("job", help=_JOB)
    export.add_argument("--format", required=True, choices=[each.value for each in ExportFormat])
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to (default: JOB-FORMAT.zip)")

    _add_webhook_commands(commands)

    text = "Exit with 0 while the service takes work, else with 1: for health checks of containers."
    _add_remote(commands, "health", text, "training-api health --url http://gpu.example:8000")


def _add_webhook_commands(commands: Commands) -> None:
    text = "List the webhooks: receivers that are told of events. Its commands add, try and remove one."
    webhooks = _add_remote(commands, "webhooks", text, "training-api webhooks")
    verbs = webhooks.add_subparsers(title="commands", metavar="COMMAND")

    text = "Have a receiver told of events; print the webhook's id and its secret, which is shown this once."
    add = _add_remote(
        verbs, "add", text, "training-api webhooks add https://hooks.example/training --types job.failed,job.paused"
    )
    add.add_argument("receiver", metavar="URL", help="the receiver: https, or http in TRAINING_OUTGOING_NETWORKS")
    add.add_argument(
        "--types", type=_listed, default=(), metavar="TYPE,…", help="events of docs/events.md (default: ends of jobs)"
    )
    add.add_argument("--tag", help="only events of jobs with this tag")

    text = "Send a signed `webhook.ping` now. Exit status: 0 it arrived, 1 it did not."
    _add_of_webhook(verbs, "ping", text)
    text = "Print a new secret, which is shown this once; the one before it signs too, for 24 hours."
    _add_of_webhook(verbs, "rotate", text)

    text = "Send all events again that the webhook wants, in order, or those behind a cursor."
    replay = _add_of_webhook(verbs, "replay", text, " --after 57")
    replay.add_argument("--after", type=int, default=0, metavar="SEQ", help="only events behind this one (default: 0)")
    replay.add_argument("--undelivered", action="store_true", help="only those that did not arrive")

    log = _add_of_webhook(verbs, "log", "List what a webhook was sent and what waits, newest first.")
    log.add_argument("--limit", type=int, default=20, help="how many at most (default: 20)")

    _add_of_webhook(verbs, "remove", "Remove a webhook and its log.")


def _add_of_webhook(verbs: Commands, name: str, text: str, options: str = "") -> argparse.ArgumentParser:
    sub = _add_remote(verbs, name, text, f"training-api webhooks {name} hook_5f0c3b9a27d1e4860b7f{options}")
    sub.add_argument("webhook", metavar="ID", help="the webhook's id (`training-api webhooks`)")
    return sub


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _add_remote(commands: Commands, name: str, text: str, example: str) -> argparse.ArgumentParser:
    """A command that talks to a service; `service.remote` has it."""
    sub = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}\n\n{_TOKEN}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument(
        "--url",
        default=argparse.SUPPRESS,  # or a command's own default wins over what stands before its name
        help="the service's address (default: TRAINING_URL, else the one of this host)",
    )
    sub.set_defaults(command=_speak, name_of_command=sub.prog.removeprefix("training-api "))
    return sub


def _add(commands: Commands, name: str, command: object, text: str) -> None:
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
        print(_banner(settings.address, settings.token), flush=True)
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


def _speak(chosen: argparse.Namespace) -> int:
    from service import remote  # the client and rich are imported where they are used

    settings = Settings.from_environment()
    logs.set_up("warning")
    return remote.COMMANDS[chosen.name_of_command](chosen, settings)


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
