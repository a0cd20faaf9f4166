"""The commands of `training-api` that talk to a running service, here or elsewhere. `cli` has their arguments,
`remote_webhooks` those about webhooks, `terminal` how output looks.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.calls import Json
from jobs.client import Client
from jobs.errors import InvalidInput, NotCompleted, RemoteProblem
from jobs.lifecycle import TERMINAL, Status
from jobs.settings import Settings
from jobs.specs import Kind, free_name
from jobs.training_config import TrainingConfig
from service import remote_webhooks, watching
from service.programs import health as health_of
from service.terminal import add_row, ago, client_of, say, show, table

COMPLETED, FAILED, CANCELLED = 0, 1, 3
"""Exit statuses of what watches a job; 2 is argparse's and that of wrong settings."""

_WHOLE_ID = re.compile(r"job_[0-9a-f]{24}")
_LEAST_OF_AN_ID = 4  # characters behind `job_` that tell one job from another
_OUTCOMES = {
    Status.COMPLETED: "had already completed",
    Status.FAILED: "had already failed",
    Status.CANCELLED: "is cancelled",
}
_OWN_OPTIONS = {"model": "model_name", "train": "train_data_path", "val": "val_data_path"}


def submit(chosen: argparse.Namespace, settings: Settings) -> int:
    with client_of(settings) as client:
        job_id = client.submit(_spec(chosen, client))
        print(job_id, flush=True)
        for note in client.job(job_id)["notes"]:
            say(f"warning: {note}")
        return _watch(client, job_id, Console(stderr=True)) if chosen.watch else 0


def prepare(chosen: argparse.Namespace, settings: Settings) -> int:
    console = Console(stderr=True)
    spec: Json = {"kind": Kind.PREPARE.value} | ({"output_dir": f"datasets/{chosen.name}"} if chosen.name else {})
    spec |= {"task": chosen.task} if chosen.task else {}
    spec |= {"model_name": chosen.model} if chosen.model else {}
    spec |= dict(map(_assignment, chosen.set))
    if not chosen.file.is_file():
        raise InvalidInput(f"There is no file {chosen.file}: give the ZIP that the annotation tool exported.")
    with client_of(settings) as client:
        if "output_dir" not in spec:
            spec["output_dir"] = _free_name(client, chosen.file.stem)
        with watching.moving(console, chosen.file.name) as on_bytes:
            spec["sam2_zip_path"] = client.upload(chosen.file, on_bytes)["file_path"]
        try:
            made = watching.watch(client, client.submit(spec), console)["result"]
        except NotCompleted as error:
            return _ended(error)
    say(made["message"])
    if recommendation := made["convert"]["recommendation"]:
        say(recommendation)
    for finding in (*made["validate"]["errors"], *made["validate"]["warnings"]):
        say(f"{finding['severity']}: {finding['message']} {finding['remedy']}".rstrip())
    for warning in made["warnings"]:
        say(f"warning: {warning}")
    print(made["split"]["train_path"] if made["split"] else made["output_dir"])
    return COMPLETED if made["success"] else FAILED


def _free_name(client: Client, stem: str) -> str:
    """A name for a dataset that none has and none is being given."""
    taken = {dataset["data_path"] for dataset in client.get("/api/data/datasets")["datasets"]}
    for job in client.jobs(Kind.PREPARE):
        if job["status"] not in TERMINAL:
            taken |= {job["spec"]["output_dir"], job["spec"]["split_dir"]}
    return free_name(stem, taken.__contains__)


def watch(chosen: argparse.Namespace, settings: Settings) -> int:
    with client_of(settings) as client:
        return _watch(client, _named(client, chosen.job), Console())


def jobs(chosen: argparse.Namespace, settings: Settings) -> int:
    with client_of(settings) as client:
        found = client.jobs(chosen.kind, chosen.status, chosen.limit)
    if chosen.json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
        return 0
    if found:
        show(_table(found))
    else:
        say("No such job. `training-api submit --help` shows how to start one.")
    return 0


def cancel(chosen: argparse.Namespace, settings: Settings) -> int:
    with client_of(settings) as client:
        return max([_cancel(client, name) for name in chosen.jobs])


def logs(chosen: argparse.Namespace, settings: Settings) -> int:
    with client_of(settings) as client:
        job_id, attempt = _named(client, chosen.job), 0
        for piece in client.read_log(job_id, follow=chosen.follow):
            if attempt not in (0, piece.attempt):
                say(f"attempt {piece.attempt} of {job_id}:")
            attempt = piece.attempt
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    return 0


def export(chosen: argparse.Namespace, settings: Settings) -> int:
    console = Console(stderr=True)
    with client_of(settings) as client:
        training = _named(client, chosen.job)
        target = _target(chosen.output, f"{training}-{chosen.format}.zip")
        spec = {"kind": "export", "job_id": training, "export_format": chosen.format}
        try:
            made = watching.watch(client, client.submit(spec), console)["result"]
        except NotCompleted as error:
            return _ended(error)
        with watching.moving(console, target.name) as on_bytes:
            client.download_export(made, target, on_bytes)
    say(f"{made['file_size_mb']} MB, verified: {made['archive_sha256']}")
    print(target)
    return 0


def health(_: argparse.Namespace, settings: Settings) -> int:
    address = settings.url or settings.address
    status = health_of(address, settings.token)
    if status in ("healthy", "degraded"):  # a service without a runner does its part: it takes work
        print(status)
        return 0
    say(f"No healthy service at {address}: start one with `training-api up`, or name it with --url.")
    return 1


COMMANDS: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
    "submit": submit,
    "prepare": prepare,
    "watch": watch,
    "jobs": jobs,
    "cancel": cancel,
    "logs": logs,
    "export": export,
    "health": health,
    **remote_webhooks.COMMANDS,
}


