"""Dividing rows: nothing is lost, ratios hold, the same seed gives the same parts, videos stay whole."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_runner.rows import open_rows
from gpu_runner.sam2 import leakage, splits
from gpu_runner.sam2.splits import PARTS, Division, Key, Ratios
from jobs.errors import DatasetInvalid, OutputTaken
from jobs.paths import DataRoot
from jobs.specs import ConvertSpec, DataFormat, SplitSpec, SplitStrategy

keys = st.lists(
    st.builds(
        Key,
        st.sampled_from("abcdef"),
        st.integers(0, 200),
        st.frozensets(st.sampled_from(["cat", "dog", "cow"]), max_size=3),
    ),
    min_size=1,
    max_size=150,
)
ratios = st.sampled_from([(0.7, 0.2, 0.1), (0.8, 0.1, 0.1), (0.34, 0.33, 0.33), (0.9, 0.05, 0.05), (0.1, 0.4, 0.5)])
seeds = st.integers(0, 2**32 - 1)
strategies = st.sampled_from(list(SplitStrategy))


def one_video(count: int) -> list[Key]:
    return [Key("v", frame * 6, frozenset({"cat"})) for frame in range(count)]


@given(keys, ratios, seeds, strategies)
def test_every_row_lands_in_exactly_one_part(
    keys: Sequence[Key], ratios: Ratios, seed: int, strategy: SplitStrategy
) -> None:
    division = splits.STRATEGIES[strategy](keys, ratios, seed)
    assert sorted(row for part in division for row in part) == list(range(len(keys)))
    assert all(part == sorted(part) for part in division)


@given(keys, ratios, seeds, strategies)
def test_the_same_seed_gives_the_same_parts(
    keys: Sequence[Key], ratios: Ratios, seed: int, strategy: SplitStrategy
) -> None:
    assert splits.STRATEGIES[strategy](keys, ratios, seed) == splits.STRATEGIES[strategy](keys, ratios, seed)


@given(keys, ratios, seeds, st.sampled_from([SplitStrategy.RANDOM, SplitStrategy.STRATIFIED]))
def test_random_and_stratified_parts_have_the_sizes_of_the_largest_remainder(
    keys: Sequence[Key], ratios: Ratios, seed: int, strategy: SplitStrategy
) -> None:
    division = splits.STRATEGIES[strategy](keys, ratios, seed)
    assert [len(part) for part in division] == [*splits.sizes(len(keys), ratios), 0]


@given(st.integers(0, 10_000), ratios)
def test_sizes_add_up_and_are_off_by_less_than_one(count: int, ratios: Ratios) -> None:
    sizes = splits.sizes(count, ratios)
    assert sum(sizes) == count
    assert all(abs(size - count * ratio) < 1 for size, ratio in zip(sizes, ratios, strict=True))


def test_three_rows_at_70_20_10_give_two_one_none() -> None:
    assert splits.sizes(3, (0.7, 0.2, 0.1)) == [2, 1, 0]


@given(seeds, st.lists(st.integers(48, 120), min_size=2, max_size=5))
def test_stratified_parts_keep_every_class_within_five_points(seed: int, counts: list[int]) -> None:
    keys = [Key("v", 0, frozenset({str(label)})) for label, count in enumerate(counts) for _ in range(count)]
    division = splits.divide_stratified(keys, (0.7, 0.2, 0.1), seed)
    for label, count in enumerate(counts):
        for ratio, part in zip((0.7, 0.2, 0.1), division, strict=False):
            share = sum(str(label) in keys[row].labels for row in part) / count
            assert abs(share - ratio) <= 0.05 + 1e-9


@given(keys, ratios, seeds)
def test_by_time_no_video_is_in_two_parts_when_there_are_three(keys: Sequence[Key], ratios: Ratios, seed: int) -> None:
    videos = {key.video_id for key in keys}
    division = splits.divide_by_time(keys, ratios, seed)
    if len(videos) >= 3:
        homes = [{keys[row].video_id for row in part} for part in division[:3]]
        assert sum(map(len, homes)) == len(videos)
        assert all(homes)
        assert division.guard == []


@given(st.integers(20, 400), ratios)
def test_by_time_a_single_video_is_cut_into_segments_with_a_small_gap(count: int, ratios: Ratios) -> None:
    division = splits.divide_by_time(one_video(count), ratios, 0)
    assert len(division.guard) <= splits.GUARD_SHARE * count
    assert all(part for part in division[:3])
    assert max(division.train) < min(division.val) <= max(division.val) < min(division.test)


def test_by_time_the_gap_keeps_neighbours_out_of_the_held_out_parts() -> None:
    keys = one_video(100)
    division = splits.divide_by_time(keys, (0.7, 0.2, 0.1), 0)
    places = [(key.video_id, key.frame_index) for key in keys]
    for part in (division.val, division.test):
        assert (
            leakage.find_neighbours([places[row] for row in division.train], [places[row] for row in part], places)
            == []
        )


def test_by_time_no_frame_is_given_up_where_a_cut_falls_between_two_videos() -> None:
    keys = [Key("a", frame, frozenset()) for frame in range(70)] + [Key("b", frame, frozenset()) for frame in range(30)]
    division = splits.divide_by_time(keys, (0.7, 0.2, 0.1), 0)
    assert {keys[row].video_id for row in division.train} == {"a"}
    assert len(division.guard) == 2  # only at the cut inside the second video


def test_neighbours_are_counted_in_frames_of_the_dataset_not_of_the_video() -> None:
    places = [("v", frame * 6) for frame in range(10)]
    assert leakage.find_neighbours([places[0]], places[1:], places) == [0, 1]
    assert leakage.find_neighbours([("w", 0)], places, [*places, ("w", 0)]) == []


@pytest.fixture
def dataset(run: Callable[..., Any], make_export: Callable[..., str], build: Any) -> Callable[..., str]:
    """Convert a video of forty frames; the dataset's name."""

    def make(data_format: DataFormat = DataFormat.LLAVA) -> str:
        frames = [
            build.frame(k * 6, build.thing(build.rectangle(20, 30, 2, 4, 8, 6), "cat" if k % 4 else "dog"))
            for k in range(40)
        ]
        run(ConvertSpec(sam2_zip_path=make_export(frames), output_dir="datasets/d", target_format=data_format))
        return "datasets/d"

    return make


