"""The runners that report: their devices, what they hold, how long ago they were heard."""

import time

from litestar import get

from jobs.events import Device, Held
from service.answers import Answer
from service.recorder import Recorder
from service.records import RunnerView


class RunnerAnswer(Answer, frozen=True, kw_only=True):
    """One runner; it is alive until its lease ends without a report."""

    runner_id: str
    alive: bool
    stopping: bool
    heard_s_ago: float
    devices: tuple[Device, ...]
    held: tuple[Held, ...]
    version: str


@get("/runners", tags=["runners"])
async def list_runners(recorder: Recorder) -> list[RunnerAnswer]:
    """All runners since the service started, the living first."""
    rows = [_row(view) for view in recorder.runners.values()]
    return sorted(rows, key=lambda row: (not row.alive, row.runner_id))


def _row(view: RunnerView) -> RunnerAnswer:
    return RunnerAnswer(
        runner_id=view.runner_id,
        alive=view.alive,
        stopping=view.report.stopping,
        heard_s_ago=round(time.monotonic() - view.heard_at, 1),
        devices=view.devices,
        held=view.report.held,
        version=view.report.version,
    )
