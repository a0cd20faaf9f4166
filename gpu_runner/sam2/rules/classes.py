"""class_balance: how unequal the numbers of objects of the classes are."""

import math

from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally, shown
from jobs.results import Finding

_RULE = "class_balance"
_MODERATE, _SEVERE = 5, 9  # times as many objects of the largest class as of the smallest
_SHOWN = 5  # rare classes


class ClassBalance:
    def __init__(self) -> None:
        self._classes: dict[str, Tally] = {}
        self._nameless = Tally()

    def look(self, seen: Observed) -> None:
        labels = seen.row.labels
        for label in filter(None, labels):
            self._classes.setdefault(label, Tally()).add(seen.row.id)
        missing = max(len(seen.masks), len(labels)) - sum(map(bool, labels))
        if missing:
            self._nameless.add(seen.row.id, missing)

    def findings(self) -> list[Finding]:
        if not self._classes:
            return self._nameless.finding(
                _RULE, "error", "None of the {count} objects has a label.", "Label the objects, then export again."
            )
        return [
            *self._nameless.finding(_RULE, "warning", "{count} objects have no label.", "Label them."),
            *self._imbalance(),
        ]

    def _imbalance(self) -> list[Finding]:
        """`count` is the number of classes that are rare."""
        by_size = sorted(self._classes, key=lambda label: -self._classes[label].count)
        most = self._classes[by_size[0]].count
        rare = [label for label in by_size if most >= _MODERATE * self._classes[label].count]
        if not rare:
            return []
        ratio = most / self._classes[rare[-1]].count
        degree = "severe" if ratio >= _SEVERE else "moderate"
        counted = ", ".join(f"{self._classes[label].count} of {shown(label)}" for label in rare[-_SHOWN:])
        return [
            Finding(
                rule=_RULE,
                severity="warning",
                message=f"The imbalance of classes is {degree} ({ratio:.1f} : 1): {most} objects of "
                f"{shown(by_size[0])}, {counted}{' …' if len(rare) > _SHOWN else ''}.",
                count=len(rare),
                rows=self._classes[rare[-1]].row_ids,
                remedy=_advice(by_size[0], rare[-1], math.ceil(ratio / _MODERATE)),
            )
        ]


def _advice(large: str, small: str, times: int) -> str:
    copies = f"{times} altered copies of each" if times > 1 else "an altered copy of each"
    return (
        f"Annotate more frames with {shown(small)}, leave out some that only show {shown(large)}, or augment the rare "
        f"class: {copies} of its frames (crops, flips with their boxes and masks, brightness, blur)."
    )
