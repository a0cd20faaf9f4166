"""Counting what a rule objects to, and the finding that comes of it."""

from collections.abc import Iterable
from itertools import islice
from typing import Literal

from jobs.results import Finding

_IDS_KEPT = 10
_LONGEST_SHOWN = 60


class Tally:
    """How often something was seen, and the first rows it was seen in."""

    def __init__(self) -> None:
        self.count = 0
        self._ids: list[str] = []

    def add(self, row_id: str, times: int = 1) -> None:
        self.count += times
        if len(self._ids) < _IDS_KEPT and row_id not in self._ids[-1:]:
            self._ids.append(row_id)

    @classmethod
    def of(cls, count: int, row_ids: Iterable[str]) -> "Tally":
        """One that is complete already; no more ids are taken than it keeps."""
        made = cls()
        made.count = count
        made._ids = list(islice(row_ids, _IDS_KEPT))
        return made

    @property
    def row_ids(self) -> tuple[str, ...]:
        return tuple(self._ids)

    def finding(self, rule: str, severity: Literal["error", "warning"], message: str, remedy: str) -> list[Finding]:
        """One finding, or none when nothing was counted. `{count}` in the message is filled in."""
        if not self.count:
            return []
        return [
            Finding(
                rule=rule,
                severity=severity,
                message=message.format(count=self.count),
                count=self.count,
                rows=self.row_ids,
                remedy=remedy,
            )
        ]


def shown(label: str) -> str:
    """Somebody else's word within a sentence of ours."""
    return repr(label if len(label) <= _LONGEST_SHOWN else f"{label[:_LONGEST_SHOWN]}…")
