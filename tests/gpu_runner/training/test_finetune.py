"""The recipe finetune: what it says, what it leaves, and that going on is exact."""

import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event

from gpu_runner.recipes import finetune
from gpu_runner.training import adapters, checkpoints, demo_model, device, evaluation, loop, loss, models
from gpu_runner.training.evaluation import Measured, Validation
from gpu_runner.training.loop import TrainingLoop
from gpu_runner.training.scoring import Scores
from gpu_runner.work import Stopped, Work
from jobs import events
from jobs.errors import DatasetInvalid, JobFailed, ModelUnavailable, NoCapacity, OutOfMemory
from jobs.models import ModelSource, Origin
from jobs.paths import LLAVA_FILE, DataRoot
from jobs.results import Answer
from jobs.specs import EvaluateSpec, FinetuneSpec

METHODS = {"full": {"use_lora": False}, "lora": {}, "qlora": {"use_qlora": True}}
SERIES = ("train_loss", "learning_rate", "grad_norm", "eval_loss", "eval_accuracy")
OTHERS = ("memory_mb", "eval_exact_match", "eval_box_iou")

Build = Callable[..., FinetuneSpec]
WorkFor = Callable[..., Work[FinetuneSpec]]
Said = Callable[..., list[Any]]


def series(logged: list[events.MetricsLogged]) -> dict[tuple[str, int], float | None]:
    """Values by (series, step), of what is the same on every machine."""
    return {(name, event.step): value for event in logged for name, value in event.values.items() if name in SERIES}


MODES = {
    "full": {"use_lora": False, "dataloader_workers": 0},
    "lora": {"dataloader_workers": 0},
    "lora with threads": {"dataloader_workers": 3},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "seed",
    [
        1,
        *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3)),
        *(pytest.param(seed, marks=pytest.mark.extended) for seed in range(4, 8)),  # with these 21 kills in each mode
    ],
)
def test_a_run_killed_at_random_steps_logs_what_an_uninterrupted_one_would(
    mode: str,
    seed: int,
    finetune_spec: Build,
    work_for: WorkFor,
    said: Said,
    die_before: Callable[[int], type[BaseException]],
    vary_lengths: Callable[[FinetuneSpec], None],
) -> None:
    spec = finetune_spec(**MODES[mode])  # 8 steps: logged every 2, saved every 3, so within a logging window
    vary_lengths(spec)
    whole = work_for(spec, job_id="whole")
    expected = finetune.run(whole)

    killed_at = sorted(random.Random(seed).sample(range(1, 8), 3))
    attempts = [work_for(spec, job_id="killed", attempt=number) for number in (1, 2, 3, 4)]
    for work, steps in zip(attempts, killed_at, strict=False):
        with pytest.raises(die_before(steps)):
            finetune.run(work)
    result = finetune.run(attempts[-1])

    assert [said(work, events.TrainingResumed)[0].step for work in attempts[1:]] == [s - s % 3 for s in killed_at]
    logged = [event for work in attempts for event in said(work, events.MetricsLogged)]
    assert series(logged) == series(said(whole, events.MetricsLogged))
    assert result.final_train_loss == expected.final_train_loss
    assert result.best_eval_loss == expected.best_eval_loss
    assert result.steps == expected.steps == 8


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
    first, second = work_for(spec, attempt=1), work_for(spec, attempt=2)
    with pytest.raises(die_before(4)):
        finetune.run(first)
    finetune.run(second)
    assert list(second.root.attempt("job", 1).checkpoints.iterdir()) == []
    removed = [event.path for work in (first, second) for event in said(work, events.CheckpointRemoved)]
    assert removed[:2] == [f"jobs/job/attempt-1/checkpoints/step-{step}" for step in (1, 2)]


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


