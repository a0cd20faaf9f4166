"""`training-api demo`: the product's real path over its own HTTP API, on a sample export it renders itself.

Sample export → upload → convert, validate, split by video → fine-tune `demo-llava` → evaluate on videos it never saw,
then once more with grey pictures → export → reload the export and let it answer. Exits 0 only if the numbers
prove that the pictures were used.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from jobs import presets
from jobs.calls import Json
from jobs.client import Client
from jobs.errors import RemoteProblem
from jobs.settings import Settings
from service.programs import Programs, free_port, health, is_free
from service.watching import View

LEAST_ACCURACY = 0.9  # held-out label accuracy
MOST_BY_GUESSING = 0.4  # with grey pictures, where the best constant answer gives about a quarter

_DATASET = "datasets/demo"
_CONFIG: Json = {**presets.preset("demo").config, "output_dir": "demo"}


def run_demo(settings: Settings) -> int:
    """The demo's exit status: 0 when every step worked and the accuracies are as promised."""
    began = time.monotonic()
    console = Console()
    with _service(settings, console) as address, Client(address, settings.token) as client:
        steps = _Steps(console)
        with steps.bars:
            outcome = _whole_path(client, steps)
        _print_summary(console, outcome, address, settings, time.monotonic() - began)
    return 0 if outcome.proven else 1


class Outcome:
    """What the demo measured, and where its model lies."""

    def __init__(self, held_out: Json, grey: Json, export: Json, answers: list[Json], job_id: str) -> None:
        self.held_out, self.grey, self.export, self.answers, self.job_id = held_out, grey, export, answers, job_id

    @property
    def accuracy(self) -> float:
        return float(self.held_out["label_accuracy"])

    @property
    def grey_accuracy(self) -> float:
        return float(self.grey["label_accuracy"])

    @property
    def proven(self) -> bool:
        return self.accuracy >= LEAST_ACCURACY and self.grey_accuracy <= MOST_BY_GUESSING


def _whole_path(client: Client, steps: "_Steps") -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        uploaded = _upload_sample(client, steps, Path(folder) / "sample_export.zip")
    split = _prepare(client, steps, uploaded["file_path"])
    config = _CONFIG | {"train_data_path": split["train_path"], "val_data_path": split["val_path"]}
    job_id = client.submit({"kind": "finetune", "config": config, "experiment_name": "demo", "tags": ["demo"]})
    steps.follow(client, job_id, "Fine-tune demo-llava")
    evaluate: Json = {"kind": "evaluate", "job_id": job_id, "data_path": split["test_path"], "max_new_tokens": 8}
    held_out = steps.run(client, evaluate, "Evaluate on held-out videos")
    grey = steps.run(client, evaluate | {"grey_images": True}, "Evaluate with grey pictures")
    export = steps.run(
        client, {"kind": "export", "job_id": job_id, "export_format": "huggingface"}, "Export and verify"
    )
    asked = {"kind": "generate", "export_id": export["export_id"], "data_path": split["test_path"], "max_new_tokens": 8}
    answered = steps.run(client, asked, "Reload the export and ask it")
    return Outcome(held_out, grey, export, answered["answers"], job_id)


def _upload_sample(client: Client, steps: "_Steps", archive: Path) -> Json:
    bar = steps.add("Render a sample SAM2 export")
    subprocess.run(
        [sys.executable, "-m", "gpu_runner.sam2.sample", str(archive)], check=True, stdout=subprocess.DEVNULL
    )
    steps.done(bar)
    bar = steps.add("Upload")
    answer = client.upload(archive, lambda done, total: steps.move(bar, done / max(1, total)))
    steps.done(bar, f"{answer['file_size_mb']} MB")
    return answer


def _prepare(client: Client, steps: "_Steps", uploaded: str) -> Json:
    spec = {"kind": "prepare", "sam2_zip_path": uploaded, "output_dir": _DATASET, "task": "classify"}
    by_video = {"strategy": "temporal", "train_ratio": 0.7, "val_ratio": 0.1, "test_ratio": 0.2}
    prepared = steps.run(client, spec | by_video, "Convert, check, split by video")
    if not prepared["success"]:
        raise RemoteProblem(prepared["message"], status=422, code="dataset_invalid")
    split: Json = prepared["split"]
    return split


class _Steps:
    """One progress bar a step."""

    def __init__(self, console: Console) -> None:
        self.bars = Progress(
            TextColumn("{task.description}", table_column=Column(min_width=30, no_wrap=True)),
            BarColumn(bar_width=16),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=console,
            expand=True,
        )

    def add(self, text: str) -> TaskID:
        return self.bars.add_task(text, total=1.0, note="")

    def move(self, bar: TaskID, fraction: float, note: str = "") -> None:
        self.bars.update(bar, completed=min(fraction, 1.0), note=note)

    def done(self, bar: TaskID, note: str = "") -> None:
        self.bars.update(bar, completed=1.0, note=note)
        self.bars.stop_task(bar)

    def run(self, client: Client, spec: Json, text: str) -> Json:
        """Submit a job and show it to its end; its result."""
        return self.follow(client, client.submit(spec), text)

    def follow(self, client: Client, job_id: str, text: str) -> Json:
        """Show a job to its end; its result. Raises NotCompleted, with the job's own message."""
        bar = self.add(text)
        job = client.job(job_id)
        view = View(job)
        for _, event in client.events(job_id, after=job["last_seq"]):
            view.hear(event)
            self.move(bar, view.fraction, view.note)
        result: Json = client.wait(job_id)["result"]
        self.done(bar, result.get("message", "") or view.work)
        return result


@contextmanager
def _service(settings: Settings, console: Console) -> Iterator[str]:
    """The address of a running service: the one of this data root if it is up, else one started for the demo."""
    if not is_free(settings.host, settings.port):
        address = settings.address
        if health(address, settings.token) is not None:
            console.print(f"Using the service that runs at {address}")
            yield address
            return
        settings = msgspec.structs.replace(settings, port=free_port(settings.host))
    with Programs(settings, log_folder=settings.data_folder / "logs") as programs:
        with console.status("Starting Redis, service and runner …"):
            programs.wait_until_ready()
        yield settings.address


def _print_summary(console: Console, outcome: Outcome, address: str, settings: Settings, took_s: float) -> None:
    floor = outcome.held_out["constant_accuracy"]
    table = Table(title="Does it look at the pictures?", title_justify="left")
    for column in ("held-out videos", "label accuracy", "promised"):
        table.add_column(column)
    table.add_row("fine-tuned model", f"{outcome.accuracy:.1%}", f"≥ {LEAST_ACCURACY:.0%}")
    table.add_row("the same with grey pictures", f"{outcome.grey_accuracy:.1%}", f"≤ {MOST_BY_GUESSING:.0%}")
    table.add_row("best constant answer", f"{floor:.1%}", "")
    console.print(table)
    for answer in outcome.answers:
        console.print(f"  expected {answer['expected']!r:10} answered {answer['predicted']!r:10} {answer['image']}")
    model = settings.data_folder / outcome.export["export_path"]
    console.print(f"The model: {model}", soft_wrap=True)
    console.print(f"The page:  {address}/ui/ after `make up`; the run is job {outcome.job_id}", soft_wrap=True)
    verdict = "proven" if outcome.proven else "NOT as promised: please report this as a bug"
    console.print(f"Done in {took_s:.0f} s; images are used: {verdict}.")
