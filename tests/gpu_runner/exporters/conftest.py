"""Finished trainings to export: a few steps of demo-llava, fully and with adapters, made once for all tests."""

from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gpu_runner import recipes
from gpu_runner.journal import Journal
from gpu_runner.rows import Row, Turn
from gpu_runner.training import demo_model
from gpu_runner.work import Stop, Work
from jobs import commands, events
from jobs.commands import Start
from jobs.models import DEMO_MODEL
from jobs.paths import LLAVA_FILE, DataRoot
from jobs.settings import Settings
from jobs.specs import ExportFormat, ExportSpec, FinetuneSpec, JobSpec, kind_of
from jobs.training_config import TrainingConfig

CONFIGS: dict[str, dict[str, Any]] = {
    "full": {"use_lora": False},
    "lora": {"use_lora": True},
    "qlora": {"use_qlora": True},
    "text": {"model_name": "tiny-llama", "train_data_path": "datasets/words", "val_data_path": None},
}
TEXT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
Train = Callable[[str], str]
Export = Callable[..., Work[ExportSpec]]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    """One data root for all tests: whoever changes what is shared, changes a copy."""
    root = DataRoot(tmp_path_factory.mktemp("house") / "data")
    (root.datasets / "flat" / "images").mkdir(parents=True)
    _write_rows(root.datasets / "flat", [_row(root.datasets / "flat", index) for index in range(6)])
    (root.datasets / "words").mkdir()
    said = (Turn("human", "What colour is it?"), Turn("gpt", "red"))
    _write_rows(root.datasets / "words", [Row(id=f"row-{index}", conversations=said) for index in range(6)])
    return root


@pytest.fixture(scope="session")
def train(root: DataRoot) -> Train:
    """The id of a finished training of a sort in CONFIGS, by the real recipe."""

    @cache
    def trained(method: str) -> str:
        if method == "text":
            _build_text_model(root.models / "tiny-llama")
        work = work_of(root, f"job-{method}", _spec(method))
        work.folder.start.write_bytes(
            commands.encode(Start(job_id=work.job_id, attempt=1, spec=work.spec, device="cpu"))
        )
        work.journal.state(events.JobCompleted, result=recipes.recipe(kind_of(work.spec))(work))
        return work.job_id

    return trained


@pytest.fixture(scope="session")
def export(root: DataRoot) -> Export:
    """The work of a new export job."""
    numbers = count(1)

    def build(job_id: str, export_format: ExportFormat = ExportFormat.HUGGINGFACE, **options: bool) -> Work[ExportSpec]:
        spec = ExportSpec(job_id=job_id, export_format=export_format, **options)
        return work_of(root, f"export-{next(numbers)}", spec)

    return build


def work_of(root: DataRoot, job_id: str, spec: JobSpec, attempt: int = 1) -> Work[Any]:
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


def _spec(method: str) -> FinetuneSpec:
    common: dict[str, Any] = {
        "model_name": DEMO_MODEL,
        "train_data_path": "datasets/flat",
        "val_data_path": "datasets/flat",
        "learning_rate": 1e-2,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "eval_steps": 2,
        "save_steps": 2,
        "warmup_ratio": 0,
    }
    config = TrainingConfig(**(common | CONFIGS[method]))
    return FinetuneSpec(config=config, experiment_name=f"Flat colours / {method}", tags=("test: 'a'", "<b>|two"))


def _build_text_model(folder: Path) -> None:
    """Two layers of Llama with the demo model's words."""
    demo_model.ensure(folder.parent / DEMO_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder.parent / DEMO_MODEL)
    tokenizer.chat_template = TEXT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_rows(folder: Path, rows: list[Row]) -> None:
    (folder / LLAVA_FILE).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def _row(folder: Path, index: int) -> Row:
    name = f"images/{index}.png"
    Image.new("RGB", (80, 60), (40 * index, 255 - 40 * index, 90)).save(folder / name)
    said = (Turn("human", "<image>\nWhat colour is it?"), Turn("gpt", "red" if index % 2 else "green"))
    return Row(id=f"row-{index}", image=name, conversations=said, labels=("red",), width=80, height=60)
