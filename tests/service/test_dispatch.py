"""The verbs, and what is refused before it becomes a job."""

import asyncio
import sqlite3

import pytest

from jobs import events
from jobs.errors import (
    BadRatios,
    Conflict,
    FileMissing,
    InvalidInput,
    NoRunner,
    NotSupported,
    PathNotAllowed,
    Unavailable,
    UnknownExport,
    UnknownJob,
    WrongState,
)
from jobs.lifecycle import Status
from jobs.results import FinetuneResult, ValidateResult
from jobs.specs import (
    ConvertSpec,
    EvaluateSpec,
    ExportFormat,
    ExportSpec,
    FinetuneSpec,
    GenerateSpec,
    Kind,
    PlanSpec,
    PrepareSpec,
    SplitSpec,
    ValidateSpec,
)
from service.placement import SIZE_UNKNOWN, TOO_LARGE_FOR_CPU

MADE = "datasets/made/train.jsonl"


@pytest.fixture
async def runner(core, fakes):
    async with fakes.FakeRunner(core.settings.redis_url) as running:
        yield running


@pytest.fixture
async def trained(core, runner, training):
    job = await core.dispatch.submit(training)
    return await core.ended(job.job_id)


def _export(job_id, **changes):
    return ExportSpec(**{"job_id": job_id, "export_format": ExportFormat.HUGGINGFACE} | changes)


# -- submit


async def test_client_paths_are_recorded_as_normalised_names(quiet, configured):
    absolute = f"{quiet.root.folder}/datasets//made/./train.jsonl"
    job = await quiet.dispatch.submit(
        configured(train_data_path=absolute, val_data_path="made", output_dir="./runs//1")
    )
    config = job.spec.config
    assert (config.train_data_path, config.val_data_path) == (MADE, "datasets/made")
    assert job.label == config.output_dir == "datasets/runs/1"
    assert not quiet.root.path_of("datasets/runs").exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../b", "datasets", "%2e%2e/x"])
async def test_a_path_outside_the_data_root_is_refused_and_nothing_recorded(quiet, configured, path):
    for changes in ({"train_data_path": path}, {"val_data_path": path}, {"output_dir": path}):
        with pytest.raises(PathNotAllowed):
            await quiet.dispatch.submit(configured(**changes))
    with pytest.raises(PathNotAllowed):
        await quiet.dispatch.submit(ValidateSpec(data_path=path))
    assert await quiet.store.jobs() == []


async def test_a_missing_file_is_said_to_be_missing(quiet, configured):
    for spec in (
        configured(train_data_path="nothing.jsonl"),
        configured(val_data_path="nothing.jsonl"),
        ValidateSpec(data_path="nothing"),
        SplitSpec(data_path="nothing", output_dir="s"),
        ConvertSpec(sam2_zip_path="uploads/1/x.zip", output_dir="d"),
        EvaluateSpec(data_path="nothing", model_name="demo-llava"),
    ):
        with pytest.raises(FileMissing):
            await quiet.dispatch.submit(spec)


@pytest.mark.parametrize("output_dir", ["uploads/x", "jobs/x", "exports/x", "models/x", "datasets/.staging/x", "a/.b"])
async def test_a_dataset_is_written_below_datasets_only(quiet, output_dir):
    with pytest.raises(PathNotAllowed):
        await quiet.dispatch.submit(SplitSpec(data_path="made", output_dir=output_dir))


async def test_a_folder_may_be_an_export_too(quiet):
    job = await quiet.dispatch.submit(ConvertSpec(sam2_zip_path="made", output_dir="d"))
    assert job.spec.sam2_zip_path == "datasets/made"


@pytest.mark.parametrize("split_dir", ["d", "d/parts", "./d//parts", "e", "datasets/e"])
async def test_the_two_folders_of_a_preparation_lie_beside_each_other(quiet, split_dir):
    inside = "e/inside" if split_dir.endswith("e") else "d"
    with pytest.raises(InvalidInput) as refused:
        await quiet.dispatch.submit(PrepareSpec(sam2_zip_path="made", output_dir=inside, split_dir=split_dir))
    assert refused.value.path == "split_dir"


