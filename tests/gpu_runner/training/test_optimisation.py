"""Updates of the weights, several processes and a loss scale together."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpu_runner.training.device import Compute
from gpu_runner.training.optimisation import Optimisation
from gpu_runner.training.ranks import Ranks
from jobs.training_config import TrainingConfig

CONFIG = TrainingConfig(model_name="m", train_data_path="d", learning_rate=1e-3, warmup_ratio=0)


class Beside(Ranks):
    """A process beside one that has the gradient `theirs` for every number."""

    theirs: float = 0.0

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = own + self.theirs


def optimisation_beside(theirs: float) -> tuple[nn.Linear, Optimisation]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    ranks = Beside(rank=1, count=2)
    object.__setattr__(ranks, "theirs", theirs)
    loaded: Any = SimpleNamespace(model=model, compute=Compute(torch.device("cpu"), torch.float16))
    return model, Optimisation(loaded, CONFIG, 10, ranks)


def test_a_process_without_rows_in_a_step_makes_the_update_of_the_others() -> None:
    model, optimisation = optimisation_beside(theirs=1.0)
    before = model.weight.clone()
    norm, _ = optimisation.step(1.0)
    assert norm > 0
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("own", [None, 1.0])
def test_all_processes_skip_what_overflowed_in_one_and_halve_their_loss_scale(own: float | None) -> None:
    model, optimisation = optimisation_beside(theirs=float("inf"))
    before = model.weight.clone()
    scale = optimisation.state_dict()["scaler"]["scale"]
    if own is not None:
        optimisation.backward(model(torch.full((1, 3), own)).sum())
    optimisation.step(1.0)
    assert torch.equal(model.weight, before)
    assert optimisation.skipped == 1
    assert optimisation.state_dict()["scaler"]["scale"] == scale / 2
