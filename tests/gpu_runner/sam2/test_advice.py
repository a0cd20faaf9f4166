"""Which task and which models a conversion recommends."""

from pathlib import Path

import pytest

from gpu_runner.sam2.advice import recommend
from gpu_runner.sam2.manifest import Contents
from jobs.models import DEMO_MODEL
from jobs.specs import TargetTask

LLAVA, QWEN, TEXT = "llava-hf/llava-1.5-7b-hf", "Qwen/Qwen2.5-VL-3B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"


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
        "For detect, as asked, take Qwen2-VL, Qwen2.5-VL, Qwen3-VL, PaliGemma or InternVL, "
        "which read and write coordinates."
    )


def test_very_many_pictures_are_better_kept_in_one_table() -> None:
    assert "in format huggingface" in recommend(TargetTask.CLASSIFY, contents(200_000, cat=100_000, dog=100_000))


# -- about a chosen model


def of(model: str, task: TargetTask, found: Contents, folder: Path) -> str:
    return recommend(task, found, model, [folder])


def test_a_model_that_knows_places_gets_the_task_the_data_asks_for(tmp_path: Path) -> None:
    several = contents(10, cat=15, dog=5)
    assert of(QWEN, TargetTask.DETECT, several, tmp_path) == (
        "There are 2.0 objects a frame: task detect in format llava suits that and "
        "Qwen/Qwen2.5-VL-3B-Instruct (Qwen2.5-VL)."
    )
    assert of(QWEN, TargetTask.POLYGON, several, tmp_path).endswith("It can learn polygon, as asked, too.")
    assert "in format huggingface" in of(QWEN, TargetTask.DETECT, contents(200_000, cat=900_000), tmp_path)


@pytest.mark.parametrize("asked", [TargetTask.DETECT, TargetTask.POINT, TargetTask.POLYGON])
@pytest.mark.parametrize(
    ("found", "instead"),
    [
        (contents(10, cat=15, dog=5), TargetTask.DESCRIBE),
        (contents(10, cat=30), TargetTask.DESCRIBE),
        (contents(10, cat=200, dog=200), TargetTask.CLASSIFY),
        (contents(10, cat=5, dog=5), TargetTask.CLASSIFY),
    ],
)
def test_coordinates_asked_of_a_model_that_does_not_know_them_are_advised_against_with_the_remedy(
    found: Contents, instead: TargetTask, asked: TargetTask, tmp_path: Path
) -> None:
    advice = of(LLAVA, asked, found, tmp_path)
    assert f"task {instead} in format llava suits that and {LLAVA} (LLaVA 1.5)." in advice
    assert f"The task asked for, {asked}, does not: LLaVA 1.5 was not made to read and write coordinates." in advice
    assert f"Ask for {instead}, or take Qwen2-VL" in advice


@pytest.mark.parametrize("found", [contents(10, cat=10), contents(10, **{"": 30}), contents(10, person=400)])
@pytest.mark.parametrize("asked", list(TargetTask))
def test_where_only_places_can_be_learnt_a_model_that_does_not_know_them_is_advised_against(
    found: Contents, asked: TargetTask, tmp_path: Path
) -> None:
    advice = of(LLAVA, asked, found, tmp_path)
    assert f"{LLAVA} will hardly learn from this data. Take Qwen2-VL" in advice


def test_a_task_in_words_is_not_advised_against_for_a_model_that_does_not_know_places(tmp_path: Path) -> None:
    several = contents(10, cat=15, dog=5)
    assert "does not" not in of(DEMO_MODEL, TargetTask.DESCRIBE, several, tmp_path)
    assert of(DEMO_MODEL, TargetTask.CLASSIFY, several, tmp_path).endswith("It can learn classify, as asked, too.")


def test_the_names_of_a_single_class_are_nothing_to_learn(tmp_path: Path) -> None:
    advice = of(QWEN, TargetTask.CLASSIFY, contents(10, cat=10), tmp_path)
    assert advice.endswith("With classify, as asked, nearly every answer would be the same.")


def test_a_model_that_reads_text_only_is_advised_against(tmp_path: Path) -> None:
    advice = of(TEXT, TargetTask.CLASSIFY, contents(10, cat=5, dog=5), tmp_path)
    assert advice.startswith(f"{TEXT} cannot learn this. The rows have pictures and Llama")
    assert "choose a vision-language model" in advice
    assert "task classify in format llava suits that, with any model that sees pictures" in advice


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("somebody/new-model", "Nothing on this host says of which family somebody/new-model is"),
        ("Qwen/Qwen-VL-Chat", "Use its successor Qwen/Qwen2.5-VL-7B-Instruct."),
        ("../out", "'../out' is no model"),
        (
            "strange",
            "strange cannot learn this. Models of the type 'unheard_of' are not known to train correctly here.",
        ),
        ("broken", "Nothing on this host says of which family broken is"),
    ],
)
def test_what_is_not_known_of_a_model_is_said_and_the_advice_is_that_for_any(
    model: str, said: str, tmp_path: Path
) -> None:
    for name, config in (("strange", '{"model_type": "unheard_of"}'), ("broken", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    found = contents(10, cat=15, dog=5)
    advice = of(model, TargetTask.DETECT, found, tmp_path)
    assert said in advice
    assert advice.endswith(recommend(TargetTask.DETECT, found))


def test_the_family_of_a_folder_is_that_of_its_config(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "paligemma"}')
    assert "mine (PaliGemma)" in of("mine", TargetTask.DETECT, contents(10, cat=15, dog=5), tmp_path)
