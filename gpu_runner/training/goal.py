"""What a run is judged by: which metric, which way is better, and when to stop waiting for more.

Used by the loop; the metric's name and direction go into each checkpoint's manifest.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.training_config import TrainingConfig

_LOWER_IS_BETTER = re.compile(r"loss|perplexity|error|distance")


@dataclass(frozen=True)
class Goal:
    """A metric by its series name."""

    metric: str
    higher_is_better: bool

    def value_in(self, metrics: Mapping[str, float]) -> float | None:
        """None where it was not measured, or is no finite number: that is never the best."""
        value = metrics.get(self.metric)
        return value if value is not None and math.isfinite(value) else None

    def is_better(self, value: float, than: float | None, by: float = 0.0) -> bool:
        """Whether a value beats another by more than so much; anything beats nothing."""
        if than is None:
            return True
        return value - than > by if self.higher_is_better else than - value > by


BY_LOSS = Goal("eval_loss", higher_is_better=False)


def goal_of(config: TrainingConfig) -> Goal:
    """The configured metric. Unless it is said, what a name says of losses and errors should be low, all else high."""
    name = config.metric_for_best_model
    higher = config.greater_is_better
    return Goal(name, not _LOWER_IS_BETTER.search(name) if higher is None else higher)
