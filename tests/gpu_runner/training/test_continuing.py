"""A run begins with the weights of another job, and only with those that fit."""

import shutil
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from runs import METHODS, Build, Said, WorkFor
from safetensors.torch import load_file

from gpu_runner.recipes import finetune
from gpu_runner.training import checkpoints, demo_model
from jobs import events
from jobs.errors import ModelUnavailable
from jobs.paths import DataRoot
from jobs.specs import FinetuneSpec


def test_a_model_is_continued_under_any_of_its_names(finetune_spec: Build, work_for: WorkFor, root: DataRoot) -> None:
    shutil.copytree(demo_model.ensure(root.models / "demo-llava"), root.models / "mine")
    spec = finetune_spec(max_steps=1, model_name="mine")
    finetune.run(work_for(spec, job_id="first"))
    config = msgspec.structs.replace(spec.config, continue_from="first", model_name="models/mine")
    assert finetune.run(work_for(FinetuneSpec(config=config), job_id="second")).steps == 1


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_job_continues_with_the_weights_of_another(
    method: str, finetune_spec: Build, work_for: WorkFor, said: Said
) -> None:
    spec = finetune_spec(**METHODS[method], learning_rate=5e-3)
    first = work_for(spec, job_id="first")
    finetune.run(first)
    config = msgspec.structs.replace(spec.config, continue_from="first", learning_rate=1e-6, eval_steps=1, max_steps=1)
    second = work_for(FinetuneSpec(config=config), job_id="second")
    finetune.run(second)
    before = said(first, events.MetricsLogged)[-1].values["eval_loss"]
    after = said(second, events.MetricsLogged)[-1].values["eval_loss"]
    assert after == pytest.approx(before, rel=1e-3)
    assert said(second, events.MetricsLogged)[0].step == 1


def test_a_job_continues_with_the_newest_weights_of_one_that_failed_and_with_any_it_is_told(
    finetune_spec: Build, work_for: WorkFor, die_before: Callable[[int], type[BaseException]], root: DataRoot
) -> None:
    spec = finetune_spec(save_steps=1, eval_steps=1, save_total_limit=10)
    with pytest.raises(die_before(4)):
        finetune.run(work_for(spec, job_id="first"))
    begun = {}
    for step in (None, 2):
        config = msgspec.structs.replace(spec.config, continue_from="first", continue_from_step=step, max_steps=1)
        work = work_for(FinetuneSpec(config=config), job_id=f"from-{step}")
        finetune.run(work)
        begun[step] = checkpoints.to_continue(root, "first", step).step
    assert begun == {None: 4, 2: 2}
    weights = {
        folder: load_file(root.path_of(f"jobs/{folder}/attempt-1/checkpoints/step-1/model/adapter_model.safetensors"))
        for folder in ("from-None", "from-2")
    }
    name = next(iter(weights["from-2"]))
    assert not torch.equal(weights["from-2"][name], weights["from-None"][name])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"continue_from_step": 7}, "one of 1"),
        ({"lora_rank": 4}, "rank 8"),
        ({"use_lora": False}, "method lora"),
        ({"continue_from": "nobody"}, "no complete checkpoint"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: dict[str, Any], says: str, finetune_spec: Build, work_for: WorkFor
) -> None:
    spec = finetune_spec(max_steps=1)
    finetune.run(work_for(spec, job_id="first"))
    config = msgspec.structs.replace(spec.config, **({"continue_from": "first"} | change))
    with pytest.raises(ModelUnavailable, match=says):
        finetune.run(work_for(FinetuneSpec(config=config), job_id="second"))
