"""The memory a job is said to need: its model's dimensions, corrected by what earlier trainings took."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from jobs import footprint, model_shapes
from jobs.paths import DataRoot
from jobs.results import FinetuneResult
from jobs.settings import Settings
from jobs.specs import EvaluateSpec, FinetuneSpec, JobSpec, Kind, PlanSpec, ValidateSpec
from jobs.training_config import TrainingConfig
from service.model_names import ModelNames
from service.records import JobRecord
from service.rooms import NOTHING, Needs

AT = datetime(2026, 1, 1, tzinfo=UTC)
LLAVA = "llava-hf/llava-1.5-7b-hf"


class Past:
    """A ledger with these completed trainings."""

    def __init__(self, records: Sequence[JobRecord] = ()) -> None:
        self._records = records

    async def completed(self, limit: int, kinds: Sequence[Kind] = ()) -> list[JobRecord]:
        return [record for record in self._records if record.kind in kinds][:limit]

    async def job(self, _: str) -> None:
        return None


def config(name: str = LLAVA) -> TrainingConfig:
    return TrainingConfig(model_name=name, train_data_path="d", use_qlora=True, batch_size=1, max_length=1024)


def took(ratio: float, device: str = "cuda:0", runner_id: str = "a") -> JobRecord:
    """A training that took `ratio` times what was predicted for it."""
    result = FinetuneResult(
        steps=1, family="llava", predicted_memory_bytes=2**30, peak_memory_bytes=round(ratio * 2**30)
    )
    return JobRecord(
        job_id="j", spec=FinetuneSpec(config=config()), submitted_at=AT, updated_at=AT, submitted_seq=1, last_seq=1,
        runner_id=runner_id, device=device, result=result,
    )  # fmt: skip


@pytest.fixture
def needs(tmp_path):
    def ask(spec: JobSpec, *past: JobRecord) -> Needs:
        ledger: Any = Past(past)
        return asyncio.run(ModelNames(Settings(data_root=str(tmp_path)), DataRoot(tmp_path), ledger).needs(spec))

    return ask


def test_a_training_needs_the_upper_figure_of_its_plan(needs) -> None:
    shape = model_shapes.known_shape(LLAVA)
    assert shape
    found = needs(FinetuneSpec(config=config()))
    assert found.cuda == footprint.estimate(config(), shape, device="cuda").high_bytes
    assert found.cpu == footprint.estimate(config(), shape, device="cpu").high_bytes


def test_what_earlier_trainings_took_corrects_what_the_next_one_needs(needs) -> None:
    spec = FinetuneSpec(config=config())
    bare, taught = needs(spec), needs(spec, took(1.2))
    assert taught.cuda == pytest.approx(1.2 * bare.cuda, rel=1e-6)
    assert taught.cpu == bare.cpu  # nothing was learnt about that


def test_of_several_hosts_the_one_that_took_most_counts(needs) -> None:
    spec = FinetuneSpec(config=config())
    found = needs(spec, took(0.8, runner_id="b"), took(1.2), took(1.0, runner_id="c"))
    assert found == needs(spec, took(1.2))


def test_a_probe_needs_what_its_training_would_and_a_plan_without_one_needs_nothing(needs) -> None:
    assert needs(PlanSpec(config=config(), probe=True)) == needs(FinetuneSpec(config=config()))
    several = msgspec.structs.replace(config(), num_processes=4)
    assert needs(PlanSpec(config=several, probe=True)) == needs(FinetuneSpec(config=config()))  # it is one process
    assert needs(PlanSpec(config=config())) == NOTHING
    assert needs(ValidateSpec(data_path="d")) == NOTHING


def test_what_a_cpu_does_not_compute_waits_for_a_gpu_however_small_it_is(tmp_path) -> None:
    ledger: Any = Past()
    names = ModelNames(Settings(data_root=str(tmp_path)), DataRoot(tmp_path), ledger)
    four, eight = (
        FinetuneSpec(config=msgspec.structs.replace(config("demo-llava"), qlora_bits=bits)) for bits in (4, 8)
    )
    assert asyncio.run(names.why_not_on_cpu(four)) is None
    assert "send qlora_bits: 4" in (asyncio.run(names.why_not_on_cpu(eight)) or "")


def test_a_model_that_only_answers_needs_less_than_one_that_learns(needs) -> None:
    learns = needs(FinetuneSpec(config=msgspec.structs.replace(config(), use_qlora=False, use_lora=False)))
    answers = needs(EvaluateSpec(model_name=LLAVA, data_path="d"))
    assert 0 < answers.cuda < learns.cuda


def test_of_a_model_whose_dimensions_are_not_known_the_need_is_not_known(needs) -> None:
    assert needs(FinetuneSpec(config=config("somebody/else"))) == Needs()
