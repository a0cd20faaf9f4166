"""What verification sees: each difference that matters, and none that does not."""

from dataclasses import replace

import pytest
import torch

from gpu_runner.exporters import verification
from gpu_runner.exporters.verification import TOLERANCE, Evidence
from gpu_runner.training.encoding import Encoded
from jobs.errors import JobFailed


def row(ids: list[int], pixel: float = 0.5, row_id: str = "row-1") -> Encoded:
    tokens = torch.tensor(ids)
    return Encoded(row_id, tokens, tokens, {}, {"pixel_values": torch.full((1, 3, 4, 4), pixel)})


def evidence(*logits: float, ids: tuple[int, ...] = (1, 2, 3), pixel: float = 0.5) -> Evidence:
    return Evidence((row(list(ids), pixel),), (torch.tensor([logits]),))


def test_a_difference_is_relative_to_the_largest_logit() -> None:
    found = verification.check_same_logits("it", evidence(0.0, -20.0), evidence(0.001, -20.0), torch.float32)
    assert found == pytest.approx(5e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_beyond_the_tolerance_of_its_number_format_it_fails_with_a_sentence(dtype: torch.dtype) -> None:
    allowed = TOLERANCE[dtype]
    verification.check_same_logits("it", evidence(1.0, 0.0), evidence(1.0, allowed * 0.99), dtype)
    with pytest.raises(JobFailed, match=r"it answers differently.*Nothing was published"):
        verification.check_same_logits("it", evidence(1.0, 0.0), evidence(1.0, allowed * 1.01), dtype)


def test_the_worst_row_counts() -> None:
    good, bad = evidence(1.0, 0.0), evidence(1.0, 0.5)
    both = replace(good, encoded=good.encoded * 2, logits=good.logits * 2)
    mixed = replace(good, encoded=good.encoded * 2, logits=(*good.logits, *bad.logits))
    with pytest.raises(JobFailed):
        verification.check_same_logits("it", both, mixed, torch.float32)


def test_equal_inputs_are_counted_in_tokens() -> None:
    assert verification.check_same_inputs(evidence(1.0), evidence(2.0)) == 3


@pytest.mark.parametrize("ids", [(1, 2, 4), (1, 2), (1, 2, 3, 4)])
def test_another_token_fails_and_names_the_row(ids: tuple[int, ...]) -> None:
    with pytest.raises(JobFailed, match="chat template or tokeniser turns row 'row-1'"):
        verification.check_same_inputs(evidence(1.0), evidence(1.0, ids=ids))


def test_another_picture_fails_and_names_the_row() -> None:
    with pytest.raises(JobFailed, match="image processor turns the picture of row 'row-1'"):
        verification.check_same_inputs(evidence(1.0), evidence(1.0, pixel=0.4))
