"""The recipe finetune: what it says and what it leaves."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from runs import METHODS, SERIES, Build, Said, WorkFor, series

from gpu_runner.recipes import finetune
from gpu_runner.training import adapters, checkpoints, device, models
from gpu_runner.training.evaluation import Validation
from gpu_runner.training.loop import TrainingLoop
from gpu_runner.work import Stopped
from jobs import events, support
from jobs.errors import DatasetInvalid, DiskFull, JobFailed, ModelUnavailable, NoCapacity
from jobs.models import ModelSource, Origin
from jobs.paths import LLAVA_FILE, DataRoot
from jobs.specs import EvaluateSpec, FinetuneSpec

OTHERS = ("memory_mb", "eval_exact_match", "eval_box_iou")


def test_the_series_has_every_step_it_should(finetune_spec: Build, work_for: WorkFor, said: Said) -> None:
    work = work_for(finetune_spec(max_steps=7))
    finetune.run(work)
    logged = said(work, events.MetricsLogged)
    steps = {name: [event.step for event in logged if name in event.values] for name in (*SERIES, *OTHERS)}
    assert steps["train_loss"] == steps["learning_rate"] == steps["memory_mb"] == [2, 4, 6, 7]
    assert steps["eval_loss"] == steps["eval_accuracy"] == steps["eval_exact_match"] == [4, 7]
    assert not steps["eval_box_iou"]  # these rows ask for no boxes
    assert {event.total_steps for event in logged} == {7}
    assert logged[-1].epoch == pytest.approx(7 / 4)
    assert {event.step for event in said(work, events.SamplePredicted)} == {0, 4, 7}


def test_checkpoints_rotate_and_the_last_one_is_kept(finetune_spec: Build, work_for: WorkFor, said: Said) -> None:
    work = work_for(finetune_spec(save_steps=1, save_total_limit=2, eval_steps=100))
    result = finetune.run(work)
    saved = [event.step for event in said(work, events.CheckpointSaved)]
    removed = [event.step for event in said(work, events.CheckpointRemoved)]
    kept = sorted(int(path.name.removeprefix("step-")) for path in work.folder.checkpoints.iterdir())
    assert saved == list(range(1, 9))
    assert sorted(removed + kept) == saved
    assert kept == [7, 8]
    assert result.checkpoint_path == result.best_checkpoint_path == "jobs/job/attempt-1/checkpoints/step-8"
    assert checkpoints.verify(work.root.path_of(result.checkpoint_path)) is not None


def test_qlora_trains_adapters_on_a_four_bit_base(finetune_spec: Build, work_for: WorkFor, root: DataRoot) -> None:
    work = work_for(finetune_spec(**METHODS["qlora"], learning_rate=1e-2))
    result = finetune.run(work)
    assert result.trainable_parameters["vision"] == result.trainable_parameters["projector"] == 0
    assert result.trainable_parameters["language"] == 52_224
    loaded = models.load_named(EvaluateSpec(data_path="x", job_id="job"), root, work.settings, "cpu")
    assert adapters.quantised_layers(loaded.model, 4)
    trained = [p for name, p in loaded.model.named_parameters() if "lora_B" in name]
    assert all(bool(parameter.any()) for parameter in trained)  # they begin as zeros


def test_eight_bits_are_refused_without_a_gpu_that_computes_with_them(finetune_spec: Build, work_for: WorkFor) -> None:
    with pytest.raises(NoCapacity, match="set qlora_bits to 4"):
        finetune.run(work_for(finetune_spec(use_qlora=True, qlora_bits=8)))


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_adapters_are_trained_on_an_eight_bit_base_where_it_can_be(
    finetune_spec: Build, work_for: WorkFor, root: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_for(finetune_spec(use_qlora=True, qlora_bits=8, learning_rate=1e-2, max_steps=2))
    with monkeypatch.context() as patch:  # it computes on a CPU as well, slowly
        patch.setattr(device, "has_bits", lambda *_: True)
        patch.setitem(support.BITS[8], "cpu", "all")
        result = finetune.run(work)
        loaded = models.load_named(EvaluateSpec(data_path="x", job_id="job"), root, work.settings, "cpu")
    assert result.trainable_parameters["language"] == 52_224
    assert adapters.quantised_layers(loaded.model, 8)
    trained = [p for name, p in loaded.model.named_parameters() if "lora_B" in name]
    assert all(bool(parameter.any()) for parameter in trained)
    elsewhere = models.load_named(EvaluateSpec(data_path="x", job_id="job"), root, work.settings, "cpu")
    assert not adapters.quantised_layers(elsewhere.model, 8)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_was_trained_is_what_is_loaded(
    method: str, finetune_spec: Build, work_for: WorkFor, root: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, torch.Tensor]] = []
    real = finetune._result

    def result(work: Any, loop: Any, loaded: Any) -> Any:
        kept.append({name: value.clone() for name, value in loaded.model.state_dict().items()})
        return real(work, loop, loaded)

    monkeypatch.setattr(finetune, "_result", result)
    work = work_for(finetune_spec(**METHODS[method]))
    finetune.run(work)
    again = models.load_named(EvaluateSpec(data_path="x", job_id="job"), root, work.settings, "cpu").model.state_dict()
    assert again.keys() == kept[0].keys()
    assert all(torch.equal(again[name], kept[0][name]) for name in again)


def test_a_cancel_ends_the_run_at_once(finetune_spec: Build, work_for: WorkFor, said: Said) -> None:
    work = work_for(finetune_spec())
    work.stop.wanted = "cancel"
    with pytest.raises(Stopped):
        finetune.run(work)
    assert said(work, events.MetricsLogged) == []


def test_a_missing_image_stops_the_job_with_its_row(finetune_spec: Build, work_for: WorkFor, root: DataRoot) -> None:
    spec = finetune_spec()
    (root.path_of(spec.config.train_data_path) / "images" / "0003.png").unlink()
    with pytest.raises(DatasetInvalid, match="row-3"):
        finetune.run(work_for(spec))


def test_a_bad_validation_row_is_found_before_the_first_step(
    finetune_spec: Build, work_for: WorkFor, root: DataRoot, said: Said
) -> None:
    spec = finetune_spec()
    (root.path_of(str(spec.config.val_data_path)) / "images" / "0003.png").unlink()
    work = work_for(spec)
    with pytest.raises(DatasetInvalid, match=r"row-3 of datasets/val"):
        finetune.run(work)
    assert "training" not in [event.phase for event in said(work, events.PhaseEntered)]


def test_an_evaluation_that_fails_does_not_lose_the_weights(
    finetune_spec: Build, work_for: WorkFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise DatasetInvalid("The picture is broken.")

    monkeypatch.setattr(Validation, "score", fail)
    work = work_for(finetune_spec(save_steps=100))
    with pytest.raises(DatasetInvalid, match="broken"):
        finetune.run(work)
    assert checkpoints.of_job(work.root, "job").step == 4


@pytest.fixture
def spoil_gradients(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Makes the gradients of these steps NaN, counted from 1."""

    def arrange(steps: set[int]) -> None:
        real = TrainingLoop._gradients

        def step(self: TrainingLoop, batches: Any) -> Any:
            backward = self._optimisation.backward
            if self.state.step + 1 in steps:
                monkeypatch.setattr(self._optimisation, "backward", lambda loss: backward(loss * torch.nan))
            try:
                return real(self, batches)
            finally:
                monkeypatch.setattr(self._optimisation, "backward", backward)

        monkeypatch.setattr(TrainingLoop, "_gradients", step)

    return arrange


