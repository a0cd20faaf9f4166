"""What is made of a plan's counts: where it fits, what would make it fit, how long it lasts, what is doubtful."""

import time
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import pytest

from jobs import model_shapes
from jobs.events import Device, Held, RunnerReported
from jobs.footprint import GIB, Term
from jobs.results import FinetuneResult, PlanResult, Probe, TokenCounts
from jobs.specs import FinetuneSpec, Slot
from jobs.training_config import TrainingConfig
from service import calibration, placement, planning
from service.calibration import Run
from service.model_names import Reserving
from service.occupancy import occupancy, rooms
from service.placement import Place
from service.planning import PlanAnswer
from service.records import JobRecord, RunnerView
from service.rooms import Needs, waiting_for

LLAVA_7B = "llava-hf/llava-1.5-7b-hf"
FOR_8_GB: dict[str, Any] = {"use_qlora": True, "batch_size": 1, "gradient_accumulation_steps": 8, "max_length": 1024}
TOKENS = TokenCounts(
    looked_at=1000, p50=700, p95=900, max=2000, mean=720.0, image_max=576, images_max=1, trained_max=400, truncated=0
)


def config(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"model_name": LLAVA_7B, "train_data_path": "datasets/x"} | settings)


def counted(of: TrainingConfig, **changes: Any) -> PlanResult:
    shape = model_shapes.known_shape(of.model_name)
    assert shape
    result = PlanResult(
        parameters=shape.parameters,
        trainable_parameters=shape.trainable(of),
        shape=shape,
        rows=1000,
        tokens=TOKENS,
        steps=500,
        longest=4096,
    )
    return msgspec.structs.replace(result, **changes)


def gpu(gib: float, runner_id: str = "a", index: int = 0) -> RunnerView:
    size = round(gib * GIB)
    device = Device(
        device_id=f"cuda:{index}", name="GPU", slots={Slot.GPU: 1}, memory_total_bytes=size, memory_free_bytes=size
    )
    return runner(device, runner_id=runner_id)


def runner(*devices: Device, runner_id: str = "a") -> RunnerView:
    report = RunnerReported(runner_id=runner_id, boot="1", at=datetime.now(UTC), devices=devices, held=(), version="1")
    return RunnerView(report=report, heard_at=time.monotonic(), lease_s=60)


def plan(
    of: TrainingConfig,
    *runners: RunnerView,
    history: list[Run] | None = None,
    reserving: Reserving | None = None,
    **changes: Any,
) -> PlanAnswer:
    devices = occupancy(runners, {}, datetime.now(UTC))
    return planning.planned("job", of, counted(of, **changes), history or [], devices, reserving)


def run(of: TrainingConfig, ratio: float, **changes: Any) -> Run:
    fields: dict[str, Any] = {
        "steps": 10,
        "peak_memory_bytes": round(ratio * GIB),
        "predicted_memory_bytes": GIB,
        "tokens_per_second": 1000.0,
        "family": "llava",
        "total_parameters": {"language": 7_000_000_000},
    }
    return Run(runner_id="a", device_type="cuda", config=of, result=FinetuneResult(**fields | changes))


def test_the_config_for_8_gb_fits_there_and_the_one_for_24_gb_does_not() -> None:
    assert [fit.fits for fit in plan(config(**FOR_8_GB), gpu(8)).devices] == [True]
    large = plan(config(), gpu(8), gpu(24, "b"))
    assert {fit.runner_id: fit.fits for fit in large.devices} == {"a": False, "b": True}
    assert "fits on cuda:0 of b" in large.message
    assert large.memory.dominant is Term.WEIGHTS


def test_what_fits_everywhere_needs_no_change() -> None:
    assert plan(config(**FOR_8_GB), gpu(8), gpu(24, "b")).changes == ()


