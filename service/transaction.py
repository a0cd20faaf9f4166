"""What one transaction makes true: the recorder fills it, the store writes it, the hub hands it out.

Filling touches neither the disk nor the projections in memory, so a transaction that could not be written is dropped.
"""

from collections.abc import Mapping
from datetime import datetime

import msgspec

from jobs import events
from jobs.events import Event
from jobs.lifecycle import LIVE, advance, settle
from service import projection
from service.hub import Published
from service.records import ArtifactRecord, CheckpointRecord, JobRecord, WebhookRecord


class EventRow(msgspec.Struct, frozen=True):
    """A row of the table of events."""

    seq: int
    job_id: str
    attempt: int
    n: int | None
    type: str
    at: datetime
    body: bytes


class Point(msgspec.Struct, frozen=True):
    """One value of one series."""

    job_id: str
    series: str
    step: int
    attempt: int
    epoch: float | None
    value: float | None


class Voided(msgspec.Struct, frozen=True):
    """Points of attempts before `attempt` beyond `step` do not count any more, nor do their checkpoints: what the
    attempt goes on from it took over."""

    job_id: str
    attempt: int
    step: int


class Position(msgspec.Struct, frozen=True):
    """How far the event stream of one epoch was read."""

    epoch: str
    after: str


class Line(msgspec.Struct, frozen=True):
    """A line of an attempt's journal: what an event's envelope says of it."""

    job_id: str
    attempt: int
    n: int


class DeadLetter(msgspec.Struct, frozen=True):
    """What nobody could read or hold: an entry of the stream, or a line of a journal, as far as `line` is known."""

    position: Position
    at: datetime
    error: str
    body: bytes
    line: Line | None = None


Entry = tuple[Event, bytes | None] | DeadLetter
"""An event with the bytes it came as, or what stands in its place."""


class Transaction:
    """Begins with the live projections and the last seq; `take` what happened, in order."""

    def __init__(self, live: Mapping[str, JobRecord], head: int) -> None:
        self.head = head
        self.records: dict[str, JobRecord] = {}
        self.events: list[EventRow] = []
        self.tags: list[tuple[str, str]] = []
        self.points: dict[tuple[str, str, int], Point] = {}
        self.voided: list[Voided] = []
        self.checkpoints: dict[tuple[str, str], CheckpointRecord] = {}
        self.removed_checkpoints: list[tuple[str, str]] = []
        self.artifacts: list[ArtifactRecord] = []
        self.dead_letters: list[DeadLetter] = []
        self.disabled: list[WebhookRecord] = []
        self.position: Position | None = None
        self.ignored = 0
        self._live = live

    @property
    def published(self) -> list[Published]:
        return [Published(row.seq, row.job_id, row.type, row.body, self._tags_of(row.job_id)) for row in self.events]

    def _tags_of(self, job_id: str) -> tuple[str, ...]:
        """None of an event that is about no job."""
        return self.records[job_id].tags if job_id else ()

    @property
    def is_empty(self) -> bool:
        return not (self.events or self.records or self.dead_letters or self.position)

    def take(self, entry: Entry) -> None:
        """The next of what happened."""
        if isinstance(entry, DeadLetter):
            self.bury(entry)
        else:
            self.add(*entry)

    def bury(self, letter: DeadLetter) -> None:
        """Put it aside. The journal it is the next line of goes on behind it, or it would be asked for for ever."""
        self.dead_letters.append(letter)
        line = letter.line
        record = self._record(line.job_id) if line else None
        if line and record and _is_next(record, line):
            self.records[line.job_id] = msgspec.structs.replace(record, recorded_n=line.n)

    def add(self, event: Event, body: bytes | None = None) -> None:
        """Take an event, or ignore it: a duplicate, a gap before it, an old attempt, an ended job, no such step.

        `body` are the bytes it came as; they are kept as they are unless the event had to be settled.
        """
        record = self._record(event.job_id)
        if isinstance(event, events.JobSubmitted):
            self._submit(event)
        elif isinstance(event, events.WebhookDisabled):
            self._append(event, None)
        elif record is None or not _is_next(record, event):
            self.ignored += 1
        else:
            self._follow(record, event, body)

    def _record(self, job_id: str) -> JobRecord | None:
        return self.records.get(job_id) or self._live.get(job_id)

    def _submit(self, event: events.JobSubmitted) -> None:
        seq = self._append(event, None)
        record = projection.begin(event, seq)
        self.records[event.job_id] = record
        self.tags += [(event.job_id, tag) for tag in record.tags]

    def _follow(self, record: JobRecord, event: Event, body: bytes | None) -> None:
        settled = settle(record.state, event)
        state = advance(record.state, settled)
        if state is None:
            self.ignored += 1
            if event.n is not None and not record.has_ended:  # the line is settled, or it would be asked for for ever
                self.records[record.job_id] = msgspec.structs.replace(record, recorded_n=event.n)
            return
        seq = self._append(settled, body if settled is event else None)
        self._fill_tables(settled)
        self.records[record.job_id] = projection.follow(record, settled, state, seq)

    def _append(self, event: Event, body: bytes | None) -> int:
        self.head += 1
        body = events.encode(event) if body is None else body
        name = events.type_of(event)
        self.events.append(EventRow(self.head, event.job_id, event.attempt, event.n, name, event.at, body))
        return self.head

    def _fill_tables(self, event: Event) -> None:
        if isinstance(event, events.MetricsLogged):
            self._log(event)
        elif isinstance(event, events.TrainingResumed):
            self._void(event)
        elif isinstance(event, events.CheckpointSaved):
            self.checkpoints[event.job_id, event.path] = _checkpoint(event)
        elif isinstance(event, events.CheckpointRemoved):
            self.checkpoints.pop((event.job_id, event.path), None)
            self.removed_checkpoints.append((event.job_id, event.path))
        elif isinstance(event, events.ArtifactCreated):
            self.artifacts.append(_artifact(event))

    def _log(self, event: events.MetricsLogged) -> None:
        for series, value in event.values.items():
            point = Point(event.job_id, series, event.step, event.attempt, event.epoch, value)
            self.points[event.job_id, series, event.step] = point

    def _void(self, event: events.TrainingResumed) -> None:
        """What an earlier attempt logged beyond the step is logged again, or would not have been logged at all."""
        self.voided.append(Voided(event.job_id, event.attempt, event.step))
        for key, point in list(self.points.items()):
            if point.job_id == event.job_id and point.attempt < event.attempt and point.step > event.step:
                del self.points[key]
        for name, checkpoint in list(self.checkpoints.items()):
            if checkpoint.job_id == event.job_id and checkpoint.attempt < event.attempt:
                del self.checkpoints[name]


def _is_next(record: JobRecord, said: Event | Line) -> bool:
    if said.attempt != record.attempt or record.status not in LIVE:
        return False
    return said.n is None or said.n == record.recorded_n + 1


def _checkpoint(event: events.CheckpointSaved) -> CheckpointRecord:
    return CheckpointRecord(
        job_id=event.job_id,
        attempt=event.attempt,
        step=event.step,
        path=event.path,
        bytes=event.bytes,
        metrics=event.metrics,
        saved_at=event.at,
    )


def _artifact(event: events.ArtifactCreated) -> ArtifactRecord:
    return ArtifactRecord(
        job_id=event.job_id,
        attempt=event.attempt,
        kind=event.kind,
        path=event.path,
        bytes=event.bytes,
        sha256=event.sha256,
        created_at=event.at,
    )