def test_a_gradient_that_is_no_number_changes_nothing_and_is_not_saved_upon(
    finetune_spec: Build, work_for: WorkFor, said: Said, spoil_gradients: Callable[[set[int]], None]
) -> None:
    spoil_gradients({1, 3})
    work = work_for(finetune_spec())
    result = finetune.run(work)
    assert [event.step for event in said(work, events.CheckpointSaved)] == [4, 6, 8]  # 3 was due
    logged = [event.values for event in said(work, events.MetricsLogged) if "train_loss" in event.values]
    assert [values["skipped_steps"] for values in logged] == [1, 2, 2, 2]
    assert result.final_train_loss is not None


def test_a_training_that_diverged_ends_with_its_good_checkpoints(
    finetune_spec: Build, work_for: WorkFor, spoil_gradients: Callable[[set[int]], None]
) -> None:
    spoil_gradients(set(range(4, 100)))
    work = work_for(finetune_spec(save_steps=1, num_epochs=10))
    with pytest.raises(JobFailed, match=r"diverged.*lower learning_rate"):
        finetune.run(work)
    assert sorted(path.name for path in work.folder.checkpoints.iterdir()) == ["step-1", "step-2", "step-3"]


def test_weights_that_are_no_numbers_are_never_saved(
    finetune_spec: Build, work_for: WorkFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TrainingLoop._update

    def update(self: TrainingLoop, gathered: Any) -> tuple[float, float]:
        done = real(self, gathered)
        if self.state.step == 8:
            self._optimisation._parameters[0].data.fill_(torch.inf)
        return done

    monkeypatch.setattr(TrainingLoop, "_update", update)
    work = work_for(finetune_spec(eval_steps=100, val_data_path=None))
    with pytest.raises(JobFailed, match="diverged"):
        finetune.run(work)
    assert checkpoints.of_job(work.root, "job").step == 6


def test_checkpoints_that_do_not_fit_on_the_disk_are_refused_before_the_first_step(
    finetune_spec: Build, work_for: WorkFor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = SimpleNamespace(free=0)
    monkeypatch.setattr("gpu_runner.training.room.shutil.disk_usage", lambda _: left)
    spec = finetune_spec(use_lora=False, save_total_limit=2, save_steps=1, max_steps=5)
    refused = work_for(spec, job_id="refused")
    with pytest.raises(DiskFull, match=r"needs 5\d MB for 4 checkpoints of 1\d MB") as found:
        finetune.run(refused)
    assert not said(refused, events.CheckpointSaved)

    left.free = 1_000_000 * int(re.findall(r"needs (\d+) MB", str(found.value))[0])
    fits = work_for(spec, job_id="fits")
    finetune.run(fits)
    kept = sum(path.stat().st_size for path in fits.folder.checkpoints.rglob("*") if path.is_file())
    written = 1 + 2 + 1  # while the last one was made, beside the best and the newest
    assert kept == pytest.approx(left.free * len(list(fits.folder.checkpoints.iterdir())) / written, rel=0.1)

    left.free //= written
    once = msgspec.structs.replace(spec, config=msgspec.structs.replace(spec.config, save_steps=5))
    finetune.run(work_for(once, job_id="saves-once"))


def test_an_empty_data_set_is_refused(finetune_spec: Build, work_for: WorkFor, write_frames: Any) -> None:
    with pytest.raises(DatasetInvalid, match="no rows"):
        finetune.run(work_for(finetune_spec(train_data_path=write_frames("empty", 0))))


def test_what_was_changed_is_said(finetune_spec: Build, work_for: WorkFor, said: Said) -> None:
    work = work_for(finetune_spec(fp16=True, device="cuda", max_steps=1, max_length=8192))
    finetune.run(work)
    notes = [event.message for event in said(work, events.JobNoted)]
    assert any("fp32" in note for note in notes)
    assert any("CUDA was asked for" in note for note in notes)


def test_rows_that_are_cut_are_counted(write_frames: Any, finetune_spec: Build, work_for: WorkFor, said: Said) -> None:
    spec = finetune_spec(max_steps=1, max_length=128)
    file = work_for(spec, job_id="unused").root.path_of(spec.config.train_data_path) / LLAVA_FILE
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"from":"gpt","value":"', b'"from":"gpt","value":"' + b"on and on " * 60)
    file.write_bytes(b"".join(lines))
    work = work_for(spec)
    finetune.run(work)
    (note,) = [event for event in said(work, events.JobNoted) if event.code == "rows_truncated"]
    assert note.message.startswith("1 of 14 rows")


def test_the_twin_of_a_model_is_named_and_a_large_one_is_not_run_on_a_cpu(
    finetune_spec: Build, work_for: WorkFor, said: Said
) -> None:
    work = work_for(finetune_spec(model_name="liuhaotian/llava-v1.5-7b"))
    with pytest.raises(NoCapacity, match="no GPU"):
        finetune.run(work)
    assert "llava-hf/llava-1.5-7b-hf" in said(work, events.JobNoted)[0].message


def test_bf16_on_a_cpu_trains(finetune_spec: Build, work_for: WorkFor) -> None:
    result = finetune.run(work_for(finetune_spec(bf16=True, max_steps=2)))
    assert result.final_train_loss is not None


def test_the_loss_of_a_step_does_not_depend_on_how_its_rows_are_cut(
    finetune_spec: Build, work_for: WorkFor, said: Said
) -> None:
    changes = {"use_lora": False, "num_epochs": 1, "logging_steps": 1, "group_by_length": False}
    small = finetune_spec(batch_size=1, gradient_accumulation_steps=4, **changes)
    config = msgspec.structs.replace(small.config, batch_size=4, gradient_accumulation_steps=1)
    one, other = work_for(small, job_id="one"), work_for(FinetuneSpec(config=config), job_id="other")
    finetune.run(one)
    finetune.run(other)
    first, second = series(said(one, events.MetricsLogged)), series(said(other, events.MetricsLogged))
    assert first.keys() == second.keys()
    assert all(first[key] == pytest.approx(second[key], rel=1e-3) for key in first)


def test_a_model_without_eyes_refuses_pictures_with_a_sentence(
    finetune_spec: Build, work_for: WorkFor, root: DataRoot, text_model: Path
) -> None:
    shutil.move(text_model, root.models / "text")
    with pytest.raises(ModelUnavailable, match="reads text only"):
        finetune.run(work_for(finetune_spec(model_name="text")))


def test_a_local_folder_below_the_model_roots_is_trained(
    finetune_spec: Build, work_for: WorkFor, root: DataRoot
) -> None:
    folder = root.models / "mine"
    source = ModelSource(name="demo-llava", origin=Origin.BUILT_IN, location=str(folder))
    models.load_base(source, device="cpu", dtype=torch.float32)
    assert finetune.run(work_for(finetune_spec(model_name="models/mine", max_steps=1))).steps == 1
