"""Spreading classes evenly over parts, where a row may be of several: the strategy `stratified` of `splits`.

    place(new, labels, ratios, room, kept) -> {row: part}

First every row is placed by what its rarest class lacks; then rows of two parts change places, as long as that helps
a class that is far from its share. The sizes of the parts are given and stay.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from heapq import heapify, heappop, heappush
from operator import itemgetter
from typing import NamedTuple

TOLERANCE = 0.05  # how far the share of a class in a part may lie from the part's ratio
_COUNT_TO_MEND = 10  # of a class with fewer rows, one row is more than the tolerance allows to round by
_MOST_LOOKS = 500_000  # at classes and kinds of rows, over all swaps: some seconds, however many there are
_STEPS_ASIDE = 60  # swaps without a gain, in the hope of one behind them
_ROUNDING = 1e-9
_LOOKED_AT = 32  # kinds of rows to give, and to take, for one swap

Labels = Sequence[frozenset[str]]
Signature = tuple[str, ...]


class _Shares(NamedTuple):
    """Of one class: how many rows it has, and how many of them each part wants and has."""

    total: int
    wanted: list[float]
    had: list[int]

    def excess(self) -> float:
        """How much beyond the tolerance the parts are altogether, as a share of the class."""
        beyond = (abs(had - wanted) - TOLERANCE * self.total for had, wanted in zip(self.had, self.wanted, strict=True))
        return sum(max(0.0, rows) for rows in beyond) / self.total

    def is_too_far(self) -> bool:
        return self.total >= _COUNT_TO_MEND and self.excess() > _ROUNDING


def place(
    new: Sequence[int], labels: Labels, ratios: Sequence[float], room: Sequence[int], kept: Mapping[int, int]
) -> dict[int, int]:
    """The part of each of the rows `new`. `room` is how many of them a part takes; `kept` rows are placed already."""
    signatures = {row: _signature(labels[row]) for row in new}
    shares = _shares(signatures, labels, ratios, kept)
    part_of = _place_rarest_first(signatures, shares, room)
    _mend(part_of, signatures, shares)
    return part_of


def _signature(labels: frozenset[str]) -> Signature:
    """The classes of a row; a row without a label is of the nameless one."""
    return tuple(sorted(labels)) or ("",)


def _shares(
    signatures: Mapping[int, Signature], labels: Labels, ratios: Sequence[float], kept: Mapping[int, int]
) -> dict[str, _Shares]:
    had = Counter((label, part) for row, part in kept.items() for label in _signature(labels[row]))
    coming = Counter(label for signature in signatures.values() for label in signature)
    shares = {}
    for label, count in coming.items():
        here = [had[label, part] for part in range(len(ratios))]
        total = count + sum(here)
        shares[label] = _Shares(total, [total * ratio for ratio in ratios], here)
    return shares


def _place_rarest_first(
    signatures: Mapping[int, Signature], shares: Mapping[str, _Shares], room: Sequence[int]
) -> dict[int, int]:
    """The rarest class still to be placed goes first; each of its rows goes where that class is wanted most.

    Source: Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-Label Data, ECML PKDD 2011.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, signature in signatures.items():
        for label in signature:
            rows_of[label].append(row)
    left, ratios = list(room), [places / max(1, sum(room)) for places in room]
    waiting = {label: len(rows) for label, rows in rows_of.items()}
    rarest_first = [(count, label) for label, count in waiting.items()]
    heapify(rarest_first)
    part_of: dict[int, int] = {}
    while rarest_first:
        count, rarest = heappop(rarest_first)
        if count != waiting[rarest]:
            continue  # said before some of its rows were placed; what is true now was pushed then
        for row in rows_of[rarest]:
            if row in part_of:
                continue
            part_of[row] = part = _wanting_most(shares[rarest], left, ratios)
            left[part] -= 1
            for label in signatures[row]:
                shares[label].had[part] += 1
                waiting[label] -= 1
                if label != rarest and waiting[label]:
                    heappush(rarest_first, (waiting[label], label))
    return part_of


def _wanting_most(shares: _Shares, left: Sequence[int], ratios: Sequence[float]) -> int:
    """The part with room that wants this class most; where several do, the one that was given least so far."""
    rows = sum(left)
    open_parts = [part for part in range(len(left)) if left[part] > 0]
    return max(
        open_parts,
        key=lambda part: (round(shares.wanted[part] - shares.had[part], 6), left[part] - ratios[part] * rows),
    )


class _Swap(NamedTuple):
    """A row of one kind leaves `over` for `under`, a row of another kind takes its place."""

    over: int
    under: int
    leaving: Signature
    coming: Signature

    def back(self) -> "_Swap":
        return _Swap(self.under, self.over, self.leaving, self.coming)


