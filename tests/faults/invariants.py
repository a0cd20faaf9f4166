"""What must hold after every schedule, whatever happened. `check` says of a world that has settled what does not.

The list is that of the design: terminal states, journals, subscribers, fencing, metrics, checkpoints, leftovers, the
database. Each function looks at one of them and yields sentences.
"""

import contextlib
import itertools
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from listeners import Listener
from world import Expected, Member

from gpu_runner.training import checkpoints
from jobs import events
from jobs.events import Event
from jobs.lifecycle import State, Status, advance
from jobs.paths import DataRoot

_ENDS = ("job.completed", "job.failed", "job.cancelled")


class Row(NamedTuple):
    """A row of the table of events."""

    seq: int
    job_id: str
    attempt: int
    n: int | None
    type: str
    body: bytes

    @property
    def event(self) -> Event:
        decoded: Event = events.decode_event(self.body)
        return decoded


class Evidence(Protocol):
    """What is looked at to judge one job."""

    root: DataRoot

    def rows(self, sql: str, *values: object) -> list[Any]:
        """Of the database."""

    def status(self, job_id: str) -> str:
        """By the job's row."""


class Settled(Evidence, Protocol):
    """What is looked at to judge a whole world, in which nothing moves any more."""

    jobs: dict[str, Expected]
    unchecked: list[str]
    faults: list[str]
    listeners: list[Listener]

    @property
    def members(self) -> list[Member]: ...

    @property
    def runners(self) -> list[Member]: ...

    @property
    def unended(self) -> dict[str, str]: ...

    def processes(self) -> dict[int, str]: ...

    def redis_pid(self) -> int | None: ...


def check(world: Settled) -> list[str]:
    """What is wrong; empty when all is well. Jobs that were looked at before are not looked at again."""
    fresh, world.unchecked = [world.jobs[job_id] for job_id in world.unchecked], []
    wrong = [*world.faults, *database_is_whole(world.root.database), *nothing_is_left(world)]
    wrong += subscribers_heard_all(world)
    for expected in fresh:
        rows = rows_of(world, expected.job_id)
        for look in (one_terminal_state, journals_agree, attempts_rise, metrics_are_right, checkpoint_is_right):
            wrong += [f"{expected.job_id}: {sentence}" for sentence in look(world, expected, rows)]
    wrong += [f"{job_id} is {status}" for job_id, status in world.unended.items()]
    return wrong


def rows_of(world: Evidence, job_id: str) -> list[Row]:
    sql = "SELECT seq, job_id, attempt, n, type, body FROM events WHERE job_id = ? ORDER BY seq"
    return [Row(*row) for row in world.rows(sql, job_id)]


def one_terminal_state(world: Evidence, expected: Expected, rows: list[Row]) -> Iterator[str]:
    """By allowed transitions to one terminal event, which is the last; the job's row says the same."""
    if not rows:
        yield "was accepted and is lost"
        return
    state = State()
    for row in rows[1:]:
        following = advance(state, row.event)
        if following is None:
            yield f"event {row.seq} ({row.type}, attempt {row.attempt}) is not allowed in {state}"
            return
        state = following
    ended = [row.type for row in rows if row.type in _ENDS]
    if len(ended) != 1 or rows[-1].type not in _ENDS:
        yield f"has the terminal events {ended}, and the last event is {rows[-1].type}"
    status = world.status(expected.job_id)
    if status != state.status:
        yield f"is {status} by its row and {state.status} by its events"
    if status not in expected.ends:
        yield f"ended as {status}, not as {sorted(expected.ends)}: {rows[-1].body.decode()[:300]}"


