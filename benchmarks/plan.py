"""How near the memory that the plan predicts is to what a training really takes.

Small configurations on the CPU, each in a fresh process (`step`). The prediction is `jobs.footprint`, without
the process itself, which is not measured. It is corrected as the service does it: by the median of what the other
configurations of its family took, never by its own.
"""

import json
import os
import subprocess
import sys
from statistics import median
from typing import Any

from benchmarks import step
from benchmarks.report import Aim, Report, at_most
from jobs import footprint, model_shapes
from jobs.footprint import MIB, Footprint, RowTokens, Term
from jobs.training_config import TrainingConfig

CLAIM = "What the plan says of memory is what the training takes."

_FULL: dict[str, Any] = {"use_lora": False}
_LORA: dict[str, Any] = {"use_lora": True, "lora_rank": 16}
_QLORA: dict[str, Any] = {"use_qlora": True, "lora_rank": 16}
_NO_DROPOUT = {"lora_dropout": 0.0}
_RECOMPUTED = {"gradient_checkpointing": True}


def _case(name: str, method: dict[str, Any], batch: int, tokens: int, accumulation: int = 1, **dims: int) -> Any:
    config = method | {"batch_size": batch, "gradient_accumulation_steps": accumulation, "max_length": tokens}
    usual = {"hidden": 256, "layers": 4, "heads": 4, "kv_heads": 2, "vocabulary": 4096, "trained": 64, "vision": 0}
    return usual | {"name": name, "config": config, "tokens": tokens} | dims


CASES = [
    _case("text, full", _FULL, 2, 256),
    _case("text, full, accumulated", _FULL, 2, 256, 2, layers=8),
    _case("text, full, wide", _FULL, 1, 128, hidden=512, layers=6, heads=8),
    _case("text, full, wide, 8-bit states", _FULL | {"optimizer": "adamw_8bit"}, 1, 128, hidden=512, layers=6, heads=8),
    _case("text, full, recomputed", _FULL | _RECOMPUTED, 4, 256, layers=6),
    _case("text, LoRA", _LORA, 4, 256, 2, layers=6),
    _case("text, LoRA, long rows", _LORA, 1, 1024, 1),
    _case("text, LoRA, no dropout", _LORA | _NO_DROPOUT, 4, 256, 1),
    _case("text, LoRA, recomputed", _LORA | _RECOMPUTED, 4, 512, 1, layers=6),
    _case("text, LoRA, long vocabulary", _LORA, 2, 256, 1, vocabulary=32000),
    _case("text, LoRA, bf16", _LORA | {"bf16": True}, 4, 256, 1),
    _case("text, QLoRA", _QLORA, 2, 256, 2, hidden=512, layers=4, heads=8),
    _case("text, QLoRA, recomputed", _QLORA | _RECOMPUTED, 4, 256, 1, hidden=512, layers=4, heads=8),
    _case("pictures, full", _FULL, 2, 320, 1, vision=256),
    _case("pictures, LoRA", _LORA, 2, 320, 2, vision=256, layers=6),
    _case("pictures, LoRA, more rows", _LORA, 4, 320, 1, vision=128),
    _case("pictures, QLoRA", _QLORA, 2, 320, 1, vision=256),
]


def run() -> Report:
    predictions = [predicted(case) for case in CASES]
    measured = [_measure(case) for case in CASES]
    ratios = [got / _tensors(found.expected_bytes, found) for found, got in zip(predictions, measured, strict=True)]
    rows, errors, bare_errors, surprises = [], [], [], 0
    for at, (case, found, got) in enumerate(zip(CASES, predictions, measured, strict=True)):
        factor = median(
            ratio for other, ratio in enumerate(ratios) if other != at and _family(CASES[other]) == _family(case)
        )
        bare, high = (_tensors(size, found) for size in (found.expected_bytes, found.high_bytes))
        errors.append(abs(bare * factor / got - 1))
        bare_errors.append(abs(bare / got - 1))
        surprises += got > high * factor
        rows.append(
            (
                case["name"],
                _dominant(found),
                f"{bare / MIB:,.0f}",
                f"{bare * factor / MIB:,.0f}",
                f"{high * factor / MIB:,.0f}",
                f"{got / MIB:,.0f}",
                f"{100 * (bare * factor / got - 1):+.0f} %",
            )
        )
    return Report(
        claim=CLAIM,
        setup=(
            f"{len(CASES)} configurations on the CPU with random weights, two updates each in a fresh process. "
            "Measured is resident memory: the peak of the steps less what the process held before the model, with "
            "glibc returning every block of 256 KiB at once. Predicted is the arithmetic of the plan without the "
            "process; corrected, times the median ratio of the family's other configurations. A plan that says "
            "'fits' promises its upper figure: what took more is counted. MiB."
        ),
        columns=("configuration", "dominant", "predicted", "corrected", "up to", "measured", "error"),
        rows=rows,
        aims=[
            at_most("median error, corrected", 100 * median(errors), 10, "%"),
            at_most("median error, bare arithmetic", 100 * median(bare_errors), 20, "%"),
            Aim("took more than the plan's upper figure", "0", str(surprises), surprises == 0),
        ],
    )


def predicted(case: Any) -> Footprint:
    """What the plan says of a case."""
    shape = model_shapes.shape_of(step.model_config(case))
    assert shape is not None
    config = TrainingConfig(model_name="m", train_data_path="d", **case["config"])
    rows = RowTokens(longest=case["tokens"], trained=case["trained"], images=1 if case["vision"] else 0)
    return footprint.estimate(config, shape, rows, device="cpu")


def _family(case: Any) -> str:
    return "llava" if case["vision"] else "llama"


def _tensors(size: int, found: Footprint) -> float:
    return size - sum(term.size_bytes for term in found.terms if term.name is Term.PROCESS)


def _dominant(found: Footprint) -> str:
    return next(term.name for term in found.terms if term.name is not Term.PROCESS)


def _measure(case: Any) -> int:
    given_back = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.step", json.dumps(case)],
        env=os.environ | given_back | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,  # another program may be using the cores
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{case['name']}: {done.stderr.strip().splitlines()[-1]}")
    return int(json.loads(done.stdout.strip().splitlines()[-1])["bytes"])
