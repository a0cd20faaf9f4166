"""Our steps against those of a stock transformers.Trainer script, and what reporting costs: `stock` is the baseline."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from msgspec.structs import replace
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration

from benchmarks import stock
from benchmarks.report import Report, at_least, at_most
from benchmarks.stock import Spent
from gpu_runner import forker
from gpu_runner.journal import Journal
from gpu_runner.recipes import finetune
from gpu_runner.rows import Row, Rows, Turn, open_rows
from gpu_runner.training import demo_model, models
from gpu_runner.training.encoding import RowEncoder, collate
from gpu_runner.training.loop import TrainingLoop
from gpu_runner.training.run_log import RunLog
from gpu_runner.work import Stop, Work
from jobs.paths import LLAVA_FILE, DataRoot
from jobs.settings import Settings
from jobs.specs import FinetuneSpec
from jobs.training_config import TrainingConfig

CLAIM = "A step costs what its arithmetic costs: none is spent on padding, on logits nobody asks for, or on reporting."

ROUNDS = 5
_ROWS, _BATCH, _ACCUMULATION = 80, 4, 2
_LONG_VOCABULARY = 32_768
_CORES = 2
_WORDS = ("where", "what", "object", "picture", "person", "car", "dog", "left", "right", "top", "bottom", "list")


_ON_THE_PATH = ("progress", "log_training", "stepped", "phase", "note", "checkpoint")

T = TypeVar("T")
Method = Callable[..., Any]
Wrap = Callable[[Method], Method]


@dataclass(frozen=True)
class Scenario:
    """`words` gives the length of each row's question; the answers are a word long."""

    name: str
    vocabulary: int
    words: Callable[[np.random.Generator], int]
    wanted: float


SCENARIOS = (
    Scenario("uniform lengths", demo_model.VOCABULARY, lambda _: 30, 0.97),
    Scenario("mixed lengths", demo_model.VOCABULARY, lambda draw: int(draw.choice([5, 20, 60, 400])), 1.3),
    Scenario("long vocabulary", _LONG_VOCABULARY, lambda _: 30, 1.3),
)
_EPOCHS = 3
_LARGE_EYES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12}
"""Near two thirds of a step's arithmetic. In SmolVLM-256M they are more of it, in LLaVA-7B a few per cent."""
_CACHE = f"large eyes, {_EPOCHS} epochs, cache"


@dataclass
class Reporting:
    """CPU seconds of the reporting: in its thread, on the step's path, and of the whole runs."""

    thread: float = 0.0
    path: float = 0.0
    runs: float = 0.0

    def add(self, other: "Reporting") -> None:
        self.thread += other.thread
        self.path += other.path
        self.runs += other.runs

    @property
    def percent(self) -> float:
        return 100 * (self.thread + self.path) / self.runs


@dataclass(frozen=True)
class Measured:
    """An epoch in each round: ours, the stock script's, and that one's with our collator."""

    ours: list[Spent]
    plain: list[Spent]
    collated: list[Spent]
    reporting: Reporting


@dataclass(frozen=True)
class Cached:
    """Some epochs in each round: ours with what the eyes saw kept, and ours without."""

    kept: list[Spent]
    plain: list[Spent]


