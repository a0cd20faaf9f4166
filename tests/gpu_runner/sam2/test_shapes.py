"""Points that lie inside their masks, and outlines with few points that cover them."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from gpu_runner.rows import Mask, Row
from gpu_runner.sam2 import masks, shapes, targets
from gpu_runner.sam2.masks import BadMask
from jobs.specs import TargetTask

FINE = 4  # how many times finer than the mask an outline is painted


def mask_of(pixels: np.ndarray) -> Mask:
    grid = pixels.shape
    return Mask(grid, masks.write_compressed(masks.count_runs(pixels.ravel(order="F")), grid))


def painted(outlines: list[list[int]], height: int, width: int) -> np.ndarray:
    picture = Image.new("1", (width * FINE, height * FINE))
    for outline in outlines:
        corners = np.array(outline).reshape(-1, 2) * [width * FINE / 1000, height * FINE / 1000] - 0.5
        ImageDraw.Draw(picture).polygon([tuple(corner) for corner in corners], fill=1)
    return np.asarray(picture)


def overlap(outlines: list[list[int]], pixels: np.ndarray) -> float:
    drawn, fine = painted(outlines, *pixels.shape), np.kron(pixels, np.ones((FINE, FINE), dtype=bool))
    return float((drawn & fine).sum() / (drawn | fine).sum())


@st.composite
def blobs(draw: st.DrawFn) -> np.ndarray:
    """A few ellipses that hang together, anywhere on a grid of any size, cut off at its border."""
    height, width = draw(st.integers(12, 300)), draw(st.integers(12, 300))
    rows, columns = np.mgrid[:height, :width]
    y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    pixels = np.zeros((height, width), dtype=bool)
    for _ in range(draw(st.integers(1, 4))):
        down, across = draw(st.floats(4, max(4.0, height / 3))), draw(st.floats(4, max(4.0, width / 3)))
        pixels |= ((rows - y) / down) ** 2 + ((columns - x) / across) ** 2 <= 1
        y, x = y + draw(st.floats(-1, 1)) * down, x + draw(st.floats(-1, 1)) * across
    return pixels


@settings(max_examples=60, deadline=None, derandomize=True)
@given(blobs())
def test_an_outline_covers_its_blob_with_few_points(pixels: np.ndarray) -> None:
    outlines = shapes.outlines(mask_of(pixels))
    assert overlap(outlines, pixels) >= 0.85
    assert sum(map(len, outlines)) <= 2 * 60
    assert all(0 <= number <= 1000 for outline in outlines for number in outline)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 2**32), st.floats(0.0001, 0.9))
def test_a_point_read_back_is_a_pixel_of_its_mask_whatever_the_mask(h: int, w: int, seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    pixels = generator.random((h, w)) < share
    pixels[generator.integers(h), generator.integers(w)] = True
    x, y = shapes.inner_point(mask_of(pixels))
    assert pixels[y * h // 1000, x * w // 1000]


def test_the_point_is_the_middle_of_what_is_widest(build: Any) -> None:
    bar_and_square = build.rectangle(100, 100, 0, 10, 90, 3) | build.rectangle(100, 100, 60, 40, 21, 21)
    assert shapes.inner_point(mask_of(bar_and_square)) == [705, 505]
    assert shapes.inner_point(mask_of(build.rectangle(100, 100, 10, 50, 81, 1))) == [505, 505]


def test_the_point_of_a_ring_lies_on_the_ring() -> None:
    rows, columns = np.mgrid[:100, :100] - 50
    ring = (np.hypot(rows, columns) < 40) & (np.hypot(rows, columns) > 30)
    x, y = shapes.inner_point(mask_of(ring))
    assert ring[y // 10, x // 10]


def test_a_rectangle_has_four_corners(build: Any) -> None:
    mask = mask_of(build.rectangle(200, 100, 10, 20, 30, 100))
    assert shapes.outlines(mask) == [[100, 100, 400, 100, 400, 600, 100, 600]]


def test_a_single_pixel_and_a_line_have_outlines_too(build: Any) -> None:
    assert shapes.outlines(mask_of(build.rectangle(10, 10, 3, 4, 1, 1))) == [[300, 400, 400, 400, 400, 500, 300, 500]]
    assert shapes.outlines(mask_of(build.rectangle(10, 10, 0, 4, 10, 1))) == [[0, 400, 1000, 400, 1000, 500, 0, 500]]


def test_outlines_stay_short_however_torn_a_mask_is() -> None:
    rows, columns = np.mgrid[:256, :256]
    torn = {
        "dust": (rows + columns) % 2 == 0,
        "comb": (rows > 200) | (columns % 2 == 0),
        "noise": np.random.default_rng(0).random((256, 256)) < 0.6,
    }
    for pixels in torn.values():
        outlines = shapes.outlines(mask_of(pixels))
        assert 1 <= len(outlines) <= 8
        assert all(3 <= len(outline) / 2 <= 60 for outline in outlines)


def test_parts_have_an_outline_each_the_largest_first_and_specks_none(build: Any) -> None:
    small, large = build.rectangle(100, 100, 0, 0, 20, 20), build.rectangle(100, 100, 50, 50, 40, 40)
    speck = build.rectangle(100, 100, 90, 0, 3, 3)
    found = shapes.outlines(mask_of(small | large | speck))
    assert [outline[:2] for outline in found] == [[500, 500], [0, 0]]


def test_parts_that_touch_at_a_corner_stay_apart_and_holes_do_not_count(build: Any) -> None:
    touching = build.rectangle(20, 20, 0, 0, 10, 10) | build.rectangle(20, 20, 10, 10, 10, 10)
    assert len(shapes.outlines(mask_of(touching))) == 2
    holed = build.rectangle(20, 20, 0, 0, 20, 20) & ~build.rectangle(20, 20, 5, 5, 10, 10)
    assert shapes.outlines(mask_of(holed)) == [[0, 0, 1000, 0, 1000, 1000, 0, 1000]]


def test_a_large_mask_is_looked_at_coarsely_but_a_thin_one_is_not_lost() -> None:
    rows, columns = np.mgrid[:1080, :1920]
    disc = np.hypot(rows - 500, columns - 900) < 400
    assert overlap(shapes.outlines(mask_of(disc)), disc) >= 0.95
    wire = np.zeros((1000, 1000), dtype=bool)
    wire[np.arange(900), np.arange(900)] = True
    x, y = shapes.inner_point(mask_of(wire))
    assert wire[y, x]


@pytest.mark.parametrize("mask", [Mask((4, 4), masks.write_compressed(np.array([16]), (4, 4))), Mask((4, 4), "0")])
def test_a_mask_that_is_empty_or_does_not_fit_is_refused(mask: Mask) -> None:
    for shape in (shapes.inner_point, shapes.outlines):
        with pytest.raises(BadMask):
            shape(mask)


@pytest.mark.parametrize(("task", "key"), [(TargetTask.POINT, "point"), (TargetTask.POLYGON, "polygons")])
def test_the_answer_lists_label_and_place_of_every_object(task: TargetTask, key: str, build: Any) -> None:
    mask = mask_of(build.rectangle(100, 100, 10, 20, 31, 41))
    bare = Row(id="r", conversations=(), masks=(mask, mask), labels=("cat", ""), width=50, height=50)
    row = targets.with_conversation(bare, task, 1)
    place = [255, 405] if task is TargetTask.POINT else [[100, 200, 410, 200, 410, 610, 100, 610]]
    assert json.loads(row.conversations[1].value) == [{"label": "cat", key: place}, {"label": "object", key: place}]
    assert row.conversations[0].value.startswith("<image>\n")
    empty = Row(id="r", conversations=())
    assert targets.with_conversation(empty, task, 1).conversations[1].value == "[]"
