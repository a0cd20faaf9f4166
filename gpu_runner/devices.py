"""The devices of this host with their slots and memory, as a runner reports them. Never initialises CUDA.

The CPU is always one. GPUs are found through NVML (package `nvidia-ml-py`); `cuda:<i>` counts what torch will count
in a child: the GPUs in PCI order that CUDA_VISIBLE_DEVICES lets through.
"""

import platform
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import structlog

from jobs.events import Device
from jobs.settings import Settings
from jobs.specs import Slot

log = structlog.get_logger()

_NVIDIA = Path("/dev/nvidiactl")
_WITHOUT_NVML = "an NVIDIA device is here but cannot be asked: install nvidia-ml-py and the driver, or it is not used"


class Devices:
    """What this host has; how much memory is free changes, the rest does not."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], nvml: Any | None = None) -> None:
        self._settings = settings
        self._nvml: Any = nvml if nvml is not None else _load_nvml()
        self._gpus = _visible(self._nvml, environment.get("CUDA_VISIBLE_DEVICES")) if self._nvml else []
        self._cpu_name = _cpu_name()

    @property
    def has_cuda(self) -> bool:
        return bool(self._gpus)

    def read(self) -> tuple[Device, ...]:
        """All devices with their memory at this moment."""
        return (self._cpu(), *(self._cuda(index, gpu) for index, gpu in enumerate(self._gpus)))

    def _cpu(self) -> Device:
        memory = _memory_bytes()
        return Device(
            device_id="cpu",
            name=self._cpu_name,
            slots={Slot.CPU: self._settings.cpu_slots, Slot.GPU: 1 if self._gpus else self._settings.gpu_slots},
            memory_total_bytes=memory.get("MemTotal"),
            memory_free_bytes=memory.get("MemAvailable"),
        )

    def _cuda(self, index: int, gpu: Any) -> Device:
        total, free = self._gpu_memory(gpu)
        return Device(
            device_id=f"cuda:{index}",
            name=_text(self._nvml.nvmlDeviceGetName(gpu)),
            slots={Slot.GPU: self._settings.gpu_slots},
            memory_total_bytes=total,
            memory_free_bytes=free,
        )

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


def _memory_bytes() -> dict[str, int]:
    """/proc/meminfo, by name."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split()[:2] for line in lines)
    return {name.rstrip(":"): int(value) * 1024 for name, value in pairs}