def journals_agree(world: Evidence, expected: Expected, rows: list[Row]) -> Iterator[str]:
    """Each attempt's journal is dense; what is stored of it is its dense beginning, the last attempt's all of it."""
    last = rows[-1].attempt if rows else 1
    for folder in world.root.attempts(expected.job_id):
        lines = folder.journal.read_bytes().splitlines(keepends=True) if folder.journal.exists() else []
        if any(not line.endswith(b"\n") for line in lines):
            yield f"attempt {folder.number} has a torn line"
        said = [events.decode_event(line) for line in lines if line.endswith(b"\n")]
        if [event.n for event in said] != list(range(1, len(said) + 1)):
            yield f"the journal of attempt {folder.number} is not dense: {[event.n for event in said]}"
        if any(isinstance(event, events.ATTEMPT_ENDED) for event in said[:-1]):
            yield f"the journal of attempt {folder.number} goes on after its end"
        stored = [row for row in rows if row.attempt == folder.number and row.n is not None]
        if [row.n for row in stored] != list(range(1, len(stored) + 1)):
            yield f"the stored lines of attempt {folder.number} are not dense: {[row.n for row in stored]}"
        if folder.number == last and len(stored) != len(lines):
            yield f"attempt {last} has {len(lines)} lines, of which {len(stored)} are stored"
        for row, line in zip(stored, lines, strict=False):
            if row.body != line[:-1] and row.type != "job.cancelled":  # a completion that crossed a cancel is settled
                yield f"line {row.n} of attempt {folder.number} is stored as something else: {row.body!r} {line!r}"


def attempts_rise(_: Evidence, __: Expected, rows: list[Row]) -> Iterator[str]:
    """No event of an old attempt after a new one began."""
    for before, row in itertools.pairwise(rows):
        if row.attempt < before.attempt:
            yield f"event {row.seq} of attempt {row.attempt} was accepted after attempt {before.attempt} began"


def metrics_are_right(world: Evidence, expected: Expected, _: list[Row]) -> Iterator[str]:
    """Exactly those of the uninterrupted run; of a run that was ended early, its beginning."""
    if expected.twin is not None and (differing := _differing(world, expected.job_id, expected.twin)):
        yield f"differs from the uninterrupted run at {differing}"
    if expected.series is None:
        return
    found = dict(
        world.rows("SELECT step, value FROM metrics WHERE job_id = ? AND series = 'train_loss'", expected.job_id)
    )
    is_complete = world.status(expected.job_id) == Status.COMPLETED
    wanted = {step: value for step, value in expected.series.items() if is_complete or step in found}
    if found != wanted:
        steps = {step for step in found | wanted if found.get(step) != wanted.get(step)}
        yield f"the series differs from the uninterrupted run at steps {sorted(steps)}"


def _differing(world: Evidence, job_id: str, twin: str) -> list[tuple[str, int]]:
    """(series, step) of the values that are not equal, to the last bit."""
    sql = "SELECT series, step, value FROM metrics WHERE job_id = ? AND series NOT IN ('tokens_per_s', 'memory_mb')"
    ours, theirs = ({(series, step): value for series, step, value in world.rows(sql, each)} for each in (job_id, twin))
    return sorted(place for place in ours | theirs if ours.get(place) != theirs.get(place))


def _same_weights(world: Evidence, job_id: str, twin: str) -> bool:
    """Whether the newest checkpoints hold the same tensors, to the last bit: then their logits are the same too."""
    newest = [checkpoints.newest_verified(world.root, each) for each in (job_id, twin)]
    if None in newest:
        return False
    files = [sorted(found.model.glob("*.safetensors")) for found in newest if found]
    return [one.read_bytes() for one in files[0]] == [one.read_bytes() for one in files[1]] != []


def checkpoint_is_right(world: Evidence, expected: Expected, _: list[Row]) -> Iterator[str]:
    """The newest good checkpoint of a completed run is the uninterrupted run's last one."""
    if expected.twin is not None and not _same_weights(world, expected.job_id, expected.twin):
        yield "its newest checkpoint has other weights than the uninterrupted run's"
    if expected.weights is None or world.status(expected.job_id) != Status.COMPLETED:
        return
    newest = checkpoints.newest_verified(world.root, expected.job_id)
    if newest is None:
        yield "has no checkpoint that verifies"
        return
    weights = (newest.model / "weights.bin").read_bytes()
    if not weights.startswith(expected.weights):
        yield f"its newest checkpoint, of step {newest.step}, has other weights than the uninterrupted run"
    known = {path for (path,) in world.rows("SELECT path FROM checkpoints WHERE job_id = ?", expected.job_id)}
    if world.root.name_of(newest.folder) not in known:
        yield f"its newest checkpoint, {world.root.name_of(newest.folder)}, is not recorded: {known}"
    gone = [path for path in known if not world.root.path_of(path).exists()]
    if gone:
        yield f"checkpoints are recorded that are not there: {gone}"


