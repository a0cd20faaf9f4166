"""What a run is after: the best checkpoint by any metric, and an early end without gain."""

from collections.abc import Callable
from typing import Any

import pytest
from runs import Build, Said, WorkFor, notes_of

from gpu_runner.recipes import finetune
from gpu_runner.training import checkpoints
from gpu_runner.training.evaluation import Measured, Validation
from gpu_runner.training.scoring import Scores
from jobs import events
from jobs.results import Answer


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
