"""Burnt-in overlays: paint is found in what a tool painted, and nowhere else."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from gpu_runner.rows import Row, open_rows
from gpu_runner.sam2 import masks, overlays
from gpu_runner.sam2.sample import write_sample
from jobs.paths import LLAVA_FILE, DataRoot
from jobs.results import ValidateResult
from jobs.specs import ConvertSpec, PrepareSpec, ValidateSpec

COLOURS = [(230, 40, 40), (40, 90, 230), (40, 200, 60), (220, 200, 30), (200, 60, 220)]
EVERYTHING = {"fill": 0.45, "outline": 2, "text": True}


def paint(
    pixels: np.ndarray, objects: Sequence[tuple[np.ndarray, Any]], *, fill: float, outline: int, text: bool
) -> np.ndarray:
    """What an annotation tool shows: each mask filled with a see-through colour, outlined, its label beside it."""
    for number, (mask, label) in enumerate(objects):
        colour = np.array(COLOURS[number % len(COLOURS)])
        pixels = np.where(mask[..., None], (1 - fill) * pixels + fill * colour, pixels).astype(np.uint8)
        if outline:
            shape = Image.fromarray(mask.astype(np.uint8) * 255)
            edge = np.asarray(shape.filter(ImageFilter.MaxFilter(3))) != np.asarray(
                shape.filter(ImageFilter.MinFilter(3))
            )
            pixels = np.where(edge[..., None], colour, pixels).astype(np.uint8)
        if text:
            picture = Image.fromarray(pixels)
            rows, columns = np.nonzero(mask)
            ImageDraw.Draw(picture).text((int(columns.min()), int(rows.min())), f"{label} 0.98", fill=tuple(colour))
            pixels = np.asarray(picture)
    return pixels


def mask_of(row: Row, number: int) -> np.ndarray:
    """A mask in pixels of the picture."""
    height, width = row.masks[number].size
    grid = masks.paint(masks.read_compressed(str(row.masks[number].counts))).reshape(width, height).T
    return resized(grid, (row.width, row.height))


def paint_dataset(root: DataRoot, name: str, **how: Any) -> None:
    """Its first rows are painted, the others are taken out."""
    file = root.path_of(name) / LLAVA_FILE
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:8]))
    for row in open_rows(root, name):
        path = root.path_of(name) / str(row.image)
        objects = [(mask_of(row, number), label) for number, label in enumerate(row.labels)]
        with Image.open(path) as picture:
            kind, pixels = picture.format, np.asarray(picture.convert("RGB"))
        Image.fromarray(paint(pixels, objects, **how)).save(path, kind, **({"quality": 90} if kind == "JPEG" else {}))


@pytest.fixture
def warned(run: Callable[..., Any], root: DataRoot) -> Callable[[], list[str]]:
    """The messages of the rule about the dataset `datasets/d`."""

    def validate() -> list[str]:
        result: ValidateResult = run(ValidateSpec(data_path="datasets/d"))
        return [finding.message for finding in result.warnings if finding.rule == "burnt_in_overlays"]

    return validate


@pytest.fixture
def convert(run: Callable[..., Any], root: DataRoot) -> Callable[[Path], None]:
    def into_dataset(archive: Path) -> None:
        (root.uploads / "export.zip").write_bytes(archive.read_bytes())
        run(ConvertSpec(sam2_zip_path="uploads/export.zip", output_dir="datasets/d"))

    return into_dataset


def test_our_own_sample_wears_no_paint(
    tmp_path: Path, convert: Callable[[Path], None], warned: Callable[[], list[str]]
) -> None:
    write_sample(tmp_path / "sample.zip", videos=3, frames=20)
    convert(tmp_path / "sample.zip")
    assert warned() == []


@pytest.mark.parametrize(
    "how",
    [
        EVERYTHING,
        {**EVERYTHING, "fill": 0.4, "text": False},
        {"fill": 0.0, "outline": 2, "text": False},
    ],
    ids=["everything", "fill and outline", "outline alone"],
)
def test_paint_on_real_video_frames_is_warned_of_loudly(
    how: dict[str, Any],
    sample_zip: Callable[[str], Path],
    convert: Callable[[Path], None],
    warned: Callable[[], list[str]],
    root: DataRoot,
) -> None:
    convert(sample_zip("bedroom_classical.zip"))
    paint_dataset(root, "datasets/d", **how)
    (message,) = warned()
    assert "WORTHLESS" in message


@pytest.mark.parametrize("data_format", ["llava", "huggingface"])
def test_converting_painted_frames_warns_of_it_first_and_preparing_too(
    data_format: str, run: Callable[..., Any], make_export: Callable[..., str], build: Any
) -> None:
    frames, painted, clean = [], {}, {}
    for number in range(34):
        mask, _ = disc(number)
        frames.append(build.frame(number, build.thing(mask)))
        name = f"images/frame_{number:06d}.png"
        clean[name] = png_of(texture(number))
        painted[name] = png_of(paint(texture(number), [(mask, "cat")], **EVERYTHING))
    options = {"output_dir": "datasets/d", "target_format": data_format, "mask_order": "column"}

    of_clean = run(ConvertSpec(sam2_zip_path=make_export(frames, width=160, height=160, files=clean), **options))
    export = make_export(frames, width=160, height=160, files=painted)
    of_painted = run(ConvertSpec(sam2_zip_path=export, **options))
    prepared = run(PrepareSpec(sam2_zip_path=export, **options))

    assert of_clean.warnings == ()
    assert "WORTHLESS" in of_painted.warnings[0]
    assert "of the 32 objects searched" in of_painted.warnings[0]
    assert "original frames" in of_painted.warnings[0]
    assert of_painted.warnings[0] in prepared.warnings


def png_of(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def texture(seed: int, side: int = 160) -> np.ndarray:
    """Something like a photograph: structure of all sizes, a little noise."""
    generator = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize((side, side)))
        for cells in (4, 12, 40)
    ]
    blended = 0.5 * layers[0] + 0.3 * layers[1] + 0.2 * layers[2] + generator.normal(0, 4, (side, side, 3))
    return np.clip(blended, 0, 255).astype(np.uint8)


def disc(seed: int, side: int = 160) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    x, y = np.random.default_rng([1, seed]).uniform(50, side - 50, 2)
    down, across = np.mgrid[:side, :side]
    return (across - x) ** 2 + (down - y) ** 2 <= 35**2, (x - 35, y - 35, 70.0, 70.0)


def resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size)) > 127


def compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content).convert("RGB"))


def found(pixels: np.ndarray, seed: int) -> bool:
    mask, box = disc(seed)
    return overlays.outline(pixels, mask, box) is not None


@pytest.mark.parametrize("fill", [0.0, 0.4, 0.5])
def test_painted_photographs_show_it_and_photographs_don_t(fill: float) -> None:
    shown = 0
    for seed in range(20):
        assert not found(texture(seed), seed)
        painted = paint(texture(seed), [(disc(seed)[0], "cat")], fill=fill, outline=2, text=False)
        shown += found(compressed(painted, 85), seed)
    assert shown >= 16


def test_flat_objects_and_objects_that_stand_out_are_no_paint() -> None:
    for seed in range(20):
        mask, _ = disc(seed)
        flat = np.where(mask[..., None], COLOURS[seed % 5], texture(seed)).astype(np.uint8)
        assert not found(flat, seed)
        assert not found(compressed(flat, 75), seed)
        other = np.where(mask[..., None], texture(seed + 100), texture(seed)).astype(np.uint8)
        assert not found(other, seed)
        on_a_wall = np.where(mask[..., None], texture(seed), 128).astype(np.uint8)
        assert not found(compressed(on_a_wall, 75), seed)


@pytest.mark.parametrize("size", [(64, 64), (40, 50)], ids=str)
def test_lines_are_found_where_the_masks_are_coarser_than_the_pictures(size: tuple[int, int]) -> None:
    """As in genuine exports, whose grid is 256 x 256; the tool drew its line around a finer copy of the mask."""
    shown = 0
    for seed in range(20):
        mask, box = disc(seed)
        grid = resized(mask, size)
        assert overlays.outline(texture(seed), grid, box) is None
        painted = paint(texture(seed), [(mask, "cat")], fill=0.45, outline=2, text=False)
        shown += overlays.outline(compressed(painted, 85), grid, box) is not None
    assert shown >= 14


def test_of_a_large_object_a_part_is_looked_at() -> None:
    pixels = np.asarray(Image.fromarray(texture(0)).resize((1600, 1600)))
    mask = resized(disc(0)[0], (1600, 1600))
    box = tuple(10 * side for side in disc(0)[1])
    assert overlays.outline(pixels, mask, box) is None
    assert overlays.outline(paint(pixels, [(mask, "cat")], fill=0.4, outline=2, text=True), mask, box)


def test_what_is_too_small_to_tell_is_not_judged() -> None:
    mask = np.zeros((160, 160), dtype=bool)
    mask[20:30, 20:30] = True
    painted = paint(texture(0), [(mask, "cat")], fill=0.4, outline=2, text=False)
    assert overlays.outline(painted, mask, (20.0, 20.0, 10.0, 10.0)) is None
