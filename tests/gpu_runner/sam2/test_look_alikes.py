"""Look-alikes: the same as comparing every picture with every other, without doing so."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gpu_runner.sam2 import fingerprints, look_alikes
from gpu_runner.sam2.fingerprints import RECORD


def one_by_one(training: np.ndarray, held_out: np.ndarray) -> list[bool]:
    """The oracle: each held-out picture beside each of training."""
    return [
        any(
            one["is_there"] and other["is_there"] and bits(one["coarse"] ^ other["coarse"]) <= 3
            and sum(map(bits, one["fine"] ^ other["fine"])) <= 12
            and all(abs(int(a) - int(b)) <= 12 for a, b in zip(one["colour"], other["colour"], strict=True))
            for other in training
        )
        for one in held_out
    ]  # fmt: skip


def bits(number: np.uint64) -> int:
    return int(number).bit_count()


def variations(count: int, scenes: int, draw: np.random.Generator) -> np.ndarray:
    """Records of a few scenes, each with some bits and colours changed, some without a picture."""
    records = strangers(scenes, draw)[draw.integers(0, scenes, count)]
    for _ in range(2):
        records["coarse"] ^= np.uint64(1) << draw.integers(0, 64, count, dtype=np.uint64)
    for column in range(4):
        for _ in range(3):
            records["fine"][:, column] ^= np.uint64(1) << draw.integers(0, 64, count, dtype=np.uint64)
    records["colour"] += draw.integers(0, 16, (count, 3), dtype=np.uint8)
    records["is_there"] = draw.random(count) < 0.9
    return records


def strangers(count: int, draw: np.random.Generator) -> np.ndarray:
    records = np.zeros(count, dtype=RECORD)
    records["coarse"] = draw.integers(0, 2**64, count, dtype=np.uint64)
    records["fine"] = draw.integers(0, 2**64, (count, 4), dtype=np.uint64)
    records["colour"] = draw.integers(0, 200, (count, 3), dtype=np.uint8)
    records["is_there"] = 1
    return records


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(0, 20), st.integers(0, 8), st.integers(1, 5))
def test_it_finds_what_comparing_all_with_all_finds(seed: int, trained: int, asked: int, scenes: int) -> None:
    draw = np.random.default_rng(seed)
    every = variations(trained + asked, scenes, draw)
    training, held_out = every[:trained], every[trained:]
    assert look_alikes.find(training, held_out).tolist() == one_by_one(training, held_out)


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 400), max_size=25), st.integers(1, 5))
def test_a_copy_is_what_looks_like_a_picture_of_an_earlier_owner(seed: int, owners: list[int], scenes: int) -> None:
    records = variations(len(owners), scenes, np.random.default_rng(seed))
    of = np.array(owners, dtype=np.int64)
    expected = [one_by_one(records[of < owner], records[[at]])[0] for at, owner in enumerate(owners)]
    assert look_alikes.find_copies(records, of).tolist() == expected


def test_a_difference_in_each_of_three_quarters_is_still_found() -> None:
    training = strangers(1000, np.random.default_rng(1))
    for quarters in ((0, 1, 2), (1, 2, 3), (0, 2, 3), (0, 1, 3)):
        held_out = training.copy()
        for quarter in quarters:
            held_out["coarse"] ^= np.uint64(1 << (quarter * 16 + 5))
        assert look_alikes.find(training, held_out).all()


def test_a_picture_made_worse_looks_the_same_and_another_does_not() -> None:
    draw = np.random.default_rng(3)
    first, second = (
        Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((320, 240)) for _ in range(2)
    )
    worse = first.resize((160, 120)).point(lambda value: value * 0.95)
    trained, asked = (
        np.frombuffer(b"".join(map(fingerprints.of_picture, pictures)), dtype=RECORD)
        for pictures in ([first], [worse, second])
    )
    assert look_alikes.find(trained, asked).tolist() == [True, False]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["still", "nearly still", "one quarter equal", "all different"])
def test_a_hundred_thousand_pictures_are_searched_in_seconds_even_where_all_look_the_same(kind: str) -> None:
    draw = np.random.default_rng(0)
    records = strangers(100_000, draw)
    if kind == "one quarter equal":
        records["coarse"] &= ~np.uint64(0xFFFF)
    elif kind != "all different":
        records[:] = records[0]
    if kind == "nearly still":
        for _ in range(6):
            records["coarse"] ^= np.uint64(1) << draw.integers(0, 64, len(records), dtype=np.uint64)
    found = look_alikes.find(records[:80_000], records[80_000:])
    copies = look_alikes.find_copies(records[:20_000], np.arange(20_000) // 1000)
    assert bool(copies[1000:].any()) == bool(found.any())
    assert not copies[:1000].any()
    assert {"still": found.all(), "nearly still": found.any()}.get(kind, not found.any())
