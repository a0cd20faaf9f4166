"""How good a model in eval mode is on rows: its loss and its answers.

Used by the loop while it trains, and by the recipe evaluate.
"""

from dataclasses import dataclass

import torch

from gpu_runner.rows import Rows
from gpu_runner.training import generation, scoring
from gpu_runner.training.encoding import RowEncoder, collate
from gpu_runner.training.generation import Beat
from gpu_runner.training.loss import summed_loss
from gpu_runner.training.models import Loaded
from gpu_runner.training.selection import Selection, spread
from jobs.paths import DataRoot
from jobs.results import Answer

LOSS_ROWS = 1000  # most rows a loss is taken over while training
ANSWER_ROWS = 32  # most rows that are answered while training
SAMPLE_ROWS = 4  # of these, how many are shown to people
ANSWER_TOKENS = 256  # longest answer while training


@dataclass(frozen=True)
class Measured:
    """`loss` is the mean over trained tokens."""

    loss: float
    scores: scoring.Scores

    def named(self) -> dict[str, float]:
        """As metric series, what was measured alone."""
        values = {"loss": self.loss, "accuracy": self.scores.label_accuracy} | self.scores._asdict()
        del values["label_accuracy"]
        return {f"eval_{name}": value for name, value in values.items() if value is not None}


class Validation:
    """The rows a run is measured on, the same at every evaluation; `at_once` of them are computed together."""

    def __init__(self, rows: Rows, encoder: RowEncoder, root: DataRoot, batch_size: int) -> None:
        self._encoder = encoder
        self._root = root
        self.at_once = batch_size
        self._for_loss = spread(rows, LOSS_ROWS)
        self._for_answers = spread(rows, ANSWER_ROWS)
        self._max_new_tokens = generation.longest_answer(encoder, self._for_answers, most=ANSWER_TOKENS)

    def rows(self) -> Selection:
        """All rows an evaluation looks at."""
        return Selection(self._for_loss.rows, tuple(sorted({*self._for_loss.indices, *self._for_answers.indices})))

    def score(self, loaded: Loaded, beat: Beat) -> tuple[Measured, list[Answer]]:
        """The scores, and the answers that are shown."""
        loss = mean_loss(loaded, self._encoder, self._for_loss, self.at_once, beat)
        answers = self._answers(loaded, self._for_answers, beat)
        return Measured(loss, scoring.scores(answers)), answers[:SAMPLE_ROWS]

    def samples(self, loaded: Loaded, beat: Beat) -> list[Answer]:
        """The shown answers alone."""
        return self._answers(loaded, self._for_answers.first(SAMPLE_ROWS), beat)

    def _answers(self, loaded: Loaded, selection: Selection, beat: Beat) -> list[Answer]:
        return generation.answer_rows(
            loaded,
            self._encoder,
            selection,
            self._root,
            max_new_tokens=self._max_new_tokens,
            batch_size=self.at_once,
            beat=beat,
        )


def mean_loss(loaded: Loaded, encoder: RowEncoder, selection: Selection, batch_size: int, beat: Beat) -> float:
    """Cross-entropy per trained token over all rows of the selection."""
    total, tokens = 0.0, 0
    for indices in selection.batches(batch_size):
        encoded = [encoder.encode(*selection.open(index)) for index in indices]
        with torch.no_grad():
            loss, count = summed_loss(loaded, collate(encoded, loaded.tokenizer.pad_token_id))
        total, tokens = total + loss.item(), tokens + count
        beat()
    return total / max(1, tokens)
