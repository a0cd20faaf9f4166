"""The recipe finetune: what it says, what it leaves, and that going on is exact."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from gpu_runner.recipes import finetune
from gpu_runner.rows import LLAVA_FILE
from gpu_runner.training import adapters, checkpoints, demo_model, models
from gpu_runner.training.evaluation import Validation
from gpu_runner.training.loop import TrainingLoop
from gpu_runner.work import Stopped, Work
from jobs import events
from jobs.errors import DatasetInvalid, JobFailed, ModelUnavailable, NoCapacity
from jobs.models import ModelSource, Origin
from jobs.paths import DataRoot
from jobs.specs import EvaluateSpec, FinetuneSpec

METHODS = {"full": {"use_lora": False}, "lora": {}, "qlora": {"use_qlora": True}}
SERIES = ("train_loss", "learning_rate", "grad_norm", "eval_loss", "eval_accuracy")

Build = Callable[..., FinetuneSpec]
WorkFor = Callable[..., Work[FinetuneSpec]]
Said = Callable[..., list[Any]]


def series(logged: list[events.MetricsLogged]) -> dict[tuple[str, int], float | None]:
    """Values by (series, step), of what is the same on every machine."""
    return {(name, event.step): value for event in logged for name, value in event.values.items() if name in SERIES}


@pytest.fixture
def die_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the process "die" as it begins the step after so many steps; once."""

    class Killed(BaseException):
        pass

    def arrange(steps: int) -> type[BaseException]:
        real = TrainingLoop._step

        def step(self: TrainingLoop) -> tuple[float, float]:
            if self.state.step == steps:
                monkeypatch.setattr(TrainingLoop, "_step", real)
                raise Killed
            return real(self)

        monkeypatch.setattr(TrainingLoop, "_step", step)
        return Killed

    return arrange


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_killed_run_logs_what_an_uninterrupted_one_would(
    method: str, finetune_spec: Build, work_for: WorkFor, said: Said, die_before: Callable[[int], type[BaseException]]
) -> None:
    spec = finetune_spec(**METHODS[method])  # 8 steps: logged every 2, saved every 3, so within a logging window
    whole = work_for(spec, job_id="whole")
    expected = finetune.run(whole)

    killed = die_before(5)
    first = work_for(spec, job_id="killed", attempt=1)
    with pytest.raises(killed):
        finetune.run(first)
    second = work_for(spec, job_id="killed", attempt=2)
    result = finetune.run(second)

    logged = said(first, events.MetricsLogged) + said(second, events.MetricsLogged)
    assert said(second, events.MetricsLogged)[0].step == 4  # it went on from step 3
    assert series(logged) == series(said(whole, events.MetricsLogged))
    assert result.final_train_loss == expected.final_train_loss
    assert result.best_eval_loss == expected.best_eval_loss
    assert result.steps == expected.steps == 8


def test_the_series_has_every_step_it_should(finetune_spec: Build, work_for: WorkFor, said: Said) -> None:
    work = work_for(finetune_spec(max_steps=7))
    finetune.run(work)
    logged = said(work, events.MetricsLogged)
    steps = {name: [event.step for event in logged if name in event.values] for name in (*SERIES, "memory_mb")}
    assert steps["train_loss"] == steps["learning_rate"] == steps["memory_mb"] == [2, 4, 6, 7]
    assert steps["eval_loss"] == steps["eval_accuracy"] == [4, 7]
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


def test_a_broken_newest_checkpoint_is_not_continued_from(
    finetune_spec: Build, work_for: WorkFor, said: Said, die_before: Callable[[int], type[BaseException]]
) -> None:
    spec = finetune_spec()
    first = work_for(spec, attempt=1)
    with pytest.raises(die_before(7)):
        finetune.run(first)
    os.truncate(first.folder.checkpoints / "step-6" / "state.pt", 100)
    second = work_for(spec, attempt=2)
    finetune.run(second)
    assert said(second, events.TrainingResumed)[0].step == 3
    assert said(second, events.CheckpointSaved)[0].path == "jobs/job/attempt-2/checkpoints/step-3"


def test_what_earlier_attempts_saved_is_removed_and_said(
    finetune_spec: Build, work_for: WorkFor, said: Said, die_before: Callable[[int], type[BaseException]]
) -> None:
    spec = finetune_spec(save_steps=1, val_data_path=None)
    with pytest.raises(die_before(4)):
        finetune.run(work_for(spec, attempt=1))
    second = work_for(spec, attempt=2)
    finetune.run(second)
    assert list(second.root.attempt("job", 1).checkpoints.iterdir()) == []
    removed = {event.path for event in said(second, events.CheckpointRemoved)}
    moved = {f"jobs/job/attempt-2/checkpoints/step-{step}" for step in (3, 4)}
    assert {"jobs/job/attempt-1/checkpoints/step-2"} | moved <= removed


def test_a_model_is_continued_under_any_of_its_names(finetune_spec: Build, work_for: WorkFor, root: DataRoot) -> None:
    shutil.copytree(demo_model.ensure(root.models / "demo-llava"), root.models / "mine")
    spec = finetune_spec(max_steps=1, model_name="mine")
    finetune.run(work_for(spec, job_id="first"))
    config = msgspec.structs.replace(spec.config, continue_from="first", model_name="models/mine")
    assert finetune.run(work_for(FinetuneSpec(config=config), job_id="second")).steps == 1


