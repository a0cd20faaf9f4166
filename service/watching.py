"""A job as a terminal shows it: one line that moves, and above it whatever is worth keeping.

Used by `demo` and by the commands of `remote`. Where the output is no terminal, plain lines tell the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Column
from rich.text import Text

from jobs import events
from jobs.calls import Json
from jobs.client import Client
from jobs.events import Event, LoggedEvent
from jobs.lifecycle import TRANSITIONS, Status
from jobs.transfer import OnBytes


class View:
    """What is known of a job, kept fresh by its events."""

    def __init__(self, job: Json) -> None:
        self.status = Status(job["status"])
        self.fraction: float = job["fraction"] or 0.0
        self._waiting: str | None = job["waiting_reason"]
        self._phase: str | None = job["phase"]
        self._step: int | None = job["step"]
        self._total_steps: int | None = job["total_steps"]
        self._loss: float | None = job["train_loss"]
        self._eta_s: float | None = job["eta_s"]

    def hear(self, event: LoggedEvent) -> None:
        self.status = TRANSITIONS.get(type(event), {}).get(self.status, self.status)
        match event:
            case events.JobWaiting():
                self._waiting = event.reason
            case events.JobPlaced():
                self._waiting = None
            case events.JobInterrupted() | events.JobPaused():
                self._phase = self._eta_s = None
            case events.PhaseEntered():
                self._phase = event.phase
            case events.JobProgressed():
                self.fraction = event.fraction
                self._step, self._total_steps, self._eta_s = event.step, event.total_steps, event.eta_s
            case events.MetricsLogged():
                self._step = event.step
                self._loss = event.values.get("train_loss", self._loss)
            case events.JobCompleted():
                self.fraction = 1.0

    @property
    def note(self) -> str:
        """Where the job stands, in a few words."""
        if self.status is Status.PENDING:
            return self._waiting or "waiting for a place"
        if self.status is not Status.RUNNING:
            return self.status.value
        left = [f"{timedelta(seconds=round(self._eta_s))} left"] if self._eta_s is not None else []
        return "  ".join([self._phase or "starting", *filter(None, [self.work]), *left])

    @property
    def work(self) -> str:
        """How far a training is; empty for other jobs, which have no loss."""
        if self._loss is None:
            return ""
        total = f"/{self._total_steps}" if self._total_steps else ""
        return f"step {self._step}{total}  loss {self._loss:.3f}"


def told(event: LoggedEvent) -> str | None:
    """An event as a sentence that is worth keeping; None for those that only move the line."""
    match event:
        case events.JobWaiting():
            return f"waiting: {event.reason}"
        case events.JobPlaced():
            return f"placed on {event.device} of {event.runner_id}"
        case events.JobStarted():
            return f"attempt {event.attempt} runs on {event.device_name or event.device}"
        case events.JobInterrupted():
            return f"attempt {event.attempt} was interrupted: {event.cause}"
        case events.TrainingResumed():
            return f"goes on from step {event.step}"
        case events.JobNoted():
            return f"note: {event.message}"
        case events.SamplePredicted():
            mark = {True: " ✓", False: " ✗", None: ""}[event.correct]
            return f"step {event.step}: expected {event.expected!r}, answers {event.predicted!r}{mark}"
        case events.MetricsLogged() if "eval_loss" in event.values:
            return f"step {event.step}: {_values(event)}"
        case events.CheckpointSaved():
            return f"step {event.step}: checkpoint saved"
    return _SENTENCES.get(type(event))


_SENTENCES: dict[type[Event], str] = {
    events.CancelRequested: "is being cancelled",
    events.PauseRequested: "is being paused",
    events.JobPaused: "is paused: its state is saved, its device free",
    events.ResumeRequested: "is resumed",
}


def watch(client: Client, job_id: str, console: Console) -> Json:
    """Show a job to its end; the job.

    Raises:
        NotCompleted: it failed or was cancelled.
    """
    job = client.job(job_id)
    view = View(job)
    with _line(console) as bars:
        bar = bars.add_task(f"{job['kind']} {job_id}", total=1.0, note=clean(view.note))
        bars.update(bar, completed=view.fraction)
        for note in job["notes"]:
            _keep(console, f"note: {note}")
        for _, event in client.events(job_id, after=job["last_seq"]):
            view.hear(event)
            bars.update(bar, completed=view.fraction, note=clean(view.note))
            sentence = told(event) or (None if console.is_terminal else _plainly(event))
            if sentence is not None:
                _keep(console, sentence)
    return client.wait(job_id)


@contextmanager
def moving(console: Console, text: str) -> Iterator[OnBytes]:
    """A bar for bytes on their way, as the callback that moves it."""
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bars:
        bar = bars.add_task(text, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total or None)


def _line(console: Console) -> Progress:
    one_line = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[note]}", markup=False, table_column=one_line),
        console=console,
        expand=True,
        disable=not console.is_terminal,
    )


def _plainly(event: LoggedEvent) -> str | None:
    """What a moving line would show, for an output that has none."""
    match event:
        case events.PhaseEntered():
            return event.phase
        case events.MetricsLogged():
            return f"step {event.step}{f'/{event.total_steps}' if event.total_steps else ''}: {_values(event)}"
    return None


def _values(event: events.MetricsLogged) -> str:
    shown = {"train_loss": "loss", "eval_loss": "eval loss", "eval_accuracy": "eval accuracy"}
    values = {name: event.not_finite.get(name, value) for name, value in event.values.items() if name in shown}
    return "  ".join(
        f"{shown[name]} {value:.4f}" if isinstance(value, float) else f"{shown[name]} {value}"
        for name, value in values.items()
    )


def _keep(console: Console, sentence: str) -> None:
    console.print(Text(clean(sentence)), soft_wrap=True)


def clean(text: str) -> str:
    """Without control characters: what a model answers must not steer a terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