def test_a_change_that_makes_it_fit_has_its_number_and_keeps_the_rows_of_an_update() -> None:
    found = plan(config(batch_size=16, gradient_accumulation_steps=2), gpu(20))
    smaller = next(change for change in found.changes if change.config.get("batch_size") == 8)
    assert smaller.config["gradient_accumulation_steps"] == 4
    assert smaller.expected_bytes < found.memory.expected_bytes
    assert any("a" in name for change in found.changes for name in change.fits)
    for change in found.changes:
        again = plan(msgspec.structs.replace(config(batch_size=16), **change.config), gpu(20))
        assert [fit.fits for fit in again.devices] == [bool(change.fits)], change.title
    assert any("too large for cuda:0 of a" in warning for warning in found.warnings)


def test_where_no_single_change_helps_all_that_are_needed_are_offered_together() -> None:
    found = plan(config(batch_size=8, max_length=2048), gpu(6.8))
    assert all(not change.fits for change in found.changes[:-1])
    assert found.changes[-1].fits == ("cuda:0 of a",)
    assert found.changes[-1].config["use_qlora"] is True


def test_recomputing_activations_is_offered_where_they_are_kept() -> None:
    found = plan(config(gradient_checkpointing=False, batch_size=1, max_length=2048), gpu(18))
    change = next(change for change in found.changes if change.config == {"gradient_checkpointing": True})
    assert change.fits == ("cuda:0 of a",)


def test_a_change_says_when_an_update_sees_fewer_rows_after_it() -> None:
    found = plan(config(batch_size=2, gradient_accumulation_steps=64, num_processes=8), gpu(8))
    costs = {change.title: change.cost for change in found.changes}
    assert costs["one process"] == "an update sees 256 rows instead of 1024; slower by the others"
    assert costs["batch_size 1"].startswith("none for the outcome")


def test_optimiser_states_in_8_bits_are_offered_for_full_training() -> None:
    found = plan(config(use_lora=False, batch_size=1), gpu(80))
    assert [fit.fits for fit in found.devices] == [False]
    change = next(change for change in found.changes if change.title == "8-bit optimiser")
    assert change.expected_bytes < 0.7 * found.memory.expected_bytes
    offered = plan(config(use_lora=False, batch_size=1, optimizer="adamw_8bit"), gpu(8)).changes
    assert "8-bit optimiser" not in {each.title for each in offered}


def test_a_base_in_4_bits_is_offered_where_it_is_in_8() -> None:
    found = plan(config(**FOR_8_GB, qlora_bits=8), gpu(8))
    assert [fit.fits for fit in found.devices] == [False]
    assert found.memory.dominant is Term.WEIGHTS_8BIT
    change = next(change for change in found.changes if change.title == "4-bit base")
    assert change.config == {"use_lora": True, "use_qlora": True, "qlora_bits": 4}
    assert change.fits == ("cuda:0 of a",)


def test_what_a_cpu_does_not_compute_fits_on_none() -> None:
    host = Device(device_id="cpu", name="CPU", slots={Slot.GPU: 1}, memory_total_bytes=64 * GIB)
    small = {"model_name": "demo-llava", "use_qlora": True}
    assert [fit.fits for fit in plan(config(**small), runner(host)).devices] == [True]
    found = plan(config(**small, qlora_bits=8), runner(host))
    assert found.devices == ()
    assert found.memory.device_type == "cuda"


# -- where placement would place it


def placed_on(of: TrainingConfig, view: RunnerView, reserving: Reserving) -> bool:
    """Whether placement would give the device to it now, nothing else being there."""
    needs = Needs(*(reserving.size_bytes(of, kind) for kind in ("cuda", "cpu")))
    waiting = waiting_for("job", FinetuneSpec(config=of), None, needs)
    (decision,) = placement.place([waiting], rooms([view], {}, datetime.now(UTC)))
    return isinstance(decision, Place)


def set_aside(name: str = LLAVA_7B, factor: float = 1.0) -> Reserving:
    shape = model_shapes.known_shape(name)
    assert shape
    return Reserving(shape=shape, factors={"cuda": factor, "cpu": factor})


