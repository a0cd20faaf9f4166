"""Gradients and the update of the weights: AdamW under a cosine schedule with linear warm-up.

Used by the loop. The loss of a step is the mean over the step's trained tokens, however they fall into micro-batches.
"""

import math
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_cosine_schedule_with_warmup

from gpu_runner.training.models import Loaded
from gpu_runner.training.ranks import Ranks
from jobs.errors import JobFailed
from jobs.training_config import TrainingConfig

MOST_SKIPPED = 5  # updates in a row
_REMEDY = "Start a new job with a lower learning_rate; checkpoints saved before are still good."
_SEARCH = 16  # more in fp16: halvings of the loss scale from its first value, 2**16, to 1


class Optimisation:
    """The optimiser, its schedule and, for fp16, the loss scale; their state goes into checkpoints.

    `skipped` updates had gradients that are no numbers, `skipped_in_a_row` of them just now.
    """

    def __init__(self, loaded: Loaded, config: TrainingConfig, total_steps: int, ranks: Ranks) -> None:
        self._ranks = ranks
        self._parameters = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
        self._max_norm = config.max_grad_norm
        self._optimizer = _optimizer(loaded.model, _groups(self._parameters, config.weight_decay), config)
        warmup = math.ceil(total_steps * config.warmup_ratio)
        self._schedule: LRScheduler = get_cosine_schedule_with_warmup(self._optimizer, warmup, total_steps)
        is_fp16 = loaded.compute.dtype is torch.float16
        self._scaler = torch.amp.GradScaler(loaded.compute.device.type, enabled=is_fp16)
        self._scaler.scale(torch.zeros((), device=loaded.compute.device))  # its scale is there from the first loss on
        self._most_skipped = MOST_SKIPPED + (_SEARCH if is_fp16 else 0)
        self.skipped = 0
        self.skipped_in_a_row = 0

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients."""
        self._scaler.scale(loss).backward()

    def step(self, factor: float) -> tuple[float, float]:
        """Update the weights with the gathered gradients times `factor`; gives their norm before clipping and the
        learning rate used. Gradients that are not finite change nothing and are counted.

        Raises:
            JobFailed: so many updates were skipped in a row that the training has diverged.
        """
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)
        self._ranks.add_gradients(self._parameters)
        self._scaler.unscale_(self._optimizer)  # once they are added up: so all processes keep one loss scale
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        learning_rate = float(self._schedule.get_last_lr()[0])
        if math.isfinite(norm):
            self._scaler.step(self._optimizer)
            self._schedule.step()
            self.skipped_in_a_row = 0
        else:
            self._note_skipped()
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm), learning_rate

    def begin_alike(self) -> None:
        """All processes take over the weights of the first."""
        self._ranks.begin_alike(self._parameters)

    def discard(self) -> None:
        """Forget what gradients were added since the last update."""
        self._optimizer.zero_grad(set_to_none=True)

    def check_weights(self) -> None:
        """Raises JobFailed when what is trained holds numbers that are none."""
        if not all(bool(parameter.isfinite().all()) for parameter in self._parameters):
            raise JobFailed(f"The training diverged: its weights are no finite numbers any more. {_REMEDY}")

    def _note_skipped(self) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self._most_skipped:
            raise JobFailed(
                f"The training diverged: {self.skipped_in_a_row} steps in a row had gradients that are no finite "
                f"numbers. {_REMEDY}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "skipped": (self.skipped, self.skipped_in_a_row),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        self.skipped, self.skipped_in_a_row = state["skipped"]


def _optimizer(model: nn.Module, groups: list[dict[str, Any]], config: TrainingConfig) -> Optimizer:
    """AdamW with moments in float32, or in 8 bits by blocks; those of embeddings stay in float32, where rare tokens
    would lose theirs. Source: 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861, section 2.3."""
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.learning_rate, fused=True)
    optim: Any = import_module("bitsandbytes.optim")  # a second, which most runs need not wait for
    overrides = optim.GlobalOptimManager.get_instance()
    overrides.initialize()  # it remembers the parameters of other optimisers of this process
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            overrides.register_module_override(module, "weight", {"optim_bits": 32})
    in_8_bits: Optimizer = optim.AdamW8bit(groups, lr=config.learning_rate)
    return in_8_bits


def _groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Decay shrinks matrices only; gains and biases keep their scale."""
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
