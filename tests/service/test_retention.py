"""Points of trainings that ended long ago: fewer, and yet the curve has the same shape; nothing else goes."""

import random
from datetime import UTC, datetime

import msgspec
import pytest

from jobs.events import JobCompleted, JobNoted, MetricsLogged
from jobs.results import FinetuneResult
from service import thinning
from service.feed import Feeds, Gap
from service.records import Interest

LATER = datetime(2026, 3, 1, tzinfo=UTC)
STEPS = 300


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(thinning, "POINTS_KEPT", 20)


def _curve(seed: int, steps: int = STEPS) -> dict[str, dict[int, float | None]]:
    """Values by series and step; one has only every tenth step, one is now and then no finite number."""
    chance = random.Random(seed)
    return {
        "train_loss": {
            step: chance.choice([1.0, 1.0, chance.random(), 5 * chance.random()]) for step in range(1, steps)
        },
        "grad_norm": {step: None if chance.random() < 0.02 else chance.random() for step in range(1, steps)},
        "eval_loss": {step: chance.random() for step in range(10, steps, 10)},
    }


async def _train(ledger, job, curve, *, ends: bool = True) -> None:
    """Step 151 is logged twice: the second value counts."""
    said = [job.submitted(), *job.started()]
    for step in sorted({step for values in curve.values() for step in values}):
        values = {name: series[step] for name, series in curve.items() if step in series}
        said.append(job.event(MetricsLogged, step=step, values=values))
        if step % 100 == 0:
            said.append(job.event(JobNoted, message=f"step {step}"))
        if step == 150:
            said.append(job.event(MetricsLogged, step=151, values=dict.fromkeys(values, -100.0)))
    if ends:
        said.append(job.event(JobCompleted, result=FinetuneResult(steps=STEPS)))
    await ledger.record(said)


async def _thin(store, job_id: str) -> None:
    await store.thin(job_id, thinning.kept_steps(await store.metrics(job_id)))


async def _steps(store, job_id: str) -> dict[str, dict[int, float | None]]:
    series = await store.metrics(job_id)
    return {name: {step: value for step, _, value in points} for name, points in series.items()}


@pytest.mark.parametrize("seed", range(5))
async def test_lowest_highest_first_last_and_broken_points_stay(ledger, store, history, seed):
    job, curve = history("job_a"), _curve(seed)
    await _train(ledger, job, curve)
    before = await _steps(store, "job_a")
    await _thin(store, "job_a")
    after = await _steps(store, "job_a")
    for name, points in before.items():
        kept = after[name]
        assert kept.items() <= points.items(), "what stays is as it was"
        steps = sorted(points)
        assert {steps[0], steps[-1]} <= kept.keys()
        numbers = [value for value in points.values() if value is not None]
        left = [value for value in kept.values() if value is not None]
        assert (min(left), max(left)) == (min(numbers), max(numbers))
        stretch = -(-len(steps) // 10)
        for begin in range(0, len(steps) - stretch, stretch):  # what a picture of ten columns shows
            seen = [points[step] for step in steps[begin : begin + stretch]]
            assert (None in seen) <= (None in [kept.get(step, 0.0) for step in steps[begin : begin + stretch]])
    assert len(after["train_loss"]) < len(before["train_loss"]) / 3
    assert len(after["eval_loss"]) >= 20


async def test_events_say_the_points_that_stay_and_everything_else(ledger, store, history):
    job = history("job_a")
    await _train(ledger, job, _curve(1))
    before = await store.events("job_a", limit=1000)
    await _thin(store, "job_a")
    after = await store.events("job_a", limit=1000)
    assert [event for event in after if event.type != "metrics.logged"] == [
        event for event in before if event.type != "metrics.logged"
    ]
    assert set(after) <= set(before)
    said = [msgspec.json.decode(event.body)["step"] for event in after if event.type == "metrics.logged"]
    kept = await _steps(store, "job_a")
    assert sorted(set(said)) == sorted({step for points in kept.values() for step in points})


async def test_the_same_points_stay_every_time_and_it_happens_once(ledger, store, history):
    for name in ("job_a", "job_b"):
        await _train(ledger, history(name), _curve(2))
        await _thin(store, name)
    once = await _steps(store, "job_a")
    assert once == await _steps(store, "job_b")
    assert await store.to_thin(LATER, 10) == []


async def test_only_trainings_that_ended_before_then_are_thinned(ledger, store, history):
    await _train(ledger, history("job_a"), _curve(1, 30))
    await _train(ledger, history("job_b"), _curve(1, 30), ends=False)
    ended_at = (await store.job("job_a")).completed_at
    assert await store.to_thin(ended_at, 10) == []
    assert await store.to_thin(LATER, 10) == ["job_a"]


async def test_a_short_training_stays_whole(ledger, store, history):
    await _train(ledger, history("job_a"), _curve(1, 15))
    before = await store.events("job_a"), await _steps(store, "job_a")
    await _thin(store, "job_a")
    assert (await store.events("job_a"), await _steps(store, "job_a")) == before
    assert not await store.has_thinned(Interest.of("job_a"), 1)


async def test_whoever_missed_points_that_are_gone_is_told_to_load_a_snapshot(ledger, store, history):
    await _train(ledger, history("job_a"), _curve(1))
    await _thin(store, "job_a")
    stored = await store.events("job_a", limit=1000)

    async def first(interest: Interest, after: int):
        async for said in Feeds(store, ledger._hub).feed(interest, after).follow():
            return said
        return None

    assert await first(Interest.of("job_a"), 5) == Gap("too_far_behind")
    assert await first(Interest(), 5) == Gap("too_far_behind")
    for interest, after in [
        (Interest.of("job_a"), 0),  # whoever has nothing gets what there is
        (Interest.of("job_b"), 5),
        (Interest.of("job_a", frozenset({"job.completed"})), 5),
        (Interest(tag="fish"), 5),
        (Interest.of("job_a"), stored[-1].seq),
    ]:
        assert not isinstance(await first(interest, after), Gap)


async def test_keeping_house_thins_after_the_days_that_were_set(core_at, history, monkeypatch):
    async with core_at(sleepy=True, points_kept_days=30) as core:
        await _train(core.recorder, history("job_a"), _curve(1))
        await core.recorder.tidy()  # the job ended in January 2026, and the clock of this test is of now
        left = len((await _steps(core.store, "job_a"))["train_loss"])
        assert left < STEPS / 3
    async with core_at(sleepy=True, points_kept_days=0) as core:
        await _train(core.recorder, history("job_b"), _curve(1))
        await core.recorder.tidy()
        assert len((await _steps(core.store, "job_b"))["train_loss"]) == STEPS - 1


async def test_a_thinned_job_can_be_deleted(ledger, store, history):
    await _train(ledger, history("job_a"), _curve(1))
    await _thin(store, "job_a")
    await ledger.delete("job_a")
    assert not await store.has_thinned(Interest(), 1)
