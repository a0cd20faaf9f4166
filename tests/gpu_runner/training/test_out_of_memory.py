"""A run that does not fit goes on in smaller pieces, with the same numbers, or says what to change."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from runs import Build, Said, WorkFor, notes_of, series

from gpu_runner.recipes import finetune
from gpu_runner.training import checkpoints, evaluation, loop, loss
from gpu_runner.training.loop import TrainingLoop
from jobs import events
from jobs.errors import OutOfMemory


@pytest.fixture
def memory_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes memory too short for more than so many rows at once, from some step on; evaluations count as well."""

    def arrange(rows: int, *, after: int = 0) -> None:
        real, counted = TrainingLoop._gradients, [0]

        def gradients(self: TrainingLoop, batches: Any) -> Any:
            counted[0] = self.state.step
            return real(self, batches)

        def limited(loaded: Any, batch: dict[str, torch.Tensor], *features: Any) -> Any:
            given = loss.summed_loss(loaded, batch, *features)
            if len(batch["labels"]) > rows and counted[0] >= after:
                raise torch.OutOfMemoryError("planned")
            return given

        monkeypatch.setattr(TrainingLoop, "_gradients", gradients)
        monkeypatch.setattr(loop, "summed_loss", limited)
        monkeypatch.setattr(evaluation, "summed_loss", limited)

    return arrange


LARGE = {"batch_size": 4, "gradient_accumulation_steps": 1, "logging_steps": 1, "lora_dropout": 0.0}


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_run_out_of_memory_goes_on_in_smaller_pieces_with_the_same_rows(
    is_cached: bool, finetune_spec: Build, work_for: WorkFor, said: Said, memory_for: Callable[..., None]
) -> None:
    spec = finetune_spec(**LARGE, val_data_path=None, cache_vision_features=is_cached)
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
