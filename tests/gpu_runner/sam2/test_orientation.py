"""The order of an export's runs is found out, whichever shapes were annotated and whichever grid they lie on."""

import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks import export
from gpu_runner.rows import open_rows
from gpu_runner.sam2 import masks, orientation
from gpu_runner.sam2.orientation import Probe
from jobs.paths import DataRoot
from jobs.specs import ConvertSpec, MaskOrder


def blob(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A rough ellipse somewhere on the grid."""
    y, x = np.mgrid[:height, :width]
    centre, radii = generator.uniform(0.3, 0.7, 2), generator.uniform(0.08, 0.3, 2)
    angle = np.arctan2(y / height - centre[0], x / width - centre[1])
    rough = 1 + 0.2 * np.sin(3 * angle + generator.uniform(0, 6))
    return ((y / height - centre[0]) / radii[0]) ** 2 + ((x / width - centre[1]) / radii[1]) ** 2 < rough


def probes(
    seed: int, grid: tuple[int, int], order: Any, *, edges: bool = False, swapped: bool = False, busy: bool = False
) -> list[Probe]:
    """Eight objects as an exporter that counts in `order` states them; `swapped` boxes have its slip.

    Pictures show the objects on flat ground, or, where they are `busy`, on ground that changes everywhere.
    """
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(8):
        mask = blob(generator, *grid)
        column = masks.count_runs(mask.ravel(order="F"))
        left, top, width, height = masks.bounding_box(column, grid[0])
        box = (top, left, height, width) if swapped else (left, top, width, height)
        change = np.zeros(grid, dtype=np.float32)
        change[:, 1:] += mask[:, 1:] != mask[:, :-1]
        change[1:] += mask[1:] != mask[:-1]
        if busy:
            change += generator.uniform(0, 0.5, grid)
        made.append(Probe(masks.count_runs(mask.ravel(order=order)), grid, box, change if edges else None))
    return made


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("order", "expected"), [("F", MaskOrder.COLUMN), ("C", MaskOrder.ROW)])
@pytest.mark.parametrize("grid", [(48, 80), (80, 48), (64, 60)])
def test_on_a_grid_that_is_not_square_the_masks_themselves_tell(
    grid: tuple[int, int], order: str, expected: MaskOrder, seed: int
) -> None:
    assert orientation.detect(probes(seed, grid, order)).order is expected


@pytest.mark.parametrize("seed", range(10))
def test_on_a_square_grid_boxes_read_along_the_rows_tell(seed: int) -> None:
    found = orientation.detect(probes(seed, (64, 64), "C"))
    assert (found.order, found.warning) == (MaskOrder.ROW, None)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("order", "swapped", "expected"), [("F", False, MaskOrder.COLUMN), ("C", True, MaskOrder.ROW)])
def test_on_a_square_grid_whose_boxes_fit_the_columns_the_pictures_tell(
    order: str, swapped: bool, expected: MaskOrder, seed: int
) -> None:
    found = orientation.detect(probes(seed, (64, 64), order, edges=True, swapped=swapped))
    assert (found.order, found.warning) == (expected, None)


@pytest.mark.parametrize("seed", range(3))
def test_the_tools_own_low_resolution_grid_is_read_along_the_rows(seed: int) -> None:
    found = orientation.detect(probes(seed, (256, 256), "C", swapped=True))
    assert (found.order, found.warning) == (MaskOrder.ROW, None)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("order", "swapped", "expected"), [("F", False, MaskOrder.COLUMN), ("C", True, MaskOrder.ROW)])
def test_pictures_that_tell_are_believed_on_the_low_resolution_grid_too(
    order: str, swapped: bool, expected: MaskOrder, seed: int
) -> None:
    found = orientation.detect(probes(seed, (256, 256), order, edges=True, swapped=swapped, busy=True))
    assert (found.order, found.warning) == (expected, None)
    assert "edges in the pictures" in found.reason


def test_pictures_that_show_nothing_but_the_masks_tell_only_how_somebody_read_them() -> None:
    found = orientation.detect(probes(0, (256, 256), "F", edges=True))
    assert found.order is MaskOrder.ROW
    assert "x/y and w/h swapped" in found.reason
    assert "mask_order 'column'" in (found.warning or "")


def test_a_picture_as_small_as_the_low_resolution_grid_leaves_it_open_whose_grid_that_is() -> None:
    flat = np.zeros((256, 256), dtype=np.float32)
    made = [probe._replace(edges=flat, is_own_size=True) for probe in probes(0, (256, 256), "F")]
    found = orientation.detect(made)
    assert found.order is MaskOrder.ROW
    assert "mask_order 'column'" in (found.warning or "")


def test_the_export_that_benchmarks_convert_is_read_down_the_columns_as_it_was_written(
    run: Callable[..., Any], root: DataRoot, build: Any
) -> None:
    frames = []
    with zipfile.ZipFile(root.uploads / "export.zip", "w") as archive:
        for index in range(6):
            picture, objects = export._draw(index)
            archive.writestr(f"images/frame_{index:06d}.png", picture)
            frames.append(build.frame(index, *objects))
        archive.writestr("annotations.json", build.annotations(frames, export.SIDE, export.SIDE))
    result = run(ConvertSpec(sam2_zip_path="uploads/export.zip", output_dir="datasets/out"))
    assert result.mask_order == "column"
    assert not [said for said in result.warnings if "boxes" in said or "transposed" in said]
    rows = open_rows(root, "datasets/out")
    assert [list(map(list, row.bounding_boxes)) for row in rows] == [
        [one["bbox"] for one in frame["objects"]] for frame in frames
    ]


def test_without_any_object_the_order_is_cocos_and_the_user_is_told_to_look() -> None:
    found = orientation.detect([])
    assert found.order is MaskOrder.COLUMN
    assert found.warning is not None
