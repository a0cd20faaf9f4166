"""What tests of runs share: how a run is built, and what it said."""

from collections.abc import Callable
from typing import Any

from gpu_runner.work import Work
from jobs import events
from jobs.specs import FinetuneSpec

METHODS = {"full": {"use_lora": False}, "lora": {}, "qlora": {"use_qlora": True}}
SERIES = ("train_loss", "learning_rate", "grad_norm", "eval_loss", "eval_accuracy")
Build = Callable[..., FinetuneSpec]
WorkFor = Callable[..., Work[FinetuneSpec]]
Said = Callable[..., list[Any]]


def series(logged: list[events.MetricsLogged]) -> dict[tuple[str, int], float | None]:
    """Values by (series, step), of what is the same on every machine."""
    return {(name, event.step): value for event in logged for name, value in event.values.items() if name in SERIES}


def notes_of(said: Said, work: Work[FinetuneSpec], code: str) -> list[str]:
    return [event.message for event in said(work, events.JobNoted) if event.code == code]
