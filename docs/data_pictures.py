"""Renders the pictures of docs/data.md from the product's own sample export, into docs/pictures/.

    python docs/data_pictures.py

They show the two traps of genuine exports. The same bytes every time.
"""

import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gpu_runner.sam2 import masks, sample

FOLDER = Path(__file__).parent / "pictures"
GRID = 256  # the square that SAM2's masks have, whatever the frame's shape
PANEL = (320, 256)
MARGIN, CAPTION = 8, 26
PAPER, INK = (250, 250, 250), (30, 30, 30)
PAINT = (255, 0, 255)
SCENE = 18  # a frame of the sample whose object lies off the diagonal


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    frame, mask, label = read_sample()
    counts = masks.count_runs(mask.ravel())  # along the rows, as genuine exporters write them
    as_meant = counts_to_mask(counts, order="C")
    as_read = counts_to_mask(counts, order="F")
    save(
        "row-major.png",
        ("read along the rows, as written", painted(frame, as_meant)),
        ("read down the columns, as COCO says", painted(frame, as_read)),
    )
    save(
        "overlay.png",
        ("the frame as it was filmed", frame),
        ("the frame as it is exported", annotated(frame, as_meant, label)),
    )


def read_sample() -> tuple[Image.Image, np.ndarray, str]:
    """A frame of the sample, its mask on SAM2's grid, and its label."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "sample.zip"
        sample.write_sample(archive, videos=1)
        with zipfile.ZipFile(archive) as opened:
            stated = json.loads(opened.read("sample_00/annotations.json"))["annotations"][SCENE]
            picture = opened.read(f"sample_00/images/frame_{stated['frame_index']:06d}.png")
    (found,) = stated["objects"]
    runs = np.array(found["mask_rle"].split(), dtype=np.int64)
    whole = masks.paint(runs).reshape(sample.WIDTH, sample.HEIGHT).T
    grid = Image.fromarray(whole).resize((GRID, GRID), Image.Resampling.NEAREST)
    frame = Image.open(io.BytesIO(picture)).resize(PANEL, Image.Resampling.BICUBIC)
    return frame, np.asarray(grid), found["label"]


def counts_to_mask(counts: np.ndarray, order: Literal["C", "F"]) -> np.ndarray:
    return masks.paint(counts).reshape((GRID, GRID), order=order)


def painted(frame: Image.Image, mask: np.ndarray) -> Image.Image:
    """The frame with the mask over it, stretched to the frame."""
    over = Image.fromarray((mask * 150).astype(np.uint8)).resize(PANEL, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", PANEL, PAINT), frame, over)


def annotated(frame: Image.Image, mask: np.ndarray, label: str) -> Image.Image:
    """The frame as the annotation tool leaves it: tinted, outlined, the answer written beside."""
    picture = painted(frame, mask)
    draw = ImageDraw.Draw(picture)
    ys, xs = np.nonzero(mask)
    scale = np.array(PANEL) / GRID
    left, top, right, bottom = (*np.array([xs.min(), ys.min()]) * scale, *np.array([xs.max(), ys.max()]) * scale)
    draw.rectangle([left, top, right, bottom], outline=PAINT, width=3)
    draw.rectangle([left, top - 22, left + 64, top], fill=PAINT)
    draw.text((left + 6, top - 20), label, fill="white", font=ImageFont.load_default(16))
    return picture


def save(name: str, *panels: tuple[str, Image.Image]) -> None:
    """The panels side by side, each above its caption; few colours keep the file small."""
    width, height = PANEL
    sheet = Image.new("RGB", (len(panels) * (width + MARGIN) + MARGIN, height + MARGIN + CAPTION), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (caption, picture) in enumerate(panels):
        left = MARGIN + place * (width + MARGIN)
        sheet.paste(picture, (left, MARGIN))
        draw.text((left, height + MARGIN + 5), caption, fill=INK, font=ImageFont.load_default(14))
    sheet.quantize(48, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)


if __name__ == "__main__":
    main()