def test_a_pause_saves_the_state_and_the_next_attempt_goes_on(
    finetune_spec: Build, work_for: WorkFor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = finetune_spec()
    whole = work_for(spec, job_id="whole")
    finetune.run(whole)
    first = work_for(spec, attempt=1)
    real = TrainingLoop._gradients

    def step(self: TrainingLoop, batches: Any) -> Any:
        if self.state.step == 4:
            self._work.stop.wanted = "pause"
        return real(self, batches)

    monkeypatch.setattr(TrainingLoop, "_gradients", step)
    with pytest.raises(Stopped):
        finetune.run(first)
    monkeypatch.setattr(TrainingLoop, "_gradients", real)
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


def test_a_job_continues_with_the_newest_weights_of_one_that_failed_and_with_any_it_is_told(
    finetune_spec: Build, work_for: WorkFor, die_before: Callable[[int], type[BaseException]], root: DataRoot
) -> None:
    spec = finetune_spec(save_steps=1, eval_steps=1, save_total_limit=10)
    with pytest.raises(die_before(4)):
        finetune.run(work_for(spec, job_id="first"))
    begun = {}
    for step in (None, 2):
        config = msgspec.structs.replace(spec.config, continue_from="first", continue_from_step=step, max_steps=1)
        work = work_for(FinetuneSpec(config=config), job_id=f"from-{step}")
        finetune.run(work)
        begun[step] = checkpoints.to_continue(root, "first", step).step
    assert begun == {None: 4, 2: 2}
    weights = {
        folder: load_file(root.path_of(f"jobs/{folder}/attempt-1/checkpoints/step-1/model/adapter_model.safetensors"))
        for folder in ("from-None", "from-2")
    }
    name = next(iter(weights["from-2"]))
    assert not torch.equal(weights["from-2"][name], weights["from-None"][name])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"continue_from_step": 7}, "one of 1"),
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
def vary_lengths(root: DataRoot) -> Callable[[FinetuneSpec], None]:
    """Makes the answers of a training set unequally long."""

    def arrange(spec: FinetuneSpec) -> None:
        file = root.path_of(spec.config.train_data_path) / LLAVA_FILE
        lines = file.read_bytes().splitlines(keepends=True)
        longer = [b'"from":"gpt","value":"' + b"It is there. " * (index * 5 % 7) for index in range(len(lines))]
        file.write_bytes(b"".join(map(lambda line, new: line.replace(longer[0], new), lines, longer)))

    return arrange


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


