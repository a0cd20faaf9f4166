"""What is free on a device: by promise and by measure, whichever is less."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from jobs.events import Device, Held, RunnerReported
from jobs.lifecycle import Status
from jobs.specs import FinetuneSpec, Slot, ValidateSpec
from jobs.training_config import TrainingConfig
from service.occupancy import Capacities, occupancy
from service.records import JobRecord, RunnerView

AT = datetime(2026, 1, 1, tzinfo=UTC)
GIB = 2**30
TRAINING = FinetuneSpec(config=TrainingConfig(model_name="m", train_data_path="d"))


def _seen(*jobs, free=24, held=(), total=24):
    device = Device(
        device_id="cuda:0",
        name="GPU",
        slots={Slot.GPU: 4},
        memory_total_bytes=total * GIB,
        memory_free_bytes=None if free is None else int(free * GIB),
    )
    report = RunnerReported(runner_id="r", boot="b", at=AT, devices=(device,), held=tuple(held))
    (found,) = occupancy([RunnerView(report=report, heard_at=0, lease_s=15)], {job.job_id: job for job in jobs}, AT)
    return found


def _job(job_id="j", kept=8, spec=TRAINING, **fields):
    reserved = None if kept is None else int(kept * GIB)
    about = {"submitted_at": AT, "updated_at": AT, "submitted_seq": 1, "last_seq": 1, "status": Status.RUNNING}
    place = {"runner_id": "r", "device": "cuda:0", "reserved_bytes": reserved}
    return JobRecord(job_id=job_id, spec=spec, **about | place | fields)


def _held(job_id="j", memory=0.0, state="running", attempt=1, device="cuda:0"):
    return Held(
        job_id=job_id, attempt=attempt, state=state, last_n=0, device=device, slot=Slot.GPU,
        memory_bytes=None if memory is None else int(memory * GIB),
    )  # fmt: skip


def test_what_is_promised_is_not_free_before_it_is_taken():
    assert _seen(_job(kept=8)).free_bytes == 16 * GIB
    assert _seen(_job(kept=8), free=21, held=[_held(memory=3)]).free_bytes == 16 * GIB


def test_what_other_programs_hold_is_not_free():
    assert _seen(free=10).free_bytes == 10 * GIB
    assert _seen(_job(kept=8), free=10, held=[_held(memory=5)]).free_bytes == 7 * GIB


def test_a_job_that_takes_more_than_it_was_promised_counts_with_what_it_takes():
    found = _seen(_job(kept=8), free=13, held=[_held(memory=11)])
    assert (found.reserved_bytes, found.free_bytes) == (11 * GIB, 13 * GIB)
    assert _seen(_job(kept=8, peak_memory_bytes=11 * GIB), free=13).free_bytes == 13 * GIB


def test_memory_counts_as_free_only_when_a_report_shows_it():
    still_held = [_held("ended", memory=20)]
    assert _seen(free=4, held=still_held).free_bytes == 4 * GIB
    assert _seen(free=4, held=[_held("ended", memory=None, state="finished")]).free_bytes == 4 * GIB
    assert _seen(free=24, held=[_held("ended", memory=None)]).free_bytes == 0  # nobody knows how much it holds
    assert _seen(free=24, held=[_held("ended", state="finished")]).free_bytes == 24 * GIB


def test_a_job_of_unknown_size_has_the_device_for_itself():
    assert _seen(_job(kept=None)).free_bytes == 0


def test_data_work_takes_no_memory_of_a_device():
    assert _seen(_job(kept=None, spec=ValidateSpec(data_path="d"))).free_bytes == 24 * GIB


def test_a_device_that_cannot_tell_promises_by_its_total():
    assert _seen(_job(kept=8), free=None).free_bytes == 16 * GIB


def test_only_a_running_preemptible_training_may_pause():
    config = TrainingConfig(model_name="m", train_data_path="d", preemptible=True)
    (occupant,) = _seen(_job(spec=FinetuneSpec(config=config))).occupants
    assert occupant.tenant.may_pause
    for job in (_job(), _job(spec=FinetuneSpec(config=config), pause_requested_at=AT)):
        assert not _seen(job).occupants[0].tenant.may_pause
    assert not _seen(_job(spec=FinetuneSpec(config=config), status=Status.QUEUED)).occupants[0].tenant.may_pause


def test_a_job_on_several_devices_is_on_each_of_them():
    on_both = _job(kept=8, device="cuda:1,cuda:0")
    assert _seen(on_both).free_bytes == 16 * GIB
    assert _seen(_job(kept=8, device="cuda:1,cuda:10")).free_bytes == 24 * GIB
    older = _held(memory=5, attempt=0, device="cuda:1,cuda:0")
    assert _seen(held=[older], free=19).free_bytes == 19 * GIB
    assert _seen(held=[older], free=19).reserved_bytes == 5 * GIB


def test_a_capacity_that_fell_is_remembered_for_a_minute():
    capacities = Capacities()
    key = ("r", "cuda:0")
    assert capacities.note([_seen(free=24)], now=0)[key] == 24 * GIB
    assert capacities.note([_seen(free=4)], now=500)[key] == 24 * GIB
    assert capacities.note([_seen(free=4)], now=559)[key] == 24 * GIB
    assert capacities.note([_seen(free=4)], now=561)[key] == 4 * GIB


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 14)), max_size=4),
    st.integers(0, 24),
)
def test_what_is_free_never_exceeds_promise_nor_measure(jobs, foreign):
    records = [_job(f"j{n}", kept=kept) for n, (kept, _) in enumerate(jobs)]
    held = [_held(f"j{n}", memory=memory) for n, (_, memory) in enumerate(jobs)]
    free = max(0, 24 - foreign - sum(memory for _, memory in jobs))
    found = _seen(*records, free=free, held=held)
    assert 0 <= found.free_bytes <= free * GIB
    assert found.free_bytes + sum(max(kept, memory) for kept, memory in jobs) * GIB <= max(
        24 * GIB, sum(max(kept, memory) for kept, memory in jobs) * GIB
    )
