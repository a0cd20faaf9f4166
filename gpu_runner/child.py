"""The process that runs one recipe. The zygote forks it and calls `run`; nobody imports its work but itself.

Run as a program (`python -m gpu_runner.child`) it is the same with a fresh interpreter, for a zygote that must not
run Python after a fork.
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from gpu_runner.journal import Journal
from gpu_runner.work import Stop, Stopped, Work
from jobs import commands, errors, events
from jobs.errors import FailureReason
from jobs.paths import AttemptFolder, DataRoot
from jobs.results import Result
from jobs.settings import Settings
from jobs.specs import Kind, kind_of
from jobs.values import devices_of, named_together

_ABSOLUTE_PATH = re.compile(r"(?<![\w.])/[^\s'\"`:,;()<>]+")
_LONGEST_DETAIL = 500


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is told besides `start.json` of its attempt folder. `recipes` is a module with `recipe(kind)`."""

    attempt_folder: str
    runner_id: str
    device_name: str
    cores: int
    recipes: str


def run(assignment: Assignment, doorbell: int) -> int:
    """Do the work; the exit status. The journal has the last line unless the work was stopped early."""
    stop = Stop()
    stop.listen()
    work = _work(assignment, doorbell, stop)
    work.journal.state(
        events.JobStarted,
        device=named_together((work.device, *work.others)),
        device_name=assignment.device_name,
        runner_id=assignment.runner_id,
    )
    try:
        use_only(work.device)
        result = _recipe(assignment, kind_of(work.spec))(work)
    except Stopped:
        return 0
    except Exception as error:
        with contextlib.suppress(OSError):  # the log may lie on the disk that is full
            traceback.print_exc()
        if stop.wanted != "cancel":  # what breaks while it is being cancelled is cancelled
            reason, detail = explain(error)
            work.journal.state(events.JobFailed, reason=reason, detail=detail)
        return 1
    work.journal.state(events.JobCompleted, result=result)
    return 0


def explain(error: BaseException) -> tuple[FailureReason, str]:
    """Why a job failed, as the closed set's member and a sentence for the user; the traceback is not for them."""
    if isinstance(error, errors.JobFailed):
        return error.reason, error.message
    if isinstance(error, MemoryError) or _is_out_of_device_memory(error):
        return _default(errors.OutOfMemory)
    if errors.is_disk_full(error):
        return _default(errors.DiskFull)
    if isinstance(error, errors.TrainingError):
        return FailureReason.INTERNAL, error.message
    said = _ABSOLUTE_PATH.sub("…", str(error).strip().partition("\n")[0])[:_LONGEST_DETAIL]
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return FailureReason.INTERNAL, f"The job met a fault ({what}). Its output.log has the traceback."


def _default(kind: type[errors.JobFailed]) -> tuple[FailureReason, str]:
    return kind.reason, kind().message


def _is_out_of_device_memory(error: BaseException) -> bool:
    torch: Any = sys.modules.get("torch")  # work that never used torch does not load it for this
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def use_only(device: str) -> None:
    """Make this GPU the process's own, or hide all of them; before anything initialises CUDA."""
    if device.startswith("cuda"):
        torch: Any = import_module("torch")  # work on the CPU may not need it
        torch.cuda.set_device(device)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _recipe(assignment: Assignment, kind: Kind) -> Callable[[Work[Any]], Result]:
    run_of_kind: Callable[[Work[Any]], Result] = import_module(assignment.recipes).recipe(kind)
    return run_of_kind


def _work(assignment: Assignment, doorbell: int, stop: Stop) -> Work[Any]:
    settings = Settings.from_environment()
    root = DataRoot(settings.data_folder)
    folder = AttemptFolder(Path(assignment.attempt_folder))
    start = msgspec.json.decode(folder.start.read_bytes(), type=commands.Start)
    device, *others = devices_of(start.device)
    return Work(
        job_id=start.job_id,
        attempt=start.attempt,
        spec=start.spec,
        device=device,
        cores=assignment.cores,
        root=root,
        folder=folder,
        journal=Journal(root, folder, start.job_id, doorbell),
        stop=stop,
        settings=settings,
        others=tuple(others),
        recorded=start.recorded,
    )


def main(arguments: list[str]) -> int:
    doorbell, assignment = arguments
    os.set_inheritable(int(doorbell), False)  # programs the work starts must not ring it
    return run(msgspec.json.decode(assignment, type=Assignment), int(doorbell))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
