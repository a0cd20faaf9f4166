"""burnt_in_overlays: pictures into which the annotation tool painted the answer.

A rule of validation; `find_in_sample` is the same for the convert recipe, which looks at no picture otherwise.
"""

from collections import defaultdict
from collections.abc import Callable
from random import Random

import numpy as np

from gpu_runner.rows import Rows
from gpu_runner.sam2.observed import Observed, glance
from gpu_runner.sam2.overlays import Colour
from gpu_runner.sam2.rules.tally import Tally
from jobs.results import Finding

_MARKED = 0.5  # of the pictures of an object that were searched
_SAME = 40  # grey levels that its colour may vary by
_FEWEST, _SHARE = 3, 0.1  # painted objects from which it is worth a warning, and their share of those looked at

_SAMPLE = 32  # rows: a tool paints all pictures or none

_Object = tuple[str, str]  # its video, and its id there or its label


class BurntInOverlays:
    """An object counts as painted when a line of the same colour is around it in most of its pictures."""

    def __init__(self) -> None:
        self._looks: dict[_Object, int] = defaultdict(int)
        self._lines: dict[_Object, list[tuple[str, Colour]]] = defaultdict(list)

    def look(self, seen: Observed) -> None:
        row = seen.row
        for number, colour in seen.outlines:
            names = (*row.object_ids[number : number + 1], *row.labels[number : number + 1])
            key = row.video_id, next(filter(None, names), "")
            self._looks[key] += 1
            if colour:
                self._lines[key].append((row.id, colour))

    def findings(self) -> list[Finding]:
        painted = Tally()
        for key, lines in self._lines.items():
            if len(lines) >= _MARKED * self._looks[key] and _is_one_colour([colour for _, colour in lines]):
                for row_id, _ in lines:
                    painted.add(row_id)
        looks = sum(self._looks.values())
        if painted.count < max(_FEWEST, _SHARE * looks):
            return []
        return painted.finding(
            "burnt_in_overlays",
            "warning",
            f"The annotation tool painted outlines into the pictures: {{count}} of the {looks} objects searched wear "
            "one. A model trained on these pictures reads the answer off the paint: ITS "
            "SCORES WILL BE WORTHLESS, however good they look, and it will fail on pictures without paint.",
            "Export again with the original frames of the video, without masks, outlines and labels drawn on them.",
        )


def find_in_sample(rows: Rows, seed: int, check: Callable[[], None]) -> list[Finding]:
    """What the rule finds in a few rows of a dataset of ours, taken by chance. `check` may raise to end the work."""
    rule = BurntInOverlays()
    for index in sorted(Random(seed).sample(range(len(rows)), min(_SAMPLE, len(rows)))):
        check()
        rule.look(glance(rows, index))
    return rule.findings()


def _is_one_colour(colours: list[Colour]) -> bool:
    """Whether most of them lie close to the one in the middle."""
    apart = np.abs(np.array(colours) - np.median(colours, axis=0)).max(axis=1)
    return bool((apart <= _SAME).mean() >= _MARKED)
