"""The strategies: nothing is lost, ratios hold, the same seed gives the same parts, videos and kept rows stay."""

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gpu_runner.sam2 import leakage, splits, stratification
from gpu_runner.sam2.splits import PARTS, Key, Ratios
from jobs.specs import SplitStrategy

key = st.builds(
    Key,
    st.sampled_from(["", *"abcdef"]),
    st.integers(0, 200),
    st.frozensets(st.sampled_from(["cat", "dog", "cow"]), max_size=3),
)
keys = st.lists(key, min_size=1, max_size=150)
ratios = st.sampled_from([(0.7, 0.2, 0.1), (0.8, 0.1, 0.1), (0.34, 0.33, 0.33), (0.9, 0.05, 0.05), (0.1, 0.4, 0.5)])
seeds = st.integers(0, 2**32 - 1)
strategies = st.sampled_from(list(SplitStrategy))
places = st.dictionaries(st.integers(0, 149), st.integers(0, 3), min_size=1)


def one_video(count: int) -> list[Key]:
    return [Key("v", frame * 6, frozenset({"cat"})) for frame in range(count)]


@settings(max_examples=50)
@given(keys, ratios, seeds, strategies)
def test_every_row_lands_in_exactly_one_part_and_the_same_seed_gives_the_same_parts(
    keys: Sequence[Key], ratios: Ratios, seed: int, strategy: SplitStrategy
) -> None:
    division = splits.STRATEGIES[strategy](keys, ratios, seed, {})
    assert sorted(row for part in division for row in part) == list(range(len(keys)))
    assert all(part == sorted(part) for part in division)
    assert splits.STRATEGIES[strategy](keys, ratios, seed, {}) == division


@settings(max_examples=50)
@given(keys, ratios, seeds, st.sampled_from([SplitStrategy.RANDOM, SplitStrategy.STRATIFIED]))
def test_random_and_stratified_parts_have_the_sizes_of_the_largest_remainder(
    keys: Sequence[Key], ratios: Ratios, seed: int, strategy: SplitStrategy
) -> None:
    division = splits.STRATEGIES[strategy](keys, ratios, seed, {})
    assert [len(part) for part in division] == [*splits.sizes(len(keys), ratios), 0]


@given(st.integers(0, 10_000), ratios)
def test_sizes_add_up_and_are_off_by_less_than_one(count: int, ratios: Ratios) -> None:
    sizes = splits.sizes(count, ratios)
    assert sum(sizes) == count
    assert all(abs(size - count * ratio) < 1 for size, ratio in zip(sizes, ratios, strict=True))


def test_three_rows_at_70_20_10_give_two_one_none() -> None:
    assert splits.sizes(3, (0.7, 0.2, 0.1)) == [2, 1, 0]


@settings(max_examples=50, deadline=None)
@given(seeds, st.lists(st.integers(1, 80), min_size=1, max_size=12), st.floats(0, 1), ratios)
@example(2749727, [1, 1, 2, 12, 1, 1, 9, 1, 1, 21, 48, 1], 0.75, (0.8, 0.1, 0.1))  # no one swap helps, several do
def test_stratified_parts_keep_every_class_within_five_points(
    seed: int, weights: list[int], together: float, ratios: Ratios
) -> None:
    draw = random.Random(seed)
    keys = []
    for _ in range(draw.randint(40, 300)):
        usual = [label for label, weight in enumerate(weights) if draw.random() < weight / 100]
        labels = usual if draw.random() > together else range(draw.randrange(len(weights)))
        keys.append(Key("v", 0, frozenset(map(str, labels))))
    counts = Counter(label for key in keys for label in key.labels)
    division = splits.divide_stratified(keys, ratios, seed)
    for label in (label for label, count in counts.items() if count >= 20):
        for ratio, part in zip(ratios, division, strict=False):
            share = sum(label in keys[row].labels for row in part) / counts[label]
            assert abs(share - ratio) <= 0.05 + 1e-9


def test_classes_that_the_first_placing_leaves_uneven_are_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    keys = [Key("v", row, frozenset(name for name in "abcdefghijkl" if draw.random() < 0.4)) for row in range(60)]

    def farthest() -> float:
        division = splits.divide_stratified(keys, (0.8, 0.1, 0.1), 0)
        held = {
            name: [sum(name in keys[row].labels for row in part) for part in division[:3]] for name in "abcdefghijkl"
        }
        return max(
            abs(count / sum(counts) - ratio)
            for counts in held.values()
            for count, ratio in zip(counts, (0.8, 0.1, 0.1), strict=True)
        )

    mended = farthest()
    monkeypatch.setattr(stratification, "_mend", lambda *_: None)
    assert mended <= 0.05 + 1e-9 < farthest()


def test_another_process_divides_the_same_way() -> None:
    program = (
        "import random; from gpu_runner.sam2 import splits; draw = random.Random(48); "
        "keys = [splits.Key('v', row, frozenset(name for name in 'abcdefghijkl' if draw.random() < 0.4)) "
        "for row in range(60)]; print(splits.divide_stratified(keys, (0.8, 0.1, 0.1), 0))"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, env={"PYTHONHASHSEED": seed})
        for seed in "12"  # sets come in another order; these rows were once divided differently for it
    )
    assert first.stdout == second.stdout


