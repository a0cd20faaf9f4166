"""What a training is said to take, against simulations and against itself."""

import json
from typing import Any

import pytest

from jobs import footprint, model_shapes
from jobs.footprint import GIB, Footprint, Loss, RowTokens, Term
from jobs.model_shapes import ModelShape
from jobs.training_config import TrainingConfig

LLAVA_7B = "llava-hf/llava-1.5-7b-hf"
NOT_TENSORS = {Term.RUNTIME, Term.PROCESS, Term.FRAGMENTATION}
FOR_8_GB: dict[str, Any] = {"use_qlora": True, "batch_size": 1, "gradient_accumulation_steps": 8, "max_length": 1024}
FOR_24_GB: dict[str, Any] = {"batch_size": 4, "max_length": 2048}


def config(**settings: Any) -> TrainingConfig:
    return TrainingConfig(model_name=LLAVA_7B, train_data_path="datasets/x", **settings)


def shape(name: str = LLAVA_7B) -> ModelShape:
    found = model_shapes.known_shape(name)
    assert found
    return found


def tensors(found: Footprint) -> float:
    """GiB without what a simulation of tensors cannot see."""
    return sum(term.size_bytes for term in found.terms if term.name not in NOT_TENSORS) / GIB


def terms(found: Footprint) -> dict[Term, int]:
    return {term.name: term.size_bytes for term in found.terms}


# Simulated, not measured: FakeTensorMode with MemTracker on the first layers of LLaVA-1.5-7B, extrapolated to all.
@pytest.mark.parametrize(
    ("settings", "recomputes", "simulated_gib"),
    [
        ({"use_qlora": True, "batch_size": 1, "max_length": 1024}, True, 5.4),
        ({"batch_size": 4, "max_length": 2048}, True, 19.4),
        ({"batch_size": 1, "max_length": 1024}, False, 19.95),
    ],
)
def test_the_tensors_come_out_as_simulated(settings: dict[str, Any], recomputes: bool, simulated_gib: float) -> None:
    as_simulated = config(lora_rank=16, lora_dropout=0.0, gradient_accumulation_steps=1, **settings)
    found = footprint.estimate(as_simulated, shape(), loss=Loss.WHOLE, recomputes=recomputes)
    assert tensors(found) == pytest.approx(simulated_gib, rel=0.05)


@pytest.mark.parametrize("loss", Loss)
def test_the_config_for_8_gb_fits_and_says_that_its_4_bit_weights_are_most_of_it(loss: Loss) -> None:
    found = footprint.estimate(config(**FOR_8_GB), shape(), loss=loss)
    assert 5.4 <= found.expected_bytes / GIB <= 7.0  # the simulated range
    assert found.high_bytes <= 8 * GIB
    assert found.dominant is Term.WEIGHTS_4BIT
    assert found.recomputes


@pytest.mark.parametrize("loss", Loss)
def test_the_config_for_24_gb_fits_and_says_that_its_weights_are_most_of_it(loss: Loss) -> None:
    found = footprint.estimate(config(**FOR_24_GB), shape(), loss=loss)
    assert found.low_bytes / GIB <= 19.4 <= found.high_bytes / GIB  # simulated
    assert found.high_bytes <= 24 * GIB
    assert found.dominant is Term.WEIGHTS


def test_the_same_config_does_not_fit_without_4_bits_in_8_gb() -> None:
    found = footprint.estimate(config(**FOR_8_GB | {"use_qlora": False}), shape())
    assert found.low_bytes > 8 * GIB


def test_states_in_8_bits_take_a_quarter_but_those_of_embeddings_and_small_matrices() -> None:
    def states(of: ModelShape, **settings: Any) -> int:
        return terms(footprint.estimate(config(**settings), of))[Term.OPTIMISER]

    large, embeddings = shape(), 32064 * 4096
    in_full = states(large, use_lora=False, optimizer="adamw_8bit")
    assert in_full == pytest.approx(8 * embeddings + 2.03 * (large.total - embeddings), rel=1e-3)
    assert states(large, optimizer="adamw_8bit") == pytest.approx(states(large) / 4, rel=0.02)
    dims = {"hidden_size": 512, "intermediate_size": 768, "num_attention_heads": 8, "num_hidden_layers": 2}
    small = model_shapes.shape_of(dims | {"model_type": "llama", "vocab_size": 512})
    assert small
    assert states(small, optimizer="adamw_8bit", lora_rank=4) == states(small, lora_rank=4)


