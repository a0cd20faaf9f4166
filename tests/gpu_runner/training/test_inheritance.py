"""What a later attempt takes over although nobody else heard of it. Found by SEED=83085-frozen-0."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from gpu_runner.training import checkpoints, inheritance
from gpu_runner.training.checkpoints import Checkpoint, Manifest
from gpu_runner.work import Work
from jobs import events

WorkFor = Callable[..., Work[Any]]


def train(work: Work[Any], steps: int) -> None:
    """A line a step, and a checkpoint every second one, each of which is said."""
    for step in range(1, steps + 1):
        work.journal.metrics(step, {"train_loss": 1 / step})
        if step % 2 == 0:
            manifest = Manifest(
                job_id=work.job_id,
                attempt=work.attempt,
                step=step,
                method="full",
                model_name="m",
                metrics={},
                lines=work.journal.lines,
            )
            saved = checkpoints.write(work.folder.checkpoints, manifest, fill, work.journal.sync)
            work.journal.checkpoint(step, saved.folder, saved.size_bytes, {})


def fill(checkpoint: Checkpoint) -> None:
    checkpoint.state.write_bytes(b"state")


@pytest.fixture
def first(work_for: WorkFor, finetune_spec: Callable[..., Any]) -> Work[Any]:
    work = work_for(finetune_spec(), attempt=1)
    train(work, 5)  # 7 lines; the last checkpoint, of step 4, rests on 5
    return work


@pytest.mark.parametrize(
    ("recorded", "repeated"),
    [
        pytest.param(((1, 7),), [], id="all was recorded"),
        pytest.param(((1, 2),), [3, 4], id="the service had given up earlier"),
        pytest.param(((1, 0),), [1, 2, 3, 4], id="it heard nothing at all"),
        pytest.param((), [], id="it does not say"),
    ],
)
def test_what_a_checkpoint_rests_on_is_said_again_unless_it_was_recorded(
    first, work_for, said, recorded, repeated
) -> None:
    second = dataclasses.replace(work_for(first.spec, attempt=2), recorded=recorded)
    taken = inheritance.take_over(second)
    assert taken is not None
    assert taken.folder == second.folder.checkpoints / "step-4"
    assert [event.step for event in said(second, events.MetricsLogged)] == repeated
    assert [event.n for event in said(second)] == list(range(1, len(said(second)) + 1))
    assert {event.attempt for event in said(second)} == {2}
    assert [event.step for event in said(second, events.TrainingResumed)] == [4]
    assert [event.path for event in said(second, events.CheckpointSaved)] == [
        f"jobs/job/attempt-2/checkpoints/step-{step}" for step in (2, 4)
    ]


def test_a_first_attempt_takes_over_nothing_and_says_nothing(first, said) -> None:
    lines = first.journal.lines
    assert inheritance.take_over(first) is None
    assert first.journal.lines == lines
