"""What the store answers about what was recorded."""

import sqlite3
from pathlib import Path

import msgspec
import pytest

from jobs import events
from jobs.lifecycle import Status
from jobs.results import ConvertResult, ExportResult, FinetuneResult, PrepareResult, SplitResult, ValidateResult
from jobs.specs import ConvertSpec, ExportFormat, ExportSpec, Kind, PrepareSpec, SplitSpec, ValidateSpec
from service.store import MIGRATIONS, Store
from service.transaction import Position, Transaction

EXPORTED = ExportResult(
    export_id="job_x", job_id="job_a", export_path="exports/job_x/model", archive_path="exports/job_x/m.zip",
    archive_bytes=3, archive_sha256="0" * 64, export_format="huggingface", file_size_mb=1.5, message="done",
)  # fmt: skip


async def _complete(ledger, job, result=None):
    """Submit and complete a job."""
    begun = [job.submitted(), *job.started()]
    done = job.event(events.JobCompleted, n=2, result=result or FinetuneResult(steps=1))
    return (await ledger.record([*begun, done]))[-1]


async def test_a_job_reads_back_as_it_was_recorded(ledger, store, history):
    job = history()
    (recorded,) = await ledger.record([job.submitted()])
    assert await store.job("job_a") == recorded
    assert recorded.status is Status.PENDING
    assert await store.job("job_b") is None


async def test_jobs_come_newest_first_and_page_by_page(ledger, store, history):
    for name in "abcde":
        await ledger.record([history(f"job_{name}").submitted()])
    first = await store.jobs(limit=2)
    rest = await store.jobs(limit=9, before=first[-1].job_id)
    assert [job.job_id for job in first + rest] == ["job_e", "job_d", "job_c", "job_b", "job_a"]


async def test_a_later_event_does_not_change_a_jobs_place_in_the_list(ledger, store, history):
    old, new = history("job_a"), history("job_b")
    await ledger.record([old.submitted(), new.submitted(), *old.started()])
    assert [job.job_id for job in await store.jobs()] == ["job_b", "job_a"]


async def test_jobs_are_filtered_by_kind_status_and_label(ledger, store, history, configured):
    labelled = history("job_b", configured(output_dir="datasets/mine"))
    await ledger.record([history("job_a").submitted(), labelled.submitted(), *labelled.started()])
    convert = ConvertSpec(sam2_zip_path="uploads/1/x.zip", output_dir="datasets/x")
    await ledger.record([history("job_c", convert).submitted()])
    assert [job.job_id for job in await store.jobs(kinds=(Kind.FINETUNE,))] == ["job_b", "job_a"]
    assert [job.job_id for job in await store.jobs(status=Status.RUNNING)] == ["job_b"]
    assert [job.job_id for job in await store.jobs(label="datasets/mine")] == ["job_b"]
    assert await store.newest_by_label("datasets/mine") == "job_b"
    assert await store.newest_by_label("datasets/other") is None


async def test_experiments_are_sorted_with_missing_values_last(ledger, store, history):
    for name, loss in (("a", 0.3), ("b", None), ("c", 0.0), ("d", 0.5)):
        await _complete(ledger, history(f"job_{name}"), FinetuneResult(steps=1, best_eval_loss=loss))
    by_loss = await store.experiments(sort_by="best_eval_loss")
    assert [job.job_id for job in by_loss] == ["job_c", "job_a", "job_d", "job_b"]
    assert [job.job_id for job in await store.experiments(limit=2)] == ["job_d", "job_c"]


async def test_experiments_are_sorted_by_duration_longest_first(ledger, store, history):
    for name, seconds in (("a", 1), ("b", 3), ("c", 2)):
        job = history(f"job_{name}")
        begun = [job.submitted(), *job.started()]
        notes = [job.event(events.PhaseEntered, n=2 + k, phase="training") for k in range(seconds)]
        done = job.event(events.JobCompleted, n=2 + seconds, result=FinetuneResult(steps=1))
        await ledger.record([*begun, *notes, done])
    await ledger.record([history("job_d").submitted()])
    by_duration = await store.experiments(sort_by="duration_seconds")
    assert [job.job_id for job in by_duration] == ["job_b", "job_c", "job_a", "job_d"]


