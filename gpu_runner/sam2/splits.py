"""Dividing rows into train, val and test: one function a strategy, all with the same signature.

    strategy(keys, ratios, seed) -> Division

Called by the split recipe. Every row lands in exactly one part; the same arguments give the same division.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jobs.specs import SplitStrategy

PARTS = ("train", "val", "test")
GUARD = "guard"
GUARD_SHARE = 0.05  # of the rows may be given up to keep neighbouring frames apart
_VIDEOS_TO_DIVIDE = 3  # with fewer, a video has to be cut

Ratios = tuple[float, float, float]


class Key(NamedTuple):
    """What a row is divided by; `labels` are the different ones in it."""

    video_id: str
    frame_index: int
    labels: frozenset[str]


class Division(NamedTuple):
    """Indices of rows, ascending. `guard` rows lie between parts of one video and belong to none."""

    train: list[int]
    val: list[int]
    test: list[int]
    guard: list[int]


def sizes(count: int, ratios: Sequence[float]) -> list[int]:
    """How many rows each part gets: rounded down, what is left goes to the largest remainders."""
    exact = [count * ratio / sum(ratios) for ratio in ratios]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(ratios)), key=lambda part: whole[part] - exact[part])
    for part in by_remainder[: count - sum(whole)]:
        whole[part] += 1
    return whole


def divide_randomly(keys: Sequence[Key], ratios: Ratios, seed: int) -> Division:
    order = list(range(len(keys)))
    random.Random(seed).shuffle(order)
    return _cut(order, sizes(len(order), ratios))


def divide_stratified(keys: Sequence[Key], ratios: Ratios, seed: int) -> Division:
    """Every class is spread over the parts in the parts' ratios, as far as frames with several classes allow.

    The rarest class still to be placed goes first; each of its rows goes where that class is wanted most.
    Source: Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-Label Data, ECML PKDD 2011.
    """
    order = list(range(len(keys)))
    random.Random(seed).shuffle(order)
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row in order:
        for label in sorted(keys[row].labels) or [""]:
            rows_of[label].append(row)
    room = sizes(len(keys), ratios)
    wanted = {label: [len(rows) * ratio for ratio in ratios] for label, rows in rows_of.items()}
    waiting = Counter({label: len(rows) for label, rows in rows_of.items()})
    part_of: dict[int, int] = {}
    while waiting:
        rarest = min(waiting, key=lambda label: (waiting[label], label))
        for row in rows_of[rarest]:
            if row not in part_of:
                part_of[row] = part = _wanting_most(wanted[rarest], room, ratios)
                room[part] -= 1
                _count_placed(keys[row].labels or {""}, part, wanted, waiting)
        del waiting[rarest]
    return _gathered(part_of)


def divide_by_time(keys: Sequence[Key], ratios: Ratios, seed: int) -> Division:
    """No video is in two parts; where there are fewer than three, they are cut, with a guard gap at each cut."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows_of[key.video_id].append(row)
    if len(rows_of) < _VIDEOS_TO_DIVIDE:
        in_time = sorted(range(len(keys)), key=lambda row: (keys[row].video_id, keys[row].frame_index, row))
        return _cut_with_gaps(in_time, [keys[row].video_id for row in in_time], ratios)
    return _divide_videos(rows_of, sizes(len(keys), ratios), seed)


STRATEGIES: dict[SplitStrategy, Callable[[Sequence[Key], Ratios, int], Division]] = {
    SplitStrategy.RANDOM: divide_randomly,
    SplitStrategy.STRATIFIED: divide_stratified,
    SplitStrategy.TEMPORAL: divide_by_time,
}


def _cut(order: Sequence[int], lengths: Sequence[int]) -> Division:
    first, second, _ = lengths
    return Division(sorted(order[:first]), sorted(order[first : first + second]), sorted(order[first + second :]), [])


def _wanting_most(wanted: Sequence[float], room: Sequence[int], ratios: Ratios) -> int:
    """The part with room that wants this class most; where several do, the one that was given least so far."""
    left = sum(room)
    open_parts = [part for part in range(len(room)) if room[part] > 0]
    return max(open_parts, key=lambda part: (round(wanted[part], 6), room[part] - ratios[part] * left))


def _count_placed(
    labels: "frozenset[str] | set[str]", part: int, wanted: dict[str, list[float]], waiting: Counter[str]
) -> None:
    for label in labels:
        wanted[label][part] -= 1
        if label in waiting:
            waiting[label] -= 1


def _gathered(part_of: dict[int, int]) -> Division:
    parts: list[list[int]] = [[], [], []]
    for row in sorted(part_of):
        parts[part_of[row]].append(row)
    return Division(parts[0], parts[1], parts[2], [])


def _divide_videos(rows_of: dict[str, list[int]], targets: Sequence[int], seed: int) -> Division:
    """Large videos first, each to the part that lacks most rows; no part stays empty."""
    videos = sorted(rows_of)
    random.Random(seed).shuffle(videos)
    videos.sort(key=lambda video: -len(rows_of[video]))
    lacking = list(targets)
    part_of: dict[int, int] = {}
    filled: set[int] = set()
    for place, video in enumerate(videos):
        empty = [part for part in range(len(PARTS)) if part not in filled]
        allowed = empty if len(videos) - place <= len(empty) else range(len(PARTS))
        part = max(allowed, key=lambda candidate: lacking[candidate])
        filled.add(part)
        lacking[part] -= len(rows_of[video])
        part_of.update(dict.fromkeys(rows_of[video], part))
    return _gathered(part_of)


def _cut_with_gaps(in_time: Sequence[int], videos: Sequence[str], ratios: Ratios) -> Division:
    """Contiguous segments with a gap between them. `videos` are those of the rows `in_time`."""
    budget = int(len(in_time) * GUARD_SHARE)
    before_val, before_test = budget - budget // 2, budget // 2
    train, val, _ = sizes(len(in_time) - budget, ratios)
    first, second = (
        _gap(videos, start, start + length)
        for start, length in ((train, before_val), (train + before_val + val, before_test))
    )
    return Division(
        sorted(in_time[: first.start]),
        sorted(in_time[first.stop : second.start]),
        sorted(in_time[second.stop :]),
        sorted([*in_time[first], *in_time[second]]),
    )


def _gap(videos: Sequence[str], start: int, stop: int) -> slice:
    """The places to leave out at a cut: none where one video ends and another begins."""
    if start == 0 or stop >= len(videos) or videos[start - 1] == videos[stop]:
        return slice(start, stop)
    border = next(place for place in range(start, stop + 1) if videos[place] != videos[start - 1])
    return slice(border, border)
