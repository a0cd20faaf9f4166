"""What a model's config.json says of its dimensions, and the architectures that are known by name.

Memory is computed of it (`footprint`), parameters are counted with it. Well-known names have theirs in
`architectures.json` beside this file, which holds public facts: the dimensions, and parameter counts counted on the
meta device.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from jobs.training_config import TrainingConfig


class Decoder(msgspec.Struct, frozen=True, kw_only=True):
    """The language model: `layers` of gated blocks. Widths count numbers, `longest` tokens."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    longest: int | None = None

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_width

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of a layer's linear maps, those LoRA and 4-bit take: q, k, v, o, gate, up, down."""
        attention, kv = self.attention_width, self.kv_heads * self.head_width
        h, f = self.hidden, self.intermediate
        return (h, attention), (h, kv), (h, kv), (attention, h), (h, f), (h, f), (f, h)

    @property
    def linear_parameters(self) -> int:
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)

    def adapter_parameters(self, rank: int) -> int:
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.linears)


class Tower(msgspec.Struct, frozen=True, kw_only=True):
    """The eyes. `patches` is how many a picture of the usual size has."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    patches: int


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """The dimensions of a model. `parameters` are by part: vision, projector, language.

    `image_tokens` is how many tokens a picture of the usual size takes; `family` is its config's model_type. Where a
    picture takes tokens by its size, `pixels_per_token` is how many pixels make one.
    """

    family: str
    decoder: Decoder
    tower: Tower | None
    image_tokens: int
    parameters: dict[str, int]
    pixels_per_token: int | None = None

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    def trainable(self, config: TrainingConfig) -> dict[str, int]:
        """Parameters a configuration trains, by part."""
        if config.method == "full":
            return self.parameters
        adapters = self.decoder.adapter_parameters(config.lora_rank)
        return dict.fromkeys(self.parameters, 0) | {"language": adapters}


def known_shape(name: str) -> ModelShape | None:
    """The shape of a well-known model; None for any other name."""
    entry = _known().get(name)
    if entry is None:
        return None
    shape = shape_of(entry.config)
    return None if shape is None else msgspec.structs.replace(shape, parameters=entry.parameters)


def known_names() -> tuple[str, ...]:
    """The names `known_shape` knows."""
    return tuple(_known())


def known_config(name: str) -> dict[str, Any] | None:
    """The dimensions of a well-known model as its config.json says them."""
    entry = _known().get(name)
    return None if entry is None else entry.config


def shape_of(config: Mapping[str, Any], parameters: Mapping[str, int] | None = None) -> ModelShape | None:
    """The shape a model's config.json describes; None where a dimension is missing or makes no sense.

    Without `parameters` by part they are computed: exactly for Llama-like language models, nearly for the eyes.
    """
    try:
        tied = {"tie_word_embeddings": config.get("tie_word_embeddings")}
        decoder = _decoder(tied | dict(config.get("text_config") or config))
        tower, projector, image_tokens, pixels = _eyes(config, decoder)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError):
        return None
    counted = {"vision": _tower_parameters(tower), "projector": projector, "language": _decoder_parameters(decoder)}
    return ModelShape(
        family=str(config.get("model_type", "unknown")),
        decoder=decoder,
        tower=tower,
        image_tokens=image_tokens,
        parameters=dict(parameters) if parameters else counted,
        pixels_per_token=pixels,
    )


# transformers leaves out of a config.json what has the class's default. Source: transformers, LlamaConfig and
# CLIPVisionConfig as LlavaConfig makes them.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "clip_vision_model": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
}
_USUAL_PIXELS = 448  # a side, of eyes that take pictures of any size


def _decoder(given: Mapping[str, Any]) -> Decoder:
    text = {**_DEFAULTS.get(str(given.get("model_type")), {}), **given}
    hidden, heads = _size(text, "hidden_size"), _size(text, "num_attention_heads")
    return Decoder(
        hidden=hidden,
        intermediate=_size(text, "intermediate_size"),
        layers=_size(text, "num_hidden_layers"),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_width=int(text.get("head_dim") or hidden // heads),
        vocabulary=_size(text, "vocab_size"),
        tied=bool(text.get("tie_word_embeddings", False)),
        longest=text.get("max_position_embeddings"),
    )


def _eyes(config: Mapping[str, Any], decoder: Decoder) -> tuple[Tower | None, int, int, int | None]:
    """The tower, the projector's parameters, the tokens a picture takes, and the pixels of one where that varies."""
    given = config.get("vision_config")
    if not given:
        return None, 0, 0, None
    vision = {**_DEFAULTS.get(str(given.get("model_type")), {}), **given}
    patch = _side(vision.get("patch_size", 14))
    side = _side(vision.get("image_size") or _USUAL_PIXELS)
    # The hidden_size of Qwen2-VL's eyes is the language model's.
    hidden = _size(vision, "embed_dim" if "embed_dim" in vision else "hidden_size")
    tower = Tower(
        hidden=hidden,
        intermediate=int(vision.get("intermediate_size") or vision.get("mlp_ratio", 4) * hidden),
        layers=_size(vision, "num_hidden_layers" if "num_hidden_layers" in vision else "depth"),
        heads=_size(vision, "num_attention_heads" if "num_attention_heads" in vision else "num_heads"),
        patches=(side // patch) ** 2,
    )
    merged = int(vision.get("spatial_merge_size") or config.get("scale_factor") or 1) ** 2
    tokens = config.get("image_seq_length") or config.get("mm_tokens_per_image") or tower.patches // merged
    projector = hidden * decoder.hidden + decoder.hidden**2 + 2 * decoder.hidden
    pixels = None if vision.get("image_size") else patch**2 * merged
    return tower, projector, int(tokens), pixels


def _size(of: Mapping[str, Any], name: str) -> int:
    size = int(of[name])
    if size <= 0:
        raise ValueError(name)
    return size


def _side(value: Any) -> int:
    return int(value[0] if isinstance(value, list | tuple) else value)


def _decoder_parameters(decoder: Decoder) -> int:
    embeddings = decoder.vocabulary * decoder.hidden * (1 if decoder.tied else 2)
    return embeddings + decoder.linear_parameters + decoder.hidden * (2 * decoder.layers + 1)


def _tower_parameters(tower: Tower | None) -> int:
    if tower is None:
        return 0
    layer = 4 * tower.hidden**2 + 2 * tower.hidden * tower.intermediate + 9 * tower.hidden + tower.intermediate
    return tower.layers * layer + tower.patches * tower.hidden


class _Known(msgspec.Struct, frozen=True):
    parameters: dict[str, int]
    config: dict[str, Any]


@functools.cache
def _known() -> dict[str, _Known]:
    return msgspec.json.decode(Path(__file__).with_name("architectures.json").read_bytes(), type=dict[str, _Known])