@pytest.fixture
def memory_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes memory too short for more than so many rows at once, from some step on; evaluations count as well."""

    def arrange(rows: int, *, after: int = 0) -> None:
        real, counted = TrainingLoop._gradients, [0]

        def gradients(self: TrainingLoop, batches: Any) -> Any:
            counted[0] = self.state.step
            return real(self, batches)

        def limited(loaded: Any, batch: dict[str, torch.Tensor]) -> Any:
            given = loss.summed_loss(loaded, batch)
            if len(batch["labels"]) > rows and counted[0] >= after:
                raise torch.OutOfMemoryError("planned")
            return given

        monkeypatch.setattr(TrainingLoop, "_gradients", gradients)
        monkeypatch.setattr(loop, "summed_loss", limited)
        monkeypatch.setattr(evaluation, "summed_loss", limited)

    return arrange


LARGE = {"batch_size": 4, "gradient_accumulation_steps": 1, "logging_steps": 1, "lora_dropout": 0.0}


def notes_of(said: Said, work: Work[FinetuneSpec], code: str) -> list[str]:
    return [event.message for event in said(work, events.JobNoted) if event.code == code]


def test_a_run_out_of_memory_goes_on_in_smaller_pieces_with_the_same_rows(
    finetune_spec: Build, work_for: WorkFor, said: Said, memory_for: Callable[..., None]
) -> None:
    spec = finetune_spec(**LARGE, val_data_path=None)
    enough, short = work_for(spec, job_id="enough"), work_for(spec, job_id="short")
    finetune.run(enough)
    memory_for(1, after=2)
    result = finetune.run(short)
    notes = notes_of(said, short, "fewer_rows_at_once")
    assert ["for 4 rows" in notes[0], "for 2 rows" in notes[1], "after step 2" in notes[0]] == [True] * 3
    assert len(notes) == 2
    expected, found = series(said(enough, events.MetricsLogged)), series(said(short, events.MetricsLogged))
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(expected[key], rel=1e-3) for key in found)
    assert result.steps == 8


def test_how_many_rows_fit_is_remembered_over_an_interruption(
    finetune_spec: Build, work_for: WorkFor, said: Said, memory_for: Callable[..., None], die_before: Any
) -> None:
    spec = finetune_spec(**LARGE, val_data_path=None)
    memory_for(2)
    first, second = work_for(spec, attempt=1), work_for(spec, attempt=2)
    with pytest.raises(die_before(5)):
        finetune.run(first)
    finetune.run(second)
    assert len(notes_of(said, first, "fewer_rows_at_once")) == 1
    assert notes_of(said, second, "fewer_rows_at_once") == []


def test_a_run_whose_rows_do_not_fit_one_by_one_fails_with_advice(
    finetune_spec: Build, work_for: WorkFor, said: Said, memory_for: Callable[..., None]
) -> None:
    memory_for(0, after=4)
    work = work_for(finetune_spec(val_data_path=None))
    with pytest.raises(OutOfMemory, match="max_length"):
        finetune.run(work)
    assert len(notes_of(said, work, "fewer_rows_at_once")) == 1
    assert checkpoints.of_job(work.root, "job").step == 3


def test_an_evaluation_out_of_memory_takes_fewer_rows_and_scores_the_same(
    finetune_spec: Build, work_for: WorkFor, said: Said, memory_for: Callable[..., None]
) -> None:
    spec = finetune_spec(batch_size=4, gradient_accumulation_steps=1, max_steps=1, group_by_length=False)
    enough, short = work_for(spec, job_id="enough"), work_for(spec, job_id="short")
    finetune.run(enough)
    memory_for(2)
    finetune.run(short)
    expected, found = series(said(enough, events.MetricsLogged)), series(said(short, events.MetricsLogged))
    assert found[("eval_loss", 1)] == pytest.approx(expected[("eval_loss", 1)], rel=1e-3)
    assert len(notes_of(said, short, "fewer_rows_evaluated")) == 1


@pytest.fixture
def scores_are(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the evaluations of a run give these losses, or accuracies, one after the other."""

    def arrange(losses: list[float], accuracies: list[float] | None = None) -> None:
        given = iter(zip(losses, accuracies or [0.5] * len(losses), strict=True))

        def score(*_: Any) -> tuple[Measured, list[Answer]]:
            loss, accuracy = next(given)
            return Measured(loss, Scores(accuracy, 0.0, None, None, None)), []

        monkeypatch.setattr(Validation, "score", score)

    return arrange


def test_a_run_without_gain_ends_early_and_whole(
    finetune_spec: Build, work_for: WorkFor, said: Said, scores_are: Callable[..., None]
) -> None:
    scores_are([3.0, 2.0, 1.95, 1.92, 0.5])
    spec = finetune_spec(eval_steps=1, logging_steps=3, early_stopping_patience=2, early_stopping_threshold=0.1)
    work = work_for(spec)
    result = finetune.run(work)
    assert result.steps == 4
    assert result.best_checkpoint_path == result.checkpoint_path == "jobs/job/attempt-1/checkpoints/step-4"
    (note,) = notes_of(said, work, "early_stopping")
    assert "step 4 of 8" in note
    logged = [event.step for event in said(work, events.MetricsLogged) if "train_loss" in event.values]
    assert logged == [3, 4]


