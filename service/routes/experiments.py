"""Trainings seen as experiments: list, detail, metrics, comparison, removal."""

from typing import Annotated

from litestar import delete, get, post
from litestar.params import Parameter

from jobs.errors import UnknownJob
from jobs.lifecycle import Status
from jobs.specs import Kind
from service import answers, experiments
from service.answers import Done
from service.dispatch import Dispatch
from service.experiments import CompareRequest, Comparison, Detail, Metrics, Summary
from service.problems import documented
from service.recorder import Recorder
from service.records import JobRecord
from service.store import SortBy, Store

_TAGS = ["experiments"]


@get("/experiments", tags=_TAGS, responses=documented(422))
async def list_experiments(
    store: Store,
    status: Status | None = None,
    tag: Annotated[str | None, Parameter(max_length=100)] = None,
    limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    sort_by: SortBy = "created_at",
) -> list[Summary]:
    """Experiments: newest or longest first, or lowest evaluation loss first; those without the value last."""
    records = await store.experiments(status=status, tag=tag, limit=limit, sort_by=sort_by)
    return [experiments.summary(record) for record in records]


@get("/experiments/{experiment_id:str}", tags=_TAGS, responses=documented(404))
async def get_experiment(experiment_id: str, recorder: Recorder, store: Store) -> Detail:
    """Configuration, metrics and checkpoints of an experiment."""
    record = await _experiment(experiment_id, recorder)
    series = await store.metrics(record.job_id)
    return experiments.detail(record, series, await store.checkpoints(record.job_id))


@get("/experiments/{experiment_id:str}/metrics", tags=_TAGS, responses=documented(404))
async def get_metrics(experiment_id: str, recorder: Recorder, store: Store) -> Metrics:
    """All logged values as parallel lists."""
    record = await _experiment(experiment_id, recorder)
    so_far = answers.progress(record)
    series = await store.metrics(record.job_id)
    return Metrics(
        experiment_id=record.job_id,
        metrics=experiments.columns(series),
        not_finite=experiments.not_finite(series),
        current_epoch=so_far.current_epoch,
        total_epochs=so_far.total_epochs,
    )


@post("/experiments/compare", status_code=200, tags=_TAGS, responses=documented(404, 422))
async def compare(data: CompareRequest, recorder: Recorder) -> Comparison:
    """Two to ten experiments side by side."""
    records = [await _experiment(experiment_id, recorder) for experiment_id in data.experiment_ids]
    return experiments.comparison(records, data.metrics)


@delete("/experiments/{experiment_id:str}", status_code=200, tags=_TAGS, responses=documented(400, 404))
async def delete_experiment(experiment_id: str, recorder: Recorder, dispatch: Dispatch) -> Done:
    """Remove what the experiment's job wrote, and its exports. A running one must be cancelled first."""
    record = await _experiment(experiment_id, recorder)
    await dispatch.delete(record.job_id)
    return Done(success=True, message=f"Experiment {record.job_id} and its exports are removed.")


async def _experiment(experiment_id: str, recorder: Recorder) -> JobRecord:
    record = await recorder.job(experiment_id)
    if record is None or record.kind is not Kind.FINETUNE:
        raise UnknownJob(f"There is no experiment {experiment_id[:64]!r}.")
    return record
