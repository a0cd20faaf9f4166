"""The runners that report: their devices with memory and jobs, what they can do, how long ago they were heard."""

import time
from collections.abc import Iterable

from litestar import get

from jobs.events import Held
from jobs.specs import Slot
from service.answers import Answer
from service.occupancy import Occupancy
from service.reconcile import Reconciler
from service.recorder import Recorder
from service.records import RunnerView


class DeviceJob(Answer, frozen=True, kw_only=True):
    """A job on a device. `reserved_bytes` are kept for it, null is the whole device; `memory_bytes` it holds now, or
    held at most, where that is measured."""

    job_id: str
    reserved_bytes: int | None
    memory_bytes: int | None


class DeviceAnswer(Answer, frozen=True, kw_only=True):
    """A device. `memory_free_bytes` is what the runner found free, `memory_reserved_bytes` what is kept for jobs,
    `memory_placeable_bytes` what another job could get; all null where nothing can measure it."""

    device_id: str
    name: str
    slots: dict[Slot, int]
    memory_total_bytes: int | None
    memory_free_bytes: int | None
    memory_reserved_bytes: int | None
    memory_placeable_bytes: int | None
    jobs: tuple[DeviceJob, ...]
    capabilities: tuple[str, ...]


class RunnerAnswer(Answer, frozen=True, kw_only=True):
    """One runner; it is alive until its lease ends without a report."""

    runner_id: str
    alive: bool
    stopping: bool
    heard_s_ago: float
    devices: tuple[DeviceAnswer, ...]
    held: tuple[Held, ...]
    version: str


@get("/runners", tags=["runners"])
async def list_runners(recorder: Recorder, reconciler: Reconciler) -> list[RunnerAnswer]:
    """All runners since the service started, the living first."""
    devices: dict[str, list[DeviceAnswer]] = {}
    for found in reconciler.occupancy():
        devices.setdefault(found.runner_id, []).append(_device(found))
    rows = [_row(view, devices.get(view.runner_id, ())) for view in recorder.runners.values()]
    return sorted(rows, key=lambda row: (not row.alive, row.runner_id))


def _row(view: RunnerView, devices: Iterable[DeviceAnswer]) -> RunnerAnswer:
    return RunnerAnswer(
        runner_id=view.runner_id,
        alive=view.alive,
        stopping=view.report.stopping,
        heard_s_ago=round(time.monotonic() - view.heard_at, 1),
        devices=tuple(devices),
        held=view.report.held,
        version=view.report.version,
    )


def _device(found: Occupancy) -> DeviceAnswer:
    device, is_known = found.device, found.device.memory_total_bytes is not None
    return DeviceAnswer(
        device_id=device.device_id,
        name=device.name,
        slots=device.slots,
        memory_total_bytes=device.memory_total_bytes,
        memory_free_bytes=device.memory_free_bytes,
        memory_reserved_bytes=found.reserved_bytes if is_known else None,
        memory_placeable_bytes=found.free_bytes,
        jobs=tuple(
            DeviceJob(job_id=each.job_id, reserved_bytes=each.tenant.bytes, memory_bytes=each.measured_bytes)
            for each in found.occupants
        ),
        capabilities=device.capabilities,
    )
