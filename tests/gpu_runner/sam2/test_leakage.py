"""Leaks: what the report says of a division is what comparing every frame with every other says."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_runner.sam2 import leakage
from gpu_runner.sam2.fingerprints import RECORD
from gpu_runner.sam2.splits import Division, Key

frames = st.lists(
    st.tuples(st.sampled_from(["", "a", "b", "c"]), st.integers(0, 60), st.integers(0, 3)), min_size=1, max_size=60
)


def pictures(count: int) -> np.ndarray:
    """Records of pictures that are all different."""
    records = np.zeros(count, dtype=RECORD)
    records["fine"] = np.random.default_rng(1).integers(0, 2**64, (count, 4), dtype=np.uint64)
    records["is_there"] = 1
    return records


def away(place: tuple[str, int], training: set[tuple[str, int]], everything: set[tuple[str, int]]) -> int | None:
    """The oracle: how many frames of the dataset one has to step to meet a training frame of the video."""
    in_time = sorted(frame for video, frame in everything if video == place[0])
    trained = [frame for video, frame in training if video == place[0] and video]
    return min((abs(in_time.index(frame) - in_time.index(place[1])) for frame in trained), default=None)


@settings(max_examples=50)
@given(frames)
def test_distances_and_shares_are_those_of_comparing_all_with_all(frames: Sequence[tuple[str, int, int]]) -> None:
    keys = [Key(video, frame, frozenset()) for video, frame, _ in frames]
    places = [(key.video_id, key.frame_index) for key in keys]
    division = Division(*([row for row, (_, _, part) in enumerate(frames) if part == wanted] for wanted in range(4)))
    leaks = leakage.measure(keys, division, pictures(len(keys)))
    training = {places[row] for row in division.train}
    for part in ("val", "test"):
        steps = [away(places[row], training, set(places)) for row in getattr(division, part)]
        known = [step for step in steps if step is not None]
        leak = leaks[part]
        assert leak.rows == len(steps) == sum(leak.distances.values())
        assert leak.near == sum(step <= 2 for step in known)
        assert leak.near_share == round(leak.near / max(1, leak.rows), 4)
        assert list(leak.distances.values()) == [
            sum(step <= 1 for step in known),
            sum(step == 2 for step in known),
            sum(3 <= step <= 5 for step in known),
            sum(6 <= step <= 10 for step in known),
            sum(step >= 11 for step in known),
            len(steps) - len(known),
        ]


def test_look_alikes_are_counted_whichever_video_they_are_from() -> None:
    keys = [Key(video, 0, frozenset()) for video in "abcd"]
    records = pictures(4)
    records[2] = records[0]
    leaks = leakage.measure(keys, Division([0], [1, 2], [3], []), records)
    assert (leaks["val"].look_alikes, leaks["test"].look_alikes) == (1, 0)
    assert leaks["val"].near == 0


def test_neighbours_are_counted_in_frames_of_the_dataset_not_of_the_video() -> None:
    places = [("v", frame * 6) for frame in range(10)]
    assert leakage.find_neighbours([places[0]], places[1:], places) == [0, 1]
    assert leakage.find_neighbours([("w", 0)], places, [*places, ("w", 0)]) == []


def test_rows_that_name_no_video_are_nobodys_neighbours() -> None:
    places = [("", 0)] * 10
    assert leakage.find_neighbours(places[:8], places[8:], places) == []
