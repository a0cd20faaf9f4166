"""`manifest.json` of a dataset folder: what it was made from and how. `SHA256SUMS` beside it has every file's digest.

Written by the convert recipe; read when a dataset grows or is validated, and by the service. It stays small, however
many pictures there are. Nothing in it depends on the time or the place, so converting twice gives equal bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import msgspec

from gpu_runner.lines import Lines, decode_line
from gpu_runner.rows import Row
from jobs.paths import DIGESTS, LEFT_OUT, MANIFEST
from jobs.specs import DataFormat, Kind, MaskOrder, TargetTask

_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How it was asked for: all options of a conversion. Of a dataset that grew, those of the last one."""

    target_format: DataFormat
    task: TargetTask
    mask_order: MaskOrder
    keep_empty_frames: bool
    embed_images: bool = True
    seed: int


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """An export that went in, by the name of its upload. `mask_order` is the order that was used, and why."""

    sha256: str
    upload: str = ""
    format: str = ""
    mask_order: MaskOrder
    mask_order_reason: str = ""


class Left(NamedTuple):
    """A frame of an export that is not in the dataset, because nothing is annotated in it."""

    video_id: str
    frame_index: int


class Contents:
    """Counts of what was written into a dataset. `labels` are objects by label, `videos` in order of appearance.

    `left_out` are frames known to be left out; one that comes as a row after all is none of them any more.
    """

    def __init__(self, left_out: Iterable[Left] = ()) -> None:
        self.left_out = set(left_out)
        self.rows = self.objects = 0
        self.labels: Counter[str] = Counter()
        self.videos: dict[str, None] = {}

    def count(self, row: Row) -> None:
        self.rows += 1
        self.objects += len(row.labels)
        self.labels.update(row.labels)
        self.videos[row.video_id] = None
        self.left_out.discard(Left(row.video_id, row.frame_index))


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`sources` has one entry an export that was merged in; `entries` are the names in its folder.

    `skipped_frames` counts the frames of all its exports that are not in it; `left_out.jsonl` names them.
    """

    made_by: str
    software_version: str
    sources: tuple[Source, ...] = ()
    options: Options
    videos: tuple[str, ...]
    rows: int
    objects: int
    labels: dict[str, int]
    skipped_frames: int = 0
    entries: tuple[str, ...] = ()


def of(options: Options, sources: Sequence[Source], contents: Contents, files: Iterable[str]) -> Manifest:
    """The manifest of a folder into which a conversion wrote these files."""
    return Manifest(
        made_by=Kind.CONVERT,
        software_version=software_version(),
        sources=tuple(sources),
        options=options,
        videos=tuple(contents.videos),
        rows=contents.rows,
        objects=contents.objects,
        labels=dict(contents.labels),
        skipped_frames=len(contents.left_out),
        entries=tuple(sorted({DIGESTS, *(path.split("/")[0] for path in files)})),
    )


def read(folder: Path) -> Manifest | None:
    """What a folder's manifest says; None where there is none of ours."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def write(folder: Path, manifest: Manifest) -> None:
    content = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2)
    (folder / MANIFEST).write_bytes(content + b"\n")


def read_left_out(folder: Path) -> Iterator[Left]:
    """The frames that a dataset was made without. Raises DatasetInvalid."""
    file = folder / LEFT_OUT
    if file.is_file():
        lines = Lines(file)
        for index in range(len(lines)):
            yield decode_line(_LEFT, lines, index, LEFT_OUT)


def write_left_out(folder: Path, left_out: Iterable[Left]) -> dict[str, str]:
    """Remember them for when the dataset grows; the digest by name of what was written."""
    ordered = sorted(left_out)
    if not ordered:
        return {}
    file = HashedFile(folder / LEFT_OUT)
    for left in ordered:
        file.write(msgspec.json.encode(left) + b"\n")
    file.close()
    return {LEFT_OUT: file.sha256}


_LEFT = msgspec.json.Decoder(Left)


def write_digests(folder: Path, files: Mapping[str, str]) -> None:
    """SHA-256 in hex by path below the folder, as coreutils write them: names that would break a line are escaped."""
    with (folder / DIGESTS).open("w", encoding="utf-8") as lines:
        for path, sha256 in sorted(files.items()):
            escaped = path.translate(_ESCAPES)
            lines.write(f"{'' if escaped == path else chr(92)}{sha256}  {escaped}\n")


class HashedFile:
    """A new file that knows the SHA-256 in hex of what was written to it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, content: "bytes | memoryview") -> None:
        self._file.write(content)
        self._digest.update(content)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def software_version() -> str:
    try:
        return metadata.version("training-api")
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "unreleased"