def test_what_eyes_saw_is_kept_in_the_memory_of_a_cpu_run_and_beside_a_gpu() -> None:
    keeping = config(cache_vision_features=True, num_processes=4)
    assert (
        terms(footprint.estimate(keeping, shape(), device="cpu"))[Term.FEATURES] == footprint.FEATURES_ON_CPU_BYTES / 4
    )
    assert Term.FEATURES not in terms(footprint.estimate(keeping, shape()))
    assert Term.FEATURES not in terms(footprint.estimate(config(), shape(), device="cpu"))


def test_a_base_in_8_bits_keeps_a_byte_a_weight_and_a_scale_for_each_output() -> None:
    sizes = terms(footprint.estimate(config(**FOR_8_GB, qlora_bits=8), shape()))
    decoder = shape().decoder
    outputs = decoder.layers * sum(outputs for _, outputs in decoder.linears)
    assert sizes[Term.WEIGHTS_8BIT] == decoder.linear_parameters + 4 * outputs
    assert Term.WEIGHTS_4BIT not in sizes
    assert sizes[Term.WEIGHTS] == terms(footprint.estimate(config(**FOR_8_GB), shape()))[Term.WEIGHTS]


def test_a_base_in_8_bits_lies_between_4_bits_and_none() -> None:
    four, eight, none = (
        footprint.estimate(config(**FOR_8_GB | of), shape()).expected_bytes
        for of in ({}, {"qlora_bits": 8}, {"use_qlora": False})
    )
    assert four < eight < none
    assert eight > 8 * GIB


def test_a_map_in_8_bits_keeps_its_input_which_one_in_4_bits_does_not() -> None:
    """For the backward pass, by the maps that share it: q, k, v; gate, up; down."""
    of = {"gradient_checkpointing": False, "use_qlora": True, "batch_size": 1, "max_length": 1024}
    four, eight = (
        terms(footprint.estimate(config(**of, qlora_bits=bits), shape()))[Term.ACTIVATIONS] for bits in (4, 8)
    )
    decoder = shape().decoder
    assert eight - four == 1024 * decoder.layers * 2 * (2 * decoder.hidden + decoder.intermediate)


@pytest.mark.parametrize("settings", [FOR_8_GB, FOR_24_GB, {"use_lora": False, "gradient_accumulation_steps": 1}])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_terms_add_up_and_the_range_holds_the_expectation(settings: dict[str, Any], device: Any) -> None:
    found = footprint.estimate(config(**settings), shape(), device=device)
    assert sum(term.size_bytes for term in found.terms) == found.expected_bytes
    assert found.low_bytes < found.expected_bytes < found.high_bytes
    assert found.terms[0].size_bytes == max(term.size_bytes for term in found.terms)


@pytest.mark.parametrize(
    "smaller",
    [{"max_length": 512}, {"batch_size": 1}, {"use_qlora": True}, {"lora_rank": 4}],
)
def test_less_of_anything_takes_less(smaller: dict[str, Any]) -> None:
    usual = {"max_length": 2048, "batch_size": 4, "lora_rank": 64}
    before = footprint.estimate(config(**usual), shape())
    after = footprint.estimate(config(**usual | smaller), shape())
    assert after.expected_bytes < before.expected_bytes


def test_recomputing_activations_takes_less_than_keeping_them() -> None:
    kept, recomputed = (footprint.estimate(config(), shape(), recomputes=recomputes) for recomputes in (False, True))
    assert recomputed.expected_bytes < kept.expected_bytes


def test_a_chunked_loss_takes_less_than_a_whole_one() -> None:
    rows = RowTokens(longest=2048, trained=60)
    sizes = [tensors(footprint.estimate(config(), shape(), rows, loss=loss)) for loss in Loss]
    assert sizes == sorted(sizes, reverse=True)


def test_full_training_of_many_weights_peaks_at_the_update() -> None:
    found = footprint.estimate(
        config(use_lora=False, batch_size=1, gradient_accumulation_steps=1, max_length=128), shape()
    )
    assert found.moment == "update"
    assert {term.name: term.size_bytes for term in found.terms}[Term.OPTIMISER] == 8 * shape().total


