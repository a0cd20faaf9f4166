"""What a run tells while it goes: metrics, progress, samples. Used by the loop alone."""

import math
import time
from collections.abc import Sequence

from gpu_runner.journal import Journal
from gpu_runner.training import device
from gpu_runner.training.device import Compute
from gpu_runner.training.plan import Plan
from jobs.results import Answer


class RunLog:
    """Speaks to the journal on behalf of a run, and keeps the time."""

    def __init__(self, journal: Journal, plan: Plan, compute: Compute, first_step: int) -> None:
        self._journal = journal
        self._plan = plan
        self._device = compute.device
        self._first_step = first_step
        self._began = time.monotonic()
        self._seconds = 0.0
        self._tokens = 0
        self._all_seconds = 0.0
        self._all_tokens = 0

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

    def log_training(self, step: int, train_loss: float, learning_rate: float, grad_norm: float, skipped: int) -> None:
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

    def log(self, step: int, values: dict[str, float]) -> None:
        plan = self._plan
        self._journal.metrics(
            step,
            values,
            epoch=plan.epoch_after(step),
            total_steps=plan.total_steps,
            total_epochs=plan.epochs,
        )

    def progress(self, step: int) -> None:
        """How far the run is; evaluating and saving call it too, as a sign of life."""
        plan = self._plan
        done = step - self._first_step
        each = (time.monotonic() - self._began) / done if done else None
        self._journal.progress(
            step,
            plan.total_steps,
            epoch=plan.epoch_after(step),
            total_epochs=plan.epochs,
            eta_s=None if each is None else each * (plan.total_steps - step),
        )

    def samples(self, step: int, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self._journal.sample(
                step,
                answer.row_id,
                prompt=answer.prompt,
                expected=answer.expected,
                predicted=answer.predicted,
                image=answer.image,
                correct=answer.correct,
            )


def finite(values: dict[str, float]) -> dict[str, float]:
    """Without what no JSON number can say."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
