"""The recipes: one file a kind, each `run(work) -> Result`, read top to bottom. The list below is the registry.

A recipe says what happens through `work.journal`, asks `work.stop` where it can end cleanly, raises `JobFailed`
when the user can mend it, and returns its result. It writes into `work.folder`, `datasets/` or `exports/` only.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from gpu_runner.work import Work
from jobs.results import Result
from jobs.specs import Kind

RECIPES = {
    Kind.CONVERT: "gpu_runner.recipes.convert",
    Kind.VALIDATE: "gpu_runner.recipes.validate",
    Kind.SPLIT: "gpu_runner.recipes.split",
    Kind.PREPARE: "gpu_runner.recipes.prepare",
    Kind.PREVIEW: "gpu_runner.recipes.preview",
    Kind.PLAN: "gpu_runner.recipes.plan",
    Kind.FINETUNE: "gpu_runner.recipes.finetune",
    Kind.EVALUATE: "gpu_runner.recipes.evaluate",
    Kind.GENERATE: "gpu_runner.recipes.generate",
    Kind.EXPORT: "gpu_runner.recipes.export",
}


def recipe(kind: Kind) -> Callable[[Work[Any]], Result]:
    """The `run` of a kind; imports its module."""
    run: Callable[[Work[Any]], Result] = import_module(RECIPES[kind]).run
    return run
