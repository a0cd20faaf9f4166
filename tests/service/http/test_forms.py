"""What a form is drawn from: presets, models to choose, and the schema of each kind of job."""

import msgspec
import pytest

from jobs.presets import PRESETS
from jobs.specs import Kind
from jobs.training_config import TrainingConfig


def test_a_training_begins_with_any_preset(http, dataset) -> None:
    presets = http.get("/api/train/presets").json()["presets"]
    assert [preset["name"] for preset in presets] == [preset.name for preset in PRESETS]
    for preset in presets:
        assert set(preset) == {"name", "title", "description", "config", "needs_validation_data"}
        config = {"model_name": "demo-llava", "train_data_path": dataset} | preset["config"]
        answer = http.post("/api/train/start", json={"config": config})
        assert answer.status_code == 200, preset["name"]
        assert answer.json()["warnings"] == [], preset["name"]


def test_models_are_known_names_and_folders_of_this_host(house, http) -> None:
    folder = house.root.models / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    models = {model["name"]: model for model in http.get("/api/models").json()["models"]}
    assert models["mine"] == {
        "name": "mine", "title": "mine", "parameters": None, "origin": "folder", "is_local": True, "note": None,
    }  # fmt: skip
    assert models["demo-llava"]["is_local"] is True
    assert models["liuhaotian/llava-v1.5-7b"]["note"]


@pytest.mark.parametrize("kind", Kind)
def test_the_schema_of_a_kind_stands_on_its_own(http, kind) -> None:
    schema = http.get(f"/api/schemas/{kind}").json()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    root = _referred(schema, schema["$ref"])
    assert root["properties"]["kind"] == {"enum": [kind]}
    for reference in _references(schema):
        assert _referred(schema, reference)


def test_the_schema_of_a_training_tells_where_a_form_shows_each_setting(http) -> None:
    schema = http.get("/api/schemas/finetune").json()
    config = _referred(schema, schema["$ref"])["properties"]["config"]
    settings = _referred(schema, config["$ref"])["properties"]
    assert set(settings) == set(TrainingConfig.__struct_fields__)
    assert settings["lora_rank"]["x-group"] == "method"
    assert settings["seed"]["x-advanced"] is True
    required = {"model_name", "train_data_path"}
    assert {name for name, shown in settings.items() if "default" not in shown} == required
    defaults = {name: shown["default"] for name, shown in settings.items() if name not in required}
    assert msgspec.convert({**defaults, **dict.fromkeys(required, "x")}, TrainingConfig)


@pytest.mark.parametrize("kind", ["nothing", "FINETUNE", "..%2f", "%20"])
def test_an_unknown_kind_has_no_schema(http, kind) -> None:
    assert http.get(f"/api/schemas/{kind}").status_code == 404


def test_the_api_pages_show_what_a_setting_does(http) -> None:
    settings = http.get("/openapi.json").json()["components"]["schemas"]["TrainingConfig"]["properties"]
    assert settings["lora_rank"]["title"] == "LoRA rank"
    for name, shown in settings.items():
        assert shown.get("description", "").endswith("."), name


def _referred(schema: dict, reference: str) -> dict:
    start, _, name = reference.rpartition("/")
    assert start == "#/$defs"
    return schema["$defs"][name]


def _references(value) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [found for each in value.values() for found in _references(each)]
    return [found for each in value for found in _references(each)] if isinstance(value, list) else []
