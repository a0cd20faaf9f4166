"""The devices of this host with their slots and memory, as a runner reports them. Never initialises CUDA.

The CPU is always one. GPUs are found through NVML (package `nvidia-ml-py`); `cuda:<i>` counts what torch will count
in a child: the GPUs in PCI order that CUDA_VISIBLE_DEVICES lets through.
"""

import platform
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog

from gpu_runner import host_memory, processes
from jobs.events import Device
from jobs.settings import Settings
from jobs.specs import Slot

log = structlog.get_logger()

_CPU_CAPABILITIES = ("bf16",)  # slower than fp32 on most, but it can
_FOUR_BIT = ("four_bit", "eight_bit")
_NVIDIA = Path("/dev/nvidiactl")
_WITHOUT_NVML = "an NVIDIA device is here but cannot be asked: install nvidia-ml-py and the driver, or it is not used"


class Devices:
    """What this host has; how much memory is free changes, the rest does not."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], nvml: Any | None = None) -> None:
        self._settings = settings
        self._nvml: Any = nvml if nvml is not None else _load_nvml()
        self._gpus = _visible(self._nvml, environment.get("CUDA_VISIBLE_DEVICES")) if self._nvml else []
        self._cpu_name = _cpu_name()
        self._libraries = _FOUR_BIT if find_spec("bitsandbytes") else ()

    @property
    def has_cuda(self) -> bool:
        return bool(self._gpus)

    def read(self, held: Mapping[str, int] | None = None) -> tuple[Device, ...]:
        """All devices with their memory at this moment; `held` is what our jobs hold of it, by device, where the
        device itself cannot tell."""
        held = held or {}
        return (self._cpu(held), *(self._cuda(index, gpu, held) for index, gpu in enumerate(self._gpus)))

    def held_by(self, device_id: str, pids: Collection[int]) -> int | None:
        """Bytes that processes hold of a device; None where nothing can measure that, inside a container say."""
        if not device_id.startswith("cuda"):
            return processes.memory_bytes(pids)
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._gpus[int(device_id.removeprefix("cuda:"))])
        except (AttributeError, IndexError, ValueError, self._nvml.NVMLError):
            return None
        sizes = [process.usedGpuMemory for process in running if process.pid in pids]
        return sum(sizes) if sizes and None not in sizes else None

    def _cpu(self, held: Mapping[str, int]) -> Device:
        memory = host_memory.read()
        total, free = self._within_budget("cpu", held, memory.total, memory.available)
        return Device(
            device_id="cpu",
            name=self._cpu_name,
            slots={Slot.CPU: self._settings.cpu_slots, Slot.GPU: 1 if self._gpus else self._settings.gpu_slots},
            memory_total_bytes=total,
            memory_free_bytes=free,
            capabilities=_CPU_CAPABILITIES + self._libraries,
        )

    def _cuda(self, index: int, gpu: Any, held: Mapping[str, int]) -> Device:
        total, free = self._gpu_memory(gpu)
        if total is None:
            total, free = self._within_budget(f"cuda:{index}", held, None, None)
        return Device(
            device_id=f"cuda:{index}",
            name=_text(self._nvml.nvmlDeviceGetName(gpu)),
            slots={Slot.GPU: self._settings.gpu_slots},
            memory_total_bytes=total,
            memory_free_bytes=free,
            capabilities=self._gpu_capabilities(gpu) + self._libraries,
        )

    def _within_budget(
        self, device_id: str, held: Mapping[str, int], total: int | None, free: int | None
    ) -> tuple[int | None, int | None]:
        """Total and free memory under the configured budget, which promises no more than there is."""
        budget_gib = self._settings.memory_budget_gib
        if budget_gib is None:
            return total, free
        budget = int(budget_gib * 2**30)
        left = max(0, budget - held.get(device_id, 0))
        return budget, left if free is None else min(left, free)

    def _gpu_capabilities(self, gpu: Any) -> tuple[str, ...]:
        """Source: CUDA C Programming Guide: bf16 arithmetic since compute capability 8.0."""
        try:
            major, minor = self._nvml.nvmlDeviceGetCudaComputeCapability(gpu)
        except (AttributeError, self._nvml.NVMLError):
            return ("fp16",)
        return (f"compute_{major}.{minor}", "fp16", *(["bf16"] if major >= 8 else []))

    def _gpu_memory(self, gpu: Any) -> tuple[int | None, int | None]:
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(gpu)
        except self._nvml.NVMLError:  # integrated GPUs share the host's memory and cannot tell
            return None, None
        return int(memory.total), int(memory.free)


def _load_nvml() -> Any | None:
    """NVML, ready to be asked; None on a host without NVIDIA's driver or without its bindings."""
    try:
        nvml = import_module("pynvml")
    except ImportError:
        if _NVIDIA.exists():
            log.warning("devices.gpu_unusable", why=_WITHOUT_NVML)
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if _NVIDIA.exists():
            log.warning("devices.gpu_unusable", why=str(error))
        return None
    return nvml


def _visible(nvml: Any, wanted: str | None) -> list[Any]:
    """The GPUs CUDA shows to a child, in its order.

    Source: CUDA C Programming Guide, CUDA_VISIBLE_DEVICES: indices or beginnings of UUIDs; what is unknown ends it.
    """
    gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if wanted is None:
        return gpus
    uuids = [_text(nvml.nvmlDeviceGetUUID(gpu)) for gpu in gpus]
    chosen = []
    for word in wanted.split(","):
        index = _index_of(word.strip(), uuids)
        if index is None:
            break
        chosen.append(gpus[index])
    return chosen


def _index_of(word: str, uuids: Sequence[str]) -> int | None:
    if word.isdigit():
        return int(word) if int(word) < len(uuids) else None
    matching = [index for index, uuid in enumerate(uuids) if word and uuid.startswith(word)]
    return matching[0] if len(matching) == 1 else None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # older bindings answer bytes


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