async def test_the_folders_of_a_preparation_are_normalised(quiet):
    job = await quiet.dispatch.submit(PrepareSpec(sam2_zip_path="made", output_dir="./d", add_to="made", keep="made"))
    spec = job.spec
    assert (spec.output_dir, spec.split_dir) == ("datasets/d", "datasets/d-split")
    assert (spec.add_to, spec.keep) == ("datasets/made", "datasets/made")


async def test_a_preparation_keeps_no_parts_that_it_writes_over(quiet):
    with pytest.raises(InvalidInput) as refused:
        await quiet.dispatch.submit(PrepareSpec(sam2_zip_path="made", output_dir="made", keep="made/train.jsonl"))
    assert refused.value.path == "keep"


async def test_ratios_that_do_not_add_up_are_refused_before_anything_else(quiet):
    with pytest.raises(BadRatios):
        await quiet.dispatch.submit(SplitSpec(data_path="nothing", output_dir="s", train_ratio=0.9, val_ratio=0.5))


async def test_a_hopeless_model_name_is_refused_at_once(quiet, configured):
    with pytest.raises(InvalidInput) as refused:
        await quiet.dispatch.submit(configured(model_name="Qwen/Qwen-VL-Chat"))
    assert refused.value.path == "config.model_name"
    with pytest.raises(InvalidInput) as refused:
        await quiet.dispatch.submit(EvaluateSpec(data_path="made", model_name="no model"))
    assert refused.value.path == "model_name"


async def test_settings_that_are_rarely_meant_are_said(quiet, configured):
    spec = configured(
        use_lora=False, use_qlora=True, lora_rank=32, lora_alpha=8, learning_rate=5e-3,
        model_name="liuhaotian/llava-v1.5-7b",
    )  # fmt: skip
    job = await quiet.dispatch.submit(spec)
    assert [note.split()[0] for note in job.notes] == ["use_qlora", "lora_alpha", "learning_rate", "The"]
    assert (await quiet.dispatch.submit(configured())).notes == ()


async def test_data_whose_last_validation_failed_is_refused_unless_allowed(core, runner, configured):
    failed = ValidateResult(
        passed=False, result="failed", num_errors=1, num_warnings=0, errors=(), warnings=(), statistics={},
        recommendations=(), report_id="r",
    )  # fmt: skip

    async def fails(attempt):
        await attempt.begin()
        await attempt.complete(failed)

    runner.scripts[Kind.VALIDATE] = fails
    await core.dispatch.run_and_wait(ValidateSpec(data_path="made"), 10)
    with pytest.raises(Conflict, match="allow_invalid_data"):
        await core.dispatch.submit(configured())
    await core.dispatch.submit(configured(allow_invalid_data=True))
    runner.scripts.clear()
    await core.dispatch.run_and_wait(ValidateSpec(data_path="made"), 10)
    await core.dispatch.submit(configured())


# -- jobs that build on others


async def test_a_job_builds_on_a_completed_training_only(core, runner, fakes, training, configured):
    runner.scripts[Kind.FINETUNE] = fakes.run_until_stopped
    running = (await core.dispatch.submit(training)).job_id
    data = (await core.dispatch.submit(ValidateSpec(data_path="made"))).job_id
    for other, error in (("job_none", UnknownJob), (running, WrongState), (data, WrongState)):
        for spec in (
            _export(other),
            EvaluateSpec(data_path="made", job_id=other),
            GenerateSpec(data_path="made", job_id=other),
            configured(continue_from=other),
        ):
            with pytest.raises(error):
                await core.dispatch.submit(spec)
    with pytest.raises(UnknownExport):
        await core.dispatch.submit(EvaluateSpec(data_path="made", export_id="job_none"))


async def test_a_training_continues_one_that_is_paused_or_failed(core, runner, fakes, training, configured):
    runner.scripts[Kind.FINETUNE] = fakes.run_until_stopped
    other = (await core.dispatch.submit(training)).job_id
    with pytest.raises(WrongState, match="pause it"):
        await core.dispatch.submit(configured(continue_from=other))
    await core.dispatch.cancel(other)
    await core.ended(other)
    continued = await core.dispatch.submit(configured(continue_from=other))
    assert continued.spec.config.continue_from == other


