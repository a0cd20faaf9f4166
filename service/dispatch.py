"""The verbs: submit, wait, cancel, pause, resume, delete. Every route that changes something calls one of them."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from jobs import events
from jobs.errors import NoRunner, WrongState
from jobs.lifecycle import Status
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import JobSpec, Kind
from service.admission import Admission, Admitted
from service.hub import Hub
from service.placement import NO_RUNNER, Wait, place
from service.reconcile import Reconciler
from service.recorder import Recorder
from service.records import JobRecord
from service.rooms import Room, Waiting, waiting_for
from service.store import Store
from service.trash import Trash

log = structlog.get_logger()

_ENDS_WITHIN_S = 10.0  # what a deletion gives a job that it cancels first


class Dispatch:
    """One a process; opened after the recorder and the reconciler."""

    def __init__(
        self, settings: Settings, root: DataRoot, store: Store, recorder: Recorder, hub: Hub, reconciler: Reconciler
    ) -> None:
        self._settings = settings
        self._root = root
        self._recorder = recorder
        self._hub = hub
        self._names = reconciler.names
        self._admission = Admission(root, store, recorder, reconciler.names)
        self._trash = Trash(root)

    async def submit(self, spec: JobSpec) -> JobRecord:
        """A new job, on the disk when this returns.

        Raises:
            Refused: the request can never work; see `Admission.admit`.
            Unavailable: the database cannot be written.
        """
        return await self._record(_new_id(), await self._admission.admit(spec))

    async def run_and_wait(self, spec: JobSpec, wait_s: float) -> JobRecord:
        """The job's record at its end; as it is by then, when the time is up or the service closes.

        Raises:
            NoRunner: nobody who could take it showed up; nothing was recorded.
            Refused, Unavailable: as `submit`.
        """
        admitted = await self._admission.admit(spec)
        await self._wait_for_runner(admitted.spec)
        job_id = _new_id()
        ended = self._hub.expect(job_id)
        closing = asyncio.ensure_future(self._hub.closing.wait())
        watched: set[asyncio.Future[Any]] = {ended, closing}
        try:
            record = await self._record(job_id, admitted)
            await asyncio.wait(watched, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            return ended.result() if ended.done() else self._recorder.live.get(job_id, record)
        finally:
            ended.cancel()
            closing.cancel()

    async def cancel(self, job_id: str) -> tuple[JobRecord, bool]:
        """The record, and whether the job will end for this: False when it had ended before.

        Raises:
            UnknownJob: there is none of that id.
        """
        record = await self._recorder.known(job_id)
        if record.has_ended:
            return record, False
        while not record.has_ended and record.cancel_requested_at is None:  # again when its attempt rose meanwhile
            (record,) = await self._recorder.record([events.CancelRequested(**_envelope(record))])
        log.info("job.cancel_requested", job_id=job_id, status=record.status)
        return record, record.cancel_requested_at is not None

    async def pause(self, job_id: str) -> JobRecord:
        """Ask a running training to save its state and give its device back.

        Raises:
            UnknownJob: there is none of that id.
            WrongState: it is no running training.
        """
        record = await self._recorder.known(job_id)
        if record.kind is not Kind.FINETUNE:
            raise WrongState(f"A {record.kind} job cannot be paused, only a training.")
        if record.cancel_requested_at is not None:
            raise WrongState("The job is being cancelled.")
        if record.preempted_by is not None:
            raise WrongState(
                f"The job is making room for {record.preempted_by} and goes on by itself: pause it when it runs again."
            )
        if record.status is Status.RUNNING and record.pause_requested_at is None:
            (record,) = await self._recorder.record([events.PauseRequested(**_envelope(record))])
        if record.pause_requested_at is None and record.status is not Status.PAUSED:
            raise WrongState(f"The job is {record.status}; only a running one can be paused.")
        return record

    async def resume(self, job_id: str) -> JobRecord:
        """Let a paused training go on from its checkpoint.

        Raises:
            UnknownJob: there is none of that id.
            WrongState: it is not paused.
        """
        record = await self._recorder.known(job_id)
        if record.status is not Status.PAUSED or record.cancel_requested_at is not None:
            raise WrongState(f"The job is {record.status}; only a paused one can be resumed.")
        (record,) = await self._recorder.record([events.ResumeRequested(**_envelope(record))])
        return record

    async def delete(self, job_id: str) -> None:
        """Remove a job, its exports, and the folders they wrote; one that has not started is cancelled first.

        Raises:
            UnknownJob: there is none of that id.
            WrongState: it is running, or a job that has not ended uses it or an export of it.
            Unavailable: the database cannot be written; everything is as it was.
        """
        record = await self._recorder.known(job_id)
        if record.status is Status.RUNNING:
            raise WrongState(f"Job {job_id} is running: cancel it first, then delete it.")
        if not record.has_ended:
            await self._end(job_id)
        deleted = await self._recorder.delete(job_id)
        await self._discard(deleted)
        log.info("job.deleted", job_id=job_id, exports=len(deleted) - 1)

    async def delete_export(self, export_id: str) -> None:
        """Remove an export and its files.

        Raises:
            UnknownExport: there is none of that id.
            WrongState: a job that has not ended uses it.
            Unavailable: the database cannot be written; everything is as it was.
        """
        await self._recorder.delete_export(export_id)
        await self._discard([export_id])
        log.info("export.deleted", export_id=export_id)

    async def _record(self, job_id: str, admitted: Admitted) -> JobRecord:
        event = events.JobSubmitted(
            job_id=job_id, attempt=1, at=datetime.now(UTC), spec=admitted.spec, warnings=admitted.warnings
        )
        (record,) = await self._recorder.record([event])
        log.info("job.submitted", job_id=job_id, kind=record.kind)
        return record

    async def _wait_for_runner(self, spec: JobSpec) -> None:
        waiting = waiting_for("", spec, await self._names.why_not_on_cpu(spec))
        try:
            async with asyncio.timeout(self._settings.no_runner_wait_s):
                while self._why_not(waiting) is not None:
                    await self._recorder.next_report()
        except TimeoutError:
            reason = self._why_not(waiting) or NO_RUNNER
            raise NoRunner(f"{reason} Or send `Prefer: respond-async` to queue the work.") from None

    def _why_not(self, waiting: Waiting) -> str | None:
        """Why no runner could take the job even with all its slots free; None when one could."""
        views = [view for view in self._recorder.runners.values() if view.alive and not view.report.stopping]
        rooms = [Room(view.runner_id, device, device.slots) for view in views for device in view.devices]
        (decision,) = place([waiting], rooms)
        return decision.reason if isinstance(decision, Wait) else None

    async def _end(self, job_id: str) -> None:
        ended = self._hub.expect(job_id)
        try:
            record, _ = await self.cancel(job_id)
            if not record.has_ended:
                async with asyncio.timeout(_ENDS_WITHIN_S):
                    await ended
        except TimeoutError:
            raise WrongState(f"Job {job_id} is still being cancelled: delete it again in a moment.") from None
        finally:
            ended.cancel()

    async def _discard(self, job_ids: Sequence[str]) -> None:
        """Remove what jobs that are forgotten wrote themselves; the export of an export job has the job's id."""
        folders: list[Path] = []
        for job_id in job_ids:
            folders += [self._root.job(job_id), self._root.export(job_id)]
        await asyncio.to_thread(self._trash.discard, folders)
        await asyncio.to_thread(self._trash.empty)


def _new_id() -> str:
    """An id that sorts by time and that nobody guesses."""
    return f"job_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"


def _envelope(record: JobRecord) -> dict[str, Any]:
    return {"job_id": record.job_id, "attempt": record.attempt, "at": datetime.now(UTC)}
