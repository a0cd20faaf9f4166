"""The routes: one file a family of addresses, each a thin adapter. The list below is all there is.

`app` mounts it twice: under `/api`, and under `/api/training` for clients that sit behind that prefix.
"""

from litestar.types import ControllerRouterHandler

from service.routes import (
    data,
    datasets,
    experiments,
    exports,
    health,
    jobs,
    live,
    models,
    runners,
    schemas,
    session,
    train,
)

HANDLERS: list[ControllerRouterHandler] = [
    session.begin,
    session.end,
    data.upload,
    data.convert,
    data.validate,
    data.split,
    data.prepare,
    datasets.list_datasets,
    datasets.get_dataset,
    datasets.get_rows,
    datasets.get_image,
    datasets.download_validation_report,
    train.start,
    train.preview,
    train.plan,
    train.planned,
    train.status,
    train.cancel,
    train.pause,
    train.resume,
    train.queue,
    train.list_jobs,
    train.list_presets,
    models.list_models,
    experiments.list_experiments,
    experiments.get_experiment,
    experiments.get_metrics,
    experiments.compare,
    experiments.delete_experiment,
    exports.export,
    exports.download_info,
    exports.download_file,
    exports.list_exports,
    exports.delete_export,
    jobs.submit,
    jobs.list_jobs,
    jobs.get_job,
    jobs.get_events,
    jobs.get_log,
    jobs.cancel,
    jobs.pause,
    jobs.resume,
    jobs.delete_job,
    schemas.get_schema,
    runners.list_runners,
    live.socket_of_job,
    live.socket_of_all_jobs,
    live.event_stream,
]

HEALTH: list[ControllerRouterHandler] = [health.health, health.ready, health.live]
"""At the root and below both prefixes."""
