"""What frozen eyes see in the pictures of a row, computed once a run instead of once an epoch.

Used by the loop where `cache_vision_features` is set. It is computed for each row alone, so that it depends on the row
and on nothing else: not on who shares its batch, nor on what a run that was interrupted had kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from gpu_runner.training import room
from gpu_runner.training.encoding import Encoded
from gpu_runner.training.models import Loaded
from jobs.errors import ModelUnavailable


class VisionCache:
    """Features of rows in the host's memory, up to `limit_bytes`; of the others they are computed each time.

    What came first stays, for in each epoch every row is asked for once: no choice of victims does better. Several
    processes keep each what it saw, and see other rows in each epoch: the more of them, the later it pays.
    """

    def __init__(self, loaded: Loaded, limit_bytes: int) -> None:
        self._loaded = loaded
        self._limit_bytes = self._left = limit_bytes
        self._kept: dict[int, ModelOutput] = {}
        self._not_kept: set[int] = set()

    def features(self, rows: Mapping[int, Encoded]) -> ModelOutput | None:
        """What the model's `get_image_features` would give for all these rows, by their index; None where they have no
        pictures. The eyes must be frozen and in eval mode.

        Raises:
            ModelUnavailable: this model's features are of a form that is not known here.
        """
        found = [self._of_row(index, row) for index, row in rows.items() if row.pictures]
        if not found:
            return None
        joined = {name: _JOIN[name]([each[name] for each in found]) for name in found[0]}
        return _moved(type(found[0])(**joined), self._loaded.compute.device)

    def told(self) -> str:
        """What is kept, for people."""
        kept, more = len(self._kept), len(self._not_kept)
        if not kept and not more:
            return "cache_vision_features has no effect: no row has a picture."
        if not more:
            size = self._limit_bytes - self._left
            return f"What the eyes saw in {kept} rows with pictures is kept, in {room.gb(size)} of the host's memory."
        return (
            f"What the eyes saw in {kept} rows is kept. For {more} more there was no room in the run's "
            f"{room.gb(self._limit_bytes)} of the host's memory, so they look at the pictures of these in each epoch."
        )

    def _of_row(self, index: int, row: Encoded) -> ModelOutput:
        known = self._kept.get(index)
        if known is not None:
            return known
        features = self._look_at(row)
        size = _bytes_of(features)
        if size > self._left:
            self._not_kept.add(index)
            return features
        self._left -= size
        self._kept[index] = _moved(features, torch.device("cpu"))
        return self._kept[index]

    def _look_at(self, row: Encoded) -> ModelOutput:
        on, model = self._loaded.compute.device, self._loaded.model
        pictures = {name: value.to(on, non_blocking=True) for name, value in row.pictures.items()}
        with torch.no_grad(), self._loaded.compute.autocast():
            seen = model.get_image_features(**pictures, return_dict=True)
        if not {"pooler_output"} <= seen.keys() <= {*_JOIN, *_UNREAD}:
            raise ModelUnavailable(
                f"What the eyes of {self._loaded.source.name} give ({', '.join(seen)}) is not known here, so it cannot "
                "be kept: set cache_vision_features to false."
            )
        return type(seen)(**{name: seen[name] for name in _JOIN if name in seen})


def _joined(of_rows: Sequence[Any]) -> Any:
    """A tensor whose first dimension counts pictures, or a list of a tensor for each picture."""
    if isinstance(of_rows[0], Tensor):
        return torch.cat(list(of_rows))
    return [of_picture for pictures in of_rows for of_picture in pictures]


def _joined_by_layer(of_rows: Sequence[Any]) -> Any:
    return [_joined(of_layer) for of_layer in zip(*of_rows, strict=True)]


_JOIN = {"pooler_output": _joined, "deepstack_features": _joined_by_layer}  # the second is Qwen3-VL's
_UNREAD = ("last_hidden_state", "hidden_states", "attentions")  # by the forward of any model


def _moved(features: Any, to: torch.device) -> Any:
    if isinstance(features, Tensor):
        return features.to(to)
    if isinstance(features, ModelOutput):
        return type(features)(**{name: _moved(value, to) for name, value in features.items()})
    return [_moved(value, to) for value in features]


def _bytes_of(features: Any) -> int:
    if isinstance(features, Tensor):
        return features.nbytes
    return sum(map(_bytes_of, features.values() if isinstance(features, ModelOutput) else features))
