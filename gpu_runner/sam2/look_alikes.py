"""Held-out pictures that look like a training picture, whichever video either is from.

Used by the split recipe and by the rule `leakage`; both sides are records of `fingerprints`. A picture that was
recompressed, resized or darkened a little still looks the same, another scene does not.
"""

import numpy as np

from gpu_runner.sam2.fingerprints import RECORD

COARSE_BITS, FINE_BITS, COLOUR_STEPS = 3, 12, 12  # two pictures that look the same are at most this far apart
_QUARTERS, _QUARTER_BITS = 4, 16  # of a coarse hash: where at most three bits differ, one quarter is equal
_REACH = 128  # candidates looked at on either side, in the order of a quarter
_OPAQUE = np.dtype((np.void, RECORD.itemsize))  # numpy sorts these faster than records


def find(training: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Whether each held-out picture looks like one of training; bool (len(held_out),).

    Near-linear: sorted by a quarter of the hash, those that share it lie side by side. Where thousands share one
    without looking the same, only the nearest in that order are compared: then it is "at least these".
    """
    trained = _different(training[training["is_there"] == 1])[0]
    asked, asked_of = _different(held_out)
    found = np.isin(asked.view(_OPAQUE), trained.view(_OPAQUE)) & (asked["is_there"] == 1)
    for quarter in range(_QUARTERS):
        undecided = np.flatnonzero(~found & (asked["is_there"] == 1))
        found[undecided] = _find_by_quarter(trained, asked[undecided], quarter)
    return np.asarray(found[asked_of])


def look_the_same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether records look the same, pair by pair; bool."""
    coarse = np.bitwise_count(one["coarse"] ^ other["coarse"]) <= COARSE_BITS
    fine = np.bitwise_count(one["fine"] ^ other["fine"]).sum(axis=-1) <= FINE_BITS
    colour = np.abs(one["colour"].astype(np.int16) - other["colour"]).max(axis=-1) <= COLOUR_STEPS
    return np.asarray(coarse & fine & colour)


def _different(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each record once, and where to find that of each given one: still stretches of video repeat them."""
    once, where = np.unique(np.ascontiguousarray(records).view(_OPAQUE), return_inverse=True)
    return once.view(RECORD), where


def _find_by_quarter(trained: np.ndarray, asked: np.ndarray, quarter: int) -> np.ndarray:
    """Which of `asked` look like one of `trained` with the same quarter, from the nearest outwards."""
    hashes = _turned(trained["coarse"], quarter)
    order = np.argsort(hashes, kind="stable")
    hashes, wanted = hashes[order], _turned(asked["coarse"], quarter)
    below = np.uint64((1 << (64 - _QUARTER_BITS)) - 1)
    first, last = np.searchsorted(hashes, wanted & ~below), np.searchsorted(hashes, wanted | below, side="right")
    here = np.searchsorted(hashes, wanted)
    found = np.zeros(len(asked), dtype=bool)
    reach = min(_REACH, max((last - here).max(initial=0), (here - first).max(initial=0)))
    for offset in sorted(range(-reach, reach), key=abs):
        at = here + offset
        near = np.flatnonzero(~found & (at >= first) & (at < last))
        near = near[np.bitwise_count(hashes[at[near]] ^ wanted[near]) <= COARSE_BITS]
        found[near] = look_the_same(trained[order[at[near]]], asked[near])
    return found


def _turned(hashes: np.ndarray, quarter: int) -> np.ndarray:
    """Hashes with that quarter in front."""
    bits = np.uint64(quarter * _QUARTER_BITS)
    return np.asarray((hashes << bits) | (hashes >> (np.uint64(64) - bits)) if quarter else hashes)
