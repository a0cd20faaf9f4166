"""prepare: the three steps of making a dataset as one job."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_runner import journal
from gpu_runner.recipes import validate
from gpu_runner.rows import open_rows
from gpu_runner.work import Stop, Stopped
from jobs.errors import DatasetInvalid, DiskFull, OutputTaken
from jobs.paths import DataRoot
from jobs.specs import DataFormat, PrepareSpec, ValidateSpec


def frames(build: Any, count: int, **fields: Any) -> list[dict[str, Any]]:
    return [
        build.frame(index, build.thing(build.rectangle(20, 30, 2 + index % 9, 3, 6, 5), **fields))
        for index in range(count)
    ]


def test_an_export_becomes_a_checked_and_divided_dataset_in_one_job(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any, root: DataRoot
) -> None:
    export = make_export(frames(build, 40))

    result = run(PrepareSpec(sam2_zip_path=export, output_dir="datasets/birds"))

    assert result.success
    assert result.passed
    assert result.num_samples == result.convert.num_samples == result.validate.statistics["total_samples"] == 40
    parts = result.split
    assert parts.train_samples + parts.val_samples + parts.test_samples + parts.guard_samples == 40
    assert parts.train_path == "datasets/birds-split/train.jsonl"
    assert root.path_of(parts.train_path).is_file()
    assert root.attempt("job", 1).report.is_file()


def test_a_dataset_that_fails_its_checks_is_not_divided_unless_that_is_wanted(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any, root: DataRoot
) -> None:
    export = make_export(frames(build, 40, label=""))
    spec = PrepareSpec(sam2_zip_path=export, output_dir="datasets/birds")

    refused = run(spec)
    forced = run(
        PrepareSpec(sam2_zip_path=export, output_dir="datasets/birds", allow_invalid_data=True), job_id="forced"
    )

    assert not refused.passed
    assert not refused.success
    assert refused.split is None
    assert "allow_invalid_data" in refused.message
    assert not forced.passed
    assert forced.success
    assert forced.split.train_samples


def test_progress_never_falls_back_from_one_step_to_the_next(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(journal, "PROGRESS_EVERY_S", 0)
    bell = os.open(tmp_path / "bell", os.O_WRONLY | os.O_CREAT)
    first = make_export(frames(build, 40))
    run(PrepareSpec(sam2_zip_path=first, output_dir="datasets/birds"), doorbell=bell)
    begin = (tmp_path / "bell").stat().st_size
    grown = PrepareSpec(sam2_zip_path=first, output_dir="datasets/more", add_to="datasets/birds")
    run(grown, job_id="grown", doorbell=bell)
    os.close(bell)
    for told in ((tmp_path / "bell").read_bytes()[:begin], (tmp_path / "bell").read_bytes()[begin:]):
        said = [json.loads(line) for line in told.splitlines() if line]
        assert {step["phase"] for step in said} >= {"converting", "checking", "writing"}
        fractions = [step["fraction"] for step in said]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1


def test_a_cancel_in_any_phase_leaves_nothing_behind(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any, root: DataRoot, monkeypatch: Any
) -> None:
    spec = PrepareSpec(sam2_zip_path=make_export(frames(build, 20)), output_dir="datasets/birds")
    entered: list[str] = []
    stops: dict[int, Stop] = {}  # by the number of the phase that is not to be survived
    enter = journal.Journal.phase

    def count(self: journal.Journal, name: str) -> None:
        enter(self, name)
        entered.append(name)
        if stop := stops.get(len(entered)):
            stop.wanted = "cancel"

    monkeypatch.setattr(journal.Journal, "phase", count)
    run(spec)
    for name in ("birds", "birds-split"):
        shutil.rmtree(root.datasets / name)
    phases = list(entered)
    assert len(phases) >= 5
    for number in range(1, len(phases) + 1):
        entered.clear()
        stops[number] = Stop()
        with pytest.raises(Stopped):
            run(spec, stop=stops[number])
        assert entered == phases[:number]
        assert [path for path in root.datasets.rglob("*") if path.name != ".staging"] == []
        assert list(root.trash.glob("*")) == []
        stops.clear()


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, "datasets/birds-split"),
        ({"output_dir": "datasets/more"}, "datasets/birds-split"),
        ({"divide_anew": True}, None),
    ],
)
def test_a_dataset_that_grows_keeps_to_its_split_unless_it_is_to_be_divided_anew(
    fields: dict[str, Any],
    kept: str | None,
    run: Callable[..., Any],
    make_export: Callable[..., str],
    build: Any,
    root: DataRoot,
) -> None:
    """Given parts that no division of its own would make."""
    first = run(PrepareSpec(sam2_zip_path=make_export(frames(build, 20)), output_dir="datasets/birds", seed=1))
    tested = {row.id for row in open_rows(root, first.split.test_path)}
    spec = {"sam2_zip_path": make_export(frames(build, 30)), "output_dir": "datasets/birds", "strategy": "random"}

    grown = run(PrepareSpec(**{**spec, "add_to": "datasets/birds", "seed": 7, **fields}))

    assert grown.split.kept == kept
    trained = {row.id for row in open_rows(root, grown.split.train_path)}
    assert (not tested & trained) == (kept is not None)
    assert ("birds-split had stayed" in grown.message) == (kept is not None)


def test_a_split_of_another_dataset_is_not_kept_to(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any
) -> None:
    export = make_export(frames(build, 20))
    run(PrepareSpec(sam2_zip_path=export, output_dir="datasets/cats", split_dir="datasets/parts"))
    run(PrepareSpec(sam2_zip_path=export, output_dir="datasets/birds", split_dir="datasets/elsewhere"))
    grown = run(
        PrepareSpec(
            sam2_zip_path=export, output_dir="datasets/birds", add_to="datasets/birds", split_dir="datasets/parts"
        )
    )
    assert grown.split.kept is None


def contents(root: DataRoot) -> dict[str, bytes]:
    """Every file below datasets/ and in the trash."""
    files = (path for folder in (root.datasets, root.trash) for path in folder.rglob("*") if path.is_file())
    return {root.name_of(path): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("phase", "fault"), [("checking", Stopped()), ("writing", Stopped()), ("writing", OSError(28, "full"))]
)
@pytest.mark.parametrize("add_to", [None, "datasets/birds"])
def test_a_preparation_that_ends_early_leaves_the_older_dataset_and_its_parts_as_they_were(
    phase: str,
    add_to: str | None,
    fault: BaseException,
    run: Callable[..., Any],
    make_export: Callable[..., str],
    build: Any,
    root: DataRoot,
    monkeypatch: Any,
) -> None:
    run(PrepareSpec(sam2_zip_path=make_export(frames(build, 12)), output_dir="datasets/birds"))
    before = contents(root)
    fail_in(phase, fault, monkeypatch)
    more = make_export(frames(build, 15, object_id="2"), name="more.zip")
    with pytest.raises((type(fault), DiskFull)):
        run(PrepareSpec(sam2_zip_path=more, output_dir="datasets/birds", add_to=add_to))
    assert contents(root) == before


@pytest.mark.parametrize("target_format", list(DataFormat))
def test_the_attempt_after_a_killed_one_is_the_same_job(
    target_format: DataFormat,
    run: Callable[..., Any],
    make_export: Callable[..., str],
    build: Any,
    root: DataRoot,
    monkeypatch: Any,
) -> None:
    first, more = make_export(frames(build, 12)), make_export(frames(build, 15, object_id="2"), name="more.zip")
    spec = PrepareSpec(
        sam2_zip_path=more, output_dir="datasets/birds", add_to="datasets/birds", target_format=target_format
    )
    begin = PrepareSpec(sam2_zip_path=first, output_dir="datasets/birds", target_format=target_format)

    run(begin)
    told = run(spec)
    made = contents(root)

    run(begin, job_id="again")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process takes nothing away
        fail_in("writing", MemoryError(), patched)
        with pytest.raises(MemoryError):
            run(spec, job_id="again")
    assert list(root.datasets.glob(".staging/*")) != []
    retold = run(spec, job_id="again", attempt=2)

    assert contents(root) == made
    assert retold.convert == told.convert
    assert retold.split == told.split
    assert list(root.datasets.glob(".staging/*")) == []


def test_parts_that_cannot_take_their_place_leave_the_older_dataset_in_its_own(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any, root: DataRoot, monkeypatch: Any
) -> None:
    run(PrepareSpec(sam2_zip_path=make_export(frames(build, 12)), output_dir="datasets/birds"))
    before = contents(root)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target.name == "birds-split" and self.is_relative_to(root.datasets / ".staging"):
            raise PermissionError(13, "no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError):
        run(PrepareSpec(sam2_zip_path=make_export(frames(build, 15)), output_dir="datasets/birds"))
    assert contents(root) == before


@pytest.mark.parametrize("target_format", list(DataFormat))
def test_nothing_that_was_made_aside_knows_where_it_was_made(
    target_format: DataFormat, run: Callable[..., Any], make_export: Callable[..., str], build: Any, root: DataRoot
) -> None:
    export, name = make_export(frames(build, 20)), "datasets/birds"
    result = run(PrepareSpec(sam2_zip_path=export, output_dir=name, target_format=target_format))
    assert len(open_rows(root, result.split.train_path)) == result.split.train_samples
    kept = list((root.folder / "fingerprints").iterdir())
    run(ValidateSpec(data_path=name, format_type=target_format))
    assert list((root.folder / "fingerprints").iterdir()) == kept
    written = {**contents(root), "report": root.attempt("job", 1).report.read_bytes()}
    assert not any(b".staging" in content for content in written.values())
    assert b".staging" not in root.attempt("job", 1).journal.read_bytes()


def test_parts_may_lie_inside_the_dataset_they_are_cut_from(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any, root: DataRoot
) -> None:
    export = make_export(frames(build, 20))
    spec = PrepareSpec(sam2_zip_path=export, output_dir="datasets/birds", split_dir="datasets/birds/parts")
    run(spec)
    result = run(spec)
    assert len(open_rows(root, "datasets/birds/parts/train.jsonl")) == result.split.train_samples


def fail_in(phase: str, fault: BaseException, monkeypatch: Any) -> None:
    """Let a job end when it enters a phase."""
    enter = journal.Journal.phase

    def fail(self: journal.Journal, name: str) -> None:
        enter(self, name)
        if name == phase:
            raise fault

    monkeypatch.setattr(journal.Journal, "phase", fail)


@pytest.mark.parametrize(
    ("split_dir", "says"),
    [
        ("datasets/taken", "no split job wrote there"),
        ("datasets/birds", "another split_dir"),
        ("uploads/x", "no place"),
    ],
)
def test_a_place_for_the_parts_that_is_taken_is_found_before_the_conversion_starts(
    split_dir: str, says: str, run: Callable[..., Any], make_export: Callable[..., str], build: Any, root: DataRoot
) -> None:
    (root.datasets / "taken").mkdir()
    (root.datasets / "taken" / "notes.txt").write_text("mine")
    spec = PrepareSpec(sam2_zip_path=make_export(frames(build, 5)), output_dir="datasets/birds", split_dir=split_dir)
    with pytest.raises(OutputTaken, match=says):
        run(spec)
    assert not (root.datasets / "birds").exists()


def test_an_earlier_split_that_would_go_with_the_old_dataset_is_not_kept_to(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any, root: DataRoot
) -> None:
    export = make_export(frames(build, 40))
    inside = "datasets/birds/parts"
    run(PrepareSpec(sam2_zip_path=export, output_dir="datasets/birds", split_dir=inside))
    with pytest.raises(OutputTaken, match="made anew"):
        run(PrepareSpec(sam2_zip_path=export, output_dir="datasets/birds", split_dir="datasets/p", keep=inside))
    assert (root.datasets / "birds" / "parts" / "train.jsonl").is_file()


def everything(root: DataRoot) -> list[str]:
    """Below datasets/ and in the trash, but for the folder in which things are made."""
    below = sorted(path for folder in (root.datasets, root.trash) for path in folder.rglob("*"))
    return [root.name_of(path) for path in below if path.name != ".staging"]


@pytest.mark.parametrize("step", ["convert", "validate", "split"])
@pytest.mark.parametrize("fault", [DatasetInvalid("broken"), OSError(28, "full"), MemoryError()], ids=repr)
def test_a_failure_in_any_step_leaves_nothing_behind_and_the_next_try_has_its_place(
    step: str,
    fault: Exception,
    run: Callable[..., Any],
    make_export: Callable[..., str],
    build: Any,
    root: DataRoot,
    monkeypatch: Any,
) -> None:
    spec = PrepareSpec(
        sam2_zip_path=make_export(frames(build, 12)), output_dir="datasets/a/b/birds", split_dir="datasets/c/parts"
    )
    with monkeypatch.context() as patched:
        fail_in({"convert": "converting", "validate": "checking", "split": "writing"}[step], fault, patched)
        with pytest.raises((type(fault), DiskFull)):
            run(spec, job_id="failed")
    assert everything(root) == []

    assert run(spec, job_id="again").success


def test_a_failure_leaves_the_neighbours_of_the_dataset_alone(
    run: Callable[..., Any], make_export: Callable[..., str], build: Any, root: DataRoot, monkeypatch: Any
) -> None:
    export = make_export(frames(build, 12))
    run(PrepareSpec(sam2_zip_path=export, output_dir="datasets/a/birds"))
    before = everything(root)
    monkeypatch.setattr(validate, "open_rows", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(PrepareSpec(sam2_zip_path=export, output_dir="datasets/a/cats"))
    assert everything(root) == before


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"output_dir": "datasets/taken"}, "no convert job wrote there"),
        ({"keep": "datasets/nowhere"}, "keep, datasets/nowhere, is no split"),
        ({"keep": "datasets/taken"}, "is no split"),
    ],
)
def test_places_and_the_split_to_keep_are_checked_before_the_export_is_opened(
    fields: dict[str, str], says: str, run: Callable[..., Any], root: DataRoot
) -> None:
    (root.datasets / "taken").mkdir()
    (root.datasets / "taken" / "notes.txt").write_text("mine")
    spec = {"sam2_zip_path": "uploads/no-such-export.zip", "output_dir": "datasets/birds", **fields}
    with pytest.raises((OutputTaken, DatasetInvalid), match=says):
        run(PrepareSpec(**spec))
