"""A small world for training tests: frames with one coloured shape each, and the work a recipe gets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import LlamaConfig, LlamaForCausalLM

from gpu_runner.journal import Journal
from gpu_runner.rows import Row, Turn
from gpu_runner.training import demo_model, models
from gpu_runner.training.loop import TrainingLoop
from gpu_runner.work import Stop, Work
from jobs import events
from jobs.paths import LLAVA_FILE, DataRoot
from jobs.settings import Settings
from jobs.specs import FinetuneSpec, Spec
from jobs.training_config import TrainingConfig

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 80, 230), "yellow": (230, 210, 40)}
TEXT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
QUESTION = "What colour is the object?"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    return DataRoot(tmp_path / "data")


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    """The folder of a tiny model that reads text only."""
    processor = models.load_processor(demo_model.ensure(tmp_path / "demo-llava"), sees_images=True)
    processor.tokenizer.chat_template = TEXT_TEMPLATE
    config = LlamaConfig(vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
    processor.tokenizer.save_pretrained(tmp_path / "text")
    return tmp_path / "text"


@pytest.fixture
def write_frames(root: DataRoot) -> Callable[..., str]:
    """Writes a dataset of coloured shapes and gives its name."""

    def write(name: str, count: int, seed: int = 1) -> str:
        folder = root.datasets / name
        (folder / "images").mkdir(parents=True)
        draw = np.random.default_rng(seed)
        rows = [coloured_row(folder, index, draw) for index in range(count)]
        (folder / LLAVA_FILE).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        return f"datasets/{name}"

    return write


@pytest.fixture
def work_for(root: DataRoot) -> Callable[..., Work[Any]]:
    """Builds what a recipe gets, on the CPU with one thread."""

    def build(spec: Spec, *, job_id: str = "job", attempt: int = 1) -> Work[Any]:
        folder = root.attempt(job_id, attempt)
        folder.folder.mkdir(parents=True)
        return Work(
            job_id=job_id,
            attempt=attempt,
            spec=spec,
            device="cpu",
            cores=1,
            root=root,
            folder=folder,
            journal=Journal(root, folder, job_id),
            stop=Stop(),
            settings=Settings(data_root=str(root.folder), hf_offline=True),
        )

    return build


@pytest.fixture
def finetune_spec(write_frames: Callable[..., str]) -> Callable[..., FinetuneSpec]:
    """A short training of demo-llava; any field of its configuration can be given."""

    def build(**changes: Any) -> FinetuneSpec:
        config: dict[str, Any] = {
            "model_name": "demo-llava",
            "batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 2,
            "eval_steps": 4,
            "save_steps": 3,
            "num_epochs": 2,
        }
        if "train_data_path" not in changes:
            config |= {"train_data_path": write_frames("train", 14), "val_data_path": write_frames("val", 4, seed=2)}
        return FinetuneSpec(config=TrainingConfig(**(config | changes)))

    return build


@pytest.fixture
def said() -> Callable[..., list[Any]]:
    """The events of some type in a work's journal."""

    def read(work: Work[Any], kind: type[events.Event] = events.Event) -> list[Any]:
        lines = work.folder.journal.read_bytes().splitlines()
        return [event for event in map(events.decode_event, lines) if isinstance(event, kind)]

    return read


def coloured_row(folder: Path, index: int, draw: np.random.Generator) -> Row:
    """One frame of 96x72 pixels: a shape of one colour over a noisy background, drawn into `folder`/images."""
    colour = str(draw.choice(list(COLOURS)))
    image = picture(colour, draw)
    name = f"images/{index:04d}.png"
    image.save(folder / name)
    return Row(
        id=f"row-{index}",
        image=name,
        conversations=(Turn("human", f"<image>\n{QUESTION}"), Turn("gpt", colour)),
        labels=(colour,),
        width=image.width,
        height=image.height,
    )


def picture(colour: str, draw: np.random.Generator) -> Image.Image:
    width, height = 96, 72
    noise = (draw.normal(0, 25, (8, 8, 3)) + draw.uniform(60, 200)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    radius = int(draw.integers(10, 22))
    x, y = int(draw.integers(radius, width - radius)), int(draw.integers(radius, height - radius))
    fill = tuple(int(np.clip(value + draw.normal(0, 12), 0, 255)) for value in COLOURS[colour])
    box = [x - radius, y - radius, x + radius, y + radius]
    shape = draw.choice(["ellipse", "rectangle"])
    getattr(ImageDraw.Draw(image), str(shape))(box, fill=fill)
    return image


@pytest.fixture
def die_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the process "die" as it begins the step after so many steps; once."""

    class Killed(BaseException):
        pass

    def arrange(steps: int) -> type[BaseException]:
        real = TrainingLoop._gradients

        def step(self: TrainingLoop, batches: Any) -> Any:
            if self.state.step == steps:
                monkeypatch.setattr(TrainingLoop, "_gradients", real)
                raise Killed
            return real(self, batches)

        monkeypatch.setattr(TrainingLoop, "_gradients", step)
        return Killed

    return arrange
