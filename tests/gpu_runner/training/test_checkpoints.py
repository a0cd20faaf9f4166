"""A checkpoint counts as a whole or not at all."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpu_runner.training import checkpoints
from gpu_runner.training.checkpoints import MANIFEST, Checkpoint, Manifest
from jobs import events
from jobs.errors import ModelUnavailable
from jobs.paths import DataRoot
from jobs.results import FinetuneResult

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def save(
    parent: Path, step: int, attempt: int = 1, content: bytes = b"weights", loss: float | None = None
) -> Checkpoint:
    def fill(checkpoint: Checkpoint) -> None:
        (checkpoint.model / "model.safetensors").write_bytes(content)
        checkpoint.state.write_bytes(b"state")

    metrics = {} if loss is None else {"eval_loss": loss}
    manifest = Manifest(
        job_id="job", attempt=attempt, step=step, method="full", model_name="demo-llava", metrics=metrics
    )
    return checkpoints.write(parent, manifest, fill, lambda: None)


class Gone:
    """Hears of removals, each of them while the checkpoint is still there (found by SEED=362447-kills-28)."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, step: int, folder: Path) -> None:
        assert checkpoints.verify(folder) or (folder / MANIFEST).exists()
        self.steps.append(step)


def folder_of(root: DataRoot, attempt: int) -> Path:
    return root.attempt("job", attempt).checkpoints


def test_a_written_checkpoint_verifies_and_lists_all_its_files(tmp_path: Path) -> None:
    written = save(tmp_path, 3)
    found = checkpoints.verify(written.folder)
    assert found == written
    assert [file.path for file in found.manifest.files] == ["model/model.safetensors", "state.pt"]
    assert found.size_bytes == len(b"weights") + len(b"state")


@pytest.mark.parametrize("damage", ["changed", "shortened", "missing", "no manifest", "torn manifest"])
def test_a_damaged_checkpoint_does_not_verify(tmp_path: Path, damage: str) -> None:
    folder = save(tmp_path, 3).folder
    weights, manifest = folder / "model/model.safetensors", folder / MANIFEST
    actions = {
        "changed": lambda: weights.write_bytes(b"weightz"),
        "shortened": lambda: weights.write_bytes(b"weight"),
        "missing": weights.unlink,
        "no manifest": manifest.unlink,
        "torn manifest": lambda: manifest.write_bytes(manifest.read_bytes()[:40]),
    }
    actions[damage]()
    assert checkpoints.verify(folder) is None


def test_the_manifest_comes_after_everything_it_rests_on(tmp_path: Path) -> None:
    seen: list[bool] = []
    manifest = Manifest(job_id="job", attempt=1, step=1, method="full", model_name="m", metrics={})
    checkpoints.write(
        tmp_path,
        manifest,
        lambda checkpoint: checkpoint.state.write_bytes(b"s"),
        lambda: seen.append((tmp_path / "step-1" / MANIFEST).exists()),
    )
    assert seen == [False]


def test_a_save_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def full_disk(_checkpoint: Checkpoint) -> None:
        raise OSError(28, "No space left on device")

    manifest = Manifest(job_id="job", attempt=1, step=1, method="full", model_name="m", metrics={})
    with pytest.raises(OSError, match="No space"):
        checkpoints.write(tmp_path, manifest, full_disk, lambda: None)
    assert list(tmp_path.iterdir()) == []


def test_the_newest_of_all_attempts_is_found(root: DataRoot) -> None:
    save(folder_of(root, 1), 6, attempt=1)
    save(folder_of(root, 2), 9, attempt=2)
    save(folder_of(root, 10), 9, attempt=10)
    found = checkpoints.newest_verified(root, "job")
    assert found is not None
    assert (found.step, found.manifest.attempt) == (9, 10)


def test_a_broken_newest_checkpoint_is_passed_over(root: DataRoot) -> None:
    save(folder_of(root, 1), 6)
    broken = save(folder_of(root, 1), 9)
    broken.state.write_bytes(b"torn!")
    found = checkpoints.newest_verified(root, "job")
    assert found is not None
    assert found.step == 6


def test_a_job_without_checkpoints_has_no_newest_one(root: DataRoot) -> None:
    assert checkpoints.newest_verified(root, "job") is None


def test_the_best_checkpoint_stands_for_a_job(root: DataRoot) -> None:
    best = save(folder_of(root, 1), 3, loss=0.5)
    save(folder_of(root, 1), 6, loss=0.9)
    save(folder_of(root, 2), 9, attempt=2)
    assert checkpoints.of_job(root, "job") == best


