"""When waiting jobs will start, as far as anybody can tell."""

import msgspec

from jobs.events import Device
from jobs.specs import Slot
from service.forecast import starts
from service.rooms import Needs, Room, Tenant, Waiting

GIB = 2**30
GPU = Device(device_id="cuda:0", name="GPU", slots={Slot.GPU: 4}, memory_total_bytes=24 * GIB)


def _job(job_id, gib, expected_s=None):
    return Waiting(job_id=job_id, slot=Slot.GPU, needs=Needs(gib * GIB, gib * GIB), expected_s=expected_s)


def _room(*tenants):
    taken = sum(tenant.bytes for tenant in tenants)
    return Room("r", GPU, {Slot.GPU: 4 - len(tenants)}, 24 * GIB - taken, tenants)


def _tenant(job_id, gib, remaining_s):
    return Tenant(job_id=job_id, slot=Slot.GPU, bytes=gib * GIB, remaining_s=remaining_s)


def test_jobs_start_one_after_the_other_as_memory_comes_back():
    waiting = [_job("first", 20, 100), _job("second", 20, 50), _job("small", 4, 10)]
    found = starts(waiting, [_room(_tenant("busy", 20, 30))])
    assert found == {"small": 0, "first": 30, "second": 130}


def test_behind_a_job_whose_end_is_not_known_there_is_no_time_to_tell():
    assert starts([_job("j", 20)], [_room(_tenant("busy", 20, None))]) == {}
    assert starts([_job("a", 20), _job("b", 20)], [_room(_tenant("busy", 20, 30))]) == {"a": 30}


def test_a_team_starts_when_the_last_of_its_devices_is_free():
    other = msgspec.structs.replace(
        _room(_tenant("late", 20, 50)), device=msgspec.structs.replace(GPU, device_id="cuda:1")
    )
    rooms = [_room(_tenant("soon", 20, 30)), other]
    team = msgspec.structs.replace(_job("team", 20, 100), processes=2)
    assert starts([team, _job("next", 20)], rooms) == {"team": 50, "next": 150}