async def save_three_and_remove_the_first(attempt):
    await attempt.begin()
    for step in (2, 4, 6):
        await attempt.say(events.CheckpointSaved, step=step, path=f"jobs/{attempt.job_id}/step-{step}", bytes=1)
    await attempt.say(events.CheckpointRemoved, step=2, path=f"jobs/{attempt.job_id}/step-2")
    await attempt.complete()


@pytest.mark.parametrize("ask", [FinetuneSpec, PlanSpec])
async def test_a_step_that_another_training_has_kept_no_checkpoint_of_is_refused(core, runner, configured, ask):
    runner.scripts[Kind.FINETUNE] = save_three_and_remove_the_first
    other = (await core.dispatch.submit(configured())).job_id
    await core.ended(other)

    def from_step(step):
        return ask(config=configured(continue_from=other, continue_from_step=step).config)

    with pytest.raises(InvalidInput, match="set continue_from_step to one of 4, 6") as refused:
        await core.dispatch.submit(from_step(2))
    assert refused.value.path == "config.continue_from_step"
    continued = await core.dispatch.submit(from_step(4))
    assert continued.spec.config.continue_from_step == 4


async def test_a_step_of_a_training_that_has_no_checkpoint_is_refused(core, runner, configured):
    other = (await core.dispatch.submit(configured())).job_id
    await core.ended(other)
    with pytest.raises(InvalidInput, match="continue another job, or none"):
        await core.dispatch.submit(configured(continue_from=other, continue_from_step=3))


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        ({"model_name": "llava-hf/llava-1.5-7b-hf"}, "config.model_name", "trained demo-llava: set model_name to that"),
        ({"lora_rank": 4}, "config.continue_from", "have rank 8 and alpha 16"),
        ({"use_lora": False}, "config.continue_from", "used the method lora"),
    ],
)
async def test_a_training_that_cannot_take_over_anothers_weights_is_refused(
    core, runner, configured, changes, path, says
):
    other = (await core.dispatch.submit(configured(model_name="demo-llava"))).job_id
    await core.ended(other)
    with pytest.raises(InvalidInput, match=says) as refused:
        await core.dispatch.submit(configured(**{"model_name": "demo-llava", "continue_from": other} | changes))
    assert refused.value.path == path


async def test_two_names_of_one_model_may_continue_each_other(core, runner, configured):
    other = (await core.dispatch.submit(configured(model_name="liuhaotian/llava-v1.5-7b", device="auto"))).job_id
    await core.dispatch.cancel(other)
    await core.ended(other)
    twin = configured(model_name="llava-hf/llava-1.5-7b-hf", continue_from=other, device="auto")
    assert (await core.dispatch.submit(twin)).spec.config.continue_from == other


async def test_a_label_means_the_newest_training_of_that_name(core, runner, configured):
    for _ in range(2):
        job = await core.dispatch.submit(configured(output_dir="birds"))
        await core.ended(job.job_id)
    export = await core.dispatch.submit(_export("birds", output_dir="anywhere"))
    assert (export.spec.job_id, export.label) == (job.job_id, "datasets/anywhere")
    continued = await core.dispatch.submit(configured(continue_from="./birds"))
    assert continued.spec.config.continue_from == job.job_id


async def test_an_adapter_of_a_full_training_is_refused(core, runner, configured):
    job = await core.dispatch.submit(configured(use_lora=False))
    await core.ended(job.job_id)
    with pytest.raises(WrongState, match="no adapter"):
        await core.dispatch.submit(_export(job.job_id, export_format=ExportFormat.LORA_ADAPTER))
    await core.dispatch.submit(_export(job.job_id))


async def test_formats_that_are_not_built_say_so(core, trained):
    for export_format in (ExportFormat.ONNX, ExportFormat.TFLITE):
        with pytest.raises(NotSupported, match="huggingface"):
            await core.dispatch.submit(_export(trained.job_id, export_format=export_format))


# -- run and wait


async def test_waiting_gives_the_ended_job(core, runner):
    record = await core.dispatch.run_and_wait(ValidateSpec(data_path="made"), 10)
    assert record.status is Status.COMPLETED
    assert isinstance(record.result, ValidateResult)


