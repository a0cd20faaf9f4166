"""Whether an export has room on this host, asked before anything is loaded. Called by the recipe `export`."""

import shutil

import torch

from gpu_runner.training import device
from jobs.errors import DiskFull, OutOfMemory
from jobs.paths import DataRoot

_COPIES = 2  # the folder and its archive


def check_disk(root: DataRoot, model_bytes: int) -> None:
    """Raises DiskFull unless an export of that size can be written."""
    needed, free = _COPIES * model_bytes, shutil.disk_usage(root.folder).free
    if needed > free:
        raise DiskFull(
            f"The export needs {_gb(needed)} for its folder and its archive and the disk of the data root has "
            f"{_gb(free)} left: delete exports or jobs you don't need, then export again."
        )


def check_memory(on: torch.device, model_bytes: int) -> None:
    """Raises OutOfMemory unless this host can hold the model. A GPU speaks for itself."""
    free = device.available_host_bytes()
    if on.type == "cpu" and free is not None and model_bytes > free:
        raise OutOfMemory(
            f"The export needs {_gb(model_bytes)} of memory to load the model and this host has {_gb(free)} available: "
            "wait until other jobs are done, or run a runner on a host with more memory."
        )


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
