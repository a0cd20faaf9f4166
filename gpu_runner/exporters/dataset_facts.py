"""What a model card tells of the data a job was given. Called by `model_card`."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_runner.rows import open_rows
from jobs.errors import JobFailed
from jobs.paths import DataRoot

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class DatasetFacts:
    """The rows a job was given, as they lie there now. `sha256` covers the files that hold the rows."""

    name: str
    rows: int
    sha256: str


def find(root: DataRoot, name: str) -> DatasetFacts | None:
    """What is known of a dataset or split; None when it is not there any more."""
    path = root.path_of(name)
    files = [path] if path.is_file() else sorted([*path.glob("*.jsonl"), *path.glob("*.arrow")])
    digest = hashlib.sha256()
    try:
        rows = len(open_rows(root, name))
        for block in _blocks(files):
            digest.update(block)
    except (JobFailed, OSError):
        return None
    return DatasetFacts(name, rows, digest.hexdigest())


def _blocks(files: Sequence[Path]) -> Iterator[bytes]:
    for path in files:
        with path.open("rb") as file:
            yield from iter(lambda: file.read(_BLOCK_BYTES), b"")
