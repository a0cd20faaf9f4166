"""Which rows each optimiser step sees: a pure function of the seed, so that resuming jumps to its place.

Used by the loop and for what is told about progress.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from jobs.training_config import TrainingConfig

POOL_STEPS = 32  # rows are grouped by length among those of so many steps, so that chance still mixes them


@dataclass(frozen=True, eq=False)
class Plan:
    """Every epoch visits each row once, in an order of its own; its last step may have fewer rows.

    A step is one update of the weights: `accumulation` groups of `batch_size` rows. Where `lengths` are known, in
    tokens with images, the rows of a group are about equally long, so that little is padded. `at_once` rows are
    computed together: a whole group, or less of it where memory is short, which changes no step's rows. Several
    `processes` divide these among themselves, so a group of theirs is as large as that of one with all their rows.
    """

    rows: int
    batch_size: int
    accumulation: int
    epochs: int
    max_steps: int | None
    seed: int
    lengths: np.ndarray | None = None
    at_once: int = 0
    processes: int = 1
    rank: int = 0

    @classmethod
    def of(cls, config: TrainingConfig, rows: int, lengths: Sequence[int] | None = None, rank: int = 0) -> "Plan":
        """As process `rank` of the run sees it. `lengths` are those of all rows; they count only where they differ and
        grouping is wanted."""
        differ = config.group_by_length and lengths is not None and len(set(lengths)) > 1
        return cls(
            rows=rows,
            batch_size=config.batch_size * config.num_processes,
            accumulation=config.gradient_accumulation_steps,
            epochs=config.num_epochs,
            max_steps=config.max_steps,
            seed=config.seed,
            lengths=np.asarray(lengths) if differ else None,
            at_once=config.batch_size * config.num_processes,
            processes=config.num_processes,
            rank=rank,
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
        chosen = _order(self, epoch)[start : start + self._rows_per_step].tolist()
        groups = _cut(chosen, self.batch_size)
        return [piece for group in groups for piece in _cut(group, self.at_once or self.batch_size)]

    def share(self, step: int) -> list[list[int]]:
        """Of the micro-batches of a step, what this process computes; in a last step it may be nothing."""
        parts = (piece[self.rank :: self.processes] for piece in self.micro_batches(step))
        return [part for part in parts if part]

    def with_at_once(self, rows: int) -> "Plan":
        """The same steps, computed so many rows at a time."""
        return replace(self, at_once=rows)

    def epoch_after(self, steps: int) -> float:
        """How many times the rows have been seen after so many steps."""
        return steps / self.steps_per_epoch

    @property
    def _rows_per_step(self) -> int:
        return self.batch_size * self.accumulation


@lru_cache(maxsize=2)
def _order(plan: Plan, epoch: int) -> np.ndarray:
    """(rows,) a permutation of the row indices."""
    draw = np.random.default_rng((plan.seed, epoch))
    order = draw.permutation(plan.rows)
    if plan.lengths is None:
        return order
    pool = POOL_STEPS * plan.batch_size * plan.accumulation
    pools = [order[at : at + pool] for at in range(0, plan.rows, pool)]
    return np.concatenate([_grouped(rows, plan.lengths, plan.batch_size, draw) for rows in pools])


def _grouped(rows: np.ndarray, lengths: np.ndarray, size: int, draw: np.random.Generator) -> np.ndarray:
    """The rows in groups of about equal length, the groups in an order of chance; one that is not full stays last."""
    by_length = rows[np.argsort(-lengths[rows], kind="stable")]
    whole = len(rows) // size * size
    groups = by_length[:whole].reshape(-1, size)
    return np.concatenate([groups[draw.permutation(len(groups))].ravel(), by_length[whole:]])


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]
