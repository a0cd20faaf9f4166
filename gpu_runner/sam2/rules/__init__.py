"""The rules of validation: one file a rule, all with the same signature, listed below.

A rule is made once a validation, looks at every row in order, and then says what it found. It keeps counts, not rows;
`tally` does the counting.

Adding a rule: a file here, a line in `make_rules`, a broken dataset in the tests.
"""

from typing import Protocol

from gpu_runner.rows import Rows
from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.annotations import MissingAnnotations
from gpu_runner.sam2.rules.boxes import BoxIntegrity
from gpu_runner.sam2.rules.classes import ClassBalance
from gpu_runner.sam2.rules.duplicates import DuplicateFrames
from gpu_runner.sam2.rules.leakage import Leakage
from gpu_runner.sam2.rules.masks import MaskIntegrity
from gpu_runner.sam2.rules.overlays import BurntInOverlays
from gpu_runner.sam2.rules.pictures import Pictures
from gpu_runner.sam2.rules.quality import Quality
from gpu_runner.sam2.rules.temporal import TemporalConsistency
from gpu_runner.sam2.rules.text import Text
from gpu_runner.work import Work
from jobs.results import Finding
from jobs.specs import ValidateSpec


class Rule(Protocol):
    def look(self, seen: Observed) -> None:
        """Take in the next row."""

    def findings(self) -> list[Finding]:
        """What was wrong with the rows looked at; nothing when all is well."""


def make_rules(rows: Rows, work: Work[ValidateSpec]) -> list[Rule]:
    """Every rule, fresh."""
    return [
        MissingAnnotations(rows),
        DuplicateFrames(rows),
        MaskIntegrity(),
        BoxIntegrity(),
        ClassBalance(),
        Quality(),
        Pictures(),
        TemporalConsistency(rows, strict=work.spec.level == "strict"),
        BurntInOverlays(),
        Text(),
        Leakage(rows, work),
    ]
