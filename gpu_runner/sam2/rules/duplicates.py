"""duplicate_frames: the same row id, the same frame of a video, or the same picture again."""

from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding

_RULE = "duplicate_frames"


class DuplicateFrames:
    """Ids must differ (error), because splits and answers refer to rows by them; the rest are warnings."""

    def __init__(self) -> None:
        self._seen_ids: set[str] = set()
        self._seen_places: set[tuple[str, int]] = set()
        self._seen_pictures: set[bytes] = set()
        self._ids, self._places, self._pictures = Tally(), Tally(), Tally()

    def look(self, seen: Observed) -> None:
        row = seen.row
        place = (row.video_id, row.frame_index)
        if row.id in self._seen_ids:
            self._ids.add(row.id)
        if row.video_id and place in self._seen_places:
            self._places.add(row.id)
        elif seen.fingerprint in self._seen_pictures:
            self._pictures.add(row.id)
        self._seen_ids.add(row.id)
        self._seen_places.add(place)
        if seen.fingerprint is not None:
            self._seen_pictures.add(seen.fingerprint)

    def findings(self) -> list[Finding]:
        return [
            *self._ids.finding(
                _RULE, "error", "{count} rows have the id of an earlier row.", "Give every row an id of its own."
            ),
            *self._places.finding(
                _RULE,
                "warning",
                "{count} rows repeat a frame of their video.",
                "Keep one of each: what is repeated is learned twice as hard.",
            ),
            *self._pictures.finding(
                _RULE,
                "warning",
                "{count} pictures look the same as an earlier one.",
                "Thin out still stretches of video: they add time, not knowledge.",
            ),
        ]
