"""Where a run stands: all that a checkpoint must hold besides weights, so that going on is exact.

Used by the loop. The position in the data is the step alone, see `plan`.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_runner.training.goal import Goal
from gpu_runner.training.optimisation import Optimisation
from jobs.errors import DatasetInvalid


@dataclass
class Window:
    """Sums since the metrics were last logged."""

    loss: float = 0.0
    tokens: int = 0

    def mean(self) -> float:
        return self.loss / max(1, self.tokens)


@dataclass
class RunState:
    """What changes from step to step. `rows` is how many rows the set had, to notice another one.

    `at_once` rows are computed together, fewer than configured where memory was short. `best` is the best value of the
    run's goal in an evaluation with `best_scores`, `without_gain` how many in a row brought none; `best_checkpoint`
    has `best_saved`.
    """

    rows: int
    at_once: int
    step: int = 0
    window: Window = field(default_factory=Window)
    train_loss: float | None = None
    best_eval_loss: float | None = None
    best_eval_accuracy: float | None = None
    best: float | None = None
    without_gain: int = 0
    best_scores: dict[str, float] = field(default_factory=dict)
    has_ended_early: bool = False
    best_checkpoint: str | None = None
    best_saved: float | None = None

    def note_scores(self, loss: float, accuracy: float | None) -> None:
        """Remember the best of each; a loss that is no number is never the best."""
        if math.isfinite(loss):
            self.best_eval_loss = loss if self.best_eval_loss is None else min(loss, self.best_eval_loss)
        if accuracy is not None:
            self.best_eval_accuracy = max(accuracy, self.best_eval_accuracy or 0.0)

    def note_goal(self, goal: Goal, value: float | None, threshold: float, scores: dict[str, float]) -> None:
        """Count an evaluation with all its scores: it gained if it beat the best by more than `threshold`."""
        has_gained = value is not None and goal.is_better(value, self.best, threshold)
        self.without_gain = 0 if has_gained else self.without_gain + 1
        if has_gained:
            self.best, self.best_scores = value, scores

    def note_checkpoint(self, name: str, goal: Goal, value: float | None) -> None:
        """Remember the best of the checkpoints that were evaluated at their step."""
        if value is not None and goal.is_better(value, self.best_saved):
            self.best_checkpoint, self.best_saved = name, value

    def save(self, path: Path, optimisation: Optimisation) -> None:
        state = {"run": asdict(self), "optimisation": optimisation.state_dict(), "rng": rng_state()}
        with path.open("wb") as file:  # given a path, torch.save does not say that the disk is full
            torch.save(state, file)

    def restore(self, path: Path, optimisation: Optimisation) -> None:
        """Take over a saved state, the RNG's included.

        Raises:
            DatasetInvalid: the training set is not what it was.
        """
        saved = torch.load(path, map_location="cpu", weights_only=True)
        run = saved["run"]
        if run["rows"] != self.rows:
            raise DatasetInvalid(
                f"The training set had {run['rows']} rows when this run was saved and has {self.rows} now: "
                "restore it, or start a new job with continue_from."
            )
        for name, value in run.items():
            setattr(self, name, Window(**value) if name == "window" else value)
        optimisation.load_state_dict(saved["optimisation"])
        set_rng_state(saved["rng"])


def seed_step(seed: int, rank: int, step: int) -> None:
    """Chance for one step of a process whose generators are in no checkpoint."""
    seed_everything(int(np.random.SeedSequence((seed, rank, step)).generate_state(1)[0]))


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # every GPU as well


def rng_state() -> dict[str, Any]:
    """The state of all generators, in types that torch.load takes without unpickling code."""
    numpy: Any = np.random.get_state()
    name, keys, *rest = numpy
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # of the process's own GPU
    }


def set_rng_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        own = torch.cuda.current_device() if len(state["cuda"]) > 1 else 0  # earlier versions kept that of every GPU
        torch.cuda.set_rng_state(state["cuda"][min(own, len(state["cuda"]) - 1)])


@contextmanager
def rng_untouched() -> Iterator[None]:
    """Whatever draws numbers inside leaves no trace in what comes after."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