def test_the_best_is_told_by_the_metric_and_the_direction_its_manifest_names(root: DataRoot) -> None:
    for step, accuracy in ((1, 0.2), (2, 0.9), (3, 0.5)):
        manifest = Manifest(
            job_id="job",
            attempt=1,
            step=step,
            method="full",
            model_name="m",
            metrics={"eval_loss": float(step), "eval_accuracy": accuracy},
            judged_by="eval_accuracy",
            higher_is_better=True,
        )
        checkpoints.write(folder_of(root, 1), manifest, lambda made: made.state.write_bytes(b"s"), lambda: None)
    assert checkpoints.of_job(root, "job").step == 2


def test_the_newest_stands_for_a_job_whose_best_is_broken(root: DataRoot) -> None:
    save(folder_of(root, 1), 3, loss=0.5).state.write_bytes(b"torn!")
    newest = save(folder_of(root, 2), 9, attempt=2)
    assert checkpoints.of_job(root, "job") == newest


def test_a_job_without_a_whole_checkpoint_is_refused(root: DataRoot) -> None:
    with pytest.raises(ModelUnavailable, match="no complete checkpoint"):
        checkpoints.of_job(root, "job")


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    gone = Gone()
    checkpoints.rotate(tmp_path, 2, tmp_path / "step-2", gone)
    assert gone.steps == [1, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-4", "step-5"]


def test_rotation_never_leaves_fewer_than_two(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step)
    checkpoints.rotate(tmp_path, 1, None, Gone())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-2"]


def test_rotation_never_leaves_fewer_than_two_that_verify(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    for step in (3, 4):
        (tmp_path / f"step-{step}" / "state.pt").write_bytes(b"torn!")
    gone = Gone()
    checkpoints.rotate(tmp_path, 2, None, gone)
    assert gone.steps == [1, 3]
    assert sorted(path.name for path in tmp_path.iterdir() if checkpoints.verify(path)) == ["step-2", "step-5"]


def test_a_later_attempt_takes_over_the_best_and_two_whole_ones_and_the_rest_goes(root: DataRoot) -> None:
    save(folder_of(root, 1), 1, loss=0.5)
    for step in (2, 3, 4):
        save(folder_of(root, 1), step)
    save(folder_of(root, 1), 5).state.write_bytes(b"torn!")
    (save(folder_of(root, 1), 6).folder / MANIFEST).unlink()
    taken = checkpoints.take_over(root, "job", 2)
    assert [checkpoint.step for checkpoint in taken] == [4, 3, 1]
    assert all(checkpoints.verify(checkpoint.folder) == checkpoint for checkpoint in taken)
    assert {checkpoint.folder.parent for checkpoint in taken} == {folder_of(root, 2)}
    gone = Gone()
    checkpoints.discard_earlier(root, "job", 2, gone)
    assert gone.steps == [5, 2], "what never had a manifest was never listed"
    assert list(folder_of(root, 1).iterdir()) == []


def test_an_attempt_that_goes_on_meanwhile_cannot_remove_what_was_taken_over(root: DataRoot) -> None:
    """Found by SEED=83085-frozen-3: both rotated the same folders, and the later attempt failed."""
    for step in (1, 2, 3):
        save(folder_of(root, 1), step)
    seen_by_the_old_one = [(step, folder_of(root, 1) / f"step-{step}") for step in (1, 2, 3)]
    taken = checkpoints.take_over(root, "job", 2)
    checkpoints._remove([folder for _, folder in seen_by_the_old_one], lambda _, __: None)
    checkpoints.discard_earlier(root, "job", 1, Gone())  # found by SEED=83085-frozen-5: later ones are not earlier
    assert [checkpoint.step for checkpoint in taken] == [3, 2]
    assert all(checkpoints.verify(checkpoint.folder) for checkpoint in taken)


def test_an_incomplete_checkpoint_does_not_count_in_rotation(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-3" / MANIFEST).unlink()
    gone = Gone()
    checkpoints.rotate(tmp_path, 2, None, gone)
    assert gone.steps == []


def test_what_is_continued_is_the_best_of_a_completed_job_and_the_newest_of_any_other(root: DataRoot) -> None:
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        save(folder_of(root, 1), step, loss=loss)
    assert checkpoints.to_continue(root, "job", None).step == 3
    assert checkpoints.to_continue(root, "job", 1).step == 1
    (folder_of(root, 1) / "step-3" / "state.pt").unlink()
    assert checkpoints.to_continue(root, "job", None).step == 2
    with pytest.raises(ModelUnavailable, match="one of 1, 2"):
        checkpoints.to_continue(root, "job", 3)
    save(folder_of(root, 1), 4, loss=2.0)
    root.attempt("job", 1).journal.write_bytes(
        events.encode(events.JobCompleted(job_id="job", attempt=1, n=1, at=NOW, result=FinetuneResult(steps=4))) + b"\n"
    )
    assert checkpoints.to_continue(root, "job", None).step == 2
    with pytest.raises(ModelUnavailable, match="no complete checkpoint"):
        checkpoints.to_continue(root, "nobody", None)
