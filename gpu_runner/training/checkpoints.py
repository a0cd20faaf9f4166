"""Checkpoints: folders that either verify as a whole or don't count.

`step-<k>/` holds `model/` (weights with processor, or adapters), `state.pt` (optimiser, schedule, RNG, sums) and, last
of all, `MANIFEST.json` with the size and SHA-256 of every file, put in place by rename. Written by the training
loop below its own attempt; read by later attempts, evaluation and export. No torch here: only files.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec

from gpu_runner.journal import last_event
from jobs.errors import ModelUnavailable
from jobs.events import JobCompleted
from jobs.paths import DataRoot

MANIFEST = "MANIFEST.json"
FEWEST_KEPT = 2  # so that a broken newest one still leaves a good one

OnRemoval = Callable[[int, Path], None]
"""Gets the step and the folder of a checkpoint that goes."""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a checkpoint; `path` is relative to its folder."""

    path: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint is and which bytes it consists of. `model_name` is the base model as the client named it.

    `judged_by` is the metric that tells a job's best checkpoint, `bits` are those of the base with method qlora.
    `attempt` wrote it, when its journal had so many `lines`.
    """

    job_id: str
    attempt: int
    step: int
    method: Literal["full", "lora", "qlora"]
    model_name: str
    metrics: dict[str, float]
    judged_by: str = "eval_loss"
    higher_is_better: bool = False
    bits: Literal[4, 8] = 4
    lines: int = 0
    files: tuple[File, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def model(self) -> Path:
        """A folder for from_pretrained of transformers (method full) or peft."""
        return self.folder / "model"

    @property
    def state(self) -> Path:
        return self.folder / "state.pt"

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.manifest.files)

    @property
    def model_bytes(self) -> int:
        return sum(file.size_bytes for file in self.manifest.files if file.path.startswith("model/"))


def write(
    parent: Path, manifest: Manifest, fill: Callable[[Checkpoint], None], before_manifest: Callable[[], None]
) -> Checkpoint:
    """Make a checkpoint below `parent`; `fill` writes its files, `before_manifest` secures what it rests on.

    It counts from the moment the manifest is renamed. Whatever goes wrong before leaves nothing behind.
    """
    checkpoint = Checkpoint(parent / f"step-{manifest.step}", manifest)
    checkpoint.model.mkdir(parents=True)
    try:
        fill(checkpoint)
        files = tuple(_secured(checkpoint.folder))
        before_manifest()
        complete = msgspec.structs.replace(manifest, files=files)
        _write_manifest(checkpoint.folder, complete)
    except BaseException:
        shutil.rmtree(checkpoint.folder, ignore_errors=True)
        raise
    _sync_folder(parent)
    return Checkpoint(checkpoint.folder, complete)


def verify(folder: Path) -> Checkpoint | None:
    """The checkpoint in a folder if every file is there with the size and hash its manifest says, else None."""
    manifest = _read_manifest(folder)
    if manifest is None or not all(_is_whole(folder / file.path, file) for file in manifest.files):
        return None
    return Checkpoint(folder, manifest)


def of_job(root: DataRoot, job_id: str) -> Checkpoint:
    """The checkpoint that stands for a job: its best if that verifies, else the newest that does.

    Raises:
        ModelUnavailable: no checkpoint of the job is whole.
    """
    best = best_folder(root, job_id)
    found = (verify(best) if best else None) or newest_verified(root, job_id)
    if found is None:
        raise ModelUnavailable(f"Job {job_id} has no complete checkpoint: train it first, or choose another job.")
    return found


def to_continue(root: DataRoot, job_id: str, step: int | None) -> Checkpoint:
    """The checkpoint another job begins with: that of the step if one is named, else what stands for a job that is
    completed, and the newest whole one of a job that ended otherwise or is paused.

    Raises:
        ModelUnavailable: there is none that is whole.
    """
    if step is not None:
        return _of_step(root, job_id, step)
    if _is_completed(root, job_id):
        return of_job(root, job_id)
    found = newest_verified(root, job_id)
    if found is None:
        raise ModelUnavailable(f"Job {job_id} has no complete checkpoint: continue another job, or none.")
    return found


def _of_step(root: DataRoot, job_id: str, step: int) -> Checkpoint:
    folders = _of_attempts(root, job_id)
    found = next((found for folder in folders if _step_of(folder) == step and (found := verify(folder))), None)
    if found is None:
        whole = ", ".join(str(each) for each in sorted({_step_of(folder) for folder in folders if verify(folder)}))
        raise ModelUnavailable(
            f"Job {job_id} has no complete checkpoint of step {step}: "
            + (f"set continue_from_step to one of {whole}." if whole else "continue another job, or none.")
        )
    return found


def _is_completed(root: DataRoot, job_id: str) -> bool:
    """As its journals say."""
    return any(isinstance(last_event(attempt.journal), JobCompleted) for attempt in root.attempts(job_id))


def best_folder(root: DataRoot, job_id: str) -> Path | None:
    """The checkpoint with the best value of what the job is judged by, verified or not; of equal ones the newest.
    None when none was evaluated."""
    values: dict[Path, float] = {}
    for folder in _of_attempts(root, job_id):
        manifest = _read_manifest(folder)
        if manifest is not None and manifest.judged_by in manifest.metrics:
            value = manifest.metrics[manifest.judged_by]
            values[folder] = value if manifest.higher_is_better else -value
    return max(values, key=lambda folder: (values[folder], _step_of(folder)), default=None)


def newest_verified(root: DataRoot, job_id: str) -> Checkpoint | None:
    """The checkpoint of the highest step over all attempts that verifies; broken ones are passed over."""
    return next((found for found in map(verify, _of_attempts(root, job_id)) if found is not None), None)


def rotate(parent: Path, keep: int, best: Path | None, before_removal: OnRemoval) -> None:
    """Remove the oldest checkpoints of one attempt beyond `keep`, but never the best, nor one that is needed to have
    two that verify.

    Folders without a readable manifest don't count and are left alone. `before_removal` hears of each one while it is
    still there: whoever dies in between must not leave one that is listed and gone.
    """
    complete = [folder for folder in sorted(_step_folders(parent), key=_step_of) if _read_manifest(folder)]
    spare = complete[: -max(FEWEST_KEPT, keep)]
    if not spare:
        return  # the common case costs no hashing
    needed = islice((folder for folder in reversed(complete) if verify(folder)), FEWEST_KEPT)
    kept = {best, *needed}
    _remove([folder for folder in spare if folder not in kept], before_removal)


def take_over(root: DataRoot, job_id: str, attempt: int) -> list[Checkpoint]:
    """Move into an attempt's own folder what it needs of earlier ones: the two newest whole ones, and the best.

    Newest first. An earlier attempt that is still at work cannot remove what was moved.
    """
    own = root.attempt(job_id, attempt).checkpoints
    own.mkdir(parents=True, exist_ok=True)
    best = best_folder(root, job_id)
    taken: list[Checkpoint] = []
    for folder in _of_attempts(root, job_id, before=attempt):
        if len(taken) < FEWEST_KEPT or folder == best:
            moved = _moved(folder, own)
            taken += [moved] if moved else []
    return taken


def discard_earlier(root: DataRoot, job_id: str, attempt: int, before_removal: OnRemoval) -> None:
    """Remove what earlier attempts left, once this one has what it needs; nothing of a later one, which may be there.

    What was killed before its manifest was written was never listed: it goes in silence.
    """
    earlier = _of_attempts(root, job_id, before=attempt)
    _remove([folder for folder in earlier if _read_manifest(folder)], before_removal)
    for folder in earlier:
        shutil.rmtree(folder, ignore_errors=True)


def _moved(folder: Path, parent: Path) -> Checkpoint | None:
    """A whole checkpoint in its new place; None for one that is broken, or that went meanwhile."""
    found = verify(folder)
    if found is None:
        return None
    target = parent / folder.name
    try:
        folder.rename(target)
    except OSError:  # removed meanwhile, or the same step of another attempt came first
        return None
    _sync_folder(parent)
    # Whoever removes one takes its manifest first: with it in its new place the rest is there too.
    return Checkpoint(target, found.manifest) if _read_manifest(target) else None


def _remove(folders: list[Path], before_removal: OnRemoval) -> None:
    for folder in folders:
        before_removal(_step_of(folder), folder)
        try:
            (folder / MANIFEST).unlink()  # first, so that a half-removed one never counts
        except FileNotFoundError:  # a later attempt took it over
            continue
        shutil.rmtree(folder, ignore_errors=True)


def _of_attempts(root: DataRoot, job_id: str, before: float = math.inf) -> list[Path]:
    """The checkpoint folders of a job's attempts, or of those before one, whole or not, of the highest step first; of
    equal steps the newest attempt's."""
    attempts = [attempt for attempt in root.attempts(job_id) if attempt.number < before]
    folders = [folder for attempt in attempts for folder in _step_folders(attempt.checkpoints)]
    return sorted(folders, key=_step_of, reverse=True)


def _secured(folder: Path) -> Iterator[File]:
    """Every file of the folder, brought to the disk and hashed; then its folders."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield File(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=digest)
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            _sync_folder(path)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    partial = folder / f"{MANIFEST}.partial"
    with partial.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest)))
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / MANIFEST)
    _sync_folder(folder)


def _read_manifest(folder: Path) -> Manifest | None:
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _is_whole(path: Path, expected: File) -> bool:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != expected.size_bytes:
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == expected.sha256
    except OSError:
        return False


def _step_folders(parent: Path) -> list[Path]:
    return [folder for folder in parent.glob("step-*") if folder.name.removeprefix("step-").isdigit()]


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
