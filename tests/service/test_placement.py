"""Which job goes where."""

import math
import random
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jobs.events import Device
from jobs.specs import FinetuneSpec, Slot, ValidateSpec
from jobs.training_config import TrainingConfig
from service import forecast, placement
from service.placement import Place, Wait, place
from service.rooms import NOTHING, Needs, Room, Tenant, Waiting, waiting_for

CPU = Device(device_id="cpu", name="CPU", slots={Slot.CPU: 2, Slot.GPU: 1})
CPU_OF_GPU_HOST = Device(device_id="cpu", name="CPU", slots={Slot.CPU: 2})
CUDA = Device(device_id="cuda:0", name="GPU", slots={Slot.GPU: 1})
CUDA_1 = Device(device_id="cuda:1", name="GPU", slots={Slot.GPU: 1})


def _rooms(*devices: Device, runner_id: str = "a", free: dict[Slot, int] | None = None) -> list[Room]:
    return [Room(runner_id, device, device.slots if free is None else free) for device in devices]


def _model(job_id: str = "j", **asks: object) -> Waiting:
    return Waiting(job_id=job_id, slot=Slot.GPU, **{"needs": NOTHING} | asks)  # type: ignore[arg-type]  # any field


def _data(job_id: str = "j", **asks: object) -> Waiting:
    return Waiting(job_id=job_id, slot=Slot.CPU, **{"needs": NOTHING} | asks)  # type: ignore[arg-type]  # any field


def test_a_job_without_any_runner_waits_with_the_remedy():
    assert place([_data()], []) == [Wait("j", placement.NO_RUNNER)]
    assert "training-api runner" in placement.NO_RUNNER


def test_data_work_takes_cpu_slots_until_they_are_gone():
    decisions = place([_data("1"), _data("2"), _data("3")], _rooms(CPU))
    assert decisions[:2] == [Place("1", "a", ("cpu",)), Place("2", "a", ("cpu",))]
    assert decisions[2] == Wait("3", "Every place is taken on cpu of a; the job starts when one is free.")


def test_data_work_does_not_wait_behind_a_model_that_waits():
    rooms = _rooms(CPU, free={Slot.CPU: 1, Slot.GPU: 0})
    assert isinstance(place([_model("1"), _data("2")], rooms)[1], Place)


def test_jobs_spread_over_the_emptiest_devices():
    places = place([_model("1"), _model("2")], _rooms(CUDA, CUDA_1, CPU_OF_GPU_HOST))
    assert {decision.device_ids for decision in places if isinstance(decision, Place)} == {("cuda:0",), ("cuda:1",)}


def test_the_higher_priority_goes_first_and_among_equals_the_older():
    jobs = [_model("old"), _model("older-but-low", priority=-1), _model("new"), _model("urgent", priority=5)]
    order = [decision.job_id for decision in place(jobs, _rooms(CUDA, CUDA_1))]
    assert order == ["urgent", "old", "new", "older-but-low"]


def test_auto_and_cuda_take_a_cuda_device_where_there_is_one():
    for wish in ("auto", "cuda"):
        assert place([_model(wish=wish)], _rooms(CPU, CUDA)) == [Place("j", "a", ("cuda:0",))]


def test_a_busy_cuda_device_is_waited_for_and_not_replaced_by_a_cpu():
    rooms = _rooms(CPU) + _rooms(CUDA, free={Slot.GPU: 0})
    (decision,) = place([_model()], rooms)
    assert isinstance(decision, Wait)
    assert "cuda:0 of a" in decision.reason


def test_without_a_cuda_device_a_small_model_runs_on_a_cpu():
    for wish in ("auto", "cuda", "cpu"):
        assert place([_model(wish=wish)], _rooms(CPU)) == [Place("j", "a", ("cpu",))]


def test_without_a_cuda_device_a_large_model_waits_and_says_why():
    for wish in ("auto", "cuda"):
        for reason in (placement.TOO_LARGE_FOR_CPU, placement.SIZE_UNKNOWN):
            assert place([_model(wish=wish, not_on_cpu=reason)], _rooms(CPU)) == [Wait("j", reason)]


def test_a_large_model_runs_on_a_cpu_when_it_is_asked_for():
    assert place([_model(wish="cpu", not_on_cpu=placement.TOO_LARGE_FOR_CPU)], _rooms(CPU)) == [
        Place("j", "a", ("cpu",))
    ]


