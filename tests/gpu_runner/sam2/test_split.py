"""The split recipe: files and configuration, what leaks and its repair, and earlier splits that are kept."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gpu_runner.rows import open_rows
from gpu_runner.sam2 import split_config
from gpu_runner.sam2.splits import PARTS
from gpu_runner.sam2.statistics import MOST_LABELS, OTHERS
from jobs.errors import DatasetInvalid, OutputTaken
from jobs.paths import DataRoot
from jobs.results import Leak
from jobs.specs import ConvertSpec, DataFormat, SplitSpec, SplitStrategy


@pytest.fixture
def dataset(run: Callable[..., Any], make_export: Callable[..., str], build: Any) -> Callable[..., str]:
    """Convert a video of so many frames; the dataset's name."""

    def make(data_format: DataFormat = DataFormat.LLAVA, count: int = 40, **export: Any) -> str:
        frames = [
            build.frame(k * 6, build.thing(build.rectangle(20, 30, 2, 4, 8, 6), "cat" if k % 4 else "dog"))
            for k in range(count)
        ]
        exported = make_export(frames, **export)
        run(ConvertSpec(sam2_zip_path=exported, output_dir="datasets/d", target_format=data_format))
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


def test_the_answer_and_the_configuration_say_how_far_from_training_every_held_out_frame_is(
    root: DataRoot, run: Callable[..., Any], dataset: Callable[..., str]
) -> None:
    result = run(split(dataset(), strategy=SplitStrategy.TEMPORAL))
    assert result.leakage == {
        "val": Leak(
            rows=7,
            near=1,
            near_share=0.1429,
            distances={"1": 0, "2": 1, "3-5": 3, "6-10": 3, "11+": 0, "none": 0},
            look_alikes=0,
        ),
        "test": Leak(
            rows=4,
            near=0,
            near_share=0.0,
            distances={"1": 0, "2": 0, "3-5": 0, "6-10": 1, "11+": 3, "none": 0},
            look_alikes=0,
        ),
    }
    config = json.loads((root.datasets / "parts" / "split_config.json").read_text())
    assert config["leakage"] == msgspec.to_builtins(result.leakage)


def test_a_picture_of_training_that_comes_again_in_the_test_part_is_found(
    run: Callable[..., Any], dataset: Callable[..., str], build: Any
) -> None:
    again = {f"images/frame_{39 * 6:06d}.png": build.png(30, 20, seed=0)}
    result = run(split(dataset(files=again), strategy=SplitStrategy.TEMPORAL))
    assert (result.leakage["val"].look_alikes, result.leakage["test"].look_alikes) == (0, 1)
    assert any("1 of 4 test pictures look like a training picture" in warning for warning in result.warnings)


@pytest.mark.parametrize("strategy", [SplitStrategy.RANDOM, SplitStrategy.STRATIFIED])
def test_parts_that_leak_are_repaired_by_sending_back_what_the_answer_proposes(
    strategy: SplitStrategy, root: DataRoot, run: Callable[..., Any], dataset: Callable[..., str]
) -> None:
    leaking = run(split(dataset(), strategy=strategy))
    proposed = leaking.repair
    assert proposed.before == leaking.leakage
    assert f"{leaking.leakage['test'].near} of 4 in test" in proposed.message
    assert proposed.after["val"].near_share < proposed.before["val"].near_share

    body = msgspec.json.encode(proposed.request)
    repaired = run(msgspec.json.decode(body, type=SplitSpec))

    assert repaired.leakage == proposed.after
    assert repaired.repair is None
    assert repaired.test_path == leaking.test_path
    config = json.loads((root.datasets / "parts" / "split_config.json").read_text())
    assert config["strategy"] == "temporal"


def test_no_repair_is_proposed_where_nothing_leaks(
    root: DataRoot, run: Callable[..., Any], dataset: Callable[..., str]
) -> None:
    path = root.path_of(dataset()) / "llava_dataset.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(json.dumps({**row, "video_id": row["id"]}) for row in rows))
    result = run(split("datasets/d", strategy=SplitStrategy.RANDOM))
    assert result.leakage["val"].distances["none"] == 8
    assert result.repair is None


def test_no_repair_is_proposed_where_dividing_by_time_would_not_be_better(
    run: Callable[..., Any], dataset: Callable[..., str]
) -> None:
    first = run(split(dataset(), strategy=SplitStrategy.RANDOM))
    again = run(split("datasets/d", strategy=SplitStrategy.RANDOM, keep="datasets/parts"))
    assert again.leakage == first.leakage
    assert first.repair is not None
    assert again.repair is None