async def test_without_a_runner_nothing_is_recorded(core):
    with pytest.raises(NoRunner, match="training-api runner"):
        await core.dispatch.run_and_wait(ValidateSpec(data_path="made"), 10)
    assert await core.store.jobs() == []


async def test_a_runner_that_shows_up_in_time_is_waited_for(core_at, fakes):
    async with core_at(no_runner_wait_s=10) as core:
        waiting = asyncio.ensure_future(core.dispatch.run_and_wait(ValidateSpec(data_path="made"), 10))
        await asyncio.sleep(0.05)
        async with fakes.FakeRunner(core.settings.redis_url):
            assert (await waiting).status is Status.COMPLETED


async def test_a_runner_whose_places_are_all_taken_could_take_it_all_the_same(core, runner, fakes):
    runner.scripts[Kind.VALIDATE] = fakes.run_until_stopped
    waits = [core.dispatch.run_and_wait(ValidateSpec(data_path="made"), 0.5) for _ in range(5)]
    statuses = [record.status for record in await asyncio.gather(*waits)]
    assert sorted(statuses) == [Status.PENDING] + [Status.RUNNING] * 4


async def test_when_the_time_is_up_the_job_runs_on(core, runner, fakes, soon):
    runner.scripts[Kind.VALIDATE] = fakes.run_until_stopped
    record = await core.dispatch.run_and_wait(ValidateSpec(data_path="made"), 0.3)
    assert not record.has_ended
    await soon(lambda: core.recorder.live[record.job_id].status is Status.RUNNING)
    await soon(lambda: not core.hub._expected)


async def test_a_closing_service_lets_go_of_who_waits(core, runner, fakes, soon):
    runner.scripts[Kind.VALIDATE] = fakes.run_until_stopped
    waiting = asyncio.ensure_future(core.dispatch.run_and_wait(ValidateSpec(data_path="made"), 60))
    await soon(lambda: core.recorder.live)
    core.hub.close()
    assert not (await waiting).has_ended


# -- cancel, pause, resume


async def test_a_pending_job_is_cancelled_without_any_runner(core, training):
    job = await core.dispatch.submit(training)
    _, is_accepted = await core.dispatch.cancel(job.job_id)
    assert is_accepted
    assert (await core.ended(job.job_id)).status is Status.CANCELLED
    record, is_accepted = await core.dispatch.cancel(job.job_id)
    assert (record.status, is_accepted) == (Status.CANCELLED, False)


async def test_a_running_job_is_cancelled_by_its_runner(core, runner, fakes, training):
    runner.scripts[Kind.FINETUNE] = fakes.run_until_stopped
    job = await core.dispatch.submit(training)
    await core.until(job.job_id, lambda record: record.status is Status.RUNNING)
    assert (await core.dispatch.cancel(job.job_id))[1]
    assert (await core.dispatch.cancel(job.job_id))[1]
    assert (await core.ended(job.job_id)).status is Status.CANCELLED
    types = [event.type for event in await core.store.events(job.job_id)]
    assert types.count("job.cancel_requested") == types.count("job.cancelled") == 1


async def test_a_job_that_is_not_there_cannot_be_touched(quiet):
    for verb in (quiet.dispatch.cancel, quiet.dispatch.pause, quiet.dispatch.resume, quiet.dispatch.delete):
        with pytest.raises(UnknownJob):
            await verb("job_none")
    with pytest.raises(UnknownExport):
        await quiet.dispatch.delete_export("job_none")


async def test_a_training_is_paused_and_resumed_in_a_new_attempt(core, runner, training):
    async def pauses(attempt):
        await attempt.begin()
        if attempt.start.attempt == 2:
            return await attempt.complete()
        await attempt.paused.wait()
        return await attempt.say(events.JobPaused, step=3)

    runner.scripts[Kind.FINETUNE] = pauses
    job = await core.dispatch.submit(training)
    await core.until(job.job_id, lambda record: record.status is Status.RUNNING)
    await core.dispatch.pause(job.job_id)
    paused = await core.until(job.job_id, lambda record: record.status is Status.PAUSED)
    assert (paused.runner_id, paused.pause_requested_at) == (None, None)
    assert (await core.dispatch.pause(job.job_id)).status is Status.PAUSED
    await core.dispatch.resume(job.job_id)
    record = await core.ended(job.job_id)
    assert (record.status, record.attempt, record.interruptions) == (Status.COMPLETED, 2, 0)


