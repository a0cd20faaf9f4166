"""Dividing rows into train, val and test: one function a strategy, all with the same signature.

    strategy(keys, ratios, seed, kept) -> Division

Called by the split recipe. Every row lands in exactly one part; the same arguments give the same division. Rows that
are `kept` stay where an earlier division put them, and the others are divided so that all together come near to the
ratios. Everything here is linear in the rows, but for sorting.
"""

import random
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple

from gpu_runner.sam2 import stratification
from jobs.specs import SplitStrategy

PARTS = ("train", "val", "test")
GUARD = "guard"
GUARD_SHARE = 0.05  # of the rows may be given up to keep neighbouring frames apart
_VIDEOS_TO_DIVIDE = 3  # with fewer, a video has to be cut

Ratios = tuple[float, float, float]
Video = tuple[str, int]
"""A video's id and -1; of a row that names no video, its own number: it is on its own."""


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


Kept = Mapping[int, int]
"""The places in a Division of rows that were divided before."""

_NONE: Kept = MappingProxyType({})
_GUARD = Division._fields.index(GUARD)


def sizes(count: int, ratios: Sequence[float]) -> list[int]:
    """How many rows each part gets: rounded down, what is left goes to the largest remainders."""
    exact = [count * ratio / sum(ratios) for ratio in ratios]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(ratios)), key=lambda part: whole[part] - exact[part])
    for part in by_remainder[: count - sum(whole)]:
        whole[part] += 1
    return whole


def divide_randomly(keys: Sequence[Key], ratios: Ratios, seed: int, kept: Kept = _NONE) -> Division:
    new = _shuffled(len(keys), seed, kept)
    part_of = dict(kept)
    begin = 0
    for part, end in enumerate(accumulate(_room(len(keys), ratios, kept))):
        part_of.update(dict.fromkeys(new[begin:end], part))
        begin = end
    return _gathered(part_of)


def divide_stratified(keys: Sequence[Key], ratios: Ratios, seed: int, kept: Kept = _NONE) -> Division:
    """Every class is spread over the parts in the parts' ratios, as far as frames with several classes allow."""
    labels = [key.labels for key in keys]
    room = _room(len(keys), ratios, kept)
    new = _shuffled(len(keys), seed, kept)
    return _gathered({**kept, **stratification.place(new, labels, ratios, room, kept)})


def divide_by_time(keys: Sequence[Key], ratios: Ratios, seed: int, kept: Kept = _NONE) -> Division:
    """No video is in two parts; where there are fewer than three, they are cut, with a guard gap at each cut.

    New frames of a video that is known join the part of the nearest known frame, were it the guard's.
    """
    if kept:
        return _divide_what_came(keys, ratios, seed, kept)
    videos = [_video(key, row) for row, key in enumerate(keys)]
    if len(set(videos)) < _VIDEOS_TO_DIVIDE:
        in_time = sorted(range(len(keys)), key=lambda row: (keys[row].video_id, keys[row].frame_index, row))
        return _cut_with_gaps(in_time, [videos[row] for row in in_time], ratios)
    rows_of: dict[Video, list[int]] = defaultdict(list)
    for row, video in enumerate(videos):
        rows_of[video].append(row)
    return _gathered(_home_of(rows_of, sizes(len(keys), ratios), seed))


STRATEGIES: dict[SplitStrategy, Callable[[Sequence[Key], Ratios, int, Kept], Division]] = {
    SplitStrategy.RANDOM: divide_randomly,
    SplitStrategy.STRATIFIED: divide_stratified,
    SplitStrategy.TEMPORAL: divide_by_time,
}


def _video(key: Key, row: int) -> Video:
    return key.video_id, -1 if key.video_id else row


def _shuffled(count: int, seed: int, kept: Kept) -> list[int]:
    """The rows that are to be divided, in an order that says nothing."""
    order = [row for row in range(count) if row not in kept]
    random.Random(seed).shuffle(order)
    return order


def _room(count: int, ratios: Ratios, kept: Kept) -> list[int]:
    """How many of the new rows each part gets: what it lacks, and less where another has too many already."""
    new = count - len(kept)
    if not new:
        return [0] * len(PARTS)
    held = Counter(kept.values())
    lacking = [max(0, size - held[part]) for part, size in enumerate(sizes(count - held[_GUARD], ratios))]
    return sizes(new, lacking)


def _gathered(part_of: Mapping[int, int]) -> Division:
    parts: list[list[int]] = [[] for _ in Division._fields]
    for row in sorted(part_of):
        parts[part_of[row]].append(row)
    return Division(*parts)


def _home_of(
    rows_of: Mapping[Video, Sequence[int]], targets: Sequence[int], seed: int, filled: Iterable[int] = ()
) -> dict[int, int]:
    """The part of every row: large videos first, each to the part that lacks most rows; no part stays empty."""
    videos = sorted(rows_of)
    random.Random(seed).shuffle(videos)
    videos.sort(key=lambda video: -len(rows_of[video]))
    lacking = list(targets)
    part_of: dict[int, int] = {}
    empty = set(range(len(PARTS))) - set(filled)
    for place, video in enumerate(videos):
        allowed = empty if len(videos) - place <= len(empty) else range(len(PARTS))
        part = max(allowed, key=lambda candidate: lacking[candidate])
        empty.discard(part)
        lacking[part] -= len(rows_of[video])
        part_of.update(dict.fromkeys(rows_of[video], part))
    return part_of


def _divide_what_came(keys: Sequence[Key], ratios: Ratios, seed: int, kept: Kept) -> Division:
    known: dict[Video, list[tuple[int, int]]] = defaultdict(list)
    for row, part in kept.items():
        known[_video(keys[row], row)].append((keys[row].frame_index, part))
    for frames in known.values():
        frames.sort()
    part_of = dict(kept)
    strangers: dict[Video, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if row in kept:
            continue
        video = _video(key, row)
        if video in known:
            part_of[row] = _part_of_nearest(key.frame_index, known[video])
        else:
            strangers[video].append(row)
    room = _room(len(keys), ratios, part_of)
    return _gathered(part_of | _home_of(strangers, room, seed, part_of.values()))


def _part_of_nearest(frame_index: int, known: Sequence[tuple[int, int]]) -> int:
    """Of two frames that are equally near, the earlier one says."""
    after = bisect_left(known, (frame_index, 0))
    around = known[max(0, after - 1) : after + 1]
    return min(around, key=lambda frame: abs(frame[0] - frame_index))[1]


def _cut_with_gaps(in_time: Sequence[int], videos: Sequence[Video], ratios: Ratios) -> Division:
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


def _gap(videos: Sequence[Video], start: int, stop: int) -> slice:
    """The places to leave out at a cut: none where one video ends and another begins."""
    if start == 0 or stop >= len(videos) or videos[start - 1] == videos[stop]:
        return slice(start, stop)
    border = next(place for place in range(start, stop + 1) if videos[place] != videos[start - 1])
    return slice(border, border)
