"""Named points at which a process of the product kills itself, put around its functions by the tests' own programs.

A world arms a seam by writing a number into `<data root>/seams/<name>`: the process that passes it for the n-th time
from then on takes the file away and dies by SIGKILL. The product knows nothing of this.
"""

import functools
import inspect
import os
import signal
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

FUNCTIONS = {
    "service": {
        "commit": "service.store:Store.write",
        "command": "jobs.bus:Bus.send",
        "events-read": "jobs.bus:Bus.read_events",
        "catch-up": "service.recorder:Recorder.catch_up",
        "database-tidied": "service.store:Store.checkpoint",
    },
    "runner": {
        "xadd": "jobs.bus:Bus.publish",
        "start-written": "gpu_runner.attempts:_write_start",
        "lock-made": "gpu_runner.survivors:AttemptLock.create",
        "enqueued": "gpu_runner.intake:Intake._enqueue",
        "forked": "gpu_runner.forker:Forker.fork",
        "last-line": "gpu_runner.journal:append_last",
        "concluded": "gpu_runner.attempts:Attempt.conclude",
        "let-go": "gpu_runner.attempts:Attempts.forget",
        "recovered": "gpu_runner.attempts:Attempts.recover",
    },
    "child": {
        "line": "gpu_runner.journal:Journal._write",
        "journal-synced": "gpu_runner.journal:Journal.sync",
        "manifest": "gpu_runner.training.checkpoints:_write_manifest",
        "folder-synced": "gpu_runner.training.checkpoints:_sync_folder",
        "rotated": "gpu_runner.training.checkpoints:_remove",
    },
}
"""Program → name → what it is put around. Each gives two seams: `<name>.before` and `<name>.after`."""

TORN = "line.torn"
"""A child dies with half a line in its journal."""

_passed: Counter[str] = Counter()


def names(program: str) -> list[str]:
    """The seams of a program: service, runner or child."""
    around = [f"{name}.{when}" for name in FUNCTIONS[program] for when in ("before", "after")]
    return [*around, TORN] if program == "child" else around


def arm(root: Path, name: str, nth: int) -> None:
    folder = root / "seams"
    folder.mkdir(exist_ok=True)
    draft = root / "seams.draft"
    draft.write_text(str(nth))
    draft.rename(folder / name)


def disarm(root: Path) -> set[str]:
    """Take back what nobody passed; its names."""
    left = set()
    for file in (root / "seams").glob("*"):
        file.unlink(missing_ok=True)
        left.add(file.name)
    return left


def put_into(program: str, root: Path) -> None:
    """In the program itself, before its work begins."""
    for name, place in FUNCTIONS[program].items():
        _surround(place, name, root)
    if program == "child":
        _tear(root)


def _surround(place: str, name: str, root: Path) -> None:
    module, _, path = place.partition(":")
    *owners, attribute = path.split(".")
    owner = functools.reduce(getattr, owners, import_module(module))
    function = getattr(owner, attribute)  # a name that is gone must fail here, not pass in silence
    setattr(owner, attribute, _with_seams(function, name, root))


def _with_seams(function: Callable[..., Any], name: str, root: Path) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def around_async(*arguments: Any, **named: Any) -> Any:
            _pass(f"{name}.before", root)
            answer = await function(*arguments, **named)
            _pass(f"{name}.after", root)
            return answer

        return around_async

    @functools.wraps(function)
    def around(*arguments: Any, **named: Any) -> Any:
        _pass(f"{name}.before", root)
        answer = function(*arguments, **named)
        _pass(f"{name}.after", root)
        return answer

    return around


def _tear(root: Path) -> None:
    journal: Any = import_module("gpu_runner.journal")
    whole = journal._append_whole

    def append(descriptor: int, line: bytes) -> None:
        _pass(TORN, root, lambda: os.write(descriptor, line[: len(line) // 2]))
        whole(descriptor, line)

    journal._append_whole = append


def _pass(name: str, root: Path, last_deed: Callable[[], Any] = lambda: None) -> None:
    file = root / "seams" / name
    try:
        nth = int(file.read_text())
    except FileNotFoundError:
        return
    _passed[name] += 1
    if _passed[name] < nth:
        return
    try:
        file.unlink()
    except FileNotFoundError:  # another process was the n-th
        return
    last_deed()
    os.kill(os.getpid(), signal.SIGKILL)
