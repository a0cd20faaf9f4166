"""The judge itself: what it says of a job that is well, and of one in which each thing is wrong."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fake_trainer
import invariants
import pytest
from listeners import Listener
from world import Expected, Member

from gpu_runner.training import checkpoints
from gpu_runner.training.checkpoints import Checkpoint, Manifest
from jobs import events
from jobs.paths import DataRoot
from jobs.results import FinetuneResult
from jobs.specs import FinetuneSpec
from jobs.training_config import TrainingConfig

JOB = "job_1"
SCHEMA = """
    CREATE TABLE events (seq INTEGER PRIMARY KEY, job_id, attempt, n, type, body);
    CREATE TABLE jobs (job_id, status);
    CREATE TABLE metrics (job_id, series, step, value);
    CREATE TABLE checkpoints (job_id, path);
"""
LOGGED, WEIGHTS = fake_trainer.undisturbed(seed=1, steps=4, logging_steps=2)


class Case:
    """As much of a world as the judge looks at: one completed job, interrupted once."""

    def __init__(self, folder: Path) -> None:
        self.root = DataRoot(folder)
        self.listeners = [Listener("http://127.0.0.1:9", None)]  # which never starts
        self.faults: list[str] = []
        self.members: list[Member] = []
        self.runners: list[Member] = []
        self.unended: dict[str, str] = {}
        self.jobs = {JOB: Expected(JOB, {"completed"}, LOGGED, WEIGHTS)}
        self.unchecked = [JOB]
        self._run(SCHEMA)
        self._tell()

    def _tell(self) -> None:
        spec = FinetuneSpec(config=TrainingConfig(model_name="m", train_data_path="datasets/r"))
        first, second = self._journal(1), self._journal(2)
        self._say(events.JobSubmitted(spec=spec, **_about(1)))
        self._say(events.JobPlaced(runner_id="r", device="cpu", **_about(1)))
        self._say(events.JobStarted(device="cpu", n=1, **_about(1)), first)
        self._say(events.MetricsLogged(step=2, values={"train_loss": LOGGED[2]}, n=2, **_about(1)), first)
        self._say(events.JobInterrupted(cause="killed", n=3, **_about(1)), first)
        self._say(events.JobPlaced(runner_id="r", device="cpu", **_about(2)))
        self._say(events.JobStarted(device="cpu", n=1, **_about(2)), second)
        self._say(events.MetricsLogged(step=4, values={"train_loss": LOGGED[4]}, n=2, **_about(2)), second)
        self._say(events.JobCompleted(result=FinetuneResult(steps=4), n=3, **_about(2)), second)
        manifest = Manifest(job_id=JOB, attempt=2, step=4, method="full", model_name="fake", metrics={})
        saved = checkpoints.write(
            self.root.attempt(JOB, 2).checkpoints,
            manifest,
            _fill,
            lambda: None,
        )
        self.run("INSERT INTO checkpoints VALUES (?, ?)", JOB, self.root.name_of(saved.folder))
        self.run("INSERT INTO jobs VALUES (?, 'completed')", JOB)
        for step, value in LOGGED.items():
            self.run("INSERT INTO metrics VALUES (?, 'train_loss', ?, ?)", JOB, step, value)

    def _journal(self, attempt: int) -> Path:
        folder = self.root.attempt(JOB, attempt)
        folder.folder.mkdir(parents=True)
        return folder.journal

    def _say(self, event: events.Event, journal: Path | None = None) -> None:
        body, kind = events.encode(event), events.type_of(event)
        self.run("INSERT INTO events VALUES (NULL, ?, ?, ?, ?, ?)", JOB, event.attempt, event.n, kind, body)
        self.listeners[0].heard.append((len(self.listeners[0].heard) + 1, JOB, kind))
        if journal is not None:
            with journal.open("ab") as file:
                file.write(body + b"\n")

    def run(self, sql: str, *values: object) -> None:
        with closing(sqlite3.connect(self.root.database)) as database, database:
            database.execute(sql, values)

    def _run(self, script: str) -> None:
        with closing(sqlite3.connect(self.root.database)) as database:
            database.executescript(script)

    def rows(self, sql: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(self.root.database)) as database:
            return database.execute(sql, values).fetchall()

    def status(self, job_id: str) -> str:
        return str(self.rows("SELECT status FROM jobs WHERE job_id = ?", job_id)[0][0])

    def processes(self) -> dict[int, str]:
        return {}

    def redis_pid(self) -> None:
        return None

    def journal(self, attempt: int) -> Path:
        return self.root.attempt(JOB, attempt).journal


def _fill(checkpoint: Checkpoint) -> None:
    (checkpoint.model / "weights.bin").write_bytes(WEIGHTS)


def _about(attempt: int) -> dict[str, Any]:
    return {"job_id": JOB, "attempt": attempt, "at": datetime.now(UTC)}


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_a_job_that_is_well_is_not_complained_of(case: Case) -> None:
    assert invariants.check(case) == []


def _tear(case: Case) -> None:
    with case.journal(2).open("ab") as file:
        file.write(b'{"type":"job')


def _hear_twice(case: Case) -> None:
    case.listeners[0].heard.append(case.listeners[0].heard[-1])


def _hold(case: Case) -> None:
    folder = case.root.folder / "runners" / "r"
    folder.mkdir(parents=True)
    (folder / "job_1.1.lock").touch()


WRONGS: dict[str, tuple[Callable[[Case], object], str]] = {
    "the job": (lambda case: case.run("DELETE FROM events"), "is lost"),
    "its end": (lambda case: case.run("DELETE FROM events WHERE type = 'job.completed'"), "terminal events"),
    "a second end": (
        lambda case: case.run(
            "INSERT INTO events SELECT seq + 1, job_id, attempt, 4, type, body FROM events ORDER BY seq DESC LIMIT 1"
        ),
        "is not allowed",
    ),
    "its row": (lambda case: case.run("UPDATE jobs SET status = 'failed'"), "is failed by its row"),
    "a line in the store": (lambda case: case.run("DELETE FROM events WHERE seq = 8"), "are not dense"),
    "a line in the journal": (
        lambda case: case.journal(2).write_bytes(case.journal(2).read_bytes().split(b"\n", 1)[1]),
        "is not dense",
    ),
    "a torn line": (_tear, "torn line"),
    "an old attempt": (lambda case: case.run("UPDATE events SET attempt = 1 WHERE seq = 8"), "was accepted after"),
    "a point": (lambda case: case.run("DELETE FROM metrics WHERE step = 2"), "differs from the uninterrupted run"),
    "a value": (lambda case: case.run("UPDATE metrics SET value = value + 1e-9"), "differs from the uninterrupted"),
    "a weight": (
        lambda case: next(case.root.jobs.rglob("weights.bin")).write_bytes(b"0" * len(WEIGHTS)),
        "no checkpoint that verifies",
    ),
    "an unlisted checkpoint": (lambda case: case.run("DELETE FROM checkpoints"), "is not recorded"),
    "a listed checkpoint": (
        lambda case: case.run("INSERT INTO checkpoints VALUES (?, 'jobs/job_1/gone')", JOB),
        "are not there",
    ),
    "an event for a listener": (lambda case: case.listeners[0].heard.pop(3), "missing [4]"),
    "an event heard twice": (_hear_twice, "twice [9]"),
    "an attempt that is held": (_hold, "attempts are held"),
    "a half-made file": (lambda case: (case.root.attempt(JOB, 1).folder / "x.draft").touch(), "half-made"),
}


@pytest.mark.parametrize("what", WRONGS)
def test_each_wrong_is_seen(case: Case, what: str) -> None:
    make_wrong, complaint = WRONGS[what]
    make_wrong(case)
    wrong = invariants.check(case)
    assert any(complaint in sentence for sentence in wrong), wrong
