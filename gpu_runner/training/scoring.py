"""Right or wrong: what an answer says against what its row expects. Plain text, no tensors.

Used by generation and evaluation.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from gpu_runner.rows import Row
from gpu_runner.training import conversation
from jobs.results import Answer

_KEY = re.compile(r'"\w+"\s*:')  # also in an answer that was cut off


class Labels:
    """The labels that rows know, and how to find them in a text."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.known = frozenset[str]().union(*map(labels_of, rows))
        longest_first = sorted(self.known, key=len, reverse=True)  # "sports car" before "car"
        words = "|".join(map(re.escape, longest_first))
        self._mention = re.compile(rf"(?<!\w)({words})s?(?!\w)") if words else None

    def mentioned(self, text: str) -> frozenset[str]:
        """Known labels that stand in the text as words, a plural s allowed. JSON's keys are no words."""
        return frozenset(self._mention.findall(_folded(_KEY.sub(" ", text)))) if self._mention else frozenset()

    def is_correct(self, row: Row, predicted: str) -> bool:
        """Whether the labels mentioned are the row's; without any known labels, whether the text is the same."""
        if self.known:
            return self.mentioned(predicted) == labels_of(row)
        return is_exact(conversation.answer_of(row), predicted)


def labels_of(row: Row) -> frozenset[str]:
    """The row's labels without their case; objects without a name don't count."""
    return frozenset(map(_folded, row.labels)) - {""}


def is_exact(expected: str, predicted: str) -> bool:
    return " ".join(expected.split()) == " ".join(predicted.split())


def constant_accuracy(rows: Iterable[Row]) -> float | None:
    """What the best fixed answer would score: the share of the most frequent set of labels."""
    counts = Counter(labels_of(row) for row in rows)
    if set(counts) <= {frozenset()}:
        return None
    return counts.most_common(1)[0][1] / counts.total()


def accuracy(answers: Sequence[Answer]) -> float | None:
    """The share of correct answers."""
    return sum(bool(answer.correct) for answer in answers) / len(answers) if answers else None


def exact_match(answers: Sequence[Answer]) -> float:
    """The share of answers that are the expected text, spaces aside."""
    return sum(is_exact(answer.expected, answer.predicted) for answer in answers) / max(1, len(answers))


def _folded(label: str) -> str:
    return " ".join(label.casefold().split())
