"""The loss of a batch: cross-entropy on its trained tokens, and logits for no others.

Used by the loop and by evaluation. In these data a few tokens of a row are trained and vocabularies are large, so the
logits of all tokens would be most of a step's memory and much of its time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from gpu_runner.training.encoding import NOT_TRAINED
from gpu_runner.training.models import Loaded

MOST_LOGITS = 2**25  # numbers at once: 128 MiB in float32, 220 tokens of Qwen's vocabulary
_in_one_piece: WeakSet[nn.Module] = WeakSet()


def summed_loss(loaded: Loaded, batch: dict[str, Tensor], features: ModelOutput | None = None) -> tuple[Tensor, int]:
    """Cross-entropy summed over the batch's trained tokens (a float32 scalar), and how many these are.

    A batch without pixels needs `features`: what the model's `get_image_features` would make of them.
    """
    device = loaded.compute.device
    inputs: dict[str, Any] = {
        name: value.to(device, non_blocking=True) for name, value in batch.items() if name != "labels"
    }
    if features is not None:
        inputs["mm_encoder_outputs"] = {"image": features}
    shifted = batch["labels"][:, 1:]
    chosen = (shifted != NOT_TRAINED).flatten().nonzero().flatten()  # on the CPU: asking a GPU would wait for it
    targets = shifted.flatten()[chosen].to(device)
    count = len(chosen)
    chosen = (chosen + chosen // shifted.shape[1]).to(device)  # positions in the rows as they are, one token longer
    with loaded.compute.autocast():
        return _loss(loaded.model, inputs, chosen, targets), count


def needs_all_logits_at_once(loaded: Loaded) -> bool:
    """Whether this model was seen to change its logits in a way that is not known here, so that the trained tokens of
    a batch are projected in one piece."""
    return loaded.model in _in_one_piece


def _loss(model: Any, inputs: dict[str, Any], chosen: Tensor, targets: Tensor) -> Tensor:
    head = model.get_output_embeddings()
    if head is None:
        logits = model(**inputs, use_cache=False).logits
        return _cross_entropy(logits.flatten(0, 1)[chosen], targets)
    at_once = max(1, MOST_LOGITS // head.weight.shape[0])
    if len(targets) <= at_once or model in _in_one_piece:
        with _projecting(head, chosen):
            return _cross_entropy(model(**inputs, use_cache=False).logits[0], targets)
    with _projecting(head, chosen, at_once) as seen:
        first = model(**inputs, use_cache=False).logits[0]
    cap = _soft_cap(model)
    if not torch.equal(_capped(seen.raw[0], cap), first):
        _in_one_piece.add(model)
        return _loss(model, inputs, chosen, targets)
    total = _cross_entropy(first, targets[:at_once])
    for hidden, wanted in zip(seen.hidden[at_once:].split(at_once), targets[at_once:].split(at_once), strict=True):
        total = total + _recomputed(head, cap, hidden, wanted)
    return total


@dataclass
class _Seen:
    """What went into the head, of the chosen positions (chosen, width), and what came out, (1, limit, vocabulary)."""

    hidden: Tensor
    raw: Tensor


@contextmanager
def _projecting(head: nn.Module, chosen: Tensor, limit: int | None = None) -> Iterator[_Seen]:
    """Inside, the model makes logits of the chosen positions alone, or of the first `limit` of them: (1, limit,
    vocabulary). Whatever it does to its logits afterwards, it does to these."""
    seen = _Seen(chosen, chosen)

    def before(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.hidden = given[0].flatten(0, 1)[chosen]
        return (seen.hidden[:limit].unsqueeze(0), *given[1:])

    def after(_: nn.Module, __: Any, raw: Tensor) -> None:
        seen.raw = raw.detach()

    hooks = [head.register_forward_pre_hook(before), head.register_forward_hook(after)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _recomputed(head: nn.Module, cap: float | None, hidden: Tensor, wanted: Tensor) -> Tensor:
    """The loss of a piece, whose logits are made again for the gradients instead of being kept."""

    def piece(hidden: Tensor, wanted: Tensor) -> Tensor:
        return _cross_entropy(_capped(head(hidden), cap), wanted)

    loss: Tensor = checkpoint(piece, hidden, wanted, use_reentrant=False, preserve_rng_state=False)
    return loss


def _soft_cap(model: Any) -> float | None:
    """Gemma's. Source: Gemma 2, arXiv 2408.00118, section 2."""
    cap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return cap


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), targets, reduction="sum")
