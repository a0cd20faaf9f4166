"""The model registry: what a client's `model_name` means. Sizes are facts of the published weights.

The service asks it how large a model is (may it run on a CPU?), the runner where its weights come from.
A name that is neither here nor a local folder is taken as a repository of the model hub.
"""

import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from jobs.errors import InvalidInput
from jobs.paths import DataRoot
from jobs.settings import Settings

CPU_LIMIT_PARAMETERS = 300_000_000  # up to this size a run asked for CUDA may use the CPU, and says so
_LONGEST_HEADER = 100 * 2**20  # bytes: the format's own limit
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


class Origin(StrEnum):
    """Where a model's files come from."""

    BUILT_IN = "built_in"  # made from a fixed seed at first use, below <data root>/models
    FOLDER = "folder"  # a folder below one of the model roots
    HUB = "hub"  # a repository of the model hub, or its local cache


class ModelSource(msgspec.Struct, frozen=True, kw_only=True):
    """A resolved model name.

    `location` is a repository name, or an absolute folder. `parameters` is None where it is not known without
    loading. `note` is a sentence for the user where the name means something else than it says.
    """

    name: str
    origin: Origin
    location: str
    parameters: int | None = None
    note: str | None = None


class ListedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model one can choose. `name` is what a config says; `is_local` ones need no hub."""

    name: str
    title: str
    parameters: int | None
    origin: Origin
    is_local: bool
    note: str | None


class KnownModel(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    repository: str
    parameters: int
    note: str | None = None


DEMO_MODEL = "demo-llava"
DEMO_TITLE = "Demo LLaVA, built in"
DEMO_PARAMETERS = 1_219_456

_TWIN = "The weights of {old} are not in the transformers layout; {new} holds the same weights converted, and is used."

KNOWN = {
    "llava-hf/llava-1.5-7b-hf": KnownModel(
        title="LLaVA 1.5 7B", repository="llava-hf/llava-1.5-7b-hf", parameters=7_063_427_072
    ),
    "llava-hf/llava-1.5-13b-hf": KnownModel(
        title="LLaVA 1.5 13B", repository="llava-hf/llava-1.5-13b-hf", parameters=13_351_494_656
    ),
    "liuhaotian/llava-v1.5-7b": KnownModel(
        title="LLaVA 1.5 7B, by its original name",
        repository="llava-hf/llava-1.5-7b-hf",
        parameters=7_063_427_072,
        note=_TWIN.format(old="liuhaotian/llava-v1.5-7b", new="llava-hf/llava-1.5-7b-hf"),
    ),
    "liuhaotian/llava-v1.5-13b": KnownModel(
        title="LLaVA 1.5 13B, by its original name",
        repository="llava-hf/llava-1.5-13b-hf",
        parameters=13_351_494_656,
        note=_TWIN.format(old="liuhaotian/llava-v1.5-13b", new="llava-hf/llava-1.5-13b-hf"),
    ),
}

REFUSED = {
    "Qwen/Qwen-VL-Chat": "Qwen/Qwen-VL-Chat needs code from its repository, which is never run here. "
    "Use its successor Qwen/Qwen2.5-VL-7B-Instruct.",
}


def model_roots(settings: Settings, root: DataRoot) -> list[Path]:
    """Where models may lie: the data root's models folder first, then the further roots of the settings."""
    return [root.models, *map(Path, settings.model_roots)]


def resolve(name: str, model_roots: Sequence[Path]) -> ModelSource:
    """What a client's model name means on this host. Touches the disk only below `model_roots`.

    Raises:
        InvalidInput: the name can never work; the message says what to use instead.
    """
    if name == DEMO_MODEL:
        location = str(model_roots[0] / DEMO_MODEL)
        return ModelSource(name=name, origin=Origin.BUILT_IN, location=location, parameters=DEMO_PARAMETERS)
    if name in REFUSED:
        raise InvalidInput(REFUSED[name], path="config.model_name")
    known = KNOWN.get(name)
    folder = _local_folder(name, model_roots)
    if folder is None and known is not None:
        folder = _local_folder(known.repository, model_roots)
    if folder is not None:  # also of a known model: a host without the hub has its files here
        parameters, note = count_parameters(folder), known.note if known else None
        return ModelSource(name=name, origin=Origin.FOLDER, location=str(folder), parameters=parameters, note=note)
    if known is not None:
        return ModelSource(
            name=name, origin=Origin.HUB, location=known.repository, parameters=known.parameters, note=known.note
        )
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise InvalidInput(
            f"{name!r} is no model: give {DEMO_MODEL!r}, a folder below the model roots, or a hub repository "
            "such as 'llava-hf/llava-1.5-7b-hf'.",
            path="config.model_name",
        )
    return ModelSource(name=name, origin=Origin.HUB, location=name)


def listed(model_roots: Sequence[Path]) -> list[ListedModel]:
    """The models known by name, then the folders below the roots, each by the name that means it."""
    folders: dict[str, Path] = {}
    for root in model_roots:
        folders = dict(_folders(root)) | folders
    known = [_known(resolve(name, model_roots)) for name in (DEMO_MODEL, *KNOWN)]
    others = sorted(folders.keys() - {DEMO_MODEL, *KNOWN, *REFUSED})
    return known + [_own(name, folders[name]) for name in others]


def _known(source: ModelSource) -> ListedModel:
    return ListedModel(
        name=source.name,
        title=KNOWN[source.name].title if source.name in KNOWN else DEMO_TITLE,
        parameters=source.parameters,
        origin=source.origin,
        is_local=source.origin is not Origin.HUB,
        note=source.note,
    )


def _own(name: str, folder: Path) -> ListedModel:
    parameters = count_parameters(folder)
    return ListedModel(name=name, title=name, parameters=parameters, origin=Origin.FOLDER, is_local=True, note=None)


def _folders(folder: Path, prefix: str = "", levels: int = 2) -> Iterator[tuple[str, Path]]:
    """Model folders below a folder, by name: `<name>` or `<organisation>/<name>`; no links, nothing hidden."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
            continue
        path = Path(entry.path)
        if (path / "config.json").is_file():
            yield prefix + entry.name, path
        elif levels > 1:
            yield from _folders(path, f"{prefix}{entry.name}/", levels - 1)


def count_parameters(folder: Path) -> int | None:
    """Parameters of a model folder, from the headers of its safetensors files; None without readable ones.

    Source: the safetensors format: 8 bytes little-endian header length, then JSON with each tensor's shape.
    """
    files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    try:
        return sum(map(_parameters_of, files)) if files else None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, struct.error):
        return None


class _Tensor(msgspec.Struct, frozen=True):
    """What counts of a tensor's entry in the header."""

    shape: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=16)]


_decode_header = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_tensor = msgspec.json.Decoder(_Tensor).decode


def _parameters_of(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = _decode_header(file.read(length) if length <= _LONGEST_HEADER else b"")
    header.pop("__metadata__", None)
    return sum(math.prod(_decode_tensor(entry).shape) for entry in header.values())


def _local_folder(name: str, model_roots: Sequence[Path]) -> Path | None:
    """The folder a name means: absolute below a root, or relative to one (`models/x` is `x` of the first)."""
    for root in model_roots:
        for candidate in (Path(name), root / name, root.parent / name):
            try:
                path = candidate.resolve()
                if candidate.is_absolute() and path.is_relative_to(root.resolve()) and (path / "config.json").is_file():
                    return path
            except (OSError, ValueError):  # too long for the file system, or with a NUL: no folder has such a name
                return None
    return None
