"""text: conversations a model can be trained on."""

from gpu_runner.rows import IMAGE_MARK, Row
from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding

_RULE = "text"


class Text:
    def __init__(self) -> None:
        self._empty, self._placeholders, self._turns = Tally(), Tally(), Tally()

    def look(self, seen: Observed) -> None:
        row = seen.row
        if any(turn.from_ == "gpt" and not turn.value.strip() for turn in row.conversations):
            self._empty.add(row.id)
        if sum(turn.value.count(IMAGE_MARK) for turn in row.conversations) != len(row.pictures):
            self._placeholders.add(row.id)
        if not _alternates(row):
            self._turns.add(row.id)

    def findings(self) -> list[Finding]:
        return [
            *self._empty.finding(
                _RULE,
                "error",
                "{count} rows have an empty answer.",
                "Nothing can be learned from them: fill or remove.",
            ),
            *self._placeholders.finding(
                _RULE,
                "error",
                f"{{count}} rows don't have exactly one {IMAGE_MARK} for their picture.",
                f"Begin the first question with {IMAGE_MARK}, and use it nowhere else.",
            ),
            *self._turns.finding(
                _RULE,
                "error",
                "{count} conversations don't alternate between human and gpt, beginning with human.",
                "A row is a question and its answer, or several of them in turn.",
            ),
        ]


def _alternates(row: Row) -> bool:
    roles = [turn.from_ for turn in row.conversations]
    return len(roles) > 0 and roles == ["human", "gpt"] * (len(roles) // 2)
