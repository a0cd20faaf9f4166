"""What a run tells while it goes: phases, metrics, progress, samples, checkpoints. Used by the loop alone.

The training never waits for a disk or a pipe: a thread says it all, in the order in which it was given.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from gpu_runner.journal import PROGRESS_EVERY_S, Journal
from gpu_runner.training import device
from gpu_runner.training.checkpoints import Checkpoint
from gpu_runner.training.curves import Curves
from gpu_runner.training.device import Compute
from gpu_runner.training.plan import Plan
from jobs.events import JobPaused
from jobs.results import Answer

Say = Callable[[], None]


class RunLog:
    """Speaks to the journal on behalf of a run, and keeps the time. A context: inside, nobody else writes the journal.

    What goes wrong in the thread, such as a full disk, is raised by whatever is called next.
    """

    def __init__(self, journal: Journal, curves: Curves | None, plan: Plan, compute: Compute, first_step: int) -> None:
        self._journal = journal
        self._curves = curves
        self._plan = plan
        self._device = compute.device
        self._first_step = first_step
        self._began = time.monotonic()
        self._seconds = 0.0
        self._tokens = 0
        self._all_seconds = 0.0
        self._all_tokens = 0
        self._queue: queue.SimpleQueue[Say | threading.Event | None] = queue.SimpleQueue()
        self._progress: Say | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._speak, name="run-log", daemon=True)

    def __enter__(self) -> "RunLog":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """All is said when this returns."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def sync(self) -> None:
        """Returns once everything said so far is on the disk: what a manifest rests on must not outlive it."""
        done = threading.Event()
        self._queue.put(done)
        done.wait()
        self._check()
        self._journal.sync()

    def phase(self, name: str) -> None:
        self._say(partial(self._journal.phase, name))

    def note(self, message: str, code: str) -> None:
        self._say(partial(self._journal.note, message, code))

    def checkpoint(self, saved: Checkpoint) -> None:
        metrics = saved.manifest.metrics
        self._say(partial(self._journal.checkpoint, saved.step, saved.folder, saved.size_bytes, metrics))

    def checkpoint_removed(self, step: int, folder: Path) -> None:
        self._say(partial(self._journal.checkpoint_removed, step, folder))

    def paused(self, step: int) -> None:
        """The last word of an attempt: the state is saved."""
        self.sync()
        self._journal.state(JobPaused, step=step)

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens by the time of their steps, over the whole run; None before the first step."""
        return self._all_tokens / self._all_seconds if self._all_seconds else None

    def stepped(self, seconds: float, tokens: int) -> None:
        """A step took so long for so many real tokens, images included and padding not."""
        self._seconds += seconds
        self._tokens += tokens
        self._all_seconds += seconds
        self._all_tokens += tokens

    def log_training(
        self, step: int, train_loss: float, learning_rate: float, grad_norm: float, skipped: int
    ) -> dict[str, float]:
        """The values of the steps since the last call; `skipped` updates in the whole run, told where there are any."""
        values = {
            "train_loss": train_loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens_per_s": self._tokens / max(self._seconds, 1e-9),
            "memory_mb": device.peak_memory_bytes(self._device) / 2**20,
        }
        if skipped:
            values["skipped_steps"] = float(skipped)
        self._seconds, self._tokens = 0.0, 0
        self.log(step, values)
        return values

    def log(self, step: int, values: dict[str, float]) -> None:
        plan = self._plan
        self._say(
            partial(
                self._journal.metrics,
                step,
                values,
                epoch=plan.epoch_after(step),
                total_steps=plan.total_steps,
                total_epochs=plan.epochs,
            )
        )
        if self._curves is not None:
            self._say(partial(self._curves.add, step, values, time.time()))

    def progress(self, step: int) -> None:
        """How far the run is; evaluating and saving call it too, as a sign of life. The last word counts."""
        plan = self._plan
        done = step - self._first_step
        each = (time.monotonic() - self._began) / done if done else None
        self._progress = partial(
            self._journal.progress,
            step,
            plan.total_steps,
            epoch=plan.epoch_after(step),
            total_epochs=plan.epochs,
            eta_s=None if each is None else each * (plan.total_steps - step),
        )

    def samples(self, step: int, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self._say(
                partial(
                    self._journal.sample,
                    step,
                    answer.row_id,
                    prompt=answer.prompt,
                    expected=answer.expected,
                    predicted=answer.predicted,
                    image=answer.image,
                    correct=answer.correct,
                )
            )

    def _say(self, say: Say) -> None:
        self._check()
        self._queue.put(say)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _speak(self) -> None:
        """The thread."""
        while True:
            try:
                said = self._queue.get(timeout=PROGRESS_EVERY_S)
            except queue.Empty:
                said = _nothing
            progress, self._progress = self._progress, None
            self._attempt(progress or _nothing)
            if isinstance(said, threading.Event):
                said.set()
            elif said is not None:
                self._attempt(said)
            else:
                break
        if self._curves is not None:
            self._attempt(self._curves.close)

    def _attempt(self, say: Say) -> None:
        """After an error nothing more is said: a journal has no gaps."""
        if self._error is None:
            try:
                say()
            except Exception as error:
                self._error = error


def _nothing() -> None:
    pass


def finite(values: dict[str, float]) -> dict[str, float]:
    """Without what no JSON number can say."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
