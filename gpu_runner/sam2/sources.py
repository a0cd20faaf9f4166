"""Where an export lies: in a ZIP file, or in a folder below the data root. Both are read through one small interface.

`open_source` is the door, used by the convert recipe; the readers and `conversion` see only a `Source`.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from jobs.archive import Archive
from jobs.errors import DatasetInvalid, FileMissing, PathNotAllowed
from jobs.paths import DataRoot
from jobs.settings import Settings

_BLOCK = 1 << 18


class Readable(Protocol):
    """An open file that is read from its beginning, once."""

    def __enter__(self) -> "Readable": ...

    def __exit__(self, *_: object) -> None: ...

    def read(self, size: int = -1, /) -> bytes: ...


class Source(Protocol):
    """The files of an export by name: relative, with `/`. Whatever cannot be read is DatasetInvalid.

    Forked processes can all use it at once.

    Attributes:
        title: what the whole is called, without ending.
    """

    title: str

    def __enter__(self) -> "Source": ...

    def __exit__(self, *_: object) -> None: ...

    def documents(self) -> list[str]:
        """The names of its JSON files, sorted, without hidden ones."""

    def find(self, name: str) -> str | None:
        """The file of that name, whichever case its letters have; `name` is safe to be anything."""

    def open(self, name: str) -> Readable: ...

    def copy(self, name: str, out: BinaryIO) -> str:
        """Write a file to `out`; its SHA-256 in hex."""

    def allow(self, total: int) -> None:
        """Raises DatasetInvalid when copying so many bytes is more than may come out of the whole."""

    def sha256(self) -> str:
        """Of the whole, in hex."""


def open_source(root: DataRoot, name: str, settings: Settings, check: Callable[[], None]) -> Source:
    """The export of that name; `check` is called while bytes are read and may raise to end it.

    Raises:
        DatasetInvalid: there is none, or it is broken or hostile.
    """
    try:
        path = root.path_of(root.confine_existing(name))
    except (FileMissing, PathNotAllowed):
        raise DatasetInvalid(f"{name} is no file: upload the export as a .zip first.") from None
    return Folder(root, name, check) if path.is_dir() else Zip(path, settings, check)


class Zip(Archive):
    """An archive as a source."""

    def __init__(self, path: Path, settings: Settings, check: Callable[[], None] = lambda: None) -> None:
        super().__init__(path, settings, check)
        self.title = path.stem

    def documents(self) -> list[str]:
        return sorted(name for name in self.names() if _is_document(name))


class Folder:
    """A folder as a source. A link, a pipe or a device in it is refused, wherever it leads."""

    def __init__(self, root: DataRoot, name: str, check: Callable[[], None]) -> None:
        self._root = root
        self._name = name
        self._check = check
        self.title = PurePosixPath(name).name

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def documents(self) -> list[str]:
        return sorted(name for name in self._walk() if _is_document(name))

    def find(self, name: str) -> str | None:
        """Looked for as it is written, and with its ending in small and in capital letters."""
        stem, dot, suffix = name.rpartition(".")
        for spelled in dict.fromkeys((name, f"{stem}{dot}{suffix.lower()}", f"{stem}{dot}{suffix.upper()}")):
            try:
                self._root.confine_existing(f"{self._name}/{spelled}")
            except (FileMissing, PathNotAllowed):
                continue
            return spelled
        return None

    def open(self, name: str) -> BinaryIO:
        self._check()
        try:
            return self._root.open(f"{self._name}/{name}")
        except (FileMissing, PathNotAllowed):
            raise _refusal(name) from None

    def copy(self, name: str, out: BinaryIO) -> str:
        digest = hashlib.sha256()
        with self.open(name) as file:
            while block := file.read(_BLOCK):
                self._check()
                digest.update(block)
                out.write(block)
        return digest.hexdigest()

    def allow(self, total: int) -> None:
        pass  # nothing in a folder is larger than it looks

    def sha256(self) -> str:
        """Over the names of its files and their own hashes, in order."""
        digest = hashlib.sha256()
        for name in self._walk():
            with self.open(name) as file:
                own = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{own}  {name}\n".encode())
        return digest.hexdigest()

    def _walk(self, below: str = "") -> Iterator[str]:
        """Its files, folder by folder, each sorted; hidden ones are passed over. Raises DatasetInvalid."""
        with os.scandir(self._root.path_of(self._name) / below) as entries:
            found = sorted((entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries)
        for own, mode in found:
            self._check()
            name = f"{below}{own}"
            if _is_hidden(own):
                continue
            if stat.S_ISDIR(mode):
                yield from self._walk(f"{name}/")
            elif stat.S_ISREG(mode):
                yield name
            else:
                raise _refusal(name)


def _refusal(name: str) -> DatasetInvalid:
    return DatasetInvalid(
        f"The folder is refused: {name!r} is a link, no ordinary file, or has a name that is not allowed."
    )


def _is_document(name: str) -> bool:
    return name.lower().endswith(".json") and not any(map(_is_hidden, PurePosixPath(name).parts))


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"
