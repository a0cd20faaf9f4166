"""How much of a held-out part was as good as seen in training: frames close in time to a training frame.

Used by the split recipe, which reports it, and by the rule of the same name.
Neighbouring frames of a video differ little: a random split of one lets a model answer from memory.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence

REACH = 2  # frames of the dataset, before or after

Place = tuple[str, int]
"""A frame: its video and its frame_index."""


def find_neighbours(training: Iterable[Place], held_out: Sequence[Place], everything: Iterable[Place]) -> list[int]:
    """Which of the held-out frames lie within REACH frames of a training frame of their video; their positions.

    `everything` is every frame of the dataset: it says how far apart neighbours are.
    """
    rank = _ranks(everything)
    trained: dict[str, list[int]] = defaultdict(list)
    for place in training:
        trained[place[0]].append(rank[place])
    for ranks in trained.values():
        ranks.sort()
    return [position for position, place in enumerate(held_out) if _is_near(rank[place], trained.get(place[0], ()))]


def _ranks(everything: Iterable[Place]) -> dict[Place, int]:
    """The place of each frame in its video's order."""
    ordered = sorted(set(everything))
    ranks: dict[Place, int] = {}
    for number, place in enumerate(ordered):
        is_next = number and ordered[number - 1][0] == place[0]
        ranks[place] = ranks[ordered[number - 1]] + 1 if is_next else 0
    return ranks


def _is_near(rank: int, trained: Sequence[int]) -> bool:
    at = bisect_left(trained, rank - REACH)
    return at < len(trained) and trained[at] <= rank + REACH
