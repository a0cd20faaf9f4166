"""Which format an export has, seen from the keys of its JSON files: enough of each is read to tell, no more."""

import itertools
from collections.abc import Collection, Sequence
from enum import StrEnum
from pathlib import PurePosixPath
from typing import NamedTuple

from gpu_runner.sam2 import json_stream
from gpu_runner.sam2.json_stream import BadJson
from gpu_runner.sam2.sources import Source
from jobs.errors import DatasetInvalid

_EVENTS = 1_000_000  # of a file that looks like none of ours; then what was found so far is said
_SHOWN = 10
_LONGEST_KEY = 40


class SourceFormat(StrEnum):
    """Where a source has files of several formats, the first one here is meant."""

    SAM2 = "sam2"  # an annotations.json of the SAM2 annotation tool for each video
    SAV = "sa-v"  # masklets of SA-V, a file for each video
    COCO = "coco"  # COCO instances, a file for many pictures
    SA1B = "sa-1b"  # masks of SA-1B, a file for each picture


class Detected(NamedTuple):
    """The format, the names of the files that have it, and of those that have another."""

    format: SourceFormat
    names: list[str]
    others: list[str]


def detect(source: Source) -> Detected:
    """Raises DatasetInvalid when nothing is known, naming what was found."""
    documents = source.documents()
    by_format: dict[SourceFormat, list[str]] = {}
    unknown: list[str] = []
    for name in documents:
        try:
            look = _look(source, name)
        except BadJson:
            if PurePosixPath(name).name == "annotations.json" or len(documents) == 1:
                raise
            unknown.append(f"{name} (no JSON)")
            continue
        if look.format is not None:
            by_format.setdefault(look.format, []).append(name)
        else:
            unknown.append(f"{name} ({', '.join(key[:_LONGEST_KEY] for key in look.keys[:_SHOWN]) or 'nothing'})")
    for known in SourceFormat:
        if known in by_format:
            others = [name for other, names in by_format.items() if other is not known for name in names]
            return Detected(known, by_format[known], others)
    raise DatasetInvalid(_nothing_known(unknown))


class _Look(NamedTuple):
    format: SourceFormat | None
    keys: list[str]


def _look(source: Source, name: str) -> _Look:
    keys: dict[str, None] = {}  # of the outermost object, in order
    inner: set[str] = set()  # of the objects in its list of annotations
    key, depth = "", 0
    for event, value in itertools.islice(json_stream.events(source, name), _EVENTS):
        if event == "map_key" and depth == 1:
            key = value
            keys[key] = None
        elif event == "map_key" and depth == 3 and key == "annotations" and value not in inner:
            inner.add(value)
        elif event in ("start_map", "start_array"):
            depth += 1
            continue
        elif event in ("end_map", "end_array"):
            depth -= 1
            continue
        else:
            continue
        if found := _format_of(keys, inner):
            return _Look(found, [])
    return _Look(SourceFormat.SAM2 if list(keys) == ["annotations"] else None, list(keys))


def _format_of(keys: Collection[str], inner: Collection[str]) -> SourceFormat | None:
    """What those keys are enough to tell."""
    if "annotations" in keys and ("frame_index" in inner or "video" in keys or "export_config" in keys):
        return SourceFormat.SAM2
    if "masklet" in keys or "masklet_id" in keys:
        return SourceFormat.SAV
    if "images" in keys or "categories" in keys or "image_id" in inner:
        return SourceFormat.COCO
    if "annotations" in keys and "image" in keys:
        return SourceFormat.SA1B
    return None


def _nothing_known(unknown: Sequence[str]) -> str:
    if not unknown:
        return "The export has no annotations: it holds no JSON file at all. Export again from the annotation tool."
    return (
        f"The export has no annotations of a known format. Its JSON files hold: {'; '.join(unknown[:_SHOWN])}. Known "
        "are the SAM2 annotation tool's annotations.json, SA-V, SA-1B and COCO instances."
    )