def run() -> Report:
    reporting, rows, aims = Reporting(), [], []
    for scenario in SCENARIOS:
        found = _in_a_child(scenario.name, Measured)
        reporting.add(found.reporting)
        against_plain, against_collated = _ratio(found.plain, found.ours), _ratio(found.collated, found.ours)
        rows.append(
            (
                scenario.name,
                *(_steps_per_second(spent) for spent in (found.ours, found.plain, found.collated)),
                f"{against_plain:.2f}",
                f"{against_collated:.2f}",
                f"{_ratio(found.plain, found.ours, cpu=True):.2f}",
                f"{_ratio(found.collated, found.ours, cpu=True):.2f}",
            )
        )
        aims.append(at_least(f"{scenario.name}: steps/s against the stock script", against_plain, scenario.wanted))
        if scenario.wanted < 1:  # here our collator leaves the very same batches
            what = f"{scenario.name}: steps/s against the stock script with our collator"
            aims.append(at_least(what, against_collated, scenario.wanted))
    cached = _in_a_child(_CACHE, Cached)
    speeds = (_steps_per_second(cached.kept, _EPOCHS), _steps_per_second(cached.plain, _EPOCHS))
    rows += [(_CACHE, speeds[0], *["–"] * 6), ("the same without cache", speeds[1], *["–"] * 6)]
    aims.append(at_least(f"{_CACHE}: steps/s against the same without", _ratio(cached.plain, cached.kept), 1.2))
    aims.append(at_most("CPU time of reporting", reporting.percent, 1.0, "%"))
    return Report(
        claim=CLAIM,
        setup=f"demo-llava with LoRA in fp32 on {_CORES} threads, batches of {_BATCH}, {_ACCUMULATION} an update, an "
        f"epoch of {_ROWS} rows with a picture each, so that no cache helps; every step is logged. Long vocabulary: "
        f"the same model with {_LONG_VOCABULARY:,} tokens. Mixed lengths: questions of 5, 20, 60 or 400 words. Stock: "
        "a transformers.Trainer script with the same model, rows and hyper-parameters, once with a collator that pads "
        "and supervises everything but padding, once with ours. Cache: uniform lengths again, the eyes wider and "
        f"deeper, with cache_vision_features and without it, {_EPOCHS} epochs, of which the first fills it. Contenders "
        "take turns in one process, in changing order and in the environment that the runner gives its children, a "
        f"process a scenario, {ROUNDS} rounds after one that is not counted; ratios are medians over the rounds. CPU: "
        "the same ratio of CPU time instead of wall time, which other programs on the machine change less. Reporting "
        "is the CPU time of its thread and of what the steps themselves give to it, against that of the whole runs.",
        columns=(
            "",
            "ours, steps/s",
            "stock, steps/s",
            "stock with our collator",
            "ours / stock",
            "ours / with ours",
            "CPU, ours / stock",
            "CPU, ours / with ours",
        ),
        rows=rows,
        aims=aims,
    )


