"""Whether this host has room for what a job will write or load, asked before it begins. Called by the recipes."""

import math
import shutil

import torch

from gpu_runner import host_memory
from gpu_runner.training.checkpoints import FEWEST_KEPT
from gpu_runner.training.models import Loaded
from jobs.errors import DiskFull, OutOfMemory
from jobs.footprint import FEATURES_ON_CPU_BYTES
from jobs.paths import DataRoot
from jobs.training_config import TrainingConfig

_EXPORTS = 2  # the folder and its archive
_MOMENTS = 2  # of AdamW, a number each for every trained one; adamw_8bit has less
_FEATURES_SHARE = 4  # of the host's available memory, one part
_MOST_FEATURES = 16 * 2**30
_FEATURES_UNTOLD = 2**30  # where the host does not say what it has


def check_disk_for_checkpoints(root: DataRoot, loaded: Loaded, config: TrainingConfig, total_steps: int) -> None:
    """Raises DiskFull unless the newest checkpoints and the best can be kept, and one more while it is made.

    Not for a run that goes on: what its earlier attempts saved makes room for what it saves.
    """
    size, saves = _checkpoint_bytes(loaded, config), math.ceil(total_steps / config.save_steps)
    best = config.val_data_path is not None  # without, the newest is the best
    count = min(saves, max(FEWEST_KEPT, config.save_total_limit) + best + 1)
    needed, free = count * size, shutil.disk_usage(root.folder).free
    if needed > free:
        lower = ", or lower save_total_limit" if saves > config.save_total_limit > FEWEST_KEPT else ""
        raise DiskFull(
            f"The training needs {gb(needed)} for {count} checkpoints of {gb(size)} and the disk of the data root "
            f"has {gb(free)} left: delete exports or jobs you don't need{lower}, then start again."
        )


def check_disk_for_export(root: DataRoot, model_bytes: int) -> None:
    """Raises DiskFull unless an export of that size can be written."""
    needed, free = _EXPORTS * model_bytes, shutil.disk_usage(root.folder).free
    if needed > free:
        raise DiskFull(
            f"The export needs {gb(needed)} for its folder and its archive and the disk of the data root has "
            f"{gb(free)} left: delete exports or jobs you don't need, then export again."
        )


def check_memory_for_export(on: torch.device, model_bytes: int) -> None:
    """Raises OutOfMemory unless this host can hold the model. A GPU speaks for itself."""
    free = host_memory.read().available
    if on.type == "cpu" and free is not None and model_bytes > free:
        raise OutOfMemory(
            f"The export needs {gb(model_bytes)} of memory to load the model and this host has {gb(free)} available: "
            "wait until other jobs are done, or run a runner on a host with more memory."
        )


def bytes_for_features(on: torch.device, processes: int) -> int:
    """Host memory that each process of a run may fill with what the eyes saw, a convenience: most of it is left. On a
    CPU it is the run's own device, and no more than the plan has for it."""
    free = host_memory.read().available
    most = _MOST_FEATURES if on.type == "cuda" else FEATURES_ON_CPU_BYTES
    return min(most, _FEATURES_UNTOLD if free is None else free // _FEATURES_SHARE) // processes


def gb(size_bytes: int) -> str:
    """A size for people."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def _checkpoint_bytes(loaded: Loaded, config: TrainingConfig) -> int:
    """The weights that are saved, and the optimiser's moments of those that are trained."""
    every = list(loaded.model.parameters())
    trained = _bytes_of([parameter for parameter in every if parameter.requires_grad])
    return (_bytes_of(every) if config.method == "full" else trained) + _MOMENTS * trained


def _bytes_of(parameters: list[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
