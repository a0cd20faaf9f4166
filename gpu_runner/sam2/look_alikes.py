"""Pictures that look the same: held-out ones like one of training, or those of one video like an earlier one's.

Used by the split recipe and by the rules `leakage` and `duplicate_frames`, on records of `fingerprints`. A picture
that was recompressed, resized or darkened a little still looks the same, another scene does not.
"""

from collections.abc import Callable

import numpy as np

from gpu_runner.sam2.fingerprints import RECORD

COARSE_BITS, FINE_BITS, COLOUR_STEPS = 3, 12, 12  # two pictures that look the same are at most this far apart
_QUARTERS, _QUARTER_BITS = 4, 16  # of a coarse hash: where at most three bits differ, one quarter is equal
_REACH = 128  # candidates looked at on either side, in the order of a quarter
_OPAQUE = np.dtype((np.void, RECORD.itemsize))  # numpy sorts these faster than records

_OWNED = np.dtype([("record", RECORD), ("owner", ">i8")])  # equal pictures lie in the order of their owners
_OPAQUE_OWNED = np.dtype((np.void, _OWNED.itemsize))

_Pairs = Callable[[np.ndarray, np.ndarray], np.ndarray]  # which pairs of positions count, of trained and of asked


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
        found[undecided] = _find_by_quarter(trained, asked[undecided], quarter, _any_pair)
    return np.asarray(found[asked_of])


def find_copies(records: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Whether each picture looks like one of an owner of a lower number; bool, one a record.

    As near-linear as `find`, and as incomplete where thousands of pictures are nearly the same.
    """
    once, where = np.unique(_owned(records, owners).view(_OPAQUE_OWNED), return_inverse=True)
    pictures, owner = once.view(_OWNED)["record"], once.view(_OWNED)["owner"]
    is_there = pictures["is_there"] == 1
    found = np.zeros(len(once), dtype=bool)
    for quarter in range(_QUARTERS):
        trained, undecided = np.flatnonzero(is_there), np.flatnonzero(is_there & ~found)
        is_earlier = _earlier(owner[trained], owner[undecided])
        found[undecided] = _find_by_quarter(pictures[trained], pictures[undecided], quarter, is_earlier)
    return np.asarray(found[where])


def _owned(records: np.ndarray, owners: np.ndarray) -> np.ndarray:
    owned = np.empty(len(records), dtype=_OWNED)
    owned["record"], owned["owner"] = records, owners
    return owned


def _earlier(trained: np.ndarray, asked: np.ndarray) -> "_Pairs":
    return lambda one, other: trained[one] < asked[other]


def _any_pair(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.ones(len(other), dtype=bool)


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


def _find_by_quarter(trained: np.ndarray, asked: np.ndarray, quarter: int, counts: _Pairs) -> np.ndarray:
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
        near = near[counts(order[at[near]], near)]
        near = near[np.bitwise_count(hashes[at[near]] ^ wanted[near]) <= COARSE_BITS]
        found[near] = look_the_same(trained[order[at[near]]], asked[near])
    return found


def _turned(hashes: np.ndarray, quarter: int) -> np.ndarray:
    """Hashes with that quarter in front."""
    bits = np.uint64(quarter * _QUARTER_BITS)
    return np.asarray((hashes << bits) | (hashes >> (np.uint64(64) - bits)) if quarter else hashes)
