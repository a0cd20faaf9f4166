"""A busy week of three GPUs on two runners: what the placement makes of it, beside first come, first served."""

import pytest

HOUR = 3600.0


@pytest.fixture
def week(beside):
    """The module with the world and its policies."""
    return beside("busy_week")


def _played(week, seed, policy):
    world = week.World(week.week_of_jobs(seed, jobs_a_day=50))
    world.play(policy)  # looks at every moment that no device holds or promises more than it has
    assert all(job.ended_s is not None for job in world.jobs)
    return world


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (4, 5))])
def test_a_busy_week_is_never_overcommitted_starves_nobody_and_uses_the_devices(week, seed):
    ours, fifo, sharing = (_played(week, seed, policy) for policy in (week.ours, week.plain_fifo, week.sharing_fifo))
    print(f"seed {seed}: share of memory in use {ours.share:.2f}, {fifo.share:.2f}, {sharing.share:.2f}")
    assert ours.share >= 1.3 * fifo.share
    assert ours.share >= 1.1 * sharing.share
    assert ours.longest_wait_s <= fifo.longest_wait_s
    means = [sum(job.waited_s for job in world.jobs) / len(world.jobs) for world in (ours, sharing)]
    assert means[0] < means[1] / 2
    urgent = [job.waited_s for job in ours.jobs if job.priority == 5]
    assert sum(urgent) / len(urgent) < 6 * HOUR
    assert any(job.pauses for job in ours.jobs)
    assert all(job.preemptible for job in ours.jobs if job.pauses)


def test_small_jobs_without_end_do_not_keep_a_large_one_waiting(week):
    """Nobody can tell how long a job takes, and small ones come faster than they end."""
    large = _job(week, "large", comes_s=600, needs=46, hours=1)
    small = [_job(week, f"s{n}", comes_s=240 * n, needs=5, hours=0.5 + n % 3) for n in range(150)]
    world = week.World([large, *small])
    world.play(week.ours)
    assert large.first_start_s is not None
    assert large.first_start_s < 600 + 2.6 * HOUR + 60  # who was there before it ends by then
    passed = [job for job in small if job.comes_s > 600 and job.first_start_s < large.first_start_s]
    assert passed  # the other devices worked on meanwhile


def test_who_is_paused_for_another_goes_on_by_itself_and_ends(week):
    jobs = [_job(week, f"long{n}", comes_s=n, needs=20, hours=48, preemptible=True) for n in range(4)]
    urgent = _job(week, "urgent", comes_s=HOUR, needs=40, hours=1, priority=3)
    world = week.World([*jobs, urgent])
    world.play(week.ours)
    assert urgent.first_start_s == pytest.approx(HOUR + week.SAVES_S + week.GIVES_BACK_S)
    assert sorted(job.pauses for job in jobs) == [0, 0, 1, 1]
    paused = [job for job in jobs if job.pauses]
    assert [job.ended_s for job in paused] == pytest.approx([50 * HOUR] * 2, abs=1.5 * HOUR)
    assert world.records == {}


def test_a_week_with_trainings_on_two_gpus_is_never_overcommitted_and_starves_nobody(week):
    jobs = week.week_of_jobs(2, jobs_a_day=25)
    teams = [job for job in jobs if job.takes < 20 * week.GIB][::9]
    for job in teams:
        job.processes = 2
    world = week.World(jobs)
    world.play(week.ours)  # looks at every moment that no device holds or promises more than it has
    assert all(job.ended_s is not None for job in jobs)
    assert any(job.pauses for job in teams)
    assert max(job.waited_s for job in teams) < 36 * HOUR


def _job(week, job_id, *, comes_s, needs, hours, priority=0, preemptible=False):
    size = needs * week.GIB
    return week.Job(
        job_id=job_id,
        comes_s=comes_s,
        work_s=hours * HOUR,
        needs=size,
        takes=size,
        expected_s=None,
        priority=priority,
        preemptible=preemptible,
    )
