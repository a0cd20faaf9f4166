"""The recipe plan: what it counts is what training would train, see and take."""

from collections.abc import Callable
from typing import Any, Literal

import msgspec
import pytest
import tiny_models
import torch
from PIL import Image
from tiny_models import FAMILIES, SEEING
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from gpu_runner.recipes import finetune, plan
from gpu_runner.rows import LLAVA_FILE, Row, Turn
from gpu_runner.training import adapters, demo_model, device, loss, models
from jobs import footprint, model_shapes, support
from jobs.errors import ModelUnavailable, NoCapacity
from jobs.events import PhaseEntered
from jobs.models import DEMO_MODEL, KNOWN, resolve
from jobs.paths import DataRoot
from jobs.results import PlanResult
from jobs.specs import FinetuneSpec, PlanSpec
from jobs.training_config import TrainingConfig

Build = Callable[..., FinetuneSpec]
WorkFor = Callable[..., Any]


@pytest.fixture
def planned(finetune_spec: Build, work_for: WorkFor) -> Callable[..., PlanResult]:
    """Runs the recipe on a dataset of fourteen frames."""

    def run(*, probe: bool = False, **changes: Any) -> PlanResult:
        spec = finetune_spec(**changes)
        return plan.run(work_for(PlanSpec(config=spec.config, probe=probe)))

    return run


@pytest.mark.parametrize("method", [{"use_lora": False}, {"use_lora": True}, {"use_qlora": True}])
def test_the_plan_counts_what_the_training_trains(
    finetune_spec: Build, work_for: WorkFor, method: dict[str, bool]
) -> None:
    spec = finetune_spec(**method, max_steps=1)
    counted = plan.run(work_for(PlanSpec(config=spec.config), job_id="plan"))
    trained = finetune.run(work_for(spec, job_id="training"))
    assert counted.trainable_parameters == trained.trainable_parameters
    adapters_alone = (
        0 if "use_lora" in method and not method["use_lora"] else sum(trained.trainable_parameters.values())
    )
    assert sum(counted.parameters.values()) == sum(trained.total_parameters.values()) - adapters_alone
    assert counted.shape.trainable(spec.config) == trained.trainable_parameters
    assert trained.family == counted.shape.family == "llava"
    assert trained.predicted_memory_bytes
    assert trained.tokens_per_second


def test_the_plan_counts_tokens_with_their_pictures_and_the_steps(planned: Callable[..., PlanResult]) -> None:
    found = planned(batch_size=2, gradient_accumulation_steps=2, num_epochs=3)
    assert found.tokens.image_max == demo_model.IMAGE_TOKENS
    assert demo_model.IMAGE_TOKENS < found.tokens.p50 <= found.tokens.p95 <= found.tokens.max < 200
    assert 1 <= found.tokens.trained_max < 10
    assert not found.tokens.is_estimated
    assert (found.rows, found.steps) == (14, 12)
    assert found.probe is None


def test_a_probe_measures_real_steps(planned: Callable[..., PlanResult]) -> None:
    found = planned(probe=True)
    assert found.probe
    assert found.probe.peak_memory_bytes > 100 * 2**20
    assert found.probe.tokens_per_second > 0
    assert found.probe.device == "cpu"


def test_a_well_known_model_that_cannot_be_had_is_planned_by_its_dimensions(planned: Callable[..., PlanResult]) -> None:
    found = planned(model_name="llava-hf/llava-1.5-7b-hf", lora_rank=16)
    assert sum(found.parameters.values()) == 7_063_427_072
    assert found.trainable_parameters["language"] == 39_976_960
    assert found.tokens.is_estimated
    assert found.tokens.p50 > 576
    assert "could not be had here" in found.warnings[0]


def test_another_model_that_cannot_be_had_ends_the_plan_with_the_remedy(planned: Callable[..., PlanResult]) -> None:
    with pytest.raises(ModelUnavailable, match="cannot be had from the model hub"):
        planned(model_name="nobody/nothing")


def test_rows_with_pictures_and_a_model_without_eyes_are_refused(
    planned: Callable[..., PlanResult], root: DataRoot, text_model: Any
) -> None:
    root.models.mkdir(parents=True, exist_ok=True)
    text_model.rename(root.models / "text")
    with pytest.raises(ModelUnavailable, match="reads text only"):
        planned(model_name="text")


