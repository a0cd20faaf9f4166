"""Every family of models loses half of its loss within thirty steps, and what it knows it has from the pictures; what
its adapters learned is exported.

Two of them learn in each run: the one whose pictures have any size, and the one that sees its prompt as a whole.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny_models
from PIL import Image
from tiny_models import SEEING, TEXT_ONLY

from gpu_runner.recipes import evaluate, export, finetune
from gpu_runner.rows import LLAVA_FILE, Row, Turn
from gpu_runner.work import Work
from jobs import commands, events
from jobs.commands import Start
from jobs.paths import DataRoot
from jobs.specs import EvaluateSpec, ExportFormat, ExportSpec, FinetuneSpec
from jobs.training_config import TrainingConfig

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 80, 230), "yellow": (230, 210, 40)}
IN_EACH_RUN = ("qwen2_5_vl", "paligemma")
STEPS = 50

WorkFor = Callable[..., Work[Any]]
Said = Callable[..., list[Any]]
Learn = Callable[..., list[float]]


@pytest.fixture
def learn(root: DataRoot, work_for: WorkFor, said: Said) -> Learn:
    """Trains a family on a dataset as the job "learner"; gives the loss of each step."""

    def train(family: str, data: str, **changes: Any) -> list[float]:
        tiny_models.build(family, root.models / family)
        settings: dict[str, Any] = {
            "model_name": family,
            "train_data_path": data,
            "use_lora": False,
            "learning_rate": 3e-3,
            "warmup_ratio": 0.1,
            "batch_size": 16,
            "gradient_accumulation_steps": 1,
            "num_epochs": STEPS,
            "max_steps": STEPS,
            "logging_steps": 1,
            "save_steps": STEPS,
        }
        work = work_for(FinetuneSpec(config=TrainingConfig(**settings | changes)), job_id="learner")
        work.folder.start.write_bytes(
            commands.encode(Start(job_id=work.job_id, attempt=1, spec=work.spec, device="cpu"))
        )
        work.journal.state(events.JobCompleted, result=finetune.run(work))
        logged = said(work, events.MetricsLogged)
        return [event.values["train_loss"] for event in logged if "train_loss" in event.values]

    return train


@pytest.fixture
def flat(root: DataRoot) -> Callable[..., str]:
    """Writes rows of one question, each with a picture of one colour; `shown` says which one a colour's rows have."""

    def write(name: str, count: int, seed: int, shown: dict[str, str] | None = None) -> str:
        folder = root.datasets / name
        (folder / "images").mkdir(parents=True)
        draw, rows = np.random.default_rng(seed), []
        for index in range(count):
            colour = list(COLOURS)[index % len(COLOURS)]
            pixels = np.array(COLOURS[(shown or {}).get(colour, colour)]) + draw.normal(0, 12, (40, 56, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"images/{index}.png")
            turns = (Turn("human", "<image>\nWhat colour is it?"), Turn("gpt", colour))
            rows.append(Row(id=f"row-{index}", image=f"images/{index}.png", conversations=turns, labels=(colour,)))
        (folder / LLAVA_FILE).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        return f"datasets/{name}"

    return write


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=pytest.mark.slow if name in IN_EACH_RUN else pytest.mark.extended) for name in SEEING],
)
@pytest.mark.timeout(600)  # twenty seconds of work, on a machine that may be busy
def test_a_family_learns_from_its_pictures_and_from_nothing_else(
    family: str, learn: Learn, flat: Callable[..., str], work_for: WorkFor
) -> None:
    losses = learn(family, flat("train", 64, seed=1))
    assert len(losses) == STEPS
    assert losses[29] <= losses[0] / 2

    def accuracy(data: str, **changes: Any) -> float:
        spec = EvaluateSpec(data_path=data, job_id="learner", max_new_tokens=8, **changes)
        result = evaluate.run(work_for(spec, job_id=f"{data[-4:]}-{len(changes)}"))
        assert result.constant_accuracy == 1 / len(COLOURS)
        assert result.label_accuracy is not None
        return result.label_accuracy

    held_out = flat("held-out", 16, seed=2)
    swapped = flat("swapped", 16, seed=3, shown=dict(zip(COLOURS, [*COLOURS][1:] + [*COLOURS][:1], strict=True)))
    assert accuracy(held_out) >= 0.9, losses
    assert accuracy(held_out, grey_images=True) <= 0.45
    assert accuracy(swapped) <= 0.25


@pytest.mark.extended
@pytest.mark.parametrize("family", SEEING)
@pytest.mark.parametrize("method", [{"use_lora": True}, {"use_qlora": True}], ids=["lora", "qlora"])
def test_what_adapters_of_a_family_learned_is_in_the_merged_export_as_it_is_loaded_again(
    family: str, method: dict[str, bool], learn: Learn, flat: Callable[..., str], root: DataRoot, work_for: WorkFor
) -> None:
    losses = learn(family, flat("train", 16, seed=1), max_steps=4, **method)
    assert losses[-1] < losses[0]
    spec = ExportSpec(job_id="learner", export_format=ExportFormat.HUGGINGFACE)
    exported = export.run(work_for(spec, job_id="export"))
    assert exported.verification["merged_vs_trained"] <= 1e-3


@pytest.mark.extended
@pytest.mark.parametrize("family", TEXT_ONLY)
def test_a_family_learns_from_text(family: str, root: DataRoot, learn: Learn) -> None:
    folder = root.datasets / "text"
    folder.mkdir(parents=True)
    pairs = zip(["one", "two", "three", "four"] * 16, ["red", "green", "blue", "yellow"] * 16, strict=True)
    rows = [
        Row(id=f"row-{index}", conversations=(Turn("human", f"Which is {asked}?"), Turn("gpt", answer)))
        for index, (asked, answer) in enumerate(pairs)
    ]
    (folder / LLAVA_FILE).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    losses = learn(family, "datasets/text")
    assert losses[29] <= losses[0] / 2