@pytest.mark.parametrize("share", [0.85, 0.95, 1.0, 1.05, 1.2])
@pytest.mark.parametrize("factor", [1.0, 1.3])
@pytest.mark.parametrize("device_id", ["cuda:0", "cpu"])
def test_it_fits_exactly_where_placement_would_place_it(share: float, factor: float, device_id: str) -> None:
    of, reserving = config(**FOR_8_GB | {"max_length": 3000}), set_aside(factor=factor)
    free = round(share * reserving.size_bytes(of, "cpu" if device_id == "cpu" else "cuda"))
    device = Device(
        device_id=device_id,
        name="D",
        slots={Slot.GPU: 1},
        memory_total_bytes=round(1.5 * free),
        memory_free_bytes=free,
    )
    fit = plan(of, runner(device), reserving=reserving).devices[0]
    assert fit.fits is placed_on(of, runner(device), reserving) is (share >= 1.0)


def test_what_is_kept_for_longer_rows_than_there_are_is_said_and_a_shorter_limit_is_free() -> None:
    of, reserving = config(**FOR_8_GB | {"max_length": 8192}), set_aside()
    short = msgspec.structs.replace(TOKENS, max=800, trained_max=60)
    found = plan(of, gpu(8), reserving=reserving, tokens=short)
    assert [fit.fits for fit in found.devices] == [False]
    assert "are kept for it, for rows of 8192 tokens" in found.devices[0].message
    assert found.changes[0].config == {"max_length": 832}
    assert found.changes[0].fits == ("cuda:0 of a",)
    assert found.changes[0].cost == "none: no row is longer"


def test_what_jobs_of_ours_hold_now_does_not_count_and_what_others_hold_does() -> None:
    of = config(**FOR_8_GB)
    device = gpu(24).devices[0]
    half = msgspec.structs.replace(device, memory_free_bytes=GIB)
    assert [fit.fits for fit in plan(of, runner(half)).devices] == [False]
    held = Held(
        job_id="other", attempt=1, state="running", last_n=1, slot=Slot.GPU, device="cuda:0", memory_bytes=23 * GIB
    )
    ours = RunnerReported(runner_id="a", boot="1", at=datetime.now(UTC), devices=(half,), held=(held,), version="1")
    assert [fit.fits for fit in plan(of, RunnerView(report=ours, heard_at=time.monotonic(), lease_s=60)).devices] == [
        True
    ]


def test_a_device_that_does_not_tell_its_memory_is_not_judged() -> None:
    silent = Device(device_id="cuda:0", name="GPU", slots={Slot.GPU: 1})
    assert [fit.fits for fit in plan(config(), runner(silent)).devices] == [None]


def test_without_a_runner_there_are_numbers_all_the_same() -> None:
    found = plan(config(**FOR_8_GB))
    assert found.devices == ()
    assert 5.4 <= found.memory.expected_bytes / GIB <= 7.0  # simulated
    assert found.memory.device_type == "cuda"
    assert found.duration.minutes is None
    assert "probe" in found.duration.message


def test_what_earlier_runs_took_corrects_the_next_prediction_and_shows_its_error() -> None:
    of = config(**FOR_8_GB)
    bare = plan(of, gpu(8))
    taught = plan(of, gpu(8), history=[run(of, ratio) for ratio in (1.18, 1.2, 1.22)])
    assert taught.memory.expected_bytes == pytest.approx(1.2 * bare.memory.expected_bytes, rel=1e-6)
    assert taught.memory.basis == "history"
    correction = taught.memory.correction
    assert (correction.runs, correction.factor) == (3, pytest.approx(1.2))
    assert correction.error == pytest.approx(0.016, abs=0.01)
    assert correction.uncorrected_error == pytest.approx(1 - 1 / 1.2)


@pytest.mark.parametrize("other", [{"runner_id": "b"}, {"device_type": "cpu"}])
def test_another_host_or_device_teaches_nothing(other: dict[str, Any]) -> None:
    strange = msgspec.structs.replace(run(config(), 1.5), **other)
    assert calibration.correction([strange], "a", "cuda", "llava").runs == 0
    assert calibration.correction([run(config(), 1.5)], "a", "cuda", "llama").runs == 0


def test_one_run_that_went_astray_corrects_by_no_more_than_twice() -> None:
    assert calibration.correction([run(config(), 9.0)], "a", "cuda", "llava").factor == 2.0


