"""What was done last with every dataset: who made it what it is, what that goes back to, what a check of it found.

`queries` reads them, of one dataset or of all at once; `datasets` and `provenance` tell them.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from jobs.results import ValidateResult
from jobs.specs import SplitSpec
from service.records import DataStep

Lineage = Sequence[tuple[str, DataStep | None]]
"""A dataset and what made it, then the dataset it was cut from and what made that, back to a conversion.

Of a folder that no job we know made, the step is None.
"""


class Steps:
    """The newest steps of all datasets.

    Attributes:
        makers: the conversion or split by the folder it made, newest first.
        checks: the newest validation by the name of what was checked, whatever was made since.
    """

    def __init__(self, newest_first: Sequence[DataStep]) -> None:
        """At most one maker and one check for each name."""
        self.makers = {step.dataset: step for step in newest_first if not isinstance(step.result, ValidateResult)}
        self.checks = {step.dataset: step for step in newest_first if isinstance(step.result, ValidateResult)}

    def lineage(self, name: str) -> Lineage:
        """A file stands for its folder."""
        found: dict[str, DataStep | None] = {}
        source: str | None = name
        while source is not None and source not in found:
            found[source] = maker = self.makers.get(folder_of(source))
            source = source_of(maker)
        return list(found.items())

    def last_validation(self, name: str) -> ValidateResult | None:
        """As `Queries.last_validation`."""
        return newest_check(self.lineage(name), self.checks)


def newest_check(lineage: Lineage, checks: Mapping[str, DataStep]) -> ValidateResult | None:
    """What the newest check of a dataset since it was made found, or else that of what it was cut from."""
    for ancestor, maker in lineage:
        for name in names_of(ancestor):
            step = checks.get(name)
            if step and (maker is None or step.job.submitted_seq >= maker.job.submitted_seq):
                return step.result if isinstance(step.result, ValidateResult) else None
    return None


def source_of(maker: DataStep | None) -> str | None:
    """What a split was cut from; None of what else made a dataset."""
    return maker.spec.data_path if maker and isinstance(maker.spec, SplitSpec) else None


def names_of(name: str) -> tuple[str, ...]:
    """What a dataset may have been checked under: a file of rows also as its folder."""
    return tuple(dict.fromkeys((name, folder_of(name))))


def folder_of(name: str) -> str:
    """The folder of a dataset, which may be named by a file of rows in it."""
    path = PurePosixPath(name)
    return str(path.parent) if path.suffix == ".jsonl" else name