async def test_experiments_are_found_by_an_exact_tag(ledger, store, history, training):
    other = msgspec.structs.replace(training, tags=("bird", "birds-2"))
    await ledger.record([history("job_a").submitted(), history("job_b", other).submitted()])
    assert [job.job_id for job in await store.experiments(tag="birds")] == ["job_a"]


async def test_events_are_read_behind_a_cursor_of_one_job_or_of_all(ledger, store, history):
    first, second = history("job_a"), history("job_b")
    await ledger.record([first.submitted(), second.submitted(), *first.started()])
    assert [event.seq for event in await store.events(after=1)] == [2, 3, 4]
    assert [event.type for event in await store.events("job_a")] == ["job.submitted", "job.placed", "job.started"]
    assert [event.seq for event in await store.events("job_a", types=frozenset({"job.started"}))] == [4]
    assert await store.events(types=frozenset()) == []
    assert await store.event_count("job_a", after=1) == 2
    assert await store.head_seq() == 4


async def test_a_deleted_event_never_lends_its_cursor_to_another(ledger, store, history):
    await _complete(ledger, history("job_a"))
    head = await store.head_seq()
    await store.remove(["job_a"])
    assert await store.head_seq() == head
    assert await store.events() == []


async def test_removing_a_job_leaves_no_row_of_it_and_every_row_of_others(ledger, store, history):
    for name in "ab":
        job = history(f"job_{name}")
        said = [
            job.event(events.MetricsLogged, n=2, step=1, values={"train_loss": 1.0}),
            job.event(events.CheckpointSaved, n=3, step=1, path=f"jobs/{name}/step-1", bytes=1),
            job.event(events.ArtifactCreated, n=4, kind="report", path=f"jobs/{name}/report.md", bytes=1),
            job.event(events.JobCompleted, n=5, result=FinetuneResult(steps=1)),
        ]
        await ledger.record([job.submitted(), *job.started(), *said])
    await store.remove(["job_a"])
    assert await _row_counts(store, "job_a") == dict.fromkeys(_TABLES, 0)
    assert min((await _row_counts(store, "job_b")).values()) >= 1


_TABLES = ("jobs", "events", "metrics", "checkpoints", "artifacts", "tags")


async def _row_counts(store: Store, job_id: str) -> dict[str, int]:
    counts = {}
    for table in _TABLES:
        rows = await store._rows(f"SELECT count(*) FROM {table} WHERE job_id = :job_id", {"job_id": job_id})
        counts[table] = rows[0][0]
    return counts


async def test_checkpoints_that_rotation_removed_are_gone(ledger, store, history):
    job = history()
    said = [
        job.event(events.CheckpointSaved, n=2, step=10, path="jobs/a/step-10", bytes=5, metrics={"eval_loss": 0.5}),
        job.event(events.CheckpointSaved, n=3, step=20, path="jobs/a/step-20", bytes=6),
    ]
    await ledger.record([job.submitted(), *job.started(), *said])
    await ledger.record([job.event(events.CheckpointRemoved, n=4, step=10, path="jobs/a/step-10")])
    (kept,) = await store.checkpoints("job_a")
    assert (kept.step, kept.path, kept.bytes, kept.metrics) == (20, "jobs/a/step-20", 6, {})


async def test_exports_are_the_completed_export_jobs_newest_first(ledger, store, history):
    spec = ExportSpec(job_id="job_a", export_format=ExportFormat.HUGGINGFACE)
    for name in ("job_x", "job_y"):
        await _complete(ledger, history(name, spec), msgspec.structs.replace(EXPORTED, export_id=name))
    pending = history("job_z", spec)
    await ledger.record([pending.submitted()])
    assert [export.export_id for export in await store.exports("job_a")] == ["job_y", "job_x"]
    assert (await store.export("job_x")).archive_bytes == 3
    assert await store.export("job_z") is None
    assert await store.exports("job_b") == []
    assert {child.job_id for child in await store.children("job_a")} == {"job_x", "job_y", "job_z"}


