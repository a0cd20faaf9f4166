"""Deleting folders: first out of sight by one rename, then away. Used by `dispatch.py`.

Nothing is deleted through a link: a link that stands where a folder should be is itself what goes.
"""

import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from jobs.paths import DataRoot


class Trash:
    """The folder `.trash` of a data root. What a crash left there goes with the next deletion."""

    def __init__(self, root: DataRoot) -> None:
        self._folder = root.trash

    def discard(self, folders: Iterable[Path]) -> None:
        """Take folders out of sight; absent ones are no error."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for folder in folders:
            if os.path.lexists(folder):
                folder.rename(self._folder / f"{folder.name}.{secrets.token_hex(4)}")

    def empty(self) -> None:
        for entry in self._folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
