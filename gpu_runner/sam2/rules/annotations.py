"""missing_annotations: rows with a picture in which nothing is annotated."""

import msgspec

from gpu_runner.rows import Rows
from gpu_runner.sam2.manifest import MANIFEST, Manifest
from gpu_runner.sam2.observed import Observed
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding


class MissingAnnotations:
    """An error, unless the dataset was converted with the wish to keep such frames as negative examples."""

    def __init__(self, rows: Rows) -> None:
        self._wanted = _keeps_empty_frames(rows)
        self._rows = 0
        self._bare = Tally()

    def look(self, seen: Observed) -> None:
        self._rows += 1
        if seen.row.image is not None and not seen.row.masks and not seen.row.bounding_boxes:
            self._bare.add(seen.row.id)

    def findings(self) -> list[Finding]:
        share = self._bare.count / max(1, self._rows)
        return self._bare.finding(
            "missing_annotations",
            "warning" if self._wanted else "error",
            f"{{count}} frames ({share:.1%}) have no annotations.",
            "They were kept as negative examples; see that they are few."
            if self._wanted
            else "Annotate them, take them out, or convert with keep_empty_frames if they are meant.",
        )


def _keeps_empty_frames(rows: Rows) -> bool:
    try:
        content = (rows.dataset / MANIFEST).read_bytes()
        return msgspec.json.decode(content, type=Manifest).options.keep_empty_frames
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False
