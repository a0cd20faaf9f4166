"""Updates of the weights, several processes and a loss scale together."""

import io
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
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


def trained(model: nn.Sequential, optimisation: Optimisation, steps: int, seed: int = 1) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = torch.randint(0, 80, (16,), generator=draw)
        optimisation.backward((model(ids) - 1).pow(2).mean())
        optimisation.step(1.0)


def small_model(optimizer: str) -> tuple[nn.Sequential, Optimisation]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(80, 64), nn.Linear(64, 96))
    loaded: Any = SimpleNamespace(model=model, compute=Compute(torch.device("cpu"), torch.float32))
    config = msgspec.structs.replace(CONFIG, optimizer=optimizer, learning_rate=1e-2)
    return model, Optimisation(loaded, config, 100, Ranks())


def test_states_in_8_bits_train_nearly_as_those_in_float32() -> None:
    losses = {}
    for optimizer in ("adamw", "adamw_8bit"):
        model, optimisation = small_model(optimizer)
        trained(model, optimisation, 60)
        losses[optimizer] = float((model(torch.arange(80)) - 1).pow(2).mean().detach())
    assert losses["adamw"] < 0.05
    assert losses["adamw_8bit"] < 2 * losses["adamw"]


def test_states_in_8_bits_take_a_byte_a_number_but_those_of_embeddings_and_small_vectors() -> None:
    model, optimisation = small_model("adamw_8bit")
    trained(model, optimisation, 1)
    states = optimisation.state_dict()["optimizer"]["state"].values()
    first = [state["__bnb_optimizer_quant_state__"]["state1"] for state in states]
    kinds = {tuple(moment.shape): moment.dtype for moment in first}
    assert kinds == {(80, 64): torch.float32, (96, 64): torch.uint8, (96,): torch.float32}


def test_a_run_with_states_in_8_bits_goes_on_as_if_it_had_not_stopped() -> None:
    model, optimisation = small_model("adamw_8bit")
    trained(model, optimisation, 5)
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimisation": optimisation.state_dict()}, saved)
    trained(model, optimisation, 5, seed=2)
    saved.seek(0)
    kept = torch.load(saved, weights_only=True)
    again, resumed = small_model("adamw_8bit")
    again.load_state_dict(kept["model"])
    resumed.load_state_dict(kept["optimisation"])
    trained(again, resumed, 5, seed=2)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
