"""Run lengths: three encodings, checked against pycocotools."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from gpu_runner.sam2 import masks
from gpu_runner.sam2.masks import BadMask

some_mask = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(
    lambda shape: arrays(bool, shape, elements=st.booleans() | st.just(False))
)


def reference(mask: np.ndarray) -> dict[str, Any]:
    encoded: dict[str, Any] = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return encoded


def painted(counts: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return masks.paint(counts).reshape(shape[1], shape[0]).T


@settings(deadline=None)  # a busy machine is no failure
@given(some_mask)
def test_a_compressed_string_of_pycocotools_decodes_to_its_mask_and_is_written_the_same(mask: np.ndarray) -> None:
    text = reference(mask)["counts"].decode()
    counts = masks.read_compressed(text)
    assert np.array_equal(painted(counts, mask.shape), mask)
    assert masks.write_compressed(counts, mask.shape) == text


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(some_mask.map(lambda mask: reference(mask)["counts"].decode()) | st.text("0Po_/é", max_size=8)))
def test_strings_decoded_together_are_those_decoded_one_by_one(texts: list[str]) -> None:
    """Broken ones among them, and such as would pass when a neighbour's characters follow."""
    together = masks.read_all_compressed(texts) if texts else []
    assert list(map(said, together)) == [said(found) for text in texts for found in masks.read_all_compressed([text])]


def said(found: np.ndarray | BadMask) -> Any:
    return str(found) if isinstance(found, BadMask) else found.tolist()


@settings(deadline=None)  # a busy machine is no failure
@given(some_mask)
def test_a_string_and_a_list_of_counts_decode_to_the_mask_they_were_counted_from(mask: np.ndarray) -> None:
    counts = masks.count_runs(mask.ravel(order="F"))
    as_text = masks.read_plain(" ".join(map(str, counts)))
    as_list = masks.read_list(counts.tolist())
    assert np.array_equal(painted(as_text, mask.shape), mask)
    assert np.array_equal(painted(as_list, mask.shape), mask)


@settings(deadline=None)  # a busy machine is no failure
@given(some_mask)
def test_area_and_box_are_those_of_pycocotools(mask: np.ndarray) -> None:
    expected = reference(mask)
    counts = masks.read_compressed(expected["counts"].decode())
    assert masks.area(counts) == coco.area(expected)
    box = masks.bounding_box(counts, mask.shape[0])
    assert box == tuple(coco.toBbox(expected)) == masks.box_of(expected["counts"].decode(), mask.shape)


@settings(deadline=None)  # a busy machine is no failure
@given(some_mask)
def test_transposing_row_major_counts_gives_the_column_major_counts_of_the_same_mask(mask: np.ndarray) -> None:
    by_rows = masks.count_runs(mask.ravel(order="C"))
    by_columns = masks.transpose(by_rows, mask.shape)
    assert np.array_equal(by_columns, masks.count_runs(mask.ravel(order="F")))
    assert masks.write_compressed(by_columns, mask.shape) == reference(mask)["counts"].decode()


@pytest.mark.parametrize(
    "text", ["", " ", "1 -2", "1.5", "a b", "NaN", "1,2", "٣", "99999999999999999999", "50000000 1", "5 5\0"]
)
def test_a_string_that_is_no_list_of_sensible_counts_is_refused(text: str) -> None:
    with pytest.raises(BadMask):
        masks.read_plain(text)


@pytest.mark.parametrize("numbers", [[], [-1], [2**70], [10**9], [[1]]])
def test_a_list_that_holds_no_sensible_counts_is_refused(numbers: list[Any]) -> None:
    with pytest.raises(BadMask):
        masks.read_list(numbers)


@pytest.mark.parametrize("text", ["", "P", "oooooooooooooo0", " 1", "é", "0/", "n0000"])
def test_a_compressed_string_that_was_cut_or_forged_is_refused(text: str) -> None:
    with pytest.raises(BadMask):
        masks.check_fits(masks.read_compressed(text), (4, 4))


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(max_size=60))
def test_no_text_breaks_the_decoders_in_another_way(text: str) -> None:
    for read in (masks.read_plain, masks.read_compressed):
        with contextlib.suppress(BadMask):
            read(text)


def test_runs_that_do_not_cover_the_grid_exactly_are_refused() -> None:
    with pytest.raises(BadMask, match="grid of 3x2 has 6"):
        masks.check_fits(np.array([2, 3]), (2, 3))


def test_a_box_of_a_small_grid_is_scaled_to_the_image() -> None:
    assert masks.scaled((64.0, 128.0, 32.0, 64.0), (256, 256), 1280, 720) == (320.0, 360.0, 160.0, 180.0)
