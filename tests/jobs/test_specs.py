"""What a client may ask for: limits, unknown fields, and the way over the wire."""

import typing
from typing import Any

import msgspec
import pytest

from jobs import specs
from jobs.errors import BadRatios
from jobs.specs import (
    ConvertSpec,
    EvaluateSpec,
    ExportFormat,
    ExportSpec,
    FinetuneSpec,
    GenerateSpec,
    JobSpec,
    Kind,
    PlanSpec,
    PrepareSpec,
    PreviewSpec,
    Slot,
    SplitSpec,
    ValidateSpec,
)
from jobs.training_config import TrainingConfig

CONFIG = TrainingConfig(model_name="demo-llava", train_data_path="datasets/a/train.jsonl")
EXAMPLES: dict[Kind, Any] = {
    Kind.CONVERT: ConvertSpec(sam2_zip_path="uploads/1/a.zip", output_dir="a"),
    Kind.VALIDATE: ValidateSpec(data_path="a"),
    Kind.SPLIT: SplitSpec(data_path="a", output_dir="b"),
    Kind.PREPARE: PrepareSpec(sam2_zip_path="uploads/1/a.zip", output_dir="a"),
    Kind.PREVIEW: PreviewSpec(config=CONFIG, rows=("r",)),
    Kind.PLAN: PlanSpec(config=CONFIG, experiment_name="e", tags=("t",)),
    Kind.FINETUNE: FinetuneSpec(config=CONFIG, experiment_name="e", tags=("t",)),
    Kind.EVALUATE: EvaluateSpec(data_path="a", job_id="j"),
    Kind.GENERATE: GenerateSpec(data_path="a", model_name="demo-llava", rows=("r",)),
    Kind.EXPORT: ExportSpec(job_id="j", export_format=ExportFormat.LORA_ADAPTER),
}


def decoded(body: Any, kind: Any = JobSpec) -> Any:
    return msgspec.json.decode(msgspec.json.encode(body), type=kind)


def config_with(**fields: Any) -> Any:
    return decoded(msgspec.to_builtins(CONFIG) | fields, TrainingConfig)


@pytest.mark.parametrize("kind", Kind)
def test_a_spec_survives_the_wire_and_tells_its_kind(kind: Kind) -> None:
    spec = decoded(EXAMPLES[kind])
    assert spec == EXAMPLES[kind]
    assert specs.kind_of(spec) is kind
    assert msgspec.to_builtins(spec)["kind"] == kind


@pytest.mark.parametrize("spec", typing.get_args(JobSpec))
def test_a_spec_refuses_unknown_fields_and_cannot_be_changed(spec: type[specs.Spec]) -> None:
    example = EXAMPLES[Kind(str(spec.__struct_config__.tag))]
    with pytest.raises(msgspec.ValidationError, match="unknown field `__class__`"):
        decoded(msgspec.to_builtins(example) | {"__class__": "x"})
    with pytest.raises(AttributeError):
        setattr(example, example.__struct_fields__[0], "x")


@pytest.mark.parametrize("kind", ["", "train", "FINETUNE", None, 1])
def test_another_kind_is_refused(kind: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        decoded({"kind": kind, "job_id": "j"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0),
        ("learning_rate", -1e-4),
        ("learning_rate", 1e308),
        ("num_epochs", 0),
        ("num_epochs", 10**9),
        ("batch_size", 0),
        ("batch_size", 10**9),
        ("batch_size", 1.5),
        ("batch_size", "4"),
        ("batch_size", True),
        ("gradient_accumulation_steps", 0),
        ("lora_rank", 0),
        ("lora_rank", 10**6),
        ("lora_dropout", 0.51),
        ("max_length", 127),
        ("max_length", 10**9),
        ("max_steps", 0),
        ("warmup_ratio", 0.6),
        ("weight_decay", -0.1),
        ("max_grad_norm", 0),
        ("seed", -1),
        ("seed", 2**64),
        ("save_steps", 0),
        ("eval_steps", 0),
        ("logging_steps", 0),
        ("save_total_limit", 0),
        ("priority", 101),
        ("device", "tpu"),
        ("device", "cuda\n"),
        ("model_name", ""),
        ("model_name", "  "),
        ("model_name", "x" * 513),
        ("train_data_path", ""),
        ("train_data_path", None),
        ("output_dir", "x" * 1025),
        ("use_lora", "yes"),
    ],
)
def test_a_value_outside_its_limits_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}"):
        config_with(**{field: value})


