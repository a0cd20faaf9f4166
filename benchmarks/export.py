"""Writes a SAM2 export of any size, for `data`: 256 x 256 pictures of about 6 kB, three objects in each.

Every object moves smoothly. An archive is written once and kept; beyond MAX_PICTURES frames pictures repeat, so that
the largest does not take an hour to draw.
"""

import io
import zipfile
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

SIDE = 256
MAX_PICTURES = 10_000
VIDEO_FRAMES = 500
CACHE = Path.home() / ".cache" / "training-api" / "benchmark"

_LABELS = ("forceps", "needle", "thread")
_CELLS = 26  # a picture is this many flat squares across and down, and the objects upon them
_Y, _X = np.mgrid[:SIDE, :SIDE]


def path(frames: int) -> Path:
    """The archive with that many frames, written when it is not there yet."""
    target = CACHE / f"frames-{frames}.zip"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".unfinished")
        _write(unfinished, frames)
        unfinished.replace(target)
    return target


def _write(target: Path, frames: int) -> None:
    drawn: list[tuple[bytes, list[dict[str, object]]]] = []
    with zipfile.ZipFile(target, "w") as archive:
        for begin in range(0, frames, VIDEO_FRAMES):
            folder, stated = f"video_{begin // VIDEO_FRAMES:04d}", []
            for index in range(min(VIDEO_FRAMES, frames - begin)):
                if begin + index < MAX_PICTURES:
                    drawn.append(_draw(begin + index))
                picture, objects = drawn[(begin + index) % MAX_PICTURES]
                archive.writestr(f"{folder}/images/frame_{index:06d}.png", picture)
                stated.append({"frame_index": index, "timestamp_sec": index / 10, "objects": objects})
            video = {"filename": f"{folder}.mp4", "width": SIDE, "height": SIDE}
            whole = msgspec.json.encode({"video": video, "export_config": {}, "annotations": stated})
            archive.writestr(f"{folder}/annotations.json", whole, zipfile.ZIP_DEFLATED)


def _draw(number: int) -> tuple[bytes, list[dict[str, object]]]:
    """A picture as PNG, and its objects as an exporter states them."""
    cells = np.random.default_rng(number).integers(0, 256, (_CELLS, _CELLS, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(cells).resize((SIDE, SIDE), Image.Resampling.NEAREST)).copy()
    masks, objects = _objects(number % VIDEO_FRAMES)
    for object_id, mask in enumerate(masks):
        pixels[mask] = (40 + 70 * object_id, 200 - 60 * object_id, 90)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue(), objects


@lru_cache(VIDEO_FRAMES)  # the same in every video
def _objects(index: int) -> tuple[list[np.ndarray], list[dict[str, object]]]:
    """Three ellipses on their orbits: their masks, bool (SIDE, SIDE), and what is stated about them."""
    masks, objects = [], []
    for number, label in enumerate(_LABELS):
        angle = index / 80 + 2.1 * number
        x, y = SIDE / 2 + 70 * np.cos(angle), SIDE / 2 + 70 * np.sin(angle)
        mask = ((_X - x) / (25 + 5 * number)) ** 2 + ((_Y - y) / 30) ** 2 <= 1
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
        runs = " ".join(map(str, _runs(mask)))
        stated: dict[str, object] = {"object_id": number, "label": label, "mask_rle": runs, "bbox": box}
        masks.append(mask)
        objects.append({**stated, "area": int(mask.sum()), "confidence": 0.9})
    return masks, objects


def _runs(mask: np.ndarray) -> list[int]:
    """Run lengths, column by column, beginning with background."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    bounds = np.flatnonzero(flat[1:] != flat[:-1])
    edges = np.concatenate([[0], bounds, [mask.size]])
    runs: list[int] = np.diff(edges).tolist()
    return runs if runs[-1] else runs[:-1]
