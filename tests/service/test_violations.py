"""All violations of a body at once."""

import msgspec

from jobs.specs import FinetuneSpec, JobSpec
from service import violations
from service.experiments import CompareRequest


def _found(body: object, annotation: object) -> dict[str, str]:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return {each.path: each.message for each in violations.find(raw, annotation)}


def test_every_wrong_field_is_named_with_its_path() -> None:
    config = {"model_name": "", "lora_rank": 0, "num_epochs": "three", "push_to_hub": True, "fp16": None}
    found = _found({"config": config, "tags": ["ok", 5, "x" * 200], "nonsense": 1}, FinetuneSpec)
    assert set(found) == {
        "config.model_name", "config.lora_rank", "config.num_epochs", "config.push_to_hub", "config.train_data_path",
        "tags[1]", "tags[2]", "nonsense",
    }  # fmt: skip
    assert found["config.train_data_path"] == "is required"
    assert found["config.push_to_hub"] == "is not a known field"


def test_rules_across_fields_are_told_once_every_field_is_right() -> None:
    config = {"model_name": "m", "train_data_path": "d", "fp16": True, "bf16": True}
    assert "cannot both be true" in _found({"config": config}, FinetuneSpec)["config"]
    assert "twice" in _found({"experiment_ids": ["a", "a"]}, CompareRequest)[""]


def test_the_kind_of_a_job_decides_which_fields_it_has() -> None:
    assert set(_found({"kind": "split", "data_path": "d", "lora_rank": 1}, JobSpec)) == {"output_dir", "lora_rank"}
    assert _found({"kind": "nonsense"}, JobSpec)
    assert _found({}, JobSpec)
    assert _found([], JobSpec)


def test_a_sound_body_has_none() -> None:
    config = {"model_name": "m", "train_data_path": "d", "val_data_path": None}
    assert _found({"config": config, "tags": ["a"]}, FinetuneSpec) == {}
    assert _found({"kind": "finetune", "config": config}, JobSpec) == {}


def test_text_that_is_no_json_is_told_as_such() -> None:
    for raw in (b"", b"{", b"\xff", b'{"a":' + b"9" * 5000 + b"}"):
        assert set(_found(raw, FinetuneSpec)) in ({""}, {"config", "a"}), raw
