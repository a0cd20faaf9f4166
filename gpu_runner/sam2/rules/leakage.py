"""leakage: how much of a held-out split training as good as sees: the frames next to its own, and their look-alikes."""

import numpy as np

from gpu_runner.rows import Rows, open_rows
from gpu_runner.sam2 import fingerprints, leakage, look_alikes, split_config
from gpu_runner.sam2.leakage import Place
from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally
from gpu_runner.sam2.splits import GUARD, PARTS
from gpu_runner.work import Work
from jobs.errors import DatasetInvalid
from jobs.results import Finding
from jobs.specs import ValidateSpec

_RULE = "leakage"


class Leakage:
    """Looks only when the rows are the val or test part of a split; the other parts lie beside it."""

    def __init__(self, rows: Rows, work: Work[ValidateSpec]) -> None:
        is_held_out = split_config.read_beside(rows) is not None and rows.files[0].stem in PARTS[1:]
        self._split = work.root.name_of(rows.files[0].parent) if is_held_out else None
        self._work = work
        self._places: list[Place] = []
        self._ids: list[str] = []
        self._records = bytearray()

    def look(self, seen: Observed) -> None:
        if self._split:
            self._places.append((seen.row.video_id, seen.row.frame_index))
            self._ids.append(seen.row.id)
            self._records += seen.fingerprint

    def findings(self) -> list[Finding]:
        if not self._split:
            return []
        return [*self._near(self._split), *self._look_alikes(self._split)]

    def _near(self, split: str) -> list[Finding]:
        root, unreadable = self._work.root, Tally()
        parts = {
            part: [(row.video_id, row.frame_index) for row in split_config.read_part(root, split, part, unreadable.add)]
            for part in (*PARTS, GUARD)
        }
        everything = [*self._places, *(place for places in parts.values() for place in places)]
        near = Tally()
        for position in leakage.find_neighbours(parts["train"], self._places, everything):
            near.add(self._ids[position])
        return [
            *near.finding(
                _RULE,
                "warning",
                f"{{count}} frames ({self._share(near)}) lie within {leakage.REACH} frames of a training frame of the "
                "same video.",
                "Scores on them flatter: split with the strategy 'temporal'.",
            ),
            *unreadable.finding(
                _RULE,
                "warning",
                "{count} rows in the parts of this split cannot be read, so nothing was compared with them.",
                "Split again.",
            ),
        ]

    def _look_alikes(self, split: str) -> list[Finding]:
        try:
            train = open_rows(self._work.root, f"{split}/train.jsonl")
        except DatasetInvalid:  # gone since it was split
            return []
        trained = fingerprints.of(train, self._work.root, self._work.cores, self._work.stop.check)
        alike = look_alikes.find(trained, np.frombuffer(self._records, dtype=fingerprints.RECORD))
        found = Tally.of(int(alike.sum()), (self._ids[at] for at in np.flatnonzero(alike)))
        return found.finding(
            _RULE,
            "warning",
            f"{{count}} pictures ({self._share(found)}) look like one of training, whichever video that is from.",
            "Scores on them flatter: take repeated videos and still stretches out, then split again.",
        )

    def _share(self, tally: Tally) -> str:
        return f"{tally.count / max(1, len(self._ids)):.0%}"