def _validated(passed: bool) -> ValidateResult:
    return ValidateResult(
        passed=passed, result="passed" if passed else "failed", num_errors=0, num_warnings=0, errors=(), warnings=(),
        statistics={}, recommendations=(), report_id="r",
    )  # fmt: skip


async def _made(ledger, history, job_id, spec):
    results = {
        ConvertSpec: ConvertResult(output_dir="", num_samples=1, message=""),
        SplitSpec: SplitResult(
            train_path="", val_path="", test_path="", train_samples=1, val_samples=1, test_samples=1
        ),
    }
    await _complete(ledger, history(job_id, spec), results[type(spec)])


async def _last_validation(store, name):
    """Of one dataset as of all at once."""
    found = await store.last_validation(name)
    assert (await store.newest_steps()).last_validation(name) == found
    return found


async def _lineage(store, name):
    found = await store.lineage(name)
    assert (await store.newest_steps()).lineage(name) == found
    return found


async def test_the_last_validation_of_a_split_is_that_of_the_dataset_it_was_cut_from(ledger, store, history):
    await _made(ledger, history, "job_a", ConvertSpec(sam2_zip_path="uploads/x.zip", output_dir="datasets/d"))
    assert await _last_validation(store, "datasets/d") is None
    await _complete(ledger, history("job_b", ValidateSpec(data_path="datasets/d")), _validated(passed=False))
    await _made(ledger, history, "job_c", SplitSpec(data_path="datasets/d", output_dir="datasets/d/s"))
    assert (await _last_validation(store, "datasets/d/s/train.jsonl")).passed is False
    assert (await _last_validation(store, "datasets/d/llava_dataset.jsonl")).passed is False
    assert await _last_validation(store, "datasets/other") is None


async def test_the_lineage_of_a_file_leads_over_its_splits_to_the_conversion(ledger, store, history):
    await _made(ledger, history, "job_a", ConvertSpec(sam2_zip_path="uploads/x.zip", output_dir="datasets/d"))
    await _made(ledger, history, "job_b", SplitSpec(data_path="datasets/d", output_dir="datasets/s"))
    again = SplitSpec(data_path="datasets/s/test.jsonl", output_dir="datasets/t")
    await _made(ledger, history, "job_c", again)
    lineage = await _lineage(store, "datasets/t/train.jsonl")
    assert [(name, step.job.job_id) for name, step in lineage] == [
        ("datasets/t/train.jsonl", "job_c"), ("datasets/s/test.jsonl", "job_b"), ("datasets/d", "job_a"),
    ]  # fmt: skip
    assert await _lineage(store, "datasets/strange") == [("datasets/strange", None)]


async def test_datasets_that_were_cut_from_each_other_end_the_search(ledger, store, history):
    for job_id, source, target in (("job_a", "a", "b"), ("job_b", "b", "a")):
        spec = SplitSpec(data_path=f"datasets/{source}", output_dir=f"datasets/{target}")
        await _made(ledger, history, job_id, spec)
    assert len(await _lineage(store, "datasets/a")) == 2
    assert await _last_validation(store, "datasets/a") is None


async def test_a_folders_writer_is_the_newest_job_that_completed(ledger, store, history):
    convert = ConvertSpec(sam2_zip_path="uploads/x.zip", output_dir="datasets/d")
    await _made(ledger, history, "job_a", convert)
    await _made(ledger, history, "job_b", SplitSpec(data_path="datasets/d", output_dir="datasets/s"))
    await _made(ledger, history, "job_c", convert)
    failed = history("job_d", convert)
    fault = failed.event(events.JobFailed, n=2, reason="internal", detail="no")
    await ledger.record([failed.submitted(), *failed.started(), fault])
    await _complete(ledger, history("job_e"))
    assert [step.job.job_id for step in (await store.newest_steps()).makers.values()] == ["job_c", "job_b"]