def probe_of(peak_gib: int) -> Probe:
    """A probe for which 5 GiB were predicted."""
    return Probe(
        device="cuda:0",
        device_name="GPU",
        peak_memory_bytes=peak_gib * GIB,
        predicted_memory_bytes=5 * GIB,
        tokens_per_second=500.0,
        rows=1,
    )


def test_a_probe_outweighs_the_history() -> None:
    of = config(**FOR_8_GB)
    probe = probe_of(6)
    found = plan(of, gpu(8), history=[run(of, 0.9, tokens_per_second=None)], probe=probe)
    assert (found.memory.basis, found.memory.correction.factor) == ("probe", pytest.approx(1.2))
    assert found.duration.basis == "probe"
    assert found.duration.minutes == pytest.approx(3 * 1000 * 720 / 500 / 60, rel=0.01)


def test_the_duration_comes_from_earlier_runs_of_the_model() -> None:
    of = config()
    found = plan(of, gpu(24), history=[run(of, 1.0), run(config(use_lora=False), 1.0, tokens_per_second=1.0)])
    assert found.duration.minutes == pytest.approx(3 * 1000 * 720 / 1000 / 60, rel=0.01)
    assert found.estimated_duration_minutes == found.duration.minutes


# -- several processes


def test_an_update_of_several_processes_sees_the_rows_of_all() -> None:
    found = plan(config(num_processes=4))
    assert found.effective_batch_size == 4 * 4 * 4
    warned = plan(config(batch_size=128, num_processes=8))
    assert any("sees 4096 rows" in warning and "times num_processes" in warning for warning in warned.warnings)


def test_several_processes_fit_on_a_host_that_has_a_gpu_for_each() -> None:
    two = config(**FOR_8_GB, num_processes=2)
    pair, single = (runner(*gpu(8).devices, *gpu(8, index=1).devices), gpu(8, "b"))
    found = plan(two, pair, single)
    assert {(fit.runner_id, fit.device_id): fit.fits for fit in found.devices} == {
        ("a", "cuda:0"): True,
        ("a", "cuda:1"): True,
        ("b", "cuda:0"): False,
    }
    assert "on each of 2 GPUs" in found.message
    assert "b has fewer with room" in found.devices[2].message
    assert found.memory.expected_bytes == pytest.approx(plan(config(**FOR_8_GB), pair).memory.expected_bytes, rel=0.05)


def test_of_two_gpus_the_smaller_one_decides() -> None:
    found = plan(config(**FOR_8_GB, num_processes=2), runner(*gpu(8).devices, *gpu(4, index=1).devices))
    assert [fit.fits for fit in found.devices] == [False, False]


def test_gpus_that_do_not_tell_their_memory_leave_it_open() -> None:
    silent = Device(device_id="cuda:1", name="GPU", slots={Slot.GPU: 1})
    found = plan(config(**FOR_8_GB, num_processes=2), runner(*gpu(8).devices, silent))
    assert [fit.fits for fit in found.devices] == [None, None]


def test_one_process_is_offered_where_there_is_no_gpu_for_each_and_keeps_the_rows_of_an_update() -> None:
    found = plan(config(**FOR_8_GB | {"batch_size": 2}, num_processes=2), gpu(8.5))
    change = next(change for change in found.changes if "num_processes" in change.config and change.fits)
    assert change.config == {"num_processes": 1, "gradient_accumulation_steps": 16}


def test_what_is_changed_together_keeps_the_rows_of_an_update() -> None:
    found = plan(config(batch_size=8, num_processes=2), gpu(16))
    both = next(change for change in found.changes if {"batch_size", "num_processes"} <= change.config.keys())
    changed = msgspec.structs.replace(config(), **both.config)
    assert changed.batch_size * changed.gradient_accumulation_steps * changed.num_processes == 8 * 4 * 2


def test_processes_on_a_cpu_take_its_memory_together() -> None:
    on_cpu = {"model_name": "demo-llava", "device": "cpu"}
    host = runner(Device(device_id="cpu", name="CPU", slots={Slot.GPU: 1}, memory_total_bytes=3 * GIB))
    one, four = (plan(config(**on_cpu, batch_size=1, num_processes=count), host) for count in (1, 4))
    assert four.memory.expected_bytes == 4 * one.memory.expected_bytes
    assert "in 4 processes together" in four.message


