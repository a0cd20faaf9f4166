"""Which rows a step sees depends on seed and step alone."""

import pytest

from gpu_runner.training.plan import Plan


def plan(**changes: object) -> Plan:
    values = {"rows": 11, "batch_size": 2, "accumulation": 2, "epochs": 3, "max_steps": None, "seed": 4}
    return Plan(**(values | changes))  # type: ignore[arg-type]


def rows_of_epoch(made: Plan, epoch: int) -> list[int]:
    steps = range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch)
    return [row for step in steps for batch in made.micro_batches(step) for row in batch]


def test_every_epoch_visits_each_row_once_in_its_own_order() -> None:
    made = plan()
    first, second = rows_of_epoch(made, 0), rows_of_epoch(made, 1)
    assert sorted(first) == sorted(second) == list(range(11))
    assert first != second


def test_the_last_step_of_an_epoch_holds_what_is_left() -> None:
    made = plan()
    assert made.steps_per_epoch == 3
    assert [len(batch) for batch in made.micro_batches(2)] == [2, 1]


def test_a_step_can_be_asked_for_without_those_before_it() -> None:
    assert plan().micro_batches(5) == plan().micro_batches(5)
    assert plan(seed=5).micro_batches(5) != plan().micro_batches(5)


@pytest.mark.parametrize(("max_steps", "total"), [(None, 9), (4, 4), (100, 9)])
def test_max_steps_ends_a_run_early_and_never_makes_it_longer(max_steps: int | None, total: int) -> None:
    assert plan(max_steps=max_steps).total_steps == total