def _mend(part_of: dict[int, int], signatures: Mapping[int, Signature], shares: Mapping[str, _Shares]) -> None:
    """Swap rows of the classes too far from their shares until none is, or nothing better is found.

    Where no swap is a gain, the least bad one is made: often the next ones mend what it broke. What led to no gain is
    undone. Source of the walk: F. Glover, Tabu Search, Part I, ORSA Journal on Computing 1989.
    """
    uneven = {label for label, of in shares.items() if of.is_too_far()}
    if not uneven:
        return
    rows_of: dict[int, dict[Signature, list[int]]] = {part: defaultdict(list) for part in set(part_of.values())}
    for row, part in part_of.items():
        rows_of[part][signatures[row]].append(row)
    aside: list[_Swap] = []  # made since the parts were at their best
    looks, lost = 0, 0.0
    while uneven and len(aside) <= _STEPS_ASIDE:
        cost = sum(map(len, rows_of.values())) + _LOOKED_AT**2
        farthest_first = sorted(uneven, key=lambda name: (-shares[name].excess(), name))
        affordable = farthest_first[: max(0, _MOST_LOOKS - looks) // cost]
        tried, change, swap = _next_swap(affordable, rows_of, shares, {swap.back() for swap in aside})
        if swap is None:
            break
        looks += len(uneven) + tried * cost
        _make(swap, rows_of, part_of, shares)
        aside.append(swap)
        lost += change
        if lost < -_ROUNDING:
            aside, lost = [], 0.0
        uneven = {label for label in uneven.union(_touched(swap)) if shares[label].is_too_far()}
    for swap in reversed(aside):
        _make(swap.back(), rows_of, part_of, shares)


def _next_swap(
    labels: Iterable[str],
    rows_of: Mapping[int, Mapping[Signature, list[int]]],
    shares: Mapping[str, _Shares],
    barred: Set[_Swap],
) -> tuple[int, float, _Swap | None]:
    """The best swap of the first class for which one is a gain, else the least bad of any.

    Before it: for how many classes one was looked for, and what excess it adds.
    """
    found: list[tuple[float, _Swap | None]] = []
    for label in labels:
        found.append(_best_swap(label, rows_of, shares, barred))
        if found[-1][0] < -_ROUNDING:
            break
    change, swap = min(found, key=itemgetter(0), default=(math.inf, None))
    return len(found), change, swap


def _best_swap(
    label: str,
    rows_of: Mapping[int, Mapping[Signature, list[int]]],
    shares: Mapping[str, _Shares],
    barred: Set[_Swap],
) -> tuple[float, _Swap | None]:
    """Of the swaps that bring this class nearer to its share, the one that adds least to the excess of all."""
    surplus = [had - wanted for had, wanted in zip(shares[label].had, shares[label].wanted, strict=True)]
    least, best = math.inf, None
    for over in (part for part in rows_of if surplus[part] > 0):
        for under in (part for part in rows_of if surplus[part] < 0):
            leaving = [kind for kind, rows in rows_of[over].items() if rows and label in kind][:_LOOKED_AT]
            coming = [kind for kind, rows in rows_of[under].items() if rows and label not in kind][:_LOOKED_AT]
            for swap in (_Swap(over, under, out, back) for out in leaving for back in coming):
                change = _change(swap, shares)
                if change < least - _ROUNDING and swap not in barred:
                    least, best = change, swap
    return least, best


def _change(swap: _Swap, shares: Mapping[str, _Shares]) -> float:
    """What a swap adds to the excess of all classes that have enough rows."""
    touched = [shares[label] for label in _touched(swap) if shares[label].total >= _COUNT_TO_MEND]
    before = sum(of.excess() for of in touched)
    _count(swap, shares, 1)
    after = sum(of.excess() for of in touched)
    _count(swap, shares, -1)
    return after - before


def _touched(swap: _Swap) -> list[str]:
    """Sorted, because sums of floats depend on their order, and a set's order on the process."""
    return sorted(set(swap.leaving) ^ set(swap.coming))


def _count(swap: _Swap, shares: Mapping[str, _Shares], times: int) -> None:
    for label in _touched(swap):
        moved = times if label in swap.leaving else -times
        shares[label].had[swap.over] -= moved
        shares[label].had[swap.under] += moved


def _make(
    swap: _Swap,
    rows_of: Mapping[int, Mapping[Signature, list[int]]],
    part_of: dict[int, int],
    shares: Mapping[str, _Shares],
) -> None:
    out = rows_of[swap.over][swap.leaving].pop()
    back = rows_of[swap.under][swap.coming].pop()
    rows_of[swap.under][swap.leaving].append(out)
    rows_of[swap.over][swap.coming].append(back)
    part_of[out], part_of[back] = swap.under, swap.over
    _count(swap, shares, 1)