async def test_a_newer_validation_counts_and_a_new_conversion_forgets_it(ledger, store, history):
    convert = ConvertSpec(sam2_zip_path="uploads/x.zip", output_dir="datasets/d")
    await _made(ledger, history, "job_a", convert)
    await _complete(ledger, history("job_b", ValidateSpec(data_path="datasets/d")), _validated(passed=False))
    await _complete(ledger, history("job_c", ValidateSpec(data_path="datasets/d")), _validated(passed=True))
    assert (await _last_validation(store, "datasets/d")).passed is True
    await _complete(ledger, history("job_d", ValidateSpec(data_path="datasets/d")), _validated(passed=False))
    await _made(ledger, history, "job_e", convert)
    assert await _last_validation(store, "datasets/d") is None


async def test_a_split_that_was_validated_itself_speaks_for_itself(ledger, store, history):
    await _complete(ledger, history("job_a", ValidateSpec(data_path="datasets/d")), _validated(passed=False))
    await _made(ledger, history, "job_b", SplitSpec(data_path="datasets/d", output_dir="datasets/d/s"))
    train = ValidateSpec(data_path="datasets/d/s/train.jsonl")
    await _complete(ledger, history("job_c", train), _validated(passed=True))
    assert (await _last_validation(store, "datasets/d/s/train.jsonl")).passed is True
    assert (await _last_validation(store, "datasets/d/s/val.jsonl")).passed is False


PREPARE = PrepareSpec(sam2_zip_path="uploads/x.zip", output_dir="datasets/p", split_dir="datasets/p-split")
CONVERTED = ConvertResult(output_dir="datasets/p", num_samples=3, message="")
DIVIDED = SplitResult(
    train_path="datasets/p-split/train.jsonl", val_path="datasets/p-split/val.jsonl",
    test_path="datasets/p-split/test.jsonl", train_samples=1, val_samples=1, test_samples=1,
)  # fmt: skip


def _prepared(*, passed: bool, split: SplitResult | None = DIVIDED) -> PrepareResult:
    return PrepareResult(
        output_dir="datasets/p", num_samples=3, passed=passed, message="", success=split is not None,
        convert=CONVERTED, validate=_validated(passed=passed), split=split,
    )  # fmt: skip


async def test_a_preparation_made_two_datasets_and_checked_one(ledger, store, history):
    await _complete(ledger, history("job_a", PREPARE), _prepared(passed=True))
    assert [(step.dataset, step.kind) for step in (await store.newest_steps()).makers.values()] == [
        ("datasets/p-split", Kind.SPLIT), ("datasets/p", Kind.CONVERT),
    ]  # fmt: skip
    lineage = await _lineage(store, "datasets/p-split/train.jsonl")
    assert [(name, step.kind, step.job.job_id) for name, step in lineage] == [
        ("datasets/p-split/train.jsonl", Kind.SPLIT, "job_a"), ("datasets/p", Kind.CONVERT, "job_a"),
    ]  # fmt: skip
    assert (await _last_validation(store, "datasets/p-split/val.jsonl")).passed is True
    await _complete(ledger, history("job_b", ValidateSpec(data_path="datasets/p")), _validated(passed=False))
    assert (await _last_validation(store, "datasets/p-split/val.jsonl")).passed is False


async def test_a_preparation_whose_checks_failed_divided_nothing(ledger, store, history):
    await _made(ledger, history, "job_a", SplitSpec(data_path="datasets/o", output_dir="datasets/p-split"))
    await _complete(ledger, history("job_b", PREPARE), _prepared(passed=False, split=None))
    assert (await _last_validation(store, "datasets/p/llava_dataset.jsonl")).passed is False
    assert (await store.maker_of("datasets/p-split")).job.job_id == "job_a"


