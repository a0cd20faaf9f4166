"""Which points of a curve stay when it is thinned: enough that its picture stays. Pure, called by the recorder.

A series is cut into stretches of as many points each; of each the lowest and the highest stay, and the first that is
no finite number; of the whole series the first and the last. The same points always give the same answer.
"""

from collections.abc import Sequence

from service.queries import Series

POINTS_KEPT = 1000
"""A series of as many points stays as it is; a longer one keeps about so many."""

_Point = tuple[int, float | None, float | None]


def kept_steps(series: Series) -> set[int]:
    """The steps at which any series keeps a point."""
    return {step for points in series.values() for step in _kept(points)}


def _kept(points: Sequence[_Point]) -> list[int]:
    if len(points) <= POINTS_KEPT:
        return [step for step, _, _ in points]
    length = -(-len(points) // (POINTS_KEPT // 2))
    kept = [points[0][0], points[-1][0]]
    for begin in range(0, len(points), length):
        stretch = points[begin : begin + length]
        numbers = [(value, step) for step, _, value in stretch if value is not None]
        if numbers:
            kept += [min(numbers)[1], max(numbers)[1]]
        if len(numbers) < len(stretch):
            kept.append(next(step for step, _, value in stretch if value is None))
    return kept
