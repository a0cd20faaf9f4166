"""How much memory a training takes, by arithmetic on the model's dimensions: no model, no data and no torch needed.

The plan, the placement and the page ask; `plan` corrects it by what finished runs really took. The dimensions are
those of `model_shapes`.

Two moments compete for the peak: the backward pass (activations and the loss are held) and the update (every
gradient is held). The terms are those of the larger one. Of a run of several processes `estimate` is about one of
them, and `on_device` about what they take of a device.
"""

from enum import StrEnum
from typing import Literal

import msgspec

from jobs.model_shapes import ModelShape
from jobs.training_config import TrainingConfig

MIB, GIB = 2**20, 2**30

RECOMPUTED_ABOVE = 300_000_000  # parameters: larger models on a GPU recompute activations instead of keeping them
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)  # a weight, its block's 8-bit scale, the scale's own 32-bit one
LEAST_IN_8_BITS = 4096  # numbers of a matrix, below which adamw_8bit keeps float32
CUDA_CONTEXT_BYTES = 512 * MIB
NCCL_BYTES = 256 * MIB  # what several processes talk through, outside torch's allocator; not measured here
FEATURES_ON_CPU_BYTES = GIB  # what eyes saw, of all processes together, where a run's memory is the host's
CPU_PROCESS_BYTES = 480 * MIB  # torch, transformers and peft imported: resident memory of a child before its model
CHUNK_LOGITS = 2**25  # numbers held at once where the loss is chunked
BUCKET = 2**23  # numbers of gradients that several processes gather before they are sent, and the last one's on top

DeviceType = Literal["cuda", "cpu"]


class Loss(StrEnum):
    """How the loss turns hidden states into numbers, which decides how many logits are held."""

    WHOLE = "whole"  # every position's logits in float32, as transformers does it
    TRAINED = "trained"  # every position's logits once, in float32 only where a token is trained
    CHUNKED = "chunked"  # of trained positions only, `CHUNK_LOGITS` at a time


LOSS = Loss.CHUNKED
"""What `gpu_runner.training.loss` does. The one switch: change it together with the loss."""


class Term(StrEnum):
    """What memory goes to."""

    WEIGHTS = "weights"
    WEIGHTS_4BIT = "weights in 4 bits"
    WEIGHTS_8BIT = "weights in 8 bits"
    ADAPTERS = "adapters"
    CASTS = "weights in the format of the arithmetic"
    OPTIMISER = "optimiser states"
    GRADIENTS = "gradients"
    TRAVELLING = "gradients on their way to other processes"
    UPDATE = "the update of a matrix"
    ACTIVATIONS = "activations"
    RECOMPUTED = "layer inputs kept for recomputing"
    LAYER = "activations of one layer"
    VISION = "vision activations"
    LOSS = "logits and loss"
    FEATURES = "what the eyes saw, kept"
    RUNTIME = "CUDA context"
    PROCESS = "process and libraries"
    FRAGMENTATION = "fragmentation"


class RowTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The largest rows of a dataset: tokens with their pictures, those of them that are trained, pictures."""

    longest: int
    trained: int
    images: int = 1

    @classmethod
    def worst(cls, config: TrainingConfig, shape: ModelShape) -> "RowTokens":
        """What the configuration allows, where the data has not been looked at."""
        images = 1 if shape.tower else 0
        trained = max(1, config.max_length - images * shape.image_tokens)
        return cls(longest=config.max_length, trained=trained, images=images)


class NamedBytes(msgspec.Struct, frozen=True):
    """One term of a footprint."""

    name: Term
    size_bytes: int


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of a process of a run, or of all on a device. `terms` add up to `expected_bytes`, the largest first.

    `moment` is when the peak is: in the backward pass, or at the update. `recomputes` says whether activations are
    recomputed; `loss` which logits are assumed to be held.
    """

    low_bytes: int
    expected_bytes: int
    high_bytes: int
    terms: tuple[NamedBytes, ...]
    moment: Literal["backward", "update"]
    recomputes: bool
    loss: Loss

    @property
    def dominant(self) -> Term:
        return self.terms[0].name

    def times(self, factor: float) -> "Footprint":
        """With every number times `factor`."""
        return msgspec.structs.replace(
            self,
            low_bytes=round(self.low_bytes * factor),
            expected_bytes=round(self.expected_bytes * factor),
            high_bytes=round(self.high_bytes * factor),
            terms=tuple(NamedBytes(term.name, round(term.size_bytes * factor)) for term in self.terms),
        )