def test_the_duration_comes_from_runs_with_as_many_processes() -> None:
    two = config(num_processes=2)
    history = [run(two, 1.0, tokens_per_second=1800.0), run(config(), 1.0, tokens_per_second=1000.0)]
    found = plan(two, gpu(24), history=history)
    assert found.duration.minutes == pytest.approx(3 * 1000 * 720 / 1800 / 60, rel=0.01)


@pytest.mark.parametrize(("kind", "expected"), [("cuda", 2000.0), ("cpu", 1000.0)])
def test_runs_with_another_number_of_processes_count_by_their_gpus_and_on_a_cpu_as_they_are(
    kind: Literal["cuda", "cpu"], expected: float
) -> None:
    alone = msgspec.structs.replace(run(config(), 1.0), device_type=kind)
    rate, source = calibration.speed([alone], kind, config(num_processes=2), 7_000_000_000)
    assert rate == expected
    assert "another number of processes" in source


def test_a_probe_is_one_process_of_the_run() -> None:
    of = config(**FOR_8_GB, num_processes=2)
    probe = probe_of(5)
    found = plan(of, probe=probe)
    assert found.duration.minutes == pytest.approx(3 * 1000 * 720 / 1000 / 60, rel=0.01)
    assert "one process" in found.duration.message


def test_of_another_model_the_duration_goes_by_its_size() -> None:
    smaller = run(config(model_name="other"), 1.0, total_parameters={"language": 700_000_000})
    rate, source = calibration.speed([smaller], "cuda", config(), 7_000_000_000)
    assert rate == pytest.approx(100)
    assert "other models" in source


@pytest.mark.parametrize(
    ("settings", "changes", "expected"),
    [
        ({"use_lora": False, "learning_rate": 1e-3}, {}, "all weights of a large model"),
        ({"learning_rate": 5e-6}, {}, "low for adapters"),
        ({"batch_size": 128, "gradient_accumulation_steps": 128}, {}, "An update sees 16384 rows"),
        ({"max_length": 8192}, {}, "above the 4096 tokens the model was made for"),
        ({}, {"steps": 3}, "makes 3 updates"),
        ({"lora_alpha": 4}, {}, "lora_alpha 4 is below"),
        ({}, {"tokens": msgspec.structs.replace(TOKENS, truncated=7)}, "7 of 1000 rows are longer"),
    ],
)
def test_what_is_rarely_meant_is_said(settings: dict[str, Any], changes: dict[str, Any], expected: str) -> None:
    assert any(expected in warning for warning in plan(config(**settings), **changes).warnings)


def test_usual_settings_are_not_warned_about() -> None:
    assert plan(config(), gpu(24)).warnings == ()


def test_a_completed_training_counts_as_a_run_of_its_device() -> None:
    now = datetime.now(UTC)
    record = JobRecord(
        job_id="j",
        spec=FinetuneSpec(config=config()),
        submitted_at=now,
        updated_at=now,
        submitted_seq=1,
        last_seq=1,
        runner_id="a",
        device="cuda:1",
        result=FinetuneResult(steps=1),
    )
    (found,) = calibration.runs_of([record, msgspec.structs.replace(record, result=None)])
    assert (found.runner_id, found.device_type) == ("a", "cuda")


def test_where_pictures_take_tokens_by_their_size_fewer_pixels_are_offered_with_their_number() -> None:
    of = config(model_name="Qwen/Qwen2.5-VL-7B-Instruct", batch_size=1, use_qlora=True, gradient_checkpointing=True)
    tokens = msgspec.structs.replace(TOKENS, image_max=1500)
    found = plan(of, gpu(6), tokens=tokens)
    change = next(change for change in found.changes if "max_pixels" in change.config)
    assert change.config == {"max_pixels": 750 * 28 * 28}
    assert change.expected_bytes < found.memory.expected_bytes
    fixed = plan(config(batch_size=1, use_qlora=True), gpu(4), tokens=tokens)
    assert not any("max_pixels" in change.config for change in fixed.changes)
