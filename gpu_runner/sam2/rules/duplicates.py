"""duplicate_frames: the same row id, the same frame of a video, the same picture again, or a copy of it."""

from array import array

import numpy as np

from gpu_runner.rows import Rows
from gpu_runner.sam2 import fingerprints, look_alikes
from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding

_RULE = "duplicate_frames"
_TELLING_SHARE = 0.05  # of a dataset: black frames, or a place filmed twice, are in many


class DuplicateFrames:
    """Ids must differ (error), because splits and answers refer to rows by them; the rest are warnings.

    Pictures of one video may be much alike: it stands still, or comes back to a place. Between videos that is a copy,
    under another name or saved anew. A row without a video is one of its own.

    Keeps 84 bytes a row: hashes of 64 bits, of which no two are equal by chance in any dataset, and its record.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._looked, self._ids, self._places, self._pictures = array("q"), array("q"), array("q"), array("q")
        self._records, self._videos, self._first_of = bytearray(), array("q"), dict[str, int]()

    def look(self, seen: Observed) -> None:
        row = seen.row
        nothing = -seen.index  # like no other row's
        self._looked.append(seen.index)
        self._ids.append(hash(row.id))
        self._places.append(hash((row.video_id, row.frame_index)) if row.video_id else nothing)
        self._pictures.append(nothing if seen.fingerprint == fingerprints.NONE else hash(seen.fingerprint))
        self._records += seen.fingerprint
        self._videos.append(self._first_of.setdefault(row.video_id, seen.index) if row.video_id else seen.index)

    def findings(self) -> list[Finding]:
        places, pictures = _repeated(self._places), _repeated(self._pictures)
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
            *self._tally(pictures & ~places).finding(
                _RULE,
                "warning",
                "{count} pictures look the same as an earlier one.",
                "Thin out still stretches of video: they add time, not knowledge.",
            ),
            *self._copies(~pictures & ~places),
        ]

    def _copies(self, is_news: np.ndarray) -> list[Finding]:
        """Of the pictures of which nothing was said yet; none where too few are alike to tell of a copy."""
        if len(set(self._videos)) < 2:
            return []
        records = np.frombuffer(self._records, dtype=fingerprints.RECORD)
        is_copy = look_alikes.find_copies(records, np.array(self._videos))
        if is_copy.mean() < _TELLING_SHARE:
            return []
        return self._tally(is_copy & is_news).finding(
            _RULE,
            "warning",
            "{count} pictures look like an earlier one that is not of their video.",
            "Keep one of what is there twice, under another name, or compressed or scaled anew.",
        )

    def _tally(self, is_found: np.ndarray) -> Tally:
        return Tally.of(int(is_found.sum()), (self._rows[self._looked[at]].id for at in np.flatnonzero(is_found)))


def _repeated(hashes: "array[int]") -> np.ndarray:
    """Which of them occur earlier; bool."""
    is_repeated = np.ones(len(hashes), dtype=bool)
    is_repeated[np.unique(np.array(hashes), return_index=True)[1]] = False
    return is_repeated