def test_a_plan_loads_no_weights_and_says_what_it_does(
    finetune_spec: Build, work_for: WorkFor, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(models, "load_base", refuse)
    work = work_for(PlanSpec(config=finetune_spec().config))
    plan.run(work)
    assert [event.phase for event in said(work, PhaseEntered)] == ["counting", "reading rows"]


@pytest.mark.parametrize("name", [*model_shapes.known_names()])
def test_the_counts_of_known_models_are_those_of_the_meta_device(name: str) -> None:
    described = model_shapes.known_config(name)
    shape = model_shapes.known_shape(name)
    assert described
    assert shape
    config = AutoConfig.for_model(**described)
    kind: Any = AutoModelForImageTextToText if "vision_config" in described else AutoModelForCausalLM
    with torch.device("meta"):
        skeleton = kind.from_config(config)
        assert adapters.parameters_by_part(skeleton) == shape.parameters
        adapted = adapters.attach(skeleton, TrainingConfig(model_name=name, train_data_path="x", lora_rank=16))
    trained = adapters.parameters_by_part(adapted, trainable_only=True)
    assert trained["language"] == shape.decoder.adapter_parameters(16)
    if name in KNOWN:
        assert KNOWN[name].parameters == shape.total


def test_the_demo_model_is_as_large_as_the_registry_says(root: DataRoot) -> None:
    demo_model.ensure(root.models / DEMO_MODEL)
    loaded = models.load_base(resolve(DEMO_MODEL, [root.models]), device="cpu", dtype=torch.float32)
    assert sum(adapters.parameters_by_part(loaded.model).values()) == loaded.source.parameters


def test_the_formats_of_the_table_are_those_training_takes() -> None:
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for (method, kind), formats in support.FORMATS.items():
        if kind == "cpu":
            asked = {"use_lora": method == "lora", "use_qlora": method == "qlora"}
            config = TrainingConfig(model_name="m", train_data_path="x", **asked)
            assert device.for_training("cpu", config)[0].dtype is dtypes[formats[0]]
            for each in formats:
                wanted = msgspec.structs.replace(config, bf16=each == "bf16", fp16=each == "fp16")
                assert device.for_training("cpu", wanted)[0].dtype is dtypes[each]


@pytest.mark.parametrize("bits", [4, 8])
def test_the_arithmetic_counts_the_bytes_that_bitsandbytes_keeps_of_a_base(root: DataRoot, bits: Literal[4, 8]) -> None:
    demo_model.ensure(root.models / DEMO_MODEL)
    source = resolve(DEMO_MODEL, [root.models])
    loaded = models.load_base(source, device="cpu", dtype=torch.bfloat16, bits=bits, offline=True)
    config = TrainingConfig(model_name=DEMO_MODEL, train_data_path="x", use_qlora=True, qlora_bits=bits)
    shape = model_shapes.shape_of(loaded.model.config.to_dict())
    assert shape
    terms = {term.name: term.size_bytes for term in footprint.estimate(config, shape).terms}
    counted = terms[footprint.Term.WEIGHTS_4BIT if bits == 4 else footprint.Term.WEIGHTS_8BIT]
    assert _kept_bytes(loaded.model) == pytest.approx(counted, rel=0.02)


def _kept_bytes(model: torch.nn.Module) -> int:
    """Of all maps in 4 or 8 bits: their numbers and scales."""
    kept = 0
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            kept += module.weight.CB.nbytes + module.weight.SCB.nbytes
        elif type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            kept += module.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    return kept


def test_the_bits_of_the_table_are_those_a_cpu_computes_with() -> None:
    for bits, devices in support.BITS.items():
        assert device.has_bits("cpu", bits) is ("cpu" in devices)


def test_a_probe_of_bits_that_the_device_does_not_compute_with_is_refused(planned: Callable[..., PlanResult]) -> None:
    with pytest.raises(NoCapacity, match="set qlora_bits to 4"):
        planned(probe=True, use_qlora=True, qlora_bits=8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_counted_as_it_is_encoded(family: str, root: DataRoot, work_for: WorkFor) -> None:
    """A row with two pictures, scaled to the cap of pixels: its tokens and theirs; and every parameter of the model."""
    folder = root.datasets / "d"
    (folder / "images").mkdir(parents=True)
    names = ("images/0.png", "images/1.png") if family in SEEING else ()
    images = tuple(Image.new("RGB", size) for size in ((90, 70), (40, 80)))[: len(names)]
    for name, image in zip(names, images, strict=True):
        image.save(folder / name)
    turns = (Turn("human", "<image>\n" * len(names) + "What colour?"), Turn("gpt", "red"))
    row = Row(id="row-0", images=names, conversations=turns)
    (folder / LLAVA_FILE).write_bytes(msgspec.json.encode(row) + b"\n")
    tiny_models.build(family, root.models / family)

    config = TrainingConfig(model_name=family, train_data_path="datasets/d", max_length=512, max_pixels=2500)
    found = plan.run(work_for(PlanSpec(config=config)))
    loaded = models.load_base(resolve(family, [root.models]), device="cpu", dtype=torch.float32, offline=True)
    encoded = loaded.encoder(512, 2500).encode(row, images)
    assert abs(found.tokens.max - len(encoded.input_ids)) <= 2
    assert encoded.image_tokens <= found.tokens.image_max < found.tokens.max  # with the marks around pictures
    assert found.tokens.images_max == len(names)
    assert found.parameters == adapters.parameters_by_part(loaded.model)
    assert support.FAMILIES[found.shape.family].is_tested


def test_the_table_calls_no_family_tested_that_is_not() -> None:
    tested = {str(make()[0].config.model_type) for make in FAMILIES.values()}
    assert {name for name, family in support.FAMILIES.items() if family.is_tested} == tested


def test_the_arithmetic_knows_how_many_logits_the_loss_makes_at_once() -> None:
    assert footprint.CHUNK_LOGITS == loss.MOST_LOGITS
    assert footprint.LOSS is footprint.Loss.CHUNKED


def test_what_is_predicted_of_a_run_of_several_processes_is_what_the_first_of_them_takes(
    finetune_spec: Build, work_for: WorkFor
) -> None:
    """As its peak is, which corrects the next plan: two processes would seem to take half of what was predicted."""
    alone = finetune_spec(max_steps=1)
    one = finetune.run(work_for(alone, job_id="one"))
    both = msgspec.structs.replace(alone.config, num_processes=2)
    two = finetune.run(work_for(FinetuneSpec(config=both), job_id="two"))
    assert one.predicted_memory_bytes == two.predicted_memory_bytes
    assert one.peak_memory_bytes
    assert two.peak_memory_bytes == pytest.approx(one.peak_memory_bytes, rel=0.3)
