"""What the device can do: number format, its name, peak memory, and its errors in our words.

Used by the model recipes. Nothing here assumes a GPU; what needs one asks for it first.
"""

import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from jobs.errors import DiskFull, OutOfMemory, is_disk_full
from jobs.footprint import CUDA_CONTEXT_BYTES, NCCL_BYTES
from jobs.training_config import TrainingConfig


@dataclass(frozen=True)
class Compute:
    """Where and in which number format the arithmetic runs."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in `dtype`; nothing to do for float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)


def best(device: str) -> Compute:
    """What the device does best: bf16 on a GPU that has it, else fp16 there; fp32 on a CPU."""
    found = torch.device(device)
    if found.type != "cuda":
        return Compute(found, torch.float32)
    return Compute(found, torch.bfloat16 if _has_bf16(found) else torch.float16)


def for_quantised(device: str) -> Compute:
    """The format 4-bit and 8-bit weights are multiplied in: bf16 on a CPU as well, which fp32 would only slow down."""
    compute = best(device)
    return compute if compute.device.type == "cuda" else Compute(compute.device, torch.bfloat16)


def has_bits(device: str, bits: int) -> bool:
    """Whether weights of 4 or 8 bits are computed with as they should be; 4 anywhere. bitsandbytes' LLM.int8 multiplies
    on integer tensor cores, which GPUs have since compute capability 7.5, and elsewhere only slowly."""
    found = torch.device(device)
    return bits == 4 or (found.type == "cuda" and torch.cuda.get_device_capability(found) >= (7, 5))


def for_training(device: str, config: TrainingConfig) -> tuple[Compute, list[str]]:
    """The number format a configuration means on this device, and sentences on what was changed."""
    notes = []
    compute = best(device)
    if config.bf16:
        compute = Compute(compute.device, torch.bfloat16)
    elif config.fp16:
        compute = Compute(compute.device, torch.float16)
    elif config.fp16 is False and config.bf16 is False:
        compute = Compute(compute.device, torch.float32)
    elif config.method == "qlora":
        compute = for_quantised(device)
    if compute.device.type == "cuda" and compute.dtype is torch.bfloat16 and not _has_bf16(compute.device):
        compute = Compute(compute.device, torch.float16)
    if compute.device.type == "cuda" and compute.dtype is torch.float16 and not config.fp16:
        notes.append(f"{name(compute.device)} has no bf16 arithmetic: this run uses fp16 instead.")
    if compute.dtype is torch.float16 and compute.device.type == "cpu":
        compute = Compute(compute.device, torch.float32)
        notes.append("fp16 needs a GPU: this run on the CPU uses fp32 instead.")
    if config.device == "cuda" and compute.device.type == "cpu":
        notes.append("CUDA was asked for and this runner has none: the run uses the CPU.")
    return compute, notes


def name(device: torch.device) -> str:
    """The hardware's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process held: resident on a CPU; on a GPU what torch's allocator had of it, and as much as
    the prediction has for what lies outside, which only the driver could tell."""
    if device.type == "cuda":
        is_team = distributed.is_available() and distributed.is_initialized()
        return torch.cuda.max_memory_reserved(device) + CUDA_CONTEXT_BYTES + (NCCL_BYTES if is_team else 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def is_out_of_memory(error: Exception) -> bool:
    """torch's CPU allocator has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def give_back_memory(device: torch.device) -> None:
    """Free what nothing refers to any more, cycles and the GPU allocator's reserve included."""
    gc.collect()
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


@contextmanager
def errors_in_our_words() -> Iterator[None]:
    """Raises OutOfMemory and DiskFull for what torch, safetensors and the system say about them."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory from error
        if is_disk_full(error):
            raise DiskFull from error
        raise


def _has_bf16(device: torch.device) -> bool:
    """Whether the GPU computes in bf16. torch.cuda.is_bf16_supported also counts slow emulation, and asks the current
    device. Source: CUDA C Programming Guide: bf16 arithmetic since compute capability 8.0."""
    return bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8