@pytest.mark.parametrize(
    "name", ["push_to_hub", "hub_token", "deepspeed", "report_to", "trust_remote_code", "__proto__"]
)
def test_arguments_of_other_trainers_are_unknown(name: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=f"unknown field `{name}`"):
        config_with(**{name: True})


def test_two_number_formats_at_once_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="fp16 and bf16"):
        config_with(fp16=True, bf16=True)


@pytest.mark.parametrize(
    ("fields", "method"),
    [({}, "lora"), ({"use_lora": False}, "full"), ({"use_qlora": True, "use_lora": False}, "qlora")],
)
def test_the_method_follows_from_two_flags(fields: dict[str, bool], method: str) -> None:
    assert config_with(**fields).method == method


def test_words_that_look_like_commands_stay_text() -> None:
    for text in ("--output=/x", "; id", "$(id)", "`id`", "{{ 7 * 7 }}"):
        assert config_with(model_name=text, output_dir=text).model_name == text


@pytest.mark.parametrize("fields", [{}, {"job_id": "j", "export_id": "e"}, {"job_id": "j", "model_name": "m"}])
@pytest.mark.parametrize("kind", ["evaluate", "generate"])
def test_exactly_one_model_is_named(kind: str, fields: dict[str, str]) -> None:
    with pytest.raises(msgspec.ValidationError, match="exactly one"):
        decoded({"kind": kind, "data_path": "a", **fields})


def test_ratios_add_up_to_one() -> None:
    spec = EXAMPLES[Kind.SPLIT]
    spec.check_ratios()
    msgspec.structs.replace(spec, train_ratio=0.7995, val_ratio=0.1).check_ratios()
    with pytest.raises(BadRatios, match=r"is 1\.1"):
        msgspec.structs.replace(spec, train_ratio=0.9).check_ratios()


def test_work_with_a_model_takes_a_gpu_slot_and_data_work_a_cpu_slot() -> None:
    slots = {kind: specs.slot_of(spec) for kind, spec in EXAMPLES.items()}
    assert {kind for kind, slot in slots.items() if slot is Slot.GPU} == {Kind.FINETUNE, Kind.EVALUATE, Kind.GENERATE}
    assert specs.slot_of(PlanSpec(config=CONFIG, probe=True)) is Slot.GPU


@pytest.mark.parametrize("text", ["a" * 50_000 + "!", " " * 50_000, "\n" * 50_000])
@pytest.mark.timeout(5)
def test_patterns_are_quick_on_long_input(text: str) -> None:
    for field in ("model_name", "train_data_path", "device"):
        with pytest.raises(msgspec.ValidationError):
            config_with(**{field: text})


def test_a_form_is_told_of_every_setting_what_it_is_called_what_it_does_and_where_it_stands() -> None:
    properties = msgspec.json.schema(TrainingConfig)["$defs"]["TrainingConfig"]["properties"]
    assert set(properties) == set(TrainingConfig.__struct_fields__)
    groups = [shown["x-group"] for shown in properties.values()]
    assert list(dict.fromkeys(groups)) == ["model and data", "method", "schedule", "saving and reporting", "hardware"]
    assert groups == sorted(groups, key=groups.index), "The settings of a group stand together."
    for name, shown in properties.items():
        assert shown["title"], name
        assert shown["description"].endswith("."), name
    assert properties["lora_rank"].items() >= {"minimum": 1, "maximum": 256, "default": 8}.items()
    assert properties["seed"]["x-advanced"] is True
    assert "x-advanced" not in properties["learning_rate"]


def test_patience_without_validation_data_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="needs val_data_path"):
        config_with(early_stopping_patience=3, val_data_path=None)
    assert config_with(early_stopping_patience=3, val_data_path="datasets/val.jsonl").early_stopping_patience == 3


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"qlora_bits": 8}, "needs use_qlora"),
        ({"cache_vision_features": True, "use_lora": False}, "cache_vision_features needs use_lora or use_qlora"),
        ({"continue_from_step": 3}, "needs continue_from"),
    ],
)
def test_settings_that_cannot_work_together_are_refused_with_the_remedy(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TrainingConfig(model_name="m", train_data_path="d", **fields)