def split(data_path: str, output: str = "datasets/parts", **options: Any) -> SplitSpec:
    ratios = {"train_ratio": 0.7, "val_ratio": 0.2, "test_ratio": 0.1}
    return SplitSpec(data_path=data_path, output_dir=output, **{**ratios, **options})


@pytest.mark.parametrize("strategy", list(SplitStrategy))
@pytest.mark.parametrize("data_format", list(DataFormat))
def test_the_files_hold_the_rows_and_the_configuration_says_how_they_came(
    data_format: DataFormat,
    strategy: SplitStrategy,
    root: DataRoot,
    run: Callable[..., Any],
    dataset: Callable[..., str],
) -> None:
    result = run(split(dataset(data_format), strategy=strategy))
    found: Counter[str] = Counter()
    for part in PARTS:
        found.update(row.id for row in open_rows(root, getattr(result, f"{part}_path")))
        assert len(open_rows(root, getattr(result, f"{part}_path"))) == getattr(result, f"{part}_samples")
    if result.guard_samples:
        found.update(row.id for row in open_rows(root, "datasets/parts/guard.jsonl"))
    assert found == Counter(row.id for row in open_rows(root, "datasets/d"))
    config = json.loads((root.datasets / "parts" / "split_config.json").read_text())
    assert (config["dataset"], config["format"], config["strategy"]) == ("datasets/d", data_format, strategy)
    assert sum(config["counts"].values()) == 40
    assert config["ratios"] == {"train": 0.7, "val": 0.2, "test": 0.1}
    assert set(config["class_shares"]["train"]) == {"cat", "dog"}
    assert len(config["input_sha256"][0]) == 64


def test_splitting_again_replaces_our_folder_and_gives_the_same_bytes(
    root: DataRoot, run: Callable[..., Any], dataset: Callable[..., str]
) -> None:
    name = dataset()
    folder = root.datasets / "parts"
    run(split(name, strategy=SplitStrategy.TEMPORAL))
    assert (folder / "guard.jsonl").is_file()
    run(split(name))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "guard.jsonl" not in before
    run(split(name))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    run(split(name, random_seed=7))
    assert (folder / "train.jsonl").read_bytes() != before["train.jsonl"]


def test_a_part_can_be_divided_again(root: DataRoot, run: Callable[..., Any], dataset: Callable[..., str]) -> None:
    first = run(split(dataset(DataFormat.HUGGINGFACE)))
    again = run(split(first.train_path, "datasets/again"))
    assert again.train_samples + again.val_samples + again.test_samples == first.train_samples
    assert open_rows(root, again.test_path).open_image(0).size == (30, 20)


def test_rows_keep_what_we_do_not_know_about_them(
    root: DataRoot, run: Callable[..., Any], dataset: Callable[..., str]
) -> None:
    name = dataset()
    path = root.path_of(name) / "llava_dataset.jsonl"
    rows = [{**json.loads(line), "weather": "fine"} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, rows)))
    run(split(name))
    assert json.loads((root.datasets / "parts" / "train.jsonl").read_text().splitlines()[0])["weather"] == "fine"


def test_the_result_warns_of_leaks_and_of_classes_that_are_not_spread(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any
) -> None:
    mask = build.rectangle(20, 30, 2, 4, 8, 6)
    frames = [build.frame(k, build.thing(mask, "cat" if k < 35 else "dog")) for k in range(40)]
    run(ConvertSpec(sam2_zip_path=make_export(frames), output_dir="datasets/d"))
    randomly = run(split("datasets/d", strategy=SplitStrategy.RANDOM))
    assert any("within 2 frames of a training frame" in warning for warning in randomly.warnings)
    by_time = run(split("datasets/d", strategy=SplitStrategy.TEMPORAL))
    assert any("'dog' (0% train" in warning for warning in by_time.warnings)


def test_the_input_is_never_replaced_by_the_output(run: Callable[..., Any], dataset: Callable[..., str]) -> None:
    result = run(split(dataset()))
    with pytest.raises(OutputTaken, match="holds the rows"):
        run(split(result.train_path, "datasets/parts"))
    with pytest.raises(OutputTaken):
        run(split("datasets/d", "datasets/d"))


def test_a_dataset_without_rows_is_refused(root: DataRoot, run: Callable[..., Any]) -> None:
    (root.datasets / "empty").mkdir()
    (root.datasets / "empty" / "llava_dataset.jsonl").touch()
    with pytest.raises(DatasetInvalid, match="no rows"):
        run(split("datasets/empty"))


def test_ten_thousand_rows_with_many_classes_are_divided_at_once() -> None:
    keys = [Key("v", row, frozenset({str(row % 97), str(row % 13)})) for row in range(10_000)]
    division: Division = splits.divide_stratified(keys, (0.8, 0.1, 0.1), 1)
    assert [len(part) for part in division] == [8000, 1000, 1000, 0]
