"""How long an interrupted training takes to its next step, after few steps and after many."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec

from benchmarks.report import Report, at_most
from gpu_runner import forker
from gpu_runner.journal import Journal
from gpu_runner.recipes import finetune
from gpu_runner.rows import Row, Turn
from gpu_runner.training.run_log import RunLog
from gpu_runner.work import Stop, Stopped, Work
from jobs.models import DEMO_MODEL
from jobs.paths import LLAVA_FILE, DataRoot
from jobs.settings import Settings
from jobs.specs import FinetuneSpec
from jobs.training_config import TrainingConfig

CLAIM = "An interrupted training goes on in the same time after two thousand steps as after fifty."

_FEW, _MANY, _ROUNDS, _ROWS = 50, 2_000, 7, 200


def run() -> Report:
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(data_root=scratch, hf_offline=True)
        os.environ |= forker.environment(settings, os.environ)
        root = DataRoot(Path(scratch))
        config = _config(_data(root))
        runs = {steps: _Run(root, settings, config, f"after-{steps}") for steps in (_FEW, _MANY)}
        for steps, training in runs.items():
            training.pause_at(steps)
        seconds: dict[int, list[float]] = {steps: [] for steps in runs}
        for number in range(_ROUNDS + 1):
            for steps, training in runs.items():
                took = training.next_step_after()
                if number:
                    seconds[steps].append(took)
    ratio = statistics.median(many / few for few, many in zip(seconds[_FEW], seconds[_MANY], strict=True))
    return Report(
        claim=CLAIM,
        setup=f"{DEMO_MODEL} with LoRA on the CPU, {_ROWS} rows of text, a row an update, every step logged: paused "
        f"after {_FEW} steps and after {_MANY:,}, each then resumed {_ROUNDS} times in turn in one process. The time "
        "runs from the begin of the recipe to the end of its first step: loading the model, checking and reading the "
        "checkpoint, finding the place in the data. The ratio is the median over the pairs.",
        columns=("resumed after", "median s", "longest s"),
        rows=[
            (f"{steps:,} steps", f"{statistics.median(found):.2f}", f"{max(found):.2f}")
            for steps, found in seconds.items()
        ],
        aims=[at_most(f"after {_MANY:,} steps against {_FEW}", ratio, 1.25, "×")],
    )


class _Run:
    """A training that is paused and resumed, an attempt after the other."""

    def __init__(self, root: DataRoot, settings: Settings, config: TrainingConfig, job_id: str) -> None:
        self._root = root
        self._settings = settings
        self._config = config
        self._job_id = job_id
        self._attempt = 0

    def pause_at(self, step: int) -> None:
        self._live("pause", lambda at: at == step)

    def next_step_after(self) -> float:
        """Seconds from the attempt's begin to the end of its first step; then it is cancelled."""
        began = time.monotonic()
        return self._live("cancel", lambda _: True) - began

    def _live(self, wish: Any, is_due: Callable[[int], bool]) -> float:
        """Run until a step is due; when that ended."""
        self._attempt += 1
        folder = self._root.attempt(self._job_id, self._attempt)
        folder.folder.mkdir(parents=True)
        work: Work[Any] = Work(
            job_id=self._job_id,
            attempt=self._attempt,
            spec=FinetuneSpec(config=self._config),
            device="cpu",
            cores=2,
            root=self._root,
            folder=folder,
            journal=Journal(self._root, folder, self._job_id),
            stop=Stop(),
            settings=self._settings,
        )
        ended: list[float] = []
        real = RunLog.progress

        def progress(log: RunLog, step: int) -> None:
            if is_due(step):
                ended.append(time.monotonic())
                work.stop.wanted = wish
            real(log, step)

        with patch.object(RunLog, "progress", progress), suppress(Stopped):
            finetune.run(work)
        return ended[0]


def _config(data: str) -> TrainingConfig:
    return TrainingConfig(
        model_name=DEMO_MODEL,
        train_data_path=data,
        max_length=128,
        batch_size=1,
        gradient_accumulation_steps=1,
        num_epochs=20,
        logging_steps=1,
        save_steps=10_000,
        lora_rank=2,
        device="cpu",
    )


def _data(root: DataRoot) -> str:
    folder = root.datasets / "rows"
    folder.mkdir(parents=True)
    rows = (
        Row(id=str(n), image=None, conversations=(Turn("human", f"What comes after {n}?"), Turn("gpt", str(n + 1))))
        for n in range(_ROWS)
    )
    (folder / LLAVA_FILE).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return "datasets/rows"