def _in_a_child(name: str, kind: type[T]) -> T:
    """Threads wait in another way there (OMP_WAIT_POLICY), which cannot be changed once torch is loaded."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(data_root=scratch, hf_offline=True)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.train", name, scratch],
            env=forker.environment(settings, os.environ),
            stdout=subprocess.PIPE,
            check=True,
        )
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=kind)


def _child(name: str, scratch: str) -> None:
    torch.set_num_threads(_CORES)
    root = DataRoot(Path(scratch))
    scenario = next((each for each in SCENARIOS if each.name == name), None)
    found = _measured_cache(root) if scenario is None else _measured(scenario, root)
    print("\n" + msgspec.json.encode(found).decode(), flush=True)


def _config(folder: Path, data: str) -> TrainingConfig:
    return TrainingConfig(
        model_name=f"models/{folder.name}",
        train_data_path=data,
        max_length=4096,
        batch_size=_BATCH,
        gradient_accumulation_steps=_ACCUMULATION,
        num_epochs=1,
        logging_steps=1,
        lora_dropout=0.0,
        fp16=False,
        bf16=False,
        device="cpu",
    )


def _measured_cache(root: DataRoot) -> Cached:
    scenario = SCENARIOS[0]
    plain = replace(_config(_model(root, eyes=_LARGE_EYES), _data(root, scenario)), num_epochs=_EPOCHS)
    kept = replace(plain, cache_vision_features=True)
    found = Cached([], [])
    contenders = [(found.kept, kept), (found.plain, plain)]
    for number in range(ROUNDS + 1):
        for spent, config in contenders[number % 2 :] + contenders[: number % 2]:
            one = _ours(config, root, number, Reporting())
            if number:
                spent.append(one)
    return found


def _measured(scenario: Scenario, root: DataRoot) -> Measured:
    folder = _model(root, vocabulary=scenario.vocabulary)
    rows = open_rows(root, _data(root, scenario))
    config = _config(folder, rows.name)
    plain, collated = stock.collator_of(folder, rows), _our_collator(folder, rows)
    measured = Measured([], [], [], Reporting())
    contenders: list[tuple[list[Spent], Callable[[int], Spent]]] = [
        (measured.ours, lambda number: _ours(config, root, number, measured.reporting)),
        (measured.plain, lambda _: stock.trained(folder, config, rows, root.folder, plain)),
        (measured.collated, lambda _: stock.trained(folder, config, rows, root.folder, collated)),
    ]
    for number in range(ROUNDS + 1):
        for spent, train in contenders[number % 3 :] + contenders[: number % 3]:
            one = train(number)
            if number:
                spent.append(one)
    return measured


def _ours(config: TrainingConfig, root: DataRoot, number: int, reporting: Reporting) -> Spent:
    """From the first step's begin to the last one's end, as the recipe runs them."""
    folder = root.attempt(f"ours-{number}", 1)
    folder.folder.mkdir(parents=True)
    with Path("/dev/null").open("wb") as doorbell, _watched(reporting) as steps:
        work: Work[Any] = Work(
            job_id=f"ours-{number}",
            attempt=1,
            spec=FinetuneSpec(config=config),
            device="cpu",
            cores=_CORES,
            root=root,
            folder=folder,
            journal=Journal(root, folder, f"ours-{number}", doorbell.fileno()),
            stop=Stop(),
            settings=Settings(data_root=str(root.folder), hf_offline=True),
        )
        finetune.run(work)
    shutil.rmtree(folder.folder)
    return steps[-1].since(steps[0])


@contextmanager
def _watched(reporting: Reporting) -> Iterator[list[Spent]]:
    """When the first step began and each one ended; adds up what reporting costs."""
    times: list[Spent] = []
    wrapped: list[tuple[type, str, Wrap]] = [
        (TrainingLoop, "_gradients", lambda method: _begun(method, times)),
        (TrainingLoop, "_update", lambda method: _ended(method, times)),
        (RunLog, "_speak", lambda method: _spoken(method, reporting)),
        *((RunLog, name, lambda method: _given(method, reporting)) for name in _ON_THE_PATH),
    ]
    real = [(of, name, getattr(of, name)) for of, name, _ in wrapped]
    for of, name, wrap in wrapped:
        setattr(of, name, wrap(getattr(of, name)))
    began = time.process_time()
    try:
        yield times
    finally:
        reporting.runs += time.process_time() - began
        for of, name, original in real:
            setattr(of, name, original)


def _begun(method: Method, times: list[Spent]) -> Method:
    def call(*given: Any) -> Any:
        if not times:
            times.append(Spent.now())
        return method(*given)

    return call


def _ended(method: Method, times: list[Spent]) -> Method:
    def call(*given: Any) -> Any:
        done = method(*given)
        times.append(Spent.now())
        return done

    return call


def _spoken(method: Method, reporting: Reporting) -> Method:
    """The thread's own function: its CPU time at its end is all of the thread's."""

    def call(*given: Any) -> None:
        method(*given)
        reporting.thread += time.thread_time()

    return call


def _given(method: Method, reporting: Reporting) -> Method:
    def call(*given: Any) -> Any:
        began = time.thread_time()
        try:
            return method(*given)
        finally:
            reporting.path += time.thread_time() - began

    return call


def _our_collator(folder: Path, rows: Rows) -> stock.Collator:
    processor = models.load_processor(folder, sees_images=True)
    encoder = RowEncoder(processor, 4096, frozenset({processor.tokenizer.eos_token_id}))

    def make(indices: Any) -> dict[str, Any]:
        encoded = [encoder.encode(rows[index], rows.open_images(index)) for index in indices]
        return collate(encoded, processor.tokenizer.pad_token_id)

    return make


def _model(root: DataRoot, *, vocabulary: int = demo_model.VOCABULARY, eyes: Mapping[str, int] | None = None) -> Path:
    """demo-llava, or the same with room for more tokens or with other eyes."""
    folder = demo_model.ensure(root.models / "demo")
    if vocabulary == demo_model.VOCABULARY and eyes is None:
        return folder
    config = LlavaConfig.from_pretrained(folder)
    config.text_config.vocab_size = vocabulary
    config.vision_config.update(eyes or {})
    larger = root.models / "larger"
    shutil.copytree(folder, larger)
    torch.manual_seed(demo_model.SEED)
    LlavaForConditionalGeneration(config).save_pretrained(larger)
    return larger


def _data(root: DataRoot, scenario: Scenario) -> str:
    """The name of a dataset of noisy pictures with a question each."""
    folder = root.datasets / "rows"
    (folder / "images").mkdir(parents=True)
    draw, lines = np.random.default_rng(1), []
    for index in range(_ROWS):
        pixels = draw.integers(0, 256, (72, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        question = " ".join(_WORDS[(index + at) % len(_WORDS)] for at in range(scenario.words(draw)))
        conversation = (Turn("human", f"<image>\n{question}"), Turn("gpt", "red"))
        row = Row(id=str(index), image=f"images/{index}.png", conversations=conversation, width=96, height=72)
        lines.append(msgspec.json.encode(row) + b"\n")
    (folder / LLAVA_FILE).write_bytes(b"".join(lines))
    return "datasets/rows"


def _steps_per_second(spent: list[Spent], epochs: int = 1) -> str:
    return f"{epochs * _ROWS / (_BATCH * _ACCUMULATION) / statistics.median(one.seconds for one in spent):.2f}"


def _ratio(theirs: list[Spent], ours: list[Spent], *, cpu: bool = False) -> float:
    pairs = zip(theirs, ours, strict=True)
    return statistics.median(a.cpu / b.cpu if cpu else a.seconds / b.seconds for a, b in pairs)


if __name__ == "__main__":
    _child(*sys.argv[1:])
