"""The product's own recipes, with the seams of the fault tests in the child. Used as `fake_trainer` is."""

from collections.abc import Callable
from typing import Any

import seams

from gpu_runner import recipes
from gpu_runner.work import Work
from jobs.specs import Kind


def recipe(kind: Kind) -> Callable[[Work[Any]], Any]:
    run = recipes.recipe(kind)

    def run_with_seams(work: Work[Any]) -> Any:
        seams.put_into("child", work.root.folder)
        return run(work)

    return run_with_seams