def test_a_cpu_is_refused_where_no_runner_takes_models_on_it():
    assert place([_model(wish="cpu")], _rooms(CPU_OF_GPU_HOST, CUDA)) == [Wait("j", placement.NO_CPU_FOR_MODELS)]


def test_a_job_asks_for_what_its_spec_says():
    config = TrainingConfig(model_name="m", train_data_path="d", device="cuda", priority=3)
    asked = waiting_for("j", FinetuneSpec(config=config), not_on_cpu="large")
    assert asked == Waiting(job_id="j", slot=Slot.GPU, wish="cuda", not_on_cpu="large", priority=3)
    data = waiting_for("j", ValidateSpec(data_path="d"), not_on_cpu=None)
    assert data == Waiting(job_id="j", slot=Slot.CPU, needs=NOTHING)


# -- memory

GIB = 2**30
GPU_24 = msgspec.structs.replace(CUDA, slots={Slot.GPU: 4}, memory_total_bytes=24 * GIB)


def _sized(job_id, gib, **asks):
    needs = Needs() if gib is None else Needs(int(gib * GIB), int(gib * GIB))
    return _model(job_id, needs=needs, **asks)


def _tenant(job_id, gib, **known):
    return Tenant(job_id=job_id, slot=Slot.GPU, bytes=None if gib is None else gib * GIB, **known)


