"""Number formats by device, and errors in our words."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from gpu_runner.training import device
from gpu_runner.training.device import Compute
from jobs.errors import DiskFull, OutOfMemory
from jobs.training_config import TrainingConfig


def have(monkeypatch: pytest.MonkeyPatch, capability: int) -> None:
    """A second GPU of that compute capability; the first has none of it, and bf16 is emulated everywhere."""
    capabilities = {torch.device("cuda:0"): (1, 0), torch.device("cuda:1"): (capability, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "A GPU")


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(model_name="m", train_data_path="x", **changes)


@pytest.mark.parametrize(
    ("changes", "dtype", "notes"),
    [
        ({}, torch.float32, 0),
        ({"fp16": True}, torch.float32, 1),
        ({"bf16": True}, torch.bfloat16, 0),
        ({"fp16": False, "bf16": False, "use_qlora": True}, torch.float32, 0),
        ({"use_qlora": True}, torch.bfloat16, 0),
        ({"device": "cuda"}, torch.float32, 1),
    ],
)
def test_the_number_format_on_a_cpu(changes: dict[str, Any], dtype: torch.dtype, notes: int) -> None:
    compute, said = device.for_training("cpu", config(**changes))
    assert compute.dtype is dtype
    assert len(said) == notes


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_uses_the_best_format_it_has(has_bf16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 8 if has_bf16 else 7)
    assert device.best("cuda:1").dtype is dtype
    assert device.for_quantised("cuda:1").dtype is dtype
    assert device.for_training("cuda:1", config(fp16=True)) == (Compute(torch.device("cuda:1"), torch.float16), [])


@pytest.mark.parametrize("changes", [{}, {"bf16": True}, {"use_qlora": True}])
def test_a_gpu_that_only_emulates_bf16_uses_fp16_and_says_so(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, 7)
    compute, said = device.for_training("cuda:1", config(**changes))
    assert compute.dtype is torch.float16
    assert said == ["A GPU has no bf16 arithmetic: this run uses fp16 instead."]


def test_peak_memory_is_in_bytes() -> None:
    assert 50 * 2**20 < device.peak_memory_bytes(torch.device("cpu")) < 2**40


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_torch_is_named() -> None:
    with pytest.raises(DiskFull), device.errors_in_our_words(), open("/dev/full", "wb") as file:
        torch.save({"weights": torch.zeros(100_000)}, file)


def test_a_full_disk_under_safetensors_is_named() -> None:
    with pytest.raises(DiskFull), device.errors_in_our_words():
        raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_is_not_there_is_named(error: Exception) -> None:
    with pytest.raises(OutOfMemory, match="batch_size"), device.errors_in_our_words():
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(KeyError), device.errors_in_our_words():
        raise KeyError("x")
