"""Which rows a step sees depends on seed and step alone."""

import numpy as np
import pytest

from gpu_runner.training.plan import POOL_STEPS, Plan
from jobs.training_config import TrainingConfig


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


LENGTHS = np.random.default_rng(0).choice([70, 90, 300, 900], 203).tolist()


def configured(**changes: object) -> TrainingConfig:
    values = {"model_name": "m", "train_data_path": "d", "batch_size": 4, "gradient_accumulation_steps": 2}
    return TrainingConfig(**(values | changes))  # type: ignore[arg-type]


def padded(made: Plan) -> float:
    """Share of an epoch's tokens that would be padding."""
    batches = [batch for step in range(made.steps_per_epoch) for batch in made.micro_batches(step)]
    full = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)
    return 1 - sum(LENGTHS) / full


def test_rows_grouped_by_length_are_hardly_padded_and_each_is_visited_once() -> None:
    grouped, mixed = Plan.of(configured(), 203, LENGTHS), Plan.of(configured(group_by_length=False), 203, LENGTHS)
    assert sorted(rows_of_epoch(grouped, 0)) == list(range(203))
    assert padded(grouped) < 0.05 < 0.4 < padded(mixed)


def test_the_groups_of_a_pool_come_in_an_order_of_chance() -> None:
    made = Plan.of(configured(), 203, LENGTHS)
    longest = [max(LENGTHS[row] for row in made.micro_batches(step)[0]) for step in range(made.steps_per_epoch - 1)]
    assert longest != sorted(longest, reverse=True)
    assert rows_of_epoch(made, 0) != rows_of_epoch(made, 1)


def test_only_the_last_step_of_an_epoch_is_short_when_rows_are_grouped() -> None:
    made = Plan.of(configured(), 203, LENGTHS)
    sizes = [[len(batch) for batch in made.micro_batches(step)] for step in range(made.steps_per_epoch)]
    assert sizes == [[4, 4]] * 25 + [[3]]


def test_rows_are_grouped_within_a_pool_only_so_that_chance_mixes_the_rest() -> None:
    rows = POOL_STEPS * 8 * 3
    lengths = list(range(rows))
    grouped, mixed = Plan.of(configured(), rows, lengths), Plan.of(configured(group_by_length=False), rows, lengths)
    for pool in range(3):
        steps = range(pool * POOL_STEPS, (pool + 1) * POOL_STEPS)
        of_pool = [{row for step in steps for b in made.micro_batches(step) for row in b} for made in (grouped, mixed)]
        assert of_pool[0] == of_pool[1]


@pytest.mark.parametrize("lengths", [None, [88] * 203])
def test_grouping_changes_nothing_where_all_rows_are_equally_long(lengths: list[int] | None) -> None:
    assert rows_of_epoch(Plan.of(configured(), 203, lengths), 0) == rows_of_epoch(
        Plan.of(configured(group_by_length=False), 203, LENGTHS), 0
    )


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_fewer_rows_at_once_change_no_step_and_mix_no_groups(at_once: int) -> None:
    made = Plan.of(configured(), 203, LENGTHS)
    smaller = made.with_at_once(at_once)
    for step in range(made.steps_per_epoch):
        whole, pieces = made.micro_batches(step), smaller.micro_batches(step)
        assert [row for batch in whole for row in batch] == [row for piece in pieces for row in piece]
        assert max(map(len, pieces)) == at_once
        assert all(any(set(piece) <= set(batch) for batch in whole) for piece in pieces)
