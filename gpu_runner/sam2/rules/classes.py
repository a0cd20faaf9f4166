"""class_balance: how unequal the numbers of objects of the classes are."""

from collections import Counter

from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding

_RULE = "class_balance"
_MODERATE, _SEVERE = 5, 9  # times as many objects of the largest class as of the smallest


class ClassBalance:
    def __init__(self) -> None:
        self._objects: Counter[str] = Counter()
        self._nameless = Tally()

    def look(self, seen: Observed) -> None:
        self._objects.update(label for label in seen.row.labels if label)
        missing = max(len(seen.row.masks), len(seen.row.labels)) - sum(map(bool, seen.row.labels))
        if missing:
            self._nameless.add(seen.row.id, missing)

    def findings(self) -> list[Finding]:
        if not self._objects:
            return self._nameless.finding(
                _RULE, "error", "None of the {count} objects has a label.", "Label the objects, then export again."
            )
        return [
            *self._nameless.finding(_RULE, "warning", "{count} objects have no label.", "Label them."),
            *self._imbalance(),
        ]

    def _imbalance(self) -> list[Finding]:
        (large, most), (small, fewest) = self._objects.most_common(1)[0], self._objects.most_common()[-1]
        ratio = most / fewest
        if ratio < _MODERATE:
            return []
        degree = "severe" if ratio >= _SEVERE else "moderate"
        counted = f"{most} objects of {large!r}, {fewest} of {small!r}"
        message = f"The imbalance of classes is {degree} ({ratio:.1f} : 1): {counted}."
        remedy = (
            f"Add frames with {small!r}, leave out some that only show {large!r}, or augment the rare class (flips, "
            "crops, brightness)."
        )
        return [Finding(rule=_RULE, severity="warning", message=message, count=fewest, remedy=remedy)]
