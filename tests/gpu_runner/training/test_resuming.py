"""A run that was killed, paused or changed under its feet goes on exactly, or says why not."""

import os
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from runs import Build, Said, WorkFor, series

from gpu_runner.recipes import finetune
from gpu_runner.training.loop import TrainingLoop
from gpu_runner.work import Stopped
from jobs import events
from jobs.errors import DatasetInvalid
from jobs.paths import LLAVA_FILE, DataRoot
from jobs.specs import FinetuneSpec

MODES = {
    "full": {"use_lora": False, "dataloader_workers": 0},
    "lora": {"dataloader_workers": 0},
    "lora with threads": {"dataloader_workers": 3},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "seed",
    [
        1,  # three kills in each mode
        *(pytest.param(seed, marks=pytest.mark.extended) for seed in range(2, 9)),  # twenty-one more
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


def test_a_run_that_goes_on_is_not_asked_for_room_again(
    finetune_spec: Build, work_for: WorkFor, die_before: Callable[[int], type[BaseException]], monkeypatch: Any
) -> None:
    spec = finetune_spec(max_steps=5, save_steps=1)
    with pytest.raises(die_before(4)):
        finetune.run(work_for(spec, attempt=1))
    monkeypatch.setattr("gpu_runner.training.room.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    assert finetune.run(work_for(spec, attempt=2)).steps == 5


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


@pytest.fixture
def vary_lengths(root: DataRoot) -> Callable[[FinetuneSpec], None]:
    """Makes the answers of a training set unequally long."""

    def arrange(spec: FinetuneSpec) -> None:
        file = root.path_of(spec.config.train_data_path) / LLAVA_FILE
        lines = file.read_bytes().splitlines(keepends=True)
        longer = [b'"from":"gpt","value":"' + b"It is there. " * (index * 5 % 7) for index in range(len(lines))]
        file.write_bytes(b"".join(map(lambda line, new: line.replace(longer[0], new), lines, longer)))

    return arrange