async def test_a_preparation_that_is_forgotten_made_and_checked_nothing(ledger, store, history):
    await _complete(ledger, history("job_a", PREPARE), _prepared(passed=False))
    await store.remove(["job_a"])
    assert (await store.newest_steps()).makers == {}
    assert await _last_validation(store, "datasets/p") is None
    assert await store._rows("SELECT * FROM data_steps") == []


async def test_a_dataset_may_have_a_dot_in_its_name(ledger, store, history):
    await _made(ledger, history, "job_a", ConvertSpec(sam2_zip_path="uploads/x.zip", output_dir="datasets/d.v2"))
    assert [step.job.job_id for _, step in await _lineage(store, "datasets/d.v2")] == ["job_a"]


async def test_a_database_of_the_first_version_knows_its_datasets_afterwards(ledger, store, history, tmp_path: Path):
    convert = ConvertSpec(sam2_zip_path="uploads/x.zip", output_dir="datasets/d")
    await _made(ledger, history, "job_a", convert)
    await _complete(ledger, history("job_b", ValidateSpec(data_path="datasets/d")), _validated(passed=False))
    await _made(ledger, history, "job_c", SplitSpec(data_path="datasets/d", output_dir="datasets/s"))
    await ledger.record([history("job_d", convert).submitted()])
    old = tmp_path / "old.db"
    _write_first_version(old, await store.jobs())
    opened = await Store.open(old)
    try:
        assert [step.dataset for step in (await opened.newest_steps()).makers.values()] == ["datasets/s", "datasets/d"]
        assert (await _last_validation(opened, "datasets/s/train.jsonl")).passed is False
        assert await opened.jobs() == await store.jobs()
    finally:
        await opened.close()


def _write_first_version(path: Path, records) -> None:
    """A database as the first migration alone made it, with these jobs."""
    with sqlite3.connect(path) as database:
        database.executescript((MIGRATIONS / "0001_jobs.sql").read_text() + "PRAGMA user_version = 1;")
        for record in records:
            database.execute(
                "INSERT INTO jobs (submitted_seq, job_id, kind, status, input_name, output_name, record) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    record.submitted_seq, record.job_id, record.kind, record.status,
                    getattr(record.spec, "data_path", None), getattr(record.spec, "output_dir", None),
                    msgspec.json.encode(record),
                ),
            )  # fmt: skip
    database.close()


async def test_a_transaction_is_written_whole_or_not_at_all(store, history):
    job = history()
    transaction = Transaction({}, 0)
    transaction.add(job.submitted())
    transaction.position = Position("e", "5-0")
    transaction.events.append(transaction.events[0])  # its seq twice
    with pytest.raises(sqlite3.IntegrityError):
        await store.write(transaction)
    assert await store.jobs() == []
    assert await store.position() is None


async def test_opening_again_migrates_nothing_and_finds_everything(store, ledger, history, tmp_path: Path):
    await ledger.record([history().submitted()])
    again = await Store.open(tmp_path / "training.db")
    try:
        assert [job.job_id for job in await again.live_jobs()] == ["job_a"]
    finally:
        await again.close()


async def test_the_database_is_durable_and_readers_cannot_write(store):
    def pragma(name: str) -> object:
        return store._thread.submit(lambda: store._writer.execute(f"PRAGMA {name}").fetchone()[0]).result()

    assert (pragma("synchronous"), pragma("journal_mode")) == (2, "wal")  # 2 is FULL
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await store._rows("DELETE FROM jobs")


async def test_a_checkpoint_empties_the_write_ahead_log(store, ledger, history, tmp_path: Path):
    await ledger.record([history().submitted()])
    assert (tmp_path / "training.db-wal").stat().st_size > 0
    await store.checkpoint()
    assert (tmp_path / "training.db-wal").stat().st_size == 0


async def test_a_closed_store_is_not_healthy(tmp_path: Path):
    opened = await Store.open(tmp_path / "training.db")
    assert await opened.is_healthy()
    await opened.close()
    assert not await opened.is_healthy()