@settings(max_examples=50)
@given(keys, ratios, seeds)
def test_by_time_no_video_is_in_two_parts_when_there_are_three(keys: Sequence[Key], ratios: Ratios, seed: int) -> None:
    videos = {key.video_id or row for row, key in enumerate(keys)}
    assume(len(videos) >= 3)
    division = splits.divide_by_time(keys, ratios, seed)
    homes = [{keys[row].video_id or row for row in part} for part in division[:3]]
    assert sum(map(len, homes)) == len(videos)
    assert all(homes)
    assert division.guard == []


@settings(max_examples=50)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=400), st.integers(1, 2), ratios, seeds)
def test_by_time_one_video_or_two_are_cut_into_segments_with_a_gap_of_at_most_five_percent(
    frames: list[int], videos: int, ratios: Ratios, seed: int
) -> None:
    keys = [Key(str(frame % videos), frame, frozenset()) for frame in frames]
    division = splits.divide_by_time(keys, ratios, seed)
    assert len(division.guard) <= splits.GUARD_SHARE * len(frames)
    ends = [[keys[row][:2] for row in part] for part in division[:3] if part]
    assert all(max(before) <= min(after) for before, after in pairwise(ends))
    if len(frames) >= 40:
        assert len(ends) == len(PARTS)


def test_by_time_the_gap_keeps_neighbours_out_of_the_held_out_parts() -> None:
    keys = one_video(100)
    division = splits.divide_by_time(keys, (0.7, 0.2, 0.1), 0)
    frames = [(key.video_id, key.frame_index) for key in keys]
    for part in (division.val, division.test):
        trained, asked = ([frames[row] for row in rows] for rows in (division.train, part))
        assert leakage.find_neighbours(trained, asked, frames) == []


def test_by_time_no_frame_is_given_up_where_a_cut_falls_between_two_videos() -> None:
    keys = [Key("a", frame, frozenset()) for frame in range(70)] + [Key("b", frame, frozenset()) for frame in range(30)]
    division = splits.divide_by_time(keys, (0.7, 0.2, 0.1), 0)
    assert {keys[row].video_id for row in division.train} == {"a"}
    assert len(division.guard) == 2  # only at the cut inside the second video


@settings(max_examples=50)
@given(keys, places, ratios, seeds, strategies)
def test_kept_rows_stay_where_they_are_and_every_new_one_is_placed(
    keys: Sequence[Key], places: dict[int, int], ratios: Ratios, seed: int, strategy: SplitStrategy
) -> None:
    kept = {row: part for row, part in places.items() if row < len(keys)}
    division = splits.STRATEGIES[strategy](keys, ratios, seed, kept)
    assert sorted(row for part in division for row in part) == list(range(len(keys)))
    assert all(row in division[part] for row, part in kept.items())


@settings(max_examples=50)
@given(keys, places, ratios, seeds, st.sampled_from([SplitStrategy.RANDOM, SplitStrategy.STRATIFIED]))
def test_new_rows_go_where_they_are_lacking(
    keys: Sequence[Key], places: dict[int, int], ratios: Ratios, seed: int, strategy: SplitStrategy
) -> None:
    kept = {row: part for row, part in places.items() if row < len(keys)}
    held = Counter(kept.values())
    targets = splits.sizes(len(keys) - held[3], ratios)
    division = splits.STRATEGIES[strategy](keys, ratios, seed, kept)
    for part, target in enumerate(targets):
        assert held[part] <= len(division[part]) <= max(target, held[part])
    assert len(division.guard) == held[3]


@settings(max_examples=50)
@given(keys, places, ratios, seeds)
def test_by_time_new_frames_of_a_known_video_join_the_nearest_and_new_videos_stay_whole(
    keys: Sequence[Key], places: dict[int, int], ratios: Ratios, seed: int
) -> None:
    kept = {row: part for row, part in places.items() if row < len(keys)}
    assume(kept)
    division = splits.divide_by_time(keys, ratios, seed, kept)
    part_of = {row: part for part, rows in enumerate(division) for row in rows}
    known = {keys[row].video_id for row in kept} - {""}
    for row in part_of.keys() - kept.keys():
        key = keys[row]
        if key.video_id in known:
            away = {
                other: abs(keys[other].frame_index - key.frame_index)
                for other in kept
                if keys[other].video_id == key.video_id
            }
            assert part_of[row] in {kept[other] for other in away if away[other] == min(away.values())}
        elif key.video_id:
            whole = {part_of[other] for other in part_of if keys[other].video_id == key.video_id}
            assert whole == {part_of[row]}
            assert whole <= {0, 1, 2}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("strategy", list(SplitStrategy))
def test_twenty_thousand_rows_of_as_many_classes_are_divided_in_a_moment(strategy: SplitStrategy) -> None:
    keys = [Key(f"v{row // 100}", row, frozenset({str(row), str(row // 2)})) for row in range(20_000)]
    kept = dict.fromkeys(range(0, 20_000, 3), 0)
    for given_kept in ({}, kept):
        division = splits.STRATEGIES[strategy](keys, (0.8, 0.1, 0.1), 1, given_kept)
        assert sum(map(len, division)) == 20_000


def test_by_time_rows_that_name_no_video_are_each_on_their_own() -> None:
    keys = [Key("", number, frozenset()) for number in range(20)]
    division = splits.divide_by_time(keys, (0.5, 0.25, 0.25), 1)
    assert [len(part) for part in division] == [10, 5, 5, 0]
    assert division.train != list(range(10))
