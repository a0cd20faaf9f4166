"""Which task and which models a conversion recommends."""

import pytest

from gpu_runner.sam2.advice import recommend
from gpu_runner.sam2.manifest import Contents
from jobs.specs import TargetTask


def contents(rows: int, **labels: int) -> Contents:
    found = Contents()
    found.rows, found.objects = rows, sum(labels.values())
    found.labels.update(labels)
    return found


@pytest.mark.parametrize(
    ("found", "task", "family"),
    [
        (contents(10, cat=5, dog=5), TargetTask.CLASSIFY, "SmolVLM"),
        (contents(10, cat=15, dog=5), TargetTask.DETECT, "PaliGemma"),
        (contents(10, cat=10), TargetTask.DETECT, "Qwen2.5-VL"),
        (contents(10, person=400), TargetTask.POINT, "Qwen3-VL"),
        (contents(10, **{"": 10}), TargetTask.POINT, "Qwen3-VL"),
    ],
)
def test_the_task_follows_from_how_many_objects_and_classes_there_are(
    found: Contents, task: TargetTask, family: str
) -> None:
    advice = recommend(task, found)
    assert f"task {task} in format llava" in advice
    assert family in advice
    assert "as asked" not in advice


def test_another_task_than_the_suited_one_gets_its_own_models_named() -> None:
    assert recommend(TargetTask.DETECT, contents(10, cat=5, dog=5)).endswith(
        "For detect, as asked, take Qwen2.5-VL, Qwen3-VL and PaliGemma, which read and write coordinates."
    )


def test_very_many_pictures_are_better_kept_in_one_table() -> None:
    assert "in format huggingface" in recommend(TargetTask.CLASSIFY, contents(200_000, cat=100_000, dog=100_000))