def test_qlora_trains_adapters_on_a_four_bit_base(finetune_spec: Build, work_for: WorkFor, root: DataRoot) -> None:
    work = work_for(finetune_spec(**METHODS["qlora"], learning_rate=1e-2))
    result = finetune.run(work)
    assert result.trainable_parameters["vision"] == result.trainable_parameters["projector"] == 0
    assert result.trainable_parameters["language"] == 52_224
    loaded = models.load_named(EvaluateSpec(data_path="x", job_id="job"), root, work.settings, "cpu")
    assert adapters.four_bit_layers(loaded.model)
    trained = [p for name, p in loaded.model.named_parameters() if "lora_B" in name]
    assert all(bool(parameter.any()) for parameter in trained)  # they begin as zeros


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


def test_a_pause_saves_the_state_and_the_next_attempt_goes_on(
    finetune_spec: Build, work_for: WorkFor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = finetune_spec()
    whole = work_for(spec, job_id="whole")
    finetune.run(whole)
    first = work_for(spec, attempt=1)
    real = TrainingLoop._step

    def step(self: TrainingLoop) -> tuple[float, float]:
        if self.state.step == 4:
            self._work.stop.wanted = "pause"
        return real(self)

    monkeypatch.setattr(TrainingLoop, "_step", step)
    with pytest.raises(Stopped):
        finetune.run(first)
    monkeypatch.setattr(TrainingLoop, "_step", real)
    assert said(first)[-1] == said(first, events.JobPaused)[0]
    assert said(first, events.JobPaused)[0].step == 5
    second = work_for(spec, attempt=2)
    finetune.run(second)
    logged = said(first, events.MetricsLogged) + said(second, events.MetricsLogged)
    assert series(logged) == series(said(whole, events.MetricsLogged))


def test_a_cancel_ends_the_run_at_once(finetune_spec: Build, work_for: WorkFor, said: Said) -> None:
    work = work_for(finetune_spec())
    work.stop.wanted = "cancel"
    with pytest.raises(Stopped):
        finetune.run(work)
    assert said(work, events.MetricsLogged) == []


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_job_continues_with_the_weights_of_another(
    method: str, finetune_spec: Build, work_for: WorkFor, said: Said
) -> None:
    spec = finetune_spec(**METHODS[method], learning_rate=5e-3)
    first = work_for(spec, job_id="first")
    finetune.run(first)
    config = msgspec.structs.replace(spec.config, continue_from="first", learning_rate=1e-6, eval_steps=1, max_steps=1)
    second = work_for(FinetuneSpec(config=config), job_id="second")
    finetune.run(second)
    before = said(first, events.MetricsLogged)[-1].values["eval_loss"]
    after = said(second, events.MetricsLogged)[-1].values["eval_loss"]
    assert after == pytest.approx(before, rel=1e-3)
    assert said(second, events.MetricsLogged)[0].step == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lora_rank": 4}, "rank 8"),
        ({"use_lora": False}, "method lora"),
        ({"continue_from": "nobody"}, "no complete checkpoint"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: dict[str, Any], says: str, finetune_spec: Build, work_for: WorkFor
) -> None:
    spec = finetune_spec(max_steps=1)
    finetune.run(work_for(spec, job_id="first"))
    config = msgspec.structs.replace(spec.config, **({"continue_from": "first"} | change))
    with pytest.raises(ModelUnavailable, match=says):
        finetune.run(work_for(FinetuneSpec(config=config), job_id="second"))


def test_a_data_set_that_changed_under_a_run_is_noticed(
    finetune_spec: Build, work_for: WorkFor, root: DataRoot, die_before: Callable[[int], type[BaseException]]
) -> None:
    spec = finetune_spec()
    with pytest.raises(die_before(4)):
        finetune.run(work_for(spec, attempt=1))
    file = root.path_of(spec.config.train_data_path) / LLAVA_FILE
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(DatasetInvalid, match="14 rows when this run was saved and has 13 now"):
        finetune.run(work_for(spec, attempt=2))


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
        real = TrainingLoop._step

        def step(self: TrainingLoop) -> tuple[float, float]:
            backward = self._optimisation.backward
            if self.state.step + 1 in steps:
                monkeypatch.setattr(self._optimisation, "backward", lambda loss: backward(loss * torch.nan))
            try:
                return real(self)
            finally:
                monkeypatch.setattr(self._optimisation, "backward", backward)

        monkeypatch.setattr(TrainingLoop, "_step", step)

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
    real = TrainingLoop._step

    def step(self: TrainingLoop) -> tuple[float, float]:
        done = real(self)
        if self.state.step == 8:
            self._optimisation._parameters[0].data.fill_(torch.inf)
        return done

    monkeypatch.setattr(TrainingLoop, "_step", step)
    work = work_for(finetune_spec(eval_steps=100, val_data_path=None))
    with pytest.raises(JobFailed, match="diverged"):
        finetune.run(work)
    assert checkpoints.of_job(work.root, "job").step == 6


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
    changes = {"use_lora": False, "num_epochs": 1, "logging_steps": 1, "learning_rate": 1e-3}
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
