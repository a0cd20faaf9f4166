"""One video of an export, as a reader found it: its name, its annotations and its pictures.

Used by the readers, which make them, and by the convert recipe.
"""

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from gpu_runner.sam2.annotations import AnnotatedFrame, Annotations
from gpu_runner.sam2.sources import Source
from jobs.paths import is_plain

_FRAME_FOLDERS = ("images/", "frames/", "data/", "")
_FRAME_NAMES = ("frame_{:06d}", "frame_{:04d}", "{:06d}", "{:05d}", "{:04d}")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_LONGEST_ID = 100  # characters …
_LONGEST_ID_BYTES = 180  # … which is the name of a folder: 255 bytes are allowed


class Pictures:
    """The pictures of a video: looked for in `folders`, whose names end with `/` or are empty, in turn."""

    def __init__(self, source: Source, folders: Iterable[str]) -> None:
        self._source = source
        self._folders = tuple(folders)

    @cached_property
    def _spellings(self) -> list[tuple[str, str, str]]:  # made when asked for: thousands of files state names instead
        return list(itertools.product(self._folders, _FRAME_NAMES, _SUFFIXES))

    def numbered(self, number: int) -> str | None:
        """The file with a frame's picture."""
        return next((found for each in self._spellings if (found := self._find(each, number))), None)

    def expect_spelling_of(self, number: int) -> None:
        """From here on look first for the spelling of this frame's picture: others of the video are spelled alike."""
        self._spellings.sort(key=lambda each: self._find(each, number) is None)

    def named(self, name: str) -> str | None:
        """The file of that name with the ending of a picture."""
        if not name.lower().endswith(_SUFFIXES):
            return None
        return next((found for folder in self._folders if (found := self._source.find(f"{folder}{name}"))), None)

    def _find(self, spelling: tuple[str, str, str], number: int) -> str | None:
        folder, pattern, suffix = spelling
        return self._source.find(f"{folder}{pattern.format(number)}{suffix}")


@dataclass(frozen=True)
class VideoExport:
    """One video of an export.

    Attributes:
        video_id: its name in the dataset; letters and digits of any script and `._-` only, unique in the export.
    """

    video_id: str
    annotations: Annotations
    pictures: Pictures

    def image_of(self, frame: AnnotatedFrame) -> str | None:
        """The name in the source of a frame's picture."""
        if frame.image is not None:
            return self.pictures.named(frame.image)
        return self.pictures.numbered(frame.frame_index)


def frame_folders(below: str) -> list[str]:
    """Where frames lie below a folder, whose name ends with `/` or is empty."""
    return [f"{below}{folder}" for folder in _FRAME_FOLDERS]


def folder_of(name: str) -> str:
    """The folder of a file, with `/` at its end; empty for the source's own."""
    return name[: name.rfind("/") + 1]


def stem_of(name: str) -> str:
    """A file's name without folders and ending."""
    own = re.split(r"[/\\]", name)[-1]
    return own.rpartition(".")[0] or own


def unique_ids(names: Sequence[str]) -> list[str]:
    """A video id for each name, by changing as little as possible."""
    ids: list[str] = []
    taken: set[str] = set()
    numbers: dict[str, itertools.count[int]] = {}  # those tried already, by name: equal names come by thousands
    for video_id in map(_plain, names):
        free = key = video_id.casefold()
        number = 1
        while free in taken:
            number = next(numbers.setdefault(key, itertools.count(2)))
            free = f"{key}.{number}"
        taken.add(free)
        ids.append(video_id if number == 1 else f"{video_id}.{number}")
    return ids


def _plain(text: str) -> str:
    """A name that can be that of a folder; where it had to change, so that two might meet, with a hash of the whole."""
    text = unicodedata.normalize("NFC", text)
    kept = "".join(each if each in "._-" or _is_of_a_word(each) else " " for each in text)
    whole = re.sub(" +", "_", kept).strip("._")
    plain = whole[:_LONGEST_ID].encode()[:_LONGEST_ID_BYTES].decode(errors="ignore")
    has_lost = any(there == " " and not each.isascii() for each, there in zip(text, kept, strict=True))
    if plain and not is_plain(plain):  # a device of Windows: no client could name the folder
        plain = f"video_{plain}"
    if has_lost or plain != whole or (text and not plain):
        return f"{plain or 'video'}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"
    return plain or "video"


def _is_of_a_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")
