"""A SAM2 export: one archive with one or several videos, each with its annotations and frames.

A video is a folder that holds `annotations.json` (the archive's root may be one), with its frames in `images/`,
`frames/`, `data/` or beside it. Read by the convert recipe.
"""

import itertools
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gpu_runner.sam2.annotations import Annotations
from jobs.archive import Archive
from jobs.errors import DatasetInvalid

ANNOTATIONS = "annotations.json"
_FRAME_FOLDERS = ("images", "frames", "data", "")
_FRAME_NAMES = ("frame_{:06d}", "frame_{:04d}", "{:06d}", "{:05d}", "{:04d}")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class VideoExport:
    """One video of an export.

    Attributes:
        video_id: its name in the dataset; letters, digits and `._-` only, unique in the export.
        annotations: its frames and objects.
    """

    def __init__(self, video_id: str, annotations: Annotations, images: dict[str, str]) -> None:
        self.video_id = video_id
        self.annotations = annotations
        self._images = images

    def image_of(self, frame_index: int) -> str | None:
        """The name in the archive of a frame's picture."""
        for pattern in _FRAME_NAMES:
            stem = pattern.format(frame_index)
            for suffix in _SUFFIXES:
                found = self._images.get(f"{stem}{suffix}")
                if found is not None:
                    return found
        return None


def read_videos(archive: Archive, scratch: Path) -> list[VideoExport]:
    """Every video of the archive, in the order of their folders' names.

    Raises:
        DatasetInvalid: there is none, or its annotations cannot be read.
    """
    visible = [name for name in archive.names if not _is_hidden(name)]
    found = sorted(name for name in visible if PurePosixPath(name).name == ANNOTATIONS)
    if not found:
        raise DatasetInvalid(_nothing_found(visible))
    annotations = [_read(archive, name, scratch) for name in found]
    folders = [name.removesuffix(ANNOTATIONS) for name in found]
    ids = _video_ids(folders, [each.video.filename for each in annotations])
    return [
        VideoExport(video_id, each, _images_below(folder, visible))
        for video_id, each, folder in zip(ids, annotations, folders, strict=True)
    ]


def _read(archive: Archive, name: str, scratch: Path) -> Annotations:
    with tempfile.TemporaryFile(dir=scratch) as file:  # the mapping outlives the file
        archive.copy(name, file)
        file.flush()
        return Annotations(name, file)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _images_below(folder: str, names: Sequence[str]) -> dict[str, str]:
    """Entry names of a video's pictures by lower-case file name; the first frame folder that has one wins."""
    places = {f"{folder}{place}/" if place else folder: rank for rank, place in enumerate(_FRAME_FOLDERS)}
    best: dict[str, tuple[int, str]] = {}
    for name in names:
        parent, slash, file = name.rpartition("/")
        rank = places.get(parent + slash)
        key = file.lower()
        if rank is not None and key.endswith(_SUFFIXES) and (key not in best or rank < best[key][0]):
            best[key] = (rank, name)
    return {key: name for key, (_, name) in best.items()}


def _video_ids(folders: Sequence[str], filenames: Sequence[str]) -> list[str]:
    """Names from the videos' files; from their folders where files don't tell them apart."""
    ids = [_plain(PurePosixPath(filename.replace("\\", "/")).stem) for filename in filenames]
    if len({video_id.casefold() for video_id in ids}) < len(ids):
        ids = [_plain(folder.rstrip("/").replace("/", "_")) for folder in folders]
    unique: dict[str, str] = {}
    for video_id in ids:
        numbered = itertools.chain([video_id], (f"{video_id}.{number}" for number in itertools.count(2)))
        free = next(name for name in numbered if name.casefold() not in unique)
        unique[free.casefold()] = free
    return list(unique.values())


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._")[:100] or "video"


def _nothing_found(names: Sequence[str]) -> str:
    others = [name for name in names if name.endswith(".json")][:5]
    found = f"its JSON files are {', '.join(others)}" if others else "it holds no JSON file at all"
    return f"The archive has no {ANNOTATIONS}, {found}. Export again from the SAM2 annotation tool."