def _watch(client: Client, job_id: str, console: Console) -> int:
    try:
        job = watching.watch(client, job_id, console)
    except NotCompleted as error:
        return _ended(error)
    except KeyboardInterrupt:
        say(f"The job goes on: `training-api watch {job_id}` shows it again, `training-api cancel {job_id}` ends it.")
        raise
    message = job["result"].get("message") or ""
    console.print(Text(f"completed. {message}".strip()), soft_wrap=True)
    return COMPLETED


def _ended(error: NotCompleted) -> int:
    say(error.message)
    return CANCELLED if error.job["status"] == Status.CANCELLED else FAILED


def _cancel(client: Client, name: str) -> int:
    try:
        job = client.cancel(_named(client, name))
    except (RemoteProblem, InvalidInput) as error:  # the others are still to be cancelled
        say(f"{name}: {error.message}")
        return 1
    print(job["job_id"], _OUTCOMES.get(job["status"], "is being cancelled"))
    return 0


def _named(client: Client, text: str) -> str:
    """The id of the job that is meant: by its id, or by a begin or an end that only one recent job's id has.

    Raises:
        InvalidInput: several jobs could be meant, or any: a variable that is not set must not cancel the only one.
    """
    if _WHOLE_ID.fullmatch(text):
        return text
    if len(text.removeprefix("job_")) < _LEAST_OF_AN_ID:
        raise InvalidInput(f"{text!r} could be any job: give {_LEAST_OF_AN_ID} characters or more of its id.")
    ids = [job["job_id"] for job in client.jobs(limit=1000)]
    found = [job_id for job_id in ids if job_id.startswith(text) or job_id.endswith(text)]
    if len(found) > 1:
        raise InvalidInput(f"{len(found)} jobs could be meant by {text!r}: give more of the id (`training-api jobs`).")
    return found[0] if len(found) == 1 else text  # the service says what is wrong with it


def _target(wanted: Path | None, default: str) -> Path:
    """Where the download goes. Only a name that was given is written over."""
    target = wanted / default if wanted is not None and wanted.is_dir() else wanted or Path(default)
    if not target.parent.is_dir():
        raise InvalidInput(f"There is no folder {target.parent}: make it, or name another file with -o.")
    if wanted is None and target.exists():
        raise InvalidInput(f"{target} exists already: name another file with -o.")
    return target


# -- the spec of `submit`


def _spec(chosen: argparse.Namespace, client: Client) -> Json:
    """What is asked for: the preset, over it the file, over that the options."""
    spec: Json = {"kind": Kind.FINETUNE.value} | (_read(chosen.spec) if chosen.spec else {})
    if spec["kind"] == Kind.FINETUNE:
        own = {field: getattr(chosen, option) for option, field in _OWN_OPTIONS.items()}
        given = {field: value for field, value in own.items() if value is not None}
        config = spec.get("config") or {}
        if not isinstance(config, dict):
            raise InvalidInput("`config` must be an object: the training's settings by their names.")
        spec["config"] = _preset(client, chosen.preset) | config | given
        spec |= {"experiment_name": chosen.name} if chosen.name else {}
        spec |= {"tags": chosen.tag} if chosen.tag else {}
    elif chosen.preset or chosen.name or chosen.tag or any(getattr(chosen, option) for option in _OWN_OPTIONS):
        raise InvalidInput("--preset, --model, --train, --val, --name and --tag are for finetune jobs; use --set.")
    for field, value in map(_assignment, chosen.set):
        is_config = spec["kind"] == Kind.FINETUNE and field in TrainingConfig.__struct_fields__
        (spec["config"] if is_config else spec)[field] = value
    return spec


def _read(name: str) -> Json:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text()
        return msgspec.json.decode(text, type=dict[str, Any])
    except OSError as error:
        raise InvalidInput(f"{name} cannot be read ({error.strerror}): give a JSON file, or - for stdin.") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{name} holds no JSON object: {error}") from None


def _preset(client: Client, name: str | None) -> Json:
    if name is None:
        return {}
    presets = {preset["name"]: preset for preset in client.get("/api/train/presets")["presets"]}
    if name not in presets:
        raise InvalidInput(f"There is no preset {name!r}; there are {', '.join(presets)}.")
    config: Json = presets[name]["config"]
    return config


def _assignment(text: str) -> tuple[str, Any]:
    field, sign, value = text.partition("=")
    if not sign or not field:
        raise InvalidInput(f"--set {text!r} must be field=value, such as --set num_epochs=5.")
    try:
        return field, msgspec.json.decode(value)
    except msgspec.MsgspecError:
        return field, value  # plain text needs no quotes


# -- output


def _table(found: Iterable[Json]) -> Table:
    made = table("job", "kind", "status", "what", "progress", "loss", "submitted")
    for job in found:
        loss = "" if job["train_loss"] is None else f"{job['train_loss']:.3f}"
        status = f"{job['status']}: {job['waiting_reason']}" if job["waiting_reason"] else job["status"]
        add_row(
            made, job["job_id"], job["kind"], status, _what(job["spec"]), f"{job['progress_percentage']:.0f} %", loss,
            ago(job["submitted_at"]),
        )  # fmt: skip
    return made


def _what(spec: Json) -> str:
    """A job's subject: its name, its model, or the data or training it works on."""
    config = spec.get("config") or {}
    candidates = (spec.get("experiment_name"), config.get("model_name"), spec.get("data_path"),
                  spec.get("sam2_zip_path"), spec.get("job_id"))  # fmt: skip
    return next((str(each) for each in candidates if each), "")
