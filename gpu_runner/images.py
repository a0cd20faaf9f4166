"""Opening pictures that somebody else made: three formats, one frame, a limited size.

Used by `rows` (training), `sam2.conversion` and `sam2.probes` (converting) and `sam2.observed` (validating).
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from jobs.values import MAX_PICTURE_BYTES

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 50_000_000


class BadImage(Exception):
    """A picture that cannot be used; the text says why, without naming it."""


class Content(io.BytesIO):
    """An encoded picture in memory. Writing raises BadImage where it is larger than any picture may be."""

    def write(self, block: Any, /) -> int:
        if self.tell() + len(block) > MAX_PICTURE_BYTES:
            raise BadImage(f"it has more than {MAX_PICTURE_BYTES >> 20} MiB")
        return super().write(block)


def read_size(source: Path | BinaryIO) -> tuple[int, int]:
    """Width and height in pixels, from the header alone.

    Raises:
        BadImage: not one of our formats, animated, or beyond the limit.
    """
    with _opened(source) as image:
        return image.size


def read_rgb(source: Path | BinaryIO) -> Image.Image:
    """The decoded picture as RGB.

    Raises:
        BadImage: as `read_size`, or its data is broken.
    """
    with _opened(source) as image:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")  # a copy of 50 million pixels is 150 MB


@contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[Image.Image]:
    try:
        if isinstance(source, Path) and not source.is_file():  # opening a pipe would wait for its writer
            raise BadImage("the file is missing")
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"{image.width}x{image.height} is beyond {MAX_PIXELS // 10**6} million pixels")
            if getattr(image, "is_animated", False):
                raise BadImage("it is an animation")
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"it is no readable PNG, JPEG or WebP ({type(error).__name__})") from None