def test_patience_survives_an_interruption(
    finetune_spec: Build, work_for: WorkFor, scores_are: Callable[..., None], die_before: Any
) -> None:
    scores_are([2.0, 3.0, 3.0, 3.0, 3.0])
    spec = finetune_spec(eval_steps=1, save_steps=1, early_stopping_patience=3)
    with pytest.raises(die_before(3)):
        finetune.run(work_for(spec, attempt=1))
    assert finetune.run(work_for(spec, attempt=2)).steps == 4


@pytest.mark.parametrize(
    ("changes", "best"),
    [
        ({}, 2),
        ({"metric_for_best_model": "eval_accuracy"}, 3),
        ({"metric_for_best_model": "eval_accuracy", "greater_is_better": False}, 1),
        ({"metric_for_best_model": "train_loss", "logging_steps": 1}, None),
    ],
)
def test_the_best_checkpoint_is_told_by_any_metric(
    changes: dict[str, Any],
    best: int | None,
    finetune_spec: Build,
    work_for: WorkFor,
    said: Said,
    scores_are: Callable[..., None],
) -> None:
    scores_are([3.0, 1.0, 2.0, 4.0], [0.1, 0.5, 0.9, 0.3])
    spec = finetune_spec(eval_steps=1, save_steps=1, max_steps=4, save_total_limit=1, use_lora=False, **changes)
    work = work_for(spec)
    result = finetune.run(work)
    losses = {e.values["train_loss"]: e.step for e in said(work, events.MetricsLogged) if "train_loss" in e.values}
    best = best or losses[min(losses)]
    assert result.best_checkpoint_path == f"jobs/job/attempt-1/checkpoints/step-{best}"
    assert checkpoints.of_job(work.root, "job").step == best
    assert (result.best_eval_loss, result.best_eval_accuracy) == (1.0, 0.9)
    loss, accuracy = [(3.0, 0.1), (1.0, 0.5), (2.0, 0.9), (4.0, 0.3)][best - 1]
    assert result.best_scores == {"eval_loss": loss, "eval_accuracy": accuracy, "eval_exact_match": 0.0}


def test_a_metric_that_is_never_measured_is_said_and_the_loss_decides(
    finetune_spec: Build, work_for: WorkFor, said: Said, scores_are: Callable[..., None]
) -> None:
    scores_are([1.0, 2.0])
    work = work_for(finetune_spec(eval_steps=1, save_steps=1, max_steps=2, metric_for_best_model="eval_iou"))
    assert str(finetune.run(work).best_checkpoint_path).endswith("step-1")
    (note,) = notes_of(said, work, "metric_for_best_model")
    assert "eval_accuracy, eval_exact_match, eval_loss" in note


def test_curves_are_written_for_tensorboard(finetune_spec: Build, work_for: WorkFor, said: Said) -> None:
    work = work_for(finetune_spec())
    finetune.run(work)
    (file,) = work.folder.tensorboard.iterdir()
    expected = {
        (name, event.step): pytest.approx(value)
        for event in said(work, events.MetricsLogged)
        for name, value in event.values.items()
    }
    assert curves_in(file) == expected
    assert not finetune_run_without_curves(work_for(finetune_spec(**DATA, tensorboard=False), job_id="without"))


DATA = {"train_data_path": "datasets/train", "val_data_path": None, "max_steps": 1}


def finetune_run_without_curves(work: Work[FinetuneSpec]) -> bool:
    finetune.run(work)
    return work.folder.tensorboard.exists()


def curves_in(file: Path) -> dict[tuple[str, int], float]:
    """The scalars of an event file. Source: TFRecord: length (8 bytes), its crc (4), data, its crc (4); the crc is
    masked CRC32C."""
    content, found, at = file.read_bytes(), {}, 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        data = content[at + 12 : at + 12 + length]
        (checksum,) = struct.unpack_from("<I", content, at + 12 + length)
        crc = crc32c(data)
        assert checksum == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
        event = Event.FromString(data)
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += 16 + length
    return found


def crc32c(data: bytes) -> int:
    """Castagnoli's polynomial, a bit at a time. Source: RFC 3720, appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


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