def estimate(
    config: TrainingConfig,
    shape: ModelShape,
    tokens: RowTokens | None = None,
    *,
    device: DeviceType = "cuda",
    loss: Loss = LOSS,
    recomputes: bool | None = None,
) -> Footprint:
    """The memory of a process of a training; without `tokens` its rows are taken to be as long as max_length allows."""
    tokens = tokens or RowTokens.worst(config, shape)
    tokens = msgspec.structs.replace(tokens, longest=min(tokens.longest, config.max_length))
    if recomputes is None:
        recomputes = recomputes_activations(config, device, shape.total)
    run = _Run(config, shape, tokens, device, loss, recomputes)
    kept, backward, update = run.kept(), run.backward(), run.update()
    moment: Literal["backward", "update"] = "backward" if sum(backward.values()) >= sum(update.values()) else "update"
    passing = backward if moment == "backward" else update
    tensors = sum(kept.values()) + sum(passing.values())
    fixed = run.fixed()
    slack = {Term.FRAGMENTATION: tensors // 20}
    terms = {name: round(size) for name, size in (kept | passing | fixed | slack).items() if round(size)}
    expected = sum(terms.values())
    # Weights, gradients and states are counts; what passes through is modelled, and the allocator adds its own.
    unsure = sum(passing.values()) // 5
    return Footprint(
        low_bytes=round(expected - slack[Term.FRAGMENTATION] - unsure / 2),
        expected_bytes=expected,
        high_bytes=round(expected + slack[Term.FRAGMENTATION] + unsure + fixed.get(Term.RUNTIME, 0) // 2),
        terms=tuple(NamedBytes(name, size) for name, size in sorted(terms.items(), key=lambda term: -term[1])),
        moment=moment,
        recomputes=recomputes,
        loss=loss,
    )


def on_device(found: Footprint, config: TrainingConfig, device: DeviceType) -> Footprint:
    """The memory of a device that one process takes `found` of: those on a CPU share it, on GPUs each has its own."""
    return found.times(config.num_processes) if device == "cpu" else found


def reserve_bytes(
    config: TrainingConfig,
    shape: ModelShape,
    tokens: RowTokens | None = None,
    *,
    device: DeviceType = "cuda",
    factor: float = 1.0,
) -> int:
    """What placement sets aside for a run on each of its devices: the high estimate, times the host's correction."""
    return on_device(estimate(config, shape, tokens, device=device), config, device).times(factor).high_bytes


def inference_reserve_bytes(
    shape: ModelShape, *, rows: int = 1, length: int = 2048, device: DeviceType = "cuda"
) -> int:
    """What placement sets aside for a model that only answers: weights, the cache of keys and values, one layer."""
    width = 2 if device == "cuda" else 4
    decoder, tokens = shape.decoder, rows * length
    cache = 2 * decoder.layers * decoder.kv_heads * decoder.head_width * tokens * width
    layer = tokens * width * (4 * decoder.hidden + 3 * decoder.intermediate)
    logits = rows * decoder.vocabulary * 4
    fixed = CUDA_CONTEXT_BYTES if device == "cuda" else CPU_PROCESS_BYTES
    return round(1.1 * (shape.total * width + cache + layer + logits) + 1.5 * fixed)


def recomputes_activations(config: TrainingConfig, device: DeviceType, parameters: int) -> bool:
    """Whether a run keeps only the layers' inputs and computes the rest a second time; 8 GB hold a 7B model only so."""
    if config.gradient_checkpointing is not None:
        return config.gradient_checkpointing
    return device == "cuda" and parameters > RECOMPUTED_ABOVE


class _Run:
    """One configuration on one kind of device. All sizes in bytes, by term."""

    def __init__(
        self,
        config: TrainingConfig,
        shape: ModelShape,
        tokens: RowTokens,
        device: DeviceType,
        loss: Loss,
        recomputes: bool,
    ) -> None:
        self._config, self._shape, self._decoder = config, shape, shape.decoder
        self._device, self._loss, self._recomputes = device, loss, recomputes
        self._is_full = config.method == "full"
        self._is_in_8_bits = config.method == "qlora" and config.qlora_bits == 8
        self._rows = config.batch_size
        self._tokens = config.batch_size * tokens.longest
        self._trained_tokens = config.batch_size * min(tokens.trained, tokens.longest)
        self._images = config.batch_size * tokens.images
        self._width = compute_width(config, device)
        self._trainable = sum(shape.trainable(config).values())

    def kept(self) -> dict[Term, float]:
        """What is there from the second step to the end."""
        states = self._states()
        if self._is_full:
            casts = self._width * self._shape.total if self._width < 4 else 0  # autocast keeps a copy of each weight
            return {Term.WEIGHTS: 4 * self._shape.total, Term.CASTS: casts, Term.OPTIMISER: states}
        adapters = {Term.ADAPTERS: 4 * self._trainable, Term.OPTIMISER: states}
        if self._config.method != "qlora":
            return {Term.WEIGHTS: self._width * self._shape.total, **adapters}
        quantised = self._decoder.linear_parameters
        rest = {Term.WEIGHTS: self._width * (self._shape.total - quantised)}
        if self._is_in_8_bits:  # a byte a weight, and a 32-bit scale for each row, which makes one output
            scales = 4 * self._decoder.layers * sum(outputs for _, outputs in self._decoder.linears)
            return {**rest, Term.WEIGHTS_8BIT: quantised + scales, **adapters}
        return {**rest, Term.WEIGHTS_4BIT: NF4_BYTES * quantised, **adapters}

    def fixed(self) -> dict[Term, float]:
        """What does not depend on the arithmetic."""
        several = self._config.num_processes > 1
        if self._device == "cuda":
            return {Term.RUNTIME: CUDA_CONTEXT_BYTES + (NCCL_BYTES if several else 0)}
        keeps = self._config.cache_vision_features and self._shape.tower is not None
        kept = FEATURES_ON_CPU_BYTES / self._config.num_processes if keeps else 0
        return {Term.PROCESS: CPU_PROCESS_BYTES, Term.FEATURES: kept}

    def _states(self) -> float:
        """Two moments of each trained number, in float32 or in 8 bits with a float32 scale for each block.

        Embeddings and small matrices keep theirs in float32. Source: bitsandbytes, Optimizer2State.
        """
        if self._config.optimizer == "adamw":
            return 8 * self._trainable
        decoder, rank = self._decoder, self._config.lora_rank
        if self._is_full:
            whole = decoder.vocabulary * decoder.hidden
        else:
            sizes = (rank * width for linear in decoder.linears for width in linear)
            whole = decoder.layers * sum(size for size in sizes if size < LEAST_IN_8_BITS)
        return 8 * whole + 2 * (1 + 4 / 256) * (self._trainable - whole)

    def backward(self) -> dict[Term, float]:
        """At the worst instant of a backward pass: where the loss is, or inside the last layers."""
        accumulated: float = 4 * self._trainable if self._config.gradient_accumulation_steps > 1 else 0
        begun = {Term.GRADIENTS: accumulated}
        stem = self._tokens * 4 * 3 * self._decoder.hidden  # embeddings, their copy with the picture, the last norm
        vision = {Term.VISION: self._vision()}
        if not self._recomputes:
            held = self._decoder.layers * self._layer() + stem
            return begun | vision | {Term.ACTIVATIONS: held, Term.LOSS: self._loss_bytes()}
        inputs = self._decoder.layers * self._tokens * self._residual_width * self._decoder.hidden + stem
        at_loss = begun | vision | {Term.RECOMPUTED: inputs, Term.LOSS: self._loss_bytes()}
        gradients = accumulated or 4 * self._trainable / self._decoder.layers
        layer = self._layer() + max(self._layer_gradients() + self._dequantised(), self._in_integers())
        at_layer = {Term.GRADIENTS: gradients, Term.RECOMPUTED: inputs, Term.LAYER: layer} | vision
        return max(at_loss, at_layer, key=lambda terms: sum(terms.values()))

    def update(self) -> dict[Term, float]:
        return {Term.GRADIENTS: 4 * self._trainable, Term.TRAVELLING: self._travelling(), Term.UPDATE: self._updating()}

    def _travelling(self) -> float:
        """The copy in which gradients are added up: a bucket, which the last one that is put in may overfill."""
        if self._config.num_processes == 1:
            return 0
        return 4 * min(self._trainable, BUCKET + self._largest_matrix())

    def _updating(self) -> float:
        """What one matrix's update holds. A GPU makes it in place; so does AdamW anywhere. adamw_8bit on a CPU holds
        five float32 copies, measured on matrices of 4 to 16 MiB."""
        is_in_copies = self._config.optimizer == "adamw_8bit" and self._device == "cpu"
        return 5 * 4 * self._largest_matrix() if is_in_copies else 0

    def _largest_matrix(self) -> int:
        """Numbers of the largest one that is trained."""
        decoder, rank = self._decoder, self._config.lora_rank
        if not self._is_full:
            return rank * max(map(max, decoder.linears))
        return max(decoder.vocabulary * decoder.hidden, *(inputs * outputs for inputs, outputs in decoder.linears))

    @property
    def _residual_width(self) -> int:
        """Bytes of a number between layers: float32 weights make float32 sums."""
        return 4 if self._is_full else self._width

    def _layer(self) -> float:
        """What one layer keeps for its backward pass.

        Counted from the modules of transformers' Llama: two norms, attention through SDPA with keys and values
        repeated for every head, a gated MLP; LoRA keeps the inputs of its A matrices, with dropout a copy each.
        """
        h, f, a = self._decoder.hidden, self._decoder.intermediate, self._decoder.attention_width
        width = self._width
        norms, attention, mlp = 2 * 4 * h, 4 * width * a, 3 * width * f
        numbers: float
        if self._is_full:
            numbers = norms + 2 * 4 * h + 2 * width * h + attention + mlp + width * f
        else:
            numbers = norms + attention + mlp + self._adapter_inputs() + self._quantised_inputs()
        return self._tokens * numbers

    def _adapter_inputs(self) -> float:
        """Bytes a token of what the A and B matrices of a layer keep."""
        inputs = sum(inputs for inputs, _ in self._decoder.linears)
        between = 4 * self._config.lora_rank * len(self._decoder.linears)
        if not self._config.lora_dropout and self._width == 4:  # q, k, v share theirs, gate and up theirs
            return self._width * (2 * self._decoder.hidden + self._decoder.intermediate) + between
        if not self._config.lora_dropout:  # adapters are float32: each map's input is cast there and back by itself
            return self._width * inputs + between
        mask = 1 if self._device == "cuda" else 4  # a CPU multiplies by a mask in the adapters' format, float32
        return (self._width + mask) * inputs + between

    def _quantised_inputs(self) -> float:
        """Bytes a token of what the base's maps keep: in 8 bits their input, in 4 nothing.

        q, k, v share theirs, gate and up theirs; o's is counted with the attention. Source: bitsandbytes, MatMul8bitLt.
        """
        if not self._is_in_8_bits or (not self._config.lora_dropout and self._width == 4):  # the adapters keep the same
            return 0
        return self._width * (2 * self._decoder.hidden + self._decoder.intermediate)

    def _in_integers(self) -> float:
        """What the largest map in 8 bits holds at once in a forward pass.

        First its input in fp16, the sizes of that, which of them are outliers, and its integers; then these, the
        outputs as 32-bit integers and as numbers. Source: bitsandbytes, int8_vectorwise_quant and int8_scaled_mm.
        """
        if not self._is_in_8_bits:
            return 0
        at_once = (max(6 * inputs, inputs + (4 + self._width) * outputs) for inputs, outputs in self._decoder.linears)
        return self._tokens * max(at_once)

    def _layer_gradients(self) -> float:
        """What flows back through a layer at once."""
        return self._tokens * self._width * (2 * self._decoder.intermediate + 2 * self._decoder.hidden)

    def _dequantised(self) -> float:
        """The largest map's weights as numbers, made for the gradient of its input; of 4 bits there are two copies."""
        if self._config.method != "qlora":
            return 0
        copies = 1 if self._is_in_8_bits else 2
        return copies * self._width * max(inputs * outputs for inputs, outputs in self._decoder.linears)

    def _vision(self) -> float:
        """Pictures as numbers; the eyes' activations where they train, else one layer of them in passing."""
        tower = self._shape.tower
        if tower is None or not self._images:
            return 0
        patches = self._images * tower.patches
        if not self._is_full:
            return 0  # their pass is over, under no-grad, before the language model begins
        layer = 2 * 4 * tower.hidden + 6 * self._width * tower.hidden + 4 * self._width * tower.intermediate
        kept = 4 * tower.hidden if self._recomputes else layer
        return patches * (tower.layers * kept + (layer if self._recomputes else 0))

    def _loss_bytes(self) -> float:
        vocabulary, width = self._decoder.vocabulary, self._width
        if self._loss is Loss.WHOLE:  # logits, their float32 copy, log-probabilities, their gradient
            return self._tokens * vocabulary * (width + 3 * 4)
        if self._loss is Loss.TRAINED:  # two gradients of all logits, the trained ones' in float32
            return self._tokens * vocabulary * 2 * width + self._trained_tokens * vocabulary * 2 * 4
        chunk = min(max(1, CHUNK_LOGITS // vocabulary), self._trained_tokens)
        return chunk * vocabulary * (width + 3 * 4) + self._trained_tokens * self._decoder.hidden * 2 * width


def compute_width(config: TrainingConfig, device: DeviceType) -> int:
    """Bytes of a number in the arithmetic: what the device does best unless the configuration says otherwise."""
    if config.bf16 or (config.fp16 and device == "cuda"):
        return 2
    if (config.fp16 is False and config.bf16 is False) or (config.fp16 and device == "cpu"):
        return 4
    return 2 if device == "cuda" or config.method == "qlora" else 4
