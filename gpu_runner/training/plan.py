"""Which rows each optimiser step sees: a pure function of the seed, so that resuming jumps to its place.

Used by the loop and for what is told about progress.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jobs.training_config import TrainingConfig


@dataclass(frozen=True)
class Plan:
    """Every epoch visits each row once, in an order of its own; its last step may have fewer rows.

    A step is one update of the weights: up to `accumulation` micro-batches of up to `batch_size` rows.
    """

    rows: int
    batch_size: int
    accumulation: int
    epochs: int
    max_steps: int | None
    seed: int

    @classmethod
    def of(cls, config: TrainingConfig, rows: int) -> "Plan":
        return cls(
            rows=rows,
            batch_size=config.batch_size,
            accumulation=config.gradient_accumulation_steps,
            epochs=config.num_epochs,
            max_steps=config.max_steps,
            seed=config.seed,
        )

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self._rows_per_step)

    @property
    def total_steps(self) -> int:
        """`max_steps` ends a run early; it never makes it longer."""
        planned = self.epochs * self.steps_per_epoch
        return min(planned, self.max_steps) if self.max_steps else planned

    def micro_batches(self, step: int) -> list[list[int]]:
        """Row indices of the micro-batches of step `step`, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self._rows_per_step
        chosen = _order(self.rows, self.seed, epoch)[start : start + self._rows_per_step].tolist()
        return [chosen[at : at + self.batch_size] for at in range(0, len(chosen), self.batch_size)]

    def epoch_after(self, steps: int) -> float:
        """How many times the rows have been seen after so many steps."""
        return steps / self.steps_per_epoch

    @property
    def _rows_per_step(self) -> int:
        return self.batch_size * self.accumulation


@lru_cache(maxsize=1)
def _order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """(rows,) a permutation of the row indices."""
    return np.random.default_rng((seed, epoch)).permutation(rows)
