"""How much of a held-out part was as good as seen in training: frames close in time, and pictures that look the same.

Used by the split recipe, which reports it, and by the rule of the same name.
Neighbouring frames of a video differ little: a random split of one lets a model answer from memory.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gpu_runner.sam2 import look_alikes
from gpu_runner.sam2.splits import PARTS, Division, Key
from jobs.results import Leak

REACH = 2  # frames of the dataset, before or after
HELD_OUT = PARTS[1:]
_STEPS = {"1": 1, "2": 2, "3-5": 5, "6-10": 10}  # the farthest of each range of distances
_FARTHER, _NOT_TRAINED_ON = "11+", "none"

Place = tuple[str, int]
"""A frame: its video and its frame_index."""


def measure(keys: Sequence[Key], division: Division, pictures: np.ndarray) -> dict[str, Leak]:
    """The leak of each held-out part. `pictures` are records of `fingerprints`, one a row."""
    places = [(key.video_id, key.frame_index) for key in keys]
    rank_of = _ranks(places)
    trained_on = _trained_on((places[row] for row in division.train), rank_of)
    leaks = {}
    for part in HELD_OUT:
        rows: list[int] = getattr(division, part)
        distances = [_distance(places[row], rank_of, trained_on) for row in rows]
        near = sum(distance is not None and distance <= REACH for distance in distances)
        leaks[part] = Leak(
            rows=len(rows),
            near=near,
            near_share=round(near / max(1, len(rows)), 4),
            distances=_by_range(distances),
            look_alikes=int(look_alikes.find(pictures[division.train], pictures[rows]).sum()),
        )
    return leaks


def find_neighbours(training: Iterable[Place], held_out: Sequence[Place], everything: Iterable[Place]) -> list[int]:
    """Which of the held-out frames lie within REACH frames of a training frame of their video; their positions.

    `everything` is every frame of the dataset: it says how far apart neighbours are.
    """
    rank_of = _ranks(everything)
    trained_on = _trained_on(training, rank_of)
    distances = (_distance(place, rank_of, trained_on) for place in held_out)
    return [position for position, distance in enumerate(distances) if distance is not None and distance <= REACH]


def _ranks(everything: Iterable[Place]) -> dict[Place, int]:
    """The place of each frame in its video's order."""
    ranks: dict[Place, int] = {}
    video, rank = None, 0
    for place in sorted(set(everything)):
        rank = rank + 1 if place[0] == video else 0
        video = place[0]
        ranks[place] = rank
    return ranks


def _trained_on(training: Iterable[Place], rank_of: Mapping[Place, int]) -> dict[str, list[int]]:
    """By video: the ranks of its training frames, ascending."""
    ranks: dict[str, list[int]] = defaultdict(list)
    for place in training:
        ranks[place[0]].append(rank_of[place])
    for of_video in ranks.values():
        of_video.sort()
    return ranks


def _distance(place: Place, rank_of: Mapping[Place, int], trained_on: Mapping[str, Sequence[int]]) -> int | None:
    """Frames to the nearest training frame; None where its video is not trained on, or not known."""
    video_id, _ = place
    trained = trained_on.get(video_id)
    if not video_id or not trained:
        return None
    rank = rank_of[place]
    at = bisect_left(trained, rank)
    return min(abs(near - rank) for near in trained[max(0, at - 1) : at + 1])


def _by_range(distances: Iterable[int | None]) -> dict[str, int]:
    """How many there are in each range, all ranges named. The same frame again counts as one away."""
    found = Counter(map(_range, distances))
    return {name: found[name] for name in (*_STEPS, _FARTHER, _NOT_TRAINED_ON)}


def _range(distance: int | None) -> str:
    if distance is None:
        return _NOT_TRAINED_ON
    return next((name for name, farthest in _STEPS.items() if distance <= farthest), _FARTHER)
