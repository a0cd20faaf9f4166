"""A better division of rows whose parts leak: the same request by time, with the leaks as they are and would be.

Called by the split recipe, which answers with it; nothing is written here.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import msgspec
import numpy as np

from gpu_runner.sam2 import leakage, splits
from gpu_runner.sam2.splits import Kept, Key
from jobs.results import Leak, Repair
from jobs.specs import SplitSpec, SplitStrategy

WORTH_IT = 0.05  # of a held-out part lies next to training frames


def propose(
    spec: SplitSpec, keys: Sequence[Key], kept: Kept, pictures: np.ndarray, before: Mapping[str, Leak]
) -> Repair | None:
    """None where nothing leaks to speak of, or dividing by time would not be better."""
    leaks = any(leak.near_share > WORTH_IT for leak in before.values())
    if spec.strategy is SplitStrategy.TEMPORAL or not leaks or _replaces_what_it_keeps(spec):
        return None
    ratios = (spec.train_ratio, spec.val_ratio, spec.test_ratio)
    after = leakage.measure(keys, splits.divide_by_time(keys, ratios, spec.random_seed, kept), pictures)
    if _near_share(after) >= _near_share(before) or any(before[part].rows and not after[part].rows for part in before):
        return None
    return Repair(
        request=msgspec.structs.replace(spec, strategy=SplitStrategy.TEMPORAL),
        before=dict(before),
        after=after,
        message=f"Frames within {leakage.REACH} frames of a training frame of the same video: {_said(before)}; divided "
        f"by time it would be {_said(after)}. POST `request` to /api/data/split: it replaces these parts.",
    )


def _replaces_what_it_keeps(spec: SplitSpec) -> bool:
    """Then the earlier split is gone once these parts are written, and the same request would keep these."""
    return spec.keep is not None and PurePosixPath(spec.keep).is_relative_to(spec.output_dir)


def _near_share(leaks: Mapping[str, Leak]) -> float:
    """Of all held-out rows."""
    return sum(leak.near for leak in leaks.values()) / max(1, sum(leak.rows for leak in leaks.values()))


def _said(leaks: Mapping[str, Leak]) -> str:
    return " and ".join(f"{leak.near} of {leak.rows} in {part}" for part, leak in leaks.items())
