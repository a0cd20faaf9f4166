"""Tiny random models of families that `tiny_models` builds no processor for, and rows as theirs would make them.

`OTHERS` names them. Each gives a model, and a function that makes a row with so many random pictures.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from tiny_models import EYES, IMAGE_PIXELS, TEXT
from torch import Tensor

from gpu_runner.training.encoding import NOT_TRAINED, Encoded

PAD, IMAGE, VIDEO, START, END = 0, 60, 61, 62, 63
_TEXT = {**TEXT, "vocab_size": 64, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
_MARKS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
_GRIDS = [[1, 4, 4], [1, 2, 6]]  # patches, four of which make a token

Encode = Callable[[int], Encoded]


def internvl() -> tuple[Any, Encode]:
    """Tiles of one size, all alike."""
    config = tf.InternVLConfig(
        vision_config={**EYES, "image_size": [IMAGE_PIXELS] * 2, "patch_size": [8, 8]},
        text_config={"model_type": "qwen2", **_TEXT},
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    return tf.InternVLForConditionalGeneration(config), lambda images: _row(
        [4] * images, {"pixel_values": _tiles(images)}
    )


OTHERS: dict[str, Callable[[], tuple[Any, Encode]]] = {build.__name__: build for build in (internvl,)}


def _tiles(count: int) -> Tensor:
    return torch.randn(count, 3, IMAGE_PIXELS, IMAGE_PIXELS)


def _row(tokens: list[int], pictures: dict[str, Tensor], *, types: bool = False) -> Encoded:
    """A row whose pictures take so many tokens each; its last four tokens are trained."""
    marks = [token for count in tokens for token in (START, *[IMAGE] * count, END)]
    ids = torch.tensor([1, *marks, *torch.randint(3, IMAGE, (6,)).tolist()])
    labels = ids.clone()
    labels[:-4] = NOT_TRAINED
    return Encoded(
        row_id="row",
        input_ids=ids,
        labels=labels,
        per_token={"mm_token_type_ids": (ids == IMAGE).long()} if types else {},
        pictures=pictures if tokens else {},
        image_tokens=sum(tokens),
        images=len(tokens),
    )
