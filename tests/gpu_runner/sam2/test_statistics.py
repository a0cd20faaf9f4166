"""Figures about a dataset cost little more than the figures they are made of."""

import statistics
import tracemalloc

import numpy as np
import pytest

from gpu_runner.rows import Row
from gpu_runner.sam2.observed import Observed, SeenMask
from gpu_runner.sam2.statistics import Statistics

_MASKS = 500_000


@pytest.fixture
def shares() -> list[float]:
    return np.random.default_rng(3).random(_MASKS).tolist()


def _gathered(shares: list[float]) -> Statistics:
    gathered = Statistics()
    row = Row(id="v-000001", conversations=())
    for begin in range(0, len(shares), 1001):
        seen = tuple(SeenMask(area=1, share=share, box=(0, 0, 1, 1)) for share in shares[begin : begin + 1001])
        gathered.look(Observed(0, row, seen))
    return gathered


def test_the_spread_of_areas_is_that_of_all_of_them(shares: list[float]) -> None:
    for some in (shares[:1000], shares[:1001], [0.25]):
        told = _gathered(some).summary()["area"]
        wanted = (statistics.fmean(some), statistics.median(some), min(some), max(some))
        assert list(told.values()) == pytest.approx(wanted, abs=1e-6)
    assert Statistics().summary()["area"] == {}


def test_the_spread_of_many_areas_makes_no_object_of_each(shares: list[float]) -> None:
    gathered = _gathered(shares)
    tracemalloc.start()
    try:
        gathered.summary()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * 8 * _MASKS