async def test_only_what_runs_is_paused_and_only_what_is_paused_is_resumed(quiet, training):
    pending = await quiet.dispatch.submit(training)
    data = await quiet.dispatch.submit(ValidateSpec(data_path="made"))
    for verb, job in ((quiet.dispatch.pause, pending), (quiet.dispatch.resume, pending), (quiet.dispatch.pause, data)):
        with pytest.raises(WrongState):
            await verb(job.job_id)


# -- delete


def _fill(folder):
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    return folder


async def test_deleting_removes_what_the_job_wrote_and_nothing_else(core, trained, training):
    other = await core.dispatch.submit(training)
    await core.ended(other.job_id)
    exports = [await core.dispatch.submit(_export(job_id)) for job_id in (trained.job_id, other.job_id)]
    mine, kept = [(await core.ended(export.job_id)).job_id for export in exports]
    gone = [
        _fill(core.root.job(trained.job_id) / "attempt-1"),
        _fill(core.root.export(mine)),
        _fill(core.root.job(mine)),
    ]
    stays = [_fill(core.root.job(other.job_id)), _fill(core.root.export(kept)), _fill(core.root.models / "m")]
    await core.dispatch.delete(trained.job_id)
    assert not any(folder.exists() for folder in (*gone, core.root.job(trained.job_id)))
    assert all((folder / "file").exists() for folder in stays)
    assert core.root.path_of(MADE).exists()
    assert list(core.root.trash.iterdir()) == []
    assert await core.recorder.job(trained.job_id) is None
    assert await core.recorder.job(mine) is None
    assert [export.export_id for export in await core.store.exports()] == [kept]


async def test_deleting_follows_no_link(core, trained, tmp_path_factory):
    outside = _fill(tmp_path_factory.mktemp("outside") / "folder")
    core.root.jobs.mkdir(exist_ok=True)
    core.root.job(trained.job_id).symlink_to(outside)
    inside = _fill(core.root.export(trained.job_id))
    (inside / "link").symlink_to(outside)
    await core.dispatch.delete(trained.job_id)
    assert (outside / "file").exists()
    assert not core.root.job(trained.job_id).is_symlink()
    assert not inside.exists()


async def test_a_running_job_is_not_deleted(core, runner, fakes, training):
    runner.scripts[Kind.FINETUNE] = fakes.run_until_stopped
    job = await core.dispatch.submit(training)
    await core.until(job.job_id, lambda record: record.status is Status.RUNNING)
    with pytest.raises(WrongState, match="cancel it first"):
        await core.dispatch.delete(job.job_id)
    assert (await core.recorder.job(job.job_id)).cancel_requested_at is None


async def test_a_pending_job_is_cancelled_and_deleted(core, training):
    job = await core.dispatch.submit(training)
    await core.dispatch.delete(job.job_id)
    assert await core.recorder.job(job.job_id) is None


async def test_a_training_that_a_live_job_uses_is_not_deleted(core, runner, fakes, trained):
    runner.scripts[Kind.EVALUATE] = fakes.run_until_stopped
    user = await core.dispatch.submit(EvaluateSpec(data_path="made", job_id=trained.job_id))
    with pytest.raises(WrongState, match=user.job_id):
        await core.dispatch.delete(trained.job_id)
    await core.dispatch.cancel(user.job_id)
    await core.ended(user.job_id)
    await core.dispatch.delete(trained.job_id)


