"""The recipes evaluate and generate: answers, scores, and whether pictures matter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpu_runner.recipes import evaluate, finetune, generate
from gpu_runner.rows import open_rows
from gpu_runner.training import models, run_state
from gpu_runner.training.evaluation import Validation, mean_loss
from gpu_runner.training.selection import GREY, everything, spread
from gpu_runner.work import Stopped, Work
from jobs.errors import DatasetInvalid
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import EvaluateSpec, FinetuneSpec, GenerateSpec

WorkFor = Callable[..., Work[Any]]
Frames = Callable[..., str]


@pytest.fixture
def demo(root: DataRoot) -> models.Loaded:
    source = models.source_of("demo-llava", root, Settings(data_root=str(root.folder)))
    return models.load_base(source, device="cpu", dtype=torch.float32)


def test_the_mean_loss_does_not_depend_on_the_batches(
    demo: models.Loaded, root: DataRoot, write_frames: Frames
) -> None:
    chosen = everything(open_rows(root, write_frames("val", 5)))
    losses = [mean_loss(demo, demo.encoder(512), chosen, size, lambda: None) for size in (1, 2, 5)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


def test_answers_do_not_depend_on_the_batch(root: DataRoot, work_for: WorkFor, write_frames: Frames) -> None:
    spec = EvaluateSpec(data_path=write_frames("val", 5), model_name="demo-llava", max_new_tokens=4)
    answers = [evaluate.run(work_for(spec, job_id="eight")).answers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "BATCH_ROWS", 1)
        answers.append(evaluate.run(work_for(spec, job_id="one")).answers)
    assert answers[0] == answers[1]


def test_an_evaluation_leaves_the_generators_as_they_were(
    demo: models.Loaded, root: DataRoot, write_frames: Frames
) -> None:
    validation = Validation(open_rows(root, write_frames("val", 3)), demo.encoder(512), root, 2)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with run_state.rng_untouched():
        validation.score(demo, lambda: torch.rand(1))
    assert torch.equal(torch.rand(3), expected)


def test_grey_hides_everything_but_the_size(root: DataRoot, write_frames: Frames) -> None:
    rows = open_rows(root, write_frames("val", 2))
    _, (image,) = spread(rows, 1, grey=True).open(0)
    assert image.size == (96, 72)
    assert image.getcolors() == [(96 * 72, GREY)]


def test_rows_are_taken_evenly(root: DataRoot, write_frames: Frames) -> None:
    rows = open_rows(root, write_frames("val", 10))
    assert spread(rows, 4).indices == (0, 2, 5, 7)
    assert spread(rows, 100).indices == tuple(range(10))


def test_generate_answers_the_rows_that_are_named(root: DataRoot, work_for: WorkFor, write_frames: Frames) -> None:
    data = write_frames("val", 5)
    spec = GenerateSpec(data_path=data, model_name="demo-llava", rows=("row-4", "row-1"), max_new_tokens=3)
    answers = generate.run(work_for(spec)).answers
    assert [answer.row_id for answer in answers] == ["row-4", "row-1"]
    assert answers[0].image == f"{data}/images/0004.png"
    assert answers[0].prompt == "What colour is the object?"


def test_generate_refuses_a_row_that_is_not_there(work_for: WorkFor, write_frames: Frames) -> None:
    spec = GenerateSpec(data_path=write_frames("val", 2), model_name="demo-llava", rows=("row-7",))
    with pytest.raises(DatasetInvalid, match="row-7"):
        generate.run(work_for(spec))


def test_a_cancel_ends_an_evaluation(work_for: WorkFor, write_frames: Frames) -> None:
    work = work_for(EvaluateSpec(data_path=write_frames("val", 2), model_name="demo-llava"))
    work.stop.wanted = "cancel"
    with pytest.raises(Stopped):
        evaluate.run(work)


@pytest.mark.extended
def test_colours_are_learned_from_the_pictures_alone(
    work_for: WorkFor, write_frames: Frames, finetune_spec: Callable[..., FinetuneSpec]
) -> None:
    spec = finetune_spec(
        train_data_path=write_frames("many", 240, seed=11),
        use_lora=False,
        batch_size=16,
        gradient_accumulation_steps=1,
        learning_rate=1e-3,
        num_epochs=8,
        save_steps=1000,
    )
    finetune.run(work_for(spec, job_id="learner"))
    held_out = write_frames("held-out", 60, seed=12)
    seen = evaluate.run(work_for(EvaluateSpec(data_path=held_out, job_id="learner"), job_id="seen"))
    blind = evaluate.run(work_for(EvaluateSpec(data_path=held_out, job_id="learner", grey_images=True), job_id="blind"))
    assert seen.constant_accuracy is not None
    assert seen.constant_accuracy <= 0.4
    assert seen.label_accuracy is not None
    assert seen.label_accuracy >= 0.9
    assert blind.label_accuracy is not None
    assert blind.label_accuracy <= 0.45
