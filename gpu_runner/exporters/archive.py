"""The one ZIP of an export: the same bytes for the same folder. Called by the recipe `export`."""

import hashlib
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

_BLOCK_BYTES = 4 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest a ZIP can say: equal folders give equal archives
_MODE = 0o644 << 16
_LONGEST_STEM = 100


def file_name(name: str, export_format: str) -> str:
    """`<name>-<format>.zip`, of characters that every file system and header takes."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:_LONGEST_STEM]
    return f"{plain or 'export'}-{export_format}.zip"


def pack(folder: Path, archive: Path, beat: Callable[[], None]) -> str:
    """Write every file below `folder` into a ZIP, below one top folder named like it; its SHA-256.

    Stored, not compressed: weights don't shrink. `beat` is called between blocks and may raise. All bytes, also
    those of `folder`, are on the disk when this returns.
    """
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            _add(packed, path, f"{archive.stem}/{path.relative_to(folder).as_posix()}", beat)
    with archive.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add(packed: zipfile.ZipFile, path: Path, name: str, beat: Callable[[], None]) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = _MODE
    entry.file_size = path.stat().st_size  # so that zipfile knows which entries need 64-bit sizes
    with path.open("rb") as file, packed.open(entry, "w") as target:
        os.fsync(file.fileno())
        while block := file.read(_BLOCK_BYTES):
            target.write(block)
            beat()
