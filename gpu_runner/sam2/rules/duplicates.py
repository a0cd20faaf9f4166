"""duplicate_frames: the same row id, the same frame of a video, or the same picture again."""

from array import array

import numpy as np

from gpu_runner.rows import Rows
from gpu_runner.sam2 import fingerprints
from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding

_RULE = "duplicate_frames"


class DuplicateFrames:
    """Ids must differ (error), because splits and answers refer to rows by them; the rest are warnings.

    Keeps 32 bytes a row: hashes of 64 bits, of which no two are equal by chance in any dataset.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._looked, self._ids, self._places, self._pictures = array("q"), array("q"), array("q"), array("q")

    def look(self, seen: Observed) -> None:
        row = seen.row
        nothing = -seen.index  # like no other row's
        self._looked.append(seen.index)
        self._ids.append(hash(row.id))
        self._places.append(hash((row.video_id, row.frame_index)) if row.video_id else nothing)
        self._pictures.append(nothing if seen.fingerprint == fingerprints.NONE else hash(seen.fingerprint))

    def findings(self) -> list[Finding]:
        places = _repeated(self._places)
        return [
            *self._tally(_repeated(self._ids)).finding(
                _RULE, "error", "{count} rows have the id of an earlier row.", "Give every row an id of its own."
            ),
            *self._tally(places).finding(
                _RULE,
                "warning",
                "{count} rows repeat a frame of their video.",
                "Keep one of each: what is repeated is learned twice as hard.",
            ),
            *self._tally(_repeated(self._pictures) & ~places).finding(
                _RULE,
                "warning",
                "{count} pictures look the same as an earlier one.",
                "Thin out still stretches of video: they add time, not knowledge.",
            ),
        ]

    def _tally(self, is_found: np.ndarray) -> Tally:
        return Tally.of(int(is_found.sum()), (self._rows[self._looked[at]].id for at in np.flatnonzero(is_found)))


def _repeated(hashes: "array[int]") -> np.ndarray:
    """Which of them occur earlier; bool."""
    is_repeated = np.ones(len(hashes), dtype=bool)
    is_repeated[np.unique(np.array(hashes), return_index=True)[1]] = False
    return is_repeated
