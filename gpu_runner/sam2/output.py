"""Folders that data jobs write: made aside, put in place by a rename, replaced only when they are ours.

A folder is ours when its marker file says which kind of job made it, and nothing in it is a stranger's.
Used by the convert, the split and the prepare recipe.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from gpu_runner import staging
from jobs.errors import DiskFull, OutputTaken, is_disk_full
from jobs.paths import MANIFEST, SPLIT_CONFIG, DataRoot
from jobs.specs import Kind

MARKERS = {Kind.CONVERT: MANIFEST, Kind.SPLIT: SPLIT_CONFIG}
SPLIT_FILES = ("train.jsonl", "val.jsonl", "test.jsonl", "guard.jsonl")


class _Marker(msgspec.Struct, frozen=True):
    """What every marker file says; a manifest also lists what is in its folder, an old one all files."""

    made_by: str
    entries: tuple[str, ...] = ()
    files: dict[str, str] = {}


class Staged:
    """What an attempt makes aside: a folder for each name, to be put in place together."""

    def __init__(self, root: DataRoot, folder: Path) -> None:
        self._root, self._folder = root, folder
        self.targets: dict[Path, Path] = {}  # by folder

    def make(self, name: str, kind: Kind) -> Path:
        """An empty folder to fill, which takes the place of the folder called `name`. Its marker file goes into it.

        Raises OutputTaken: the place holds something that no job of this kind made.
        """
        check_free(self._root, name, kind)
        folder = self._folder / kind
        folder.mkdir(parents=True)
        self.targets[folder] = self._root.path_of(name)
        return folder


@contextmanager
def staged(root: DataRoot, job_id: str, attempt: int) -> Iterator[Staged]:
    """What the block makes is put in place when it ends well, all of it or nothing.

    When the block fails, nothing has changed; what killed attempts of the job left behind goes now.

    Raises:
        DiskFull: no space is left.
    """
    staging.remove(root, job_id, attempt)
    folder = staging.dataset(root, job_id, attempt)
    made = Staged(root, folder)
    try:
        yield made
        _put_in_place(root, made.targets)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_free(root: DataRoot, name: str, kind: Kind) -> None:
    """Raises OutputTaken unless the folder is absent, empty or ours."""
    target = root.path_of(name)
    if not target.is_relative_to(root.datasets) or target == root.datasets:
        raise OutputTaken(f"{name} is no place for a dataset: give an output_dir below datasets/.")
    inside = target.parent
    while inside != root.datasets:
        if inside.exists() and not inside.is_dir():
            raise OutputTaken(f"{root.name_of(inside)} is a file: choose another output_dir.")
        inside = inside.parent
    stranger = _stranger(target, kind)
    if stranger is not None:
        raise OutputTaken(
            f"{name} holds {stranger.name!r}, which no {kind} job wrote there: choose another output_dir, "
            "or remove that folder first."
        )


def size_bytes(folder: Path) -> int:
    """Of all files below."""
    return sum(os.lstat(f"{here}/{name}").st_size for here, _, names in os.walk(folder) for name in names)


def folders_inside(folder: Path) -> list[str]:
    """Names of the folders in a converted one that the conversion did not write: splits of it, as a rule."""
    own = _own_entries(folder, Kind.CONVERT)
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name not in own)


def _stranger(folder: Path, kind: Kind) -> Path | None:
    """The first thing in a folder that a job of this kind did not write; folders of ours inside it are no strangers."""
    if not folder.is_dir() or folder.is_symlink():
        return folder if os.path.lexists(folder) else None
    own = _own_entries(folder, kind)
    for entry in sorted(folder.iterdir()):
        if entry.name not in own and not _is_ours(entry):
            return entry
    return None


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and any(
        (folder / MARKERS[kind]).is_file() and not _stranger(folder, kind) for kind in MARKERS
    )


def _own_entries(folder: Path, kind: Kind) -> set[str]:
    """Names of what a job of this kind wrote directly into its folder; none when it has no marker of ours."""
    marker = folder / MARKERS[kind]
    try:
        said = msgspec.json.decode(marker.read_bytes(), type=_Marker)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return set()
    if said.made_by != kind:
        return set()
    written = SPLIT_FILES if kind is Kind.SPLIT else {*said.entries, *(path.split("/")[0] for path in said.files)}
    return {marker.name, *written}


def _put_in_place(root: DataRoot, targets: Mapping[Path, Path]) -> None:
    """Rename each folder to its target; when one cannot be, all are as they were."""
    discarded = []
    with ExitStack() as undo:
        for folder, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                discarded.append(_set_aside(root, target))
                undo.callback(_rename_back, discarded[-1], target)
            _rename(root, folder, target)
            undo.callback(_rename_back, target, folder)
        undo.pop_all()
    for folder in discarded:
        shutil.rmtree(folder, ignore_errors=True)


def _rename(root: DataRoot, folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise OutputTaken(
                f"Another job changed {root.name_of(target)} at the same moment: run this one again."
            ) from None
        raise


def _rename_back(now: Path, before: Path) -> None:
    with suppress(OSError):  # another job took the place: what was there stays in the trash
        now.rename(before)


def _set_aside(root: DataRoot, folder: Path) -> Path:
    root.trash.mkdir(parents=True, exist_ok=True)
    return folder.rename(root.trash / f"{folder.name}-{secrets.token_hex(8)}")