@pytest.mark.parametrize("output", ["datasets/first", "datasets/second"])
def test_a_repair_is_proposed_only_while_the_earlier_split_it_keeps_is_still_there(
    output: str, run: Callable[..., Any], dataset: Callable[..., str]
) -> None:
    run(split(dataset(count=10), "datasets/first", strategy=SplitStrategy.TEMPORAL))
    dataset(count=60)
    grown = run(split("datasets/d", output, strategy=SplitStrategy.RANDOM, keep="datasets/first"))
    assert (grown.repair is None) == (output == "datasets/first")
    if grown.repair:
        assert run(grown.repair.request).leakage == grown.repair.after


def parts_of(root: DataRoot, folder: str) -> dict[str, str]:
    """The part of every row, the guard's included."""
    lines = {path.stem: path.read_text().splitlines() for path in (root.datasets / folder).glob("*.jsonl")}
    return {json.loads(line)["id"]: part for part, found in lines.items() for line in found}


@pytest.mark.parametrize("strategy", list(SplitStrategy))
@pytest.mark.parametrize("data_format", [DataFormat.LLAVA, DataFormat.HUGGINGFACE])
def test_a_dataset_that_grew_is_divided_again_without_moving_a_row(
    data_format: DataFormat,
    strategy: SplitStrategy,
    root: DataRoot,
    run: Callable[..., Any],
    dataset: Callable[..., str],
) -> None:
    run(split(dataset(data_format), "datasets/first", strategy=strategy))
    earlier = parts_of(root, "first")
    dataset(data_format, count=60)

    grown = run(split("datasets/d", "datasets/first", strategy=strategy, keep="datasets/first"))

    now = parts_of(root, "first")
    assert len(now) == 60
    assert earlier == {row_id: now[row_id] for row_id in earlier}
    assert grown.message.startswith("60 rows")
    assert sum(len(open_rows(root, getattr(grown, f"{part}_path"))) for part in PARTS) + grown.guard_samples == 60
    if strategy is SplitStrategy.TEMPORAL:
        assert {now[row_id] for row_id in now.keys() - earlier.keys()} == {"test"}  # which they go on from
    else:
        assert (grown.train_samples, grown.val_samples, grown.test_samples) == (42, 12, 6)


def test_leaks_of_a_split_that_is_kept_are_not_blamed_on_too_few_videos(
    run: Callable[..., Any], dataset: Callable[..., str]
) -> None:
    first = run(split(dataset(), "datasets/first", strategy=SplitStrategy.RANDOM))
    kept = run(split("datasets/d", "datasets/again", strategy=SplitStrategy.TEMPORAL, keep="datasets/first"))
    assert kept.leakage == first.leakage
    (said,) = (warning for warning in kept.warnings if "test frames lie within" in warning)
    assert "what leaked in datasets/first was kept" in said


def test_rows_of_an_earlier_split_that_are_gone_are_said_to_be(
    run: Callable[..., Any], dataset: Callable[..., str]
) -> None:
    run(split(dataset()))
    dataset(count=30)
    result = run(split("datasets/d", keep="datasets/parts"))
    assert result.warnings[0] == "10 rows of datasets/parts are not in the dataset any more, so they are in no part."


def test_what_is_no_split_of_ours_cannot_be_kept(
    root: DataRoot, run: Callable[..., Any], dataset: Callable[..., str]
) -> None:
    name = dataset()
    (root.datasets / "foreign").mkdir()
    for part in PARTS:
        (root.datasets / "foreign" / f"{part}.jsonl").write_text('{"id": "row-1"}\n')
    for keep in (name, f"{name}/llava_dataset.jsonl", "datasets/foreign", "datasets/nothing"):
        with pytest.raises(DatasetInvalid, match="is no split: name a folder that a split job wrote"):
            run(split(name, keep=keep))


def test_a_split_of_other_rows_cannot_be_kept(
    root: DataRoot, run: Callable[..., Any], dataset: Callable[..., str]
) -> None:
    run(split(dataset()))
    path = root.datasets / "d" / "llava_dataset.jsonl"
    path.write_text(path.read_text().replace('"id":"', '"id":"other-'))
    with pytest.raises(DatasetInvalid, match="No row of keep"):
        run(split("datasets/d", keep="datasets/parts"))


def test_of_very_many_classes_the_most_frequent_are_told(root: DataRoot, run: Callable[..., Any]) -> None:
    often = [f"often {number}" for number in range(MOST_LABELS)]
    lines = [
        {"id": f"{number}", "conversations": [], "labels": [*often, *(f"once {number} {k}" for k in range(100))]}
        for number in range(20)
    ]
    (root.datasets / "d").mkdir()
    (root.datasets / "d" / "llava_dataset.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = run(SplitSpec(data_path="datasets/d", output_dir="datasets/s", strategy="random"))
    said = split_config.read(root.datasets / "s")
    for shares in (result.class_shares, said.class_shares):
        assert {part: set(told) for part, told in shares.items()} == {part: {*often, OTHERS} for part in PARTS}
        assert shares["train"][OTHERS] == 0.8
