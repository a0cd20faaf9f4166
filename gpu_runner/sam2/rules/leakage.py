"""leakage: how many frames of a held-out split lie next to frames that are trained on."""

from pathlib import Path

import msgspec

from gpu_runner.rows import Lines, Rows, decode_line
from gpu_runner.sam2 import leakage, split_config
from gpu_runner.sam2.leakage import Place
from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally
from gpu_runner.sam2.splits import GUARD, PARTS
from jobs.results import Finding


class Leakage:
    """Looks only when the rows are the val or test part of a split; the other parts lie beside it."""

    def __init__(self, rows: Rows) -> None:
        is_held_out = split_config.read_beside(rows) is not None and rows.files[0].stem in PARTS[1:]
        self._split = rows.files[0].parent if is_held_out else None
        self._places: list[Place] = []
        self._ids: list[str] = []

    def look(self, seen: Observed) -> None:
        if self._split:
            self._places.append((seen.row.video_id, seen.row.frame_index))
            self._ids.append(seen.row.id)

    def findings(self) -> list[Finding]:
        if not self._split:
            return []
        parts = {part: _read_places(self._split / f"{part}.jsonl") for part in (*PARTS, GUARD)}
        everything = [*self._places, *(place for places in parts.values() for place in places)]
        near = Tally()
        for position in leakage.find_neighbours(parts["train"], self._places, everything):
            near.add(self._ids[position])
        share = near.count / max(1, len(self._places))
        return near.finding(
            "leakage",
            "warning",
            f"{{count}} frames ({share:.0%}) lie within {leakage.REACH} frames of a training frame of the same video.",
            "Scores on them flatter: split with the strategy 'temporal'.",
        )


def _read_places(file: Path) -> list[Place]:
    """Places of a part's rows, whichever format it refers to; none for a part that was not written."""
    if not file.is_file():
        return []
    lines = Lines(file)
    keys = (decode_line(_KEY, lines, index, file.name) for index in range(len(lines)))
    return [(key.video_id, key.frame_index) for key in keys]


class _Key(msgspec.Struct, frozen=True):
    video_id: str = ""
    frame_index: int = 0


_KEY = msgspec.json.Decoder(_Key)