def _gpu(*tenants, free=None, device=GPU_24, runner_id="host-a"):
    left = 24 - sum(24 if tenant.bytes is None else tenant.bytes // GIB for tenant in tenants) if free is None else free
    return Room(runner_id, device, {Slot.GPU: 4 - len(tenants)}, max(0, left) * GIB, tenants)


def _placed(decisions):
    return [decision.job_id for decision in decisions if isinstance(decision, Place)]


def test_a_job_waits_with_what_it_needs_and_what_is_free():
    (wait,) = place([_sized("j", 16)], [_gpu(_tenant("t", 20))])
    assert wait == Wait("j", "needs 16.0 GiB, 4.0 GiB free on cuda:0 of host-a")


def test_a_device_takes_as_many_as_its_memory_holds_and_its_slots_allow():
    assert _placed(place([_sized(f"j{n}", 8) for n in range(4)], [_gpu()])) == ["j0", "j1", "j2"]
    assert len(_placed(place([_sized(f"j{n}", 1) for n in range(6)], [_gpu()]))) == 4


def test_a_job_larger_than_every_device_says_so_and_keeps_nobody_waiting():
    wait, small = place([_sized("huge", 30), _sized("small", 20)], [_gpu()])
    assert "the largest device, cuda:0 of host-a, has 24.0 GiB" in wait.reason
    assert isinstance(small, Place)


def test_a_job_of_unknown_size_takes_a_device_that_is_free_of_others():
    assert place([_sized("j", None)], [_gpu()]) == [Place("j", "host-a", ("cuda:0",), None)]
    (wait,) = place([_sized("j", None)], [_gpu(_tenant("t", 1))])
    assert wait.reason.startswith("needs a device for itself, as its size is not known")
    assert _placed(place([_sized("j", None)], [_gpu(free=12)])) == []  # another program uses it
    assert _placed(place([_sized("j", None), _sized("k", 1)], [_gpu()])) == ["j"]


def test_a_small_job_passes_beside_the_large_one_that_waits():
    decisions = place([_sized("large", 18), _sized("small", 4)], [_gpu(_tenant("t", 10, turn=-1.0))])
    assert _placed(decisions) == ["small"]


def test_a_job_that_would_delay_the_large_one_waits_and_is_told_for_whom():
    decisions = place([_sized("large", 18), _sized("second", 8)], [_gpu(_tenant("t", 10, turn=-1.0))])
    assert _placed(decisions) == []
    assert decisions[1].reason == "needs 8.0 GiB; the room on cuda:0 of host-a is kept for large, which came first."


def test_a_job_that_is_gone_before_the_large_one_could_start_passes():
    rooms = [_gpu(_tenant("t", 10, turn=-1.0, remaining_s=100.0))]
    assert _placed(place([_sized("large", 18), _sized("quick", 8, expected_s=79.0)], rooms)) == ["quick"]
    assert _placed(place([_sized("large", 18), _sized("slow", 8, expected_s=81.0)], rooms)) == []


def test_a_day_of_waiting_counts_as_a_point_of_priority():
    day = 86_400.0
    for age, first in ((0.9, "urgent"), (1.1, "old")):
        jobs = [_sized("old", 20, since_s=0.0), _sized("urgent", 20, since_s=age * day, priority=1)]
        assert _placed(place(jobs, [_gpu()])) == [first]


def test_a_higher_priority_pauses_the_fewest_that_may_be_paused():
    tenants = [
        _tenant("fixed", 4, turn=9.0),
        _tenant("a", 8, turn=9.0, may_pause=True),
        _tenant("b", 8, turn=10.0, may_pause=True),
    ]
    (wait,) = place([_sized("urgent", 12, priority=1)], [_gpu(*tenants)])
    assert wait.pauses == ("b",)
    (wait,) = place([_sized("urgent", 20, priority=1)], [_gpu(*tenants)])
    assert wait.pauses == ("b", "a")
    (wait,) = place([_sized("urgent", 21, priority=1)], [_gpu(*tenants)])
    assert wait.pauses == ()  # in vain
    (wait,) = place([_sized("equal", 12)], [_gpu(*tenants)])
    assert wait.pauses == ()


def test_nobody_is_paused_while_enough_is_on_its_way():
    tenants = [_tenant("a", 12, turn=9.0, leaving=True), _tenant("b", 12, turn=9.0, may_pause=True)]
    (wait,) = place([_sized("urgent", 12, priority=1)], [_gpu(*tenants)])
    assert wait.pauses == ()


def _host(*tenants_of_each, runner_id="host-a"):
    """A host with a GPU for each list of tenants."""
    devices = [msgspec.structs.replace(GPU_24, device_id=f"cuda:{at}") for at in range(len(tenants_of_each))]
    return [
        _gpu(*tenants, device=device, runner_id=runner_id)
        for tenants, device in zip(tenants_of_each, devices, strict=True)
    ]


def test_a_job_of_several_processes_gets_a_gpu_of_one_host_for_each():
    rooms = [*_host([], [_tenant("t", 10)]), *_host([_tenant("t", 10)], [], [], runner_id="host-b")]
    assert place([_sized("j", 16, processes=2)], rooms) == [Place("j", "host-b", ("cuda:1", "cuda:2"), 16 * GIB)]
    assert place([_sized("j", 16, processes=2, wish="cpu")], rooms)[0].reason == placement.NO_CPU_FOR_MODELS


def test_processes_share_a_cpu():
    assert place([_model(processes=4)], _rooms(CPU)) == [Place("j", "a", ("cpu",))]


def test_a_job_that_waits_for_several_gpus_says_what_each_host_has():
    rooms = [*_host([], [_tenant("t", 10)]), *_host([_tenant("t", 10)], [], runner_id="host-b")]
    (wait,) = place([_sized("j", 16, processes=2)], rooms)
    assert wait.reason == "needs 2 GPUs of one host with 16.0 GiB each; that is free on 1 of host-a, 1 of host-b."


def test_a_job_for_more_gpus_than_a_host_has_says_so_and_keeps_nobody_waiting():
    wait, small = place([_sized("j", 16, processes=3), _sized("small", 20)], _host([], []))
    assert wait.reason.startswith(
        "needs 3 GPUs of one host with 16.0 GiB each, one for each process; host-a has the most"
    )
    assert "num_processes 2" in wait.reason
    assert isinstance(small, Place)


def test_the_gpus_that_a_team_waits_for_are_kept_for_it():
    rooms = _host([_tenant("t", 10, turn=-1.0)], [], [])
    team, first, second = place([_sized("team", 18, processes=3), _sized("first", 8), _sized("second", 5)], rooms)
    assert isinstance(team, Wait)
    assert first.reason.endswith("is kept for team, which came first.")
    assert isinstance(second, Place)  # it fits beside


def test_a_job_for_more_large_gpus_than_a_host_has_says_so():
    small = msgspec.structs.replace(GPU_24, device_id="cuda:1", memory_total_bytes=8 * GIB)
    (wait,) = place([_sized("j", 20, processes=2)], [_gpu(), _gpu(free=8, device=small)])
    assert "host-a has the most of these, 1" in wait.reason
    assert "num_processes 1 and a smaller batch_size" in wait.reason


def test_who_fits_on_gpus_of_which_one_is_kept_is_told_for_whom():
    rooms = _host([_tenant("a", 16)], [_tenant("b", 16, remaining_s=100.0)], [_tenant("c", 16, remaining_s=200.0)])
    _, second = place([_sized("team", 20, processes=2), _sized("second", 6, processes=2)], rooms)
    assert second.reason.endswith("on cuda:1 of host-a is kept for team, which came first.")


def test_a_gpu_that_waits_for_the_others_of_its_team_takes_what_will_be_gone_by_then():
    rooms = _host([], [_tenant("t", 20, turn=-1.0, remaining_s=100.0)])
    team = _sized("team", 20, processes=2)
    assert _placed(place([team, _sized("quick", 20, expected_s=79.0)], rooms)) == ["quick"]
    assert _placed(place([team, _sized("slow", 20, expected_s=81.0)], rooms)) == []


def test_a_team_goes_where_others_are_not_in_its_way():
    rooms = _host([_tenant("t", 20)], [], [_tenant("u", 4)], [])
    assert place([_sized("j", 16, processes=2)], rooms) == [Place("j", "host-a", ("cuda:1", "cuda:3"), 16 * GIB)]


def test_a_team_pauses_whom_it_must_on_each_of_its_gpus():
    one, two = _tenant("a", 20, turn=9.0, may_pause=True), _tenant("b", 20, turn=9.0, may_pause=True)
    both = _tenant("both", 20, turn=9.0, may_pause=True)
    (wait,) = place([_sized("urgent", 12, processes=2, priority=1)], _host([one], [two]))
    assert sorted(wait.pauses) == ["a", "b"]
    (wait,) = place(
        [_sized("urgent", 12, processes=2, priority=1)], [*_host([one], [two]), *_host([both], [both], runner_id="b")]
    )
    assert wait.pauses == ("both",)
    (wait,) = place([_sized("urgent", 12, processes=2, priority=1)], _host([both], [one], [both]))
    assert wait.pauses == ("both",)
    (wait,) = place([_sized("urgent", 12, processes=3, priority=1)], _host([one], [], [_tenant("fixed", 20)]))
    assert wait.pauses == ()  # in vain


_devices = st.builds(
    Device,
    device_id=st.sampled_from(["cpu", "cuda:0", "cuda:1"]),
    name=st.just("device"),
    slots=st.dictionaries(st.sampled_from(Slot), st.integers(0, 3)),
)


@st.composite
def _any_rooms(draw: st.DrawFn) -> list[Room]:
    """Devices of up to three runners, some of their slots taken."""
    found = []
    for runner_id in draw(st.sets(st.sampled_from("abc"))):
        for device in draw(st.lists(_devices, max_size=3, unique_by=lambda device: device.device_id)):
            free = {slot: draw(st.integers(0, count)) for slot, count in device.slots.items()}
            found.append(Room(runner_id, device, free))
    return found


_jobs = st.lists(
    st.builds(
        Waiting,
        job_id=st.uuids().map(str),
        slot=st.sampled_from(Slot),
        wish=st.sampled_from(["auto", "cpu", "cuda"]),
        not_on_cpu=st.sampled_from([None, placement.TOO_LARGE_FOR_CPU, placement.SIZE_UNKNOWN]),
        priority=st.integers(-2, 2),
    ),
    max_size=12,
)


_teams = st.lists(st.integers(1, 3), min_size=12, max_size=12)


@given(_jobs, _teams, _any_rooms())
def test_no_device_ever_gets_more_than_its_free_slots_and_every_job_gets_one_answer(jobs, teams, rooms):
    jobs = [msgspec.structs.replace(job, processes=size) for job, size in zip(jobs, teams, strict=False)]
    decisions = place(jobs, rooms)
    assert sorted(decision.job_id for decision in decisions) == sorted(job.job_id for job in jobs)
    slots = {job.job_id: job.slot for job in jobs}
    left = {(room.runner_id, room.device.device_id): dict(room.free) for room in rooms}
    for decision in decisions:
        if isinstance(decision, Place):
            for device_id in decision.device_ids:
                left[decision.runner_id, device_id][slots[decision.job_id]] -= 1
    assert all(count >= 0 for free in left.values() for count in free.values())


@given(_jobs, _any_rooms())
def test_no_job_waits_for_a_place_that_is_free_for_it(jobs, rooms):
    decisions = place(jobs, rooms)
    by_id = {job.job_id: job for job in jobs}
    used = [decision for decision in decisions if isinstance(decision, Place)]
    left = [
        Room(
            room.runner_id,
            room.device,
            {
                slot: count
                - sum(
                    (place_.runner_id, place_.device_ids) == (room.runner_id, (room.device.device_id,))
                    and by_id[place_.job_id].slot is slot
                    for place_ in used
                )
                for slot, count in room.free.items()
            },
        )
        for room in rooms
    ]
    for decision in decisions:
        if isinstance(decision, Wait):
            assert isinstance(place([by_id[decision.job_id]], left)[0], Wait)


@st.composite
def _busy_hosts(draw: st.DrawFn) -> list[Room]:
    """One or two hosts of up to four GPUs, whose jobs end in a known time."""
    found = []
    for host in "ab"[: draw(st.integers(1, 2))]:
        ends = st.lists(st.sampled_from([50.0, 100.0, 500.0, 3000.0]), max_size=2)
        tenants = [
            [
                _tenant(f"{host}{gpu}{n}", draw(st.sampled_from([6, 12])), turn=-1.0, remaining_s=end)
                for n, end in enumerate(draw(ends))
            ]
            for gpu in range(draw(st.integers(1, 4)))
        ]
        found += _host(*tenants, runner_id=host)
    return found


def _sizes(name: str, since_s: int) -> st.SearchStrategy[Waiting]:
    return st.builds(
        _sized,
        st.just(name),
        st.sampled_from([4, 8, 12, 20]),
        processes=st.integers(1, 3),
        since_s=st.just(float(since_s)),
        expected_s=st.sampled_from([10.0, 60.0, 1000.0, 20_000.0]),
    )


_later = st.tuples(*(_sizes(f"later{n}", n) for n in range(1, 6)))


@given(_busy_hosts(), _sizes("first", 0), _later)
def test_nobody_who_came_later_delays_the_first_that_waits(rooms, first, later):
    assume(any(isinstance(decision, Wait) for decision in place([first], rooms)))
    alone = forecast.starts([first], rooms).get("first")
    assert forecast.starts([first, *later], rooms).get("first") == alone


@given(_busy_hosts(), _sizes("first", 0), _later)
def test_no_device_ever_promises_more_memory_than_is_free(rooms, first, later):
    decisions = [decision for decision in place([first, *later], rooms) if isinstance(decision, Place)]
    for room in rooms:
        here = [
            each for each in decisions if each.runner_id == room.runner_id and room.device.device_id in each.device_ids
        ]
        assert sum(each.bytes for each in here) <= room.free_bytes
        assert len(here) <= room.free[Slot.GPU]
    processes = {job.job_id: job.processes for job in (first, *later)}
    assert all(len(set(each.device_ids)) == processes[each.job_id] for each in decisions)


class _Run(NamedTuple):
    """A job on some GPUs: when it will end, and when it should."""

    ends_s: float
    due_s: float
    tenant: Tenant
    device_ids: tuple[str, ...]


def _wait_of_a_large_job(seed: int, gpus: int, processes: int) -> float:
    """Seconds that it waits on a host where small jobs never cease to come and take up to 1.3 times as long as told."""
    draw, now, came_s, next_s = random.Random(seed), 0.0, 2000.0, 0.0
    large = _sized("large", 20, processes=processes, since_s=came_s, expected_s=100.0)
    running: list[_Run] = []
    waiting: dict[str, Waiting] = {}
    while now < came_s + 12_000:
        while next_s <= now:
            name, size, lasts = f"small{next_s}", draw.choice([4, 8, 12]), draw.choice([60.0, 200.0, 600.0])
            waiting[name] = _sized(name, size, since_s=now, expected_s=lasts)
            next_s += draw.expovariate(1 / 25)
        if now == came_s:
            waiting["large"] = large
        running = [run for run in running if run.ends_s > now]
        decisions = place(list(waiting.values())[:40], _host(*(_on(f"cuda:{at}", running, now) for at in range(gpus))))
        for went in (decision for decision in decisions if isinstance(decision, Place)):
            job = waiting.pop(went.job_id)
            if job is large:
                return now - came_s
            due_s = now + job.expected_s
            ends_s = now + job.expected_s * draw.uniform(1, 1.3)
            tenant = Tenant(job_id=job.job_id, slot=Slot.GPU, bytes=went.bytes, turn=job.turn)
            running.append(_Run(ends_s, due_s, tenant, went.device_ids))
        now += 20.0
    return math.inf


def _on(device_id: str, running: list[_Run], now: float) -> list[Tenant]:
    here = (run for run in running if device_id in run.device_ids)
    return [msgspec.structs.replace(run.tenant, remaining_s=run.due_s - now) for run in here]


@pytest.mark.parametrize(("gpus", "processes"), [(3, 1), (4, 2)])
def test_jobs_that_take_longer_than_they_should_do_not_keep_a_large_one_waiting(gpus, processes):
    waits = [_wait_of_a_large_job(seed, gpus, processes) for seed in range(3)]
    assert max(waits) <= 2500, waits