def subscribers_heard_all(world: Settled) -> Iterator[str]:
    """Every listener's list is what the table of events has, in its order."""
    stored = [Row(*row) for row in world.rows("SELECT seq, job_id, attempt, n, type, '' FROM events ORDER BY seq")]
    for listener in world.listeners:
        if listener.fault:
            yield f"{listener.name} gave up: {listener.fault}"
            continue
        heard = list(listener.heard)
        upto = heard[-1][0] if heard else listener.after
        wanted = [
            (row.seq, row.job_id, row.type)
            for row in stored
            if listener.after < row.seq <= upto and listener.job_id in (None, row.job_id)
        ]
        if heard != wanted:
            twice = [seq for seq, count in Counter(seq for seq, _, _ in heard).items() if count > 1]
            missing = sorted({seq for seq, _, _ in wanted} - {seq for seq, _, _ in heard})
            yield f"{listener.name} heard {len(heard)} of {len(wanted)} events: missing {missing}, twice {twice}"
        if listener.job_id and (not heard or heard[-1][2] not in _ENDS):
            yield f"{listener.name} left before the end"
    world.listeners = [listener for listener in world.listeners if listener.job_id is None]


def nothing_is_left(world: Settled) -> Iterator[str]:
    """No process but the programs, no lock, no half-made file."""
    wanted = {member.pid for member in world.members} | {world.redis_pid()}
    zygotes = [pid for pid, command in world.processes().items() if "gpu_runner.zygote" in command]
    alive = [member for member in world.runners if member.is_alive]
    others = {pid: command for pid, command in world.processes().items() if pid not in wanted | set(zygotes)}
    if others:
        yield f"processes are left: {others}"
    if len(zygotes) > len(alive):
        yield f"{len(zygotes)} zygotes for {len(alive)} runners"
    folder = world.root.folder
    if held := [path.name for path in folder.glob("runners/*/*.lock") if path.name != "runner.lock"]:
        yield f"attempts are held: {held}"
    half = [
        str(path.relative_to(folder))
        for pattern in ("jobs/*/*/*.draft", "datasets/.staging/*", "exports/.*")
        for path in folder.glob(pattern)
    ]
    if half:
        yield f"half-made files are left: {half}"
    for member in world.members:
        count = _open_descriptors(member.pid)
        if count > 200:
            yield f"{member.name} has {count} open files"


def _open_descriptors(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0


def database_is_whole(file: Path) -> Iterator[str]:
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5)) as database:
        (answer,) = database.execute("PRAGMA integrity_check").fetchone()
        if answer != "ok":
            yield f"the database is damaged: {answer}"


def accepted_are_there(file: Path, job_ids: set[str]) -> Iterator[str]:
    """Of a copy of the database: what was accepted before it was made is in it."""
    with contextlib.closing(sqlite3.connect(file, timeout=5)) as database:
        there = {job_id for (job_id,) in database.execute("SELECT job_id FROM jobs")}
        if job_ids - there:
            yield f"accepted jobs are not in the copy: {job_ids - there}"
        for job_id, status in database.execute("SELECT job_id, status FROM jobs"):
            rows = database.execute(
                "SELECT seq, job_id, attempt, n, type, body FROM events WHERE job_id = ? ORDER BY seq", (job_id,)
            )
            state = State()
            for row in [Row(*one) for one in rows][1:]:
                state = advance(state, row.event) or state
            if state.status != status:
                yield f"{job_id} is {status} in the copy, and {state.status} by its events"
