"""`manifest.json` of a dataset folder: what it was made from, how, and the SHA-256 of every file in it.

Written by the convert recipe. Nothing in it depends on the time or the place, so converting twice gives equal bytes.
"""

import hashlib
from importlib import metadata
from pathlib import Path

import msgspec

from jobs.specs import DataFormat, MaskOrder, TargetTask

MANIFEST = "manifest.json"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How it was asked for."""

    target_format: DataFormat
    task: TargetTask
    mask_order: MaskOrder
    keep_empty_frames: bool
    seed: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`mask_order` is the order that was used; `files` are SHA-256 in hex by path below the folder."""

    made_by: str
    software_version: str
    source_sha256: str
    options: Options
    mask_order: MaskOrder
    videos: tuple[str, ...]
    rows: int
    objects: int
    skipped_frames: int
    labels: dict[str, int]
    files: dict[str, str]


def write(folder: Path, manifest: Manifest) -> None:
    content = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2)
    (folder / MANIFEST).write_bytes(content + b"\n")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def software_version() -> str:
    try:
        return metadata.version("training-api")
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "unreleased"