async def test_neither_a_training_nor_an_export_goes_while_a_live_job_uses_the_export(core, runner, fakes, trained):
    export = await core.dispatch.submit(_export(trained.job_id))
    await core.ended(export.job_id)
    folder = _fill(core.root.export(export.job_id))
    runner.scripts[Kind.GENERATE] = fakes.run_until_stopped
    user = await core.dispatch.submit(GenerateSpec(data_path="made", export_id=export.job_id))
    for verb, job_id in (
        (core.dispatch.delete, trained.job_id),
        (core.dispatch.delete, export.job_id),
        (core.dispatch.delete_export, export.job_id),
    ):
        with pytest.raises(WrongState, match=user.job_id):
            await verb(job_id)
    assert (folder / "file").exists()
    assert await core.store.export(export.job_id)


async def test_a_job_admitted_before_what_it_uses_was_deleted_is_refused(core, trained, monkeypatch):
    admit = core.dispatch._admission.admit

    async def overtaken(spec):
        admitted = await admit(spec)
        await core.dispatch.delete(trained.job_id)
        return admitted

    monkeypatch.setattr(core.dispatch._admission, "admit", overtaken)
    with pytest.raises(UnknownJob):
        await core.dispatch.submit(_export(trained.job_id))
    assert await core.store.jobs() == []


async def test_a_database_that_cannot_be_written_keeps_the_job_and_its_files(core, trained, monkeypatch):
    folder = _fill(core.root.job(trained.job_id))

    async def fails(job_ids):
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(core.store, "remove", fails)
    with pytest.raises(Unavailable, match="nothing was deleted"):
        await core.dispatch.delete(trained.job_id)
    assert (folder / "file").exists()
    assert await core.recorder.job(trained.job_id)


async def test_an_export_is_deleted_and_its_training_stays(core, trained):
    export = await core.dispatch.submit(_export(trained.job_id))
    await core.ended(export.job_id)
    folder = _fill(core.root.export(export.job_id))
    await core.dispatch.delete_export(export.job_id)
    assert not folder.exists()
    assert await core.store.exports() == []
    assert (await core.recorder.job(trained.job_id)).result == FinetuneResult(
        steps=4, final_train_loss=0.5, best_eval_loss=0.4, best_eval_accuracy=0.9
    )
    with pytest.raises(UnknownExport):
        await core.dispatch.delete_export(export.job_id)


async def test_ids_are_fit_for_an_address_and_sort_by_time(quiet, training):
    jobs = [(await quiet.dispatch.submit(training)).job_id for _ in range(20)]
    assert len(set(jobs)) == 20
    assert all(len(job) <= 64 and job.replace("_", "").isalnum() for job in jobs)
    assert [job[:16] for job in jobs] == sorted(job[:16] for job in jobs)


async def test_which_models_a_cpu_takes_only_when_it_is_asked_for(core, configured, tmp_path):
    why_not = core.reconciler.names.why_not_on_cpu
    assert await why_not(configured(model_name="llava-hf/llava-1.5-7b-hf")) == TOO_LARGE_FOR_CPU
    assert await why_not(configured(model_name="demo-llava")) is None
    assert await why_not(configured(model_name="Qwen/Qwen2.5-VL-7B-Instruct")) == SIZE_UNKNOWN
    empty = tmp_path / "models" / "empty"
    empty.mkdir(parents=True)
    (empty / "config.json").write_text("{}")
    assert await why_not(configured(model_name="models/empty")) is None, "it fails at once, with a reason"
    large = await core.dispatch.submit(configured(model_name="llava-hf/llava-1.5-7b-hf"))
    assert await why_not(EvaluateSpec(data_path="made", job_id=large.job_id)) == TOO_LARGE_FOR_CPU
    assert await why_not(ValidateSpec(data_path="made")) is None


@pytest.mark.parametrize("device", ["auto", "cuda"])
async def test_a_hub_model_of_unknown_size_waits_and_says_what_to_do(core, runner, configured, device):
    spec = configured(model_name="Qwen/Qwen2.5-VL-7B-Instruct", device=device)
    job = await core.dispatch.submit(spec)
    waiting = await core.until(job.job_id, lambda record: record.waiting_reason)
    assert waiting.waiting_reason == SIZE_UNKNOWN
    assert "device: cpu" in SIZE_UNKNOWN
    on_cpu = await core.dispatch.submit(configured(model_name="Qwen/Qwen2.5-VL-7B-Instruct", device="cpu"))
    assert (await core.ended(on_cpu.job_id)).device == "cpu"