def test_rows_are_never_longer_than_max_length() -> None:
    endless = RowTokens(longest=10**9, trained=10**9)
    assert footprint.estimate(config(), shape(), endless).expected_bytes < 100 * GIB


def test_placement_sets_the_high_estimate_aside_times_the_correction() -> None:
    high = footprint.estimate(config(), shape()).high_bytes
    assert footprint.reserve_bytes(config(), shape()) == high
    assert footprint.reserve_bytes(config(), shape(), factor=1.5) == pytest.approx(1.5 * high)


def test_each_process_on_a_gpu_takes_what_one_does_and_a_bucket_of_gradients_at_the_update() -> None:
    of = {"use_lora": False, "batch_size": 1, "gradient_accumulation_steps": 1, "max_length": 128}
    one, two = (footprint.estimate(config(**of, num_processes=count), shape()) for count in (1, 2))
    embeddings = shape().decoder.vocabulary * shape().decoder.hidden
    assert one.moment == two.moment == "update"
    assert Term.TRAVELLING not in terms(one)
    assert terms(two)[Term.TRAVELLING] == 4 * (footprint.BUCKET + embeddings)
    small = footprint.estimate(config(num_processes=2, lora_rank=1), shape())
    assert terms(small).get(Term.TRAVELLING, 0) <= 4 * sum(shape().trainable(config(lora_rank=1)).values())


def test_processes_on_a_cpu_share_its_memory_and_on_gpus_each_has_its_own() -> None:
    four = config(num_processes=4)
    each = footprint.estimate(four, shape(), device="cpu")
    together = footprint.on_device(each, four, "cpu")
    assert together.expected_bytes == 4 * each.expected_bytes
    assert terms(together)[Term.PROCESS] == 4 * footprint.CPU_PROCESS_BYTES
    assert footprint.reserve_bytes(four, shape(), device="cpu") == together.high_bytes
    assert footprint.reserve_bytes(four, shape()) == footprint.estimate(four, shape()).high_bytes


def test_a_model_that_only_answers_takes_little_more_than_its_weights() -> None:
    weights = 2 * shape().total
    assert weights < footprint.inference_reserve_bytes(shape()) < 1.3 * weights


@pytest.mark.parametrize("name", model_shapes.known_names())
def test_the_language_model_of_a_known_name_is_counted_exactly_by_arithmetic(name: str) -> None:
    described = model_shapes.known_config(name)
    assert described
    computed = model_shapes.shape_of(described)
    assert computed
    exact = shape(name).parameters
    biases = 2 * 10**5 if "qwen" in name.lower() else 0  # those of q, k and v, which llamas lack
    assert 0 <= exact["language"] - computed.parameters["language"] <= biases
    assert computed.total == pytest.approx(sum(exact.values()), rel=0.05)


def test_a_config_without_dimensions_has_no_shape() -> None:
    assert model_shapes.shape_of({}) is None
    assert model_shapes.shape_of({"text_config": "none", "hidden_size": []}) is None
    assert model_shapes.shape_of(json.loads('{"hidden_size": 0, "num_attention_heads": 0}')) is None


def test_what_a_config_leaves_out_has_the_default_of_its_class() -> None:
    published = {
        "model_type": "llava",
        "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
        "vision_config": {"model_type": "clip_vision_model"},
        "image_seq_length": 576,
    }
    found = model_shapes.shape_of(published)
    assert found
    assert found.decoder == shape().decoder
    assert found.image_tokens == 576


def test_eyes_that_name_the_language_models_width_are_as_wide_as_they_are() -> None:
    """Of Qwen/Qwen2-VL-7B-Instruct, whose eyes have 665 million parameters."""
    eyes = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14}
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    found = model_shapes.shape_of({"text_config": text | {"vocab_size": 152064}, "vision_config": eyes})
    assert found is not None
    assert found.tower is not None
    assert (found.tower.hidden, found.tower.intermediate) == (1280, 5120)
    assert found.parameters["vision"] == pytest.approx(632e6, rel=0.05)  # without what joins four patches to a token
