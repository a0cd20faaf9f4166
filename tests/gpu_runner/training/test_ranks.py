"""Several processes make the steps that one process with all their rows would make."""

import dataclasses
import errno
import os
import queue
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_runner import processes
from gpu_runner.recipes import finetune
from gpu_runner.training import ranks
from gpu_runner.training.plan import Plan
from gpu_runner.work import Work
from jobs import events
from jobs.errors import FailureReason, JobFailed, NoCapacity, OutOfMemory
from jobs.specs import FinetuneSpec

Build = Callable[..., FinetuneSpec]
WorkFor = Callable[..., Work[FinetuneSpec]]
Said = Callable[..., list[Any]]


def helping() -> list[int]:
    """Processes that help this one."""
    states = (processes.state_of(pid) for pid in processes.pids())
    mine = (state.pid for state in states if state is not None and state.parent == os.getpid())
    return [pid for pid in mine if b"gpu_runner.follower" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def losses(said: Said, work: Work[FinetuneSpec]) -> dict[tuple[str, int], float]:
    logged = said(work, events.MetricsLogged)
    names = ("train_loss", "grad_norm", "eval_loss")
    return {(name, e.step): value for e in logged for name, value in e.values.items() if name in names}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"lora_dropout": 0.0}, id="lora", marks=pytest.mark.slow),
        pytest.param({"lora_dropout": 0.0, "cache_vision_features": True}, id="cached", marks=pytest.mark.slow),
        pytest.param({"use_lora": False}, id="full", marks=pytest.mark.extended),
        pytest.param(
            {"use_qlora": True, "lora_dropout": 0.0, "bf16": False, "fp16": False},  # bf16 rounds sums in their order
            id="qlora",
            marks=pytest.mark.extended,
        ),
    ],
)
def test_two_processes_give_the_losses_of_one_with_twice_the_rows(
    changes: dict[str, Any], finetune_spec: Build, work_for: WorkFor, said: Said, write_frames: Callable[..., str]
) -> None:
    data = {"train_data_path": write_frames("train", 13), "val_data_path": write_frames("val", 2, seed=2)}
    settings = {**data, **changes, "gradient_accumulation_steps": 1, "logging_steps": 1, "eval_steps": 2}
    one = work_for(finetune_spec(batch_size=4, **settings), job_id="one")
    two = work_for(finetune_spec(batch_size=2, num_processes=2, **settings), job_id="two")
    finetune.run(one)
    result = finetune.run(two)
    expected = losses(said, one)
    assert losses(said, two) == pytest.approx(expected, abs=1e-5)
    assert ("train_loss", 8) in expected  # 13 rows: in the fourth step of an epoch only one process has a row
    assert result.steps == 8


@pytest.mark.extended
def test_processes_that_were_interrupted_go_on_as_if_nothing_had_happened(
    finetune_spec: Build, work_for: WorkFor, said: Said, die_before: Any
) -> None:
    settings = {"num_processes": 2, "logging_steps": 1, "save_steps": 1, "batch_size": 1, "eval_steps": 100}
    spec = finetune_spec(**settings, max_steps=4, num_epochs=1)
    whole = work_for(spec, job_id="whole")
    finetune.run(whole)
    first = work_for(spec, attempt=1)
    with pytest.raises(die_before(2)):
        finetune.run(first)
    assert not helping()
    again = work_for(spec, attempt=2)
    finetune.run(again)
    assert losses(said, first) | losses(said, again) == losses(said, whole)


@pytest.mark.slow
def test_what_ends_a_helping_process_is_said(
    finetune_spec: Build, work_for: WorkFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_for(finetune_spec(num_processes=2))
    broken = {"rank": 5}  # of two: it cannot join

    def orders(**fields: Any) -> ranks.Orders:
        return real(**(fields | broken))

    real = ranks.Orders
    monkeypatch.setattr(ranks, "Orders", orders)
    with pytest.raises(JobFailed, match="rank"):
        finetune.run(work)


def test_a_gpu_is_not_shared_by_processes(finetune_spec: Build, work_for: WorkFor) -> None:
    work = dataclasses.replace(work_for(finetune_spec(num_processes=2)), device="cuda:0")
    with pytest.raises(NoCapacity, match="set num_processes to 1, or device to cpu"):
        finetune.run(work)


def test_each_process_has_the_gpu_that_was_placed_for_it(finetune_spec: Build, work_for: WorkFor) -> None:
    work = work_for(finetune_spec(num_processes=3))
    assert [ranks.device_of(work, rank) for rank in (1, 2)] == ["cpu", "cpu"]
    on_gpus = dataclasses.replace(work, device="cuda:2", others=("cuda:4", "cuda:6"))
    assert [ranks.device_of(on_gpus, rank) for rank in (1, 2)] == ["cuda:4", "cuda:6"]


def test_the_death_of_a_helper_that_nobody_notices_ends_the_run_with_its_reason(
    finetune_spec: Build, work_for: WorkFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_NOTICED_WITHIN_S", 0.1)
    monkeypatch.setattr(ranks, "_WATCH_EVERY_S", 0.05)
    work = work_for(finetune_spec(num_processes=2))
    for run_ends_first in (False, True):
        helper, over = ranks.Follower(work, 1, 2, port=9), threading.Event()
        heard: queue.Queue[JobFailed] = queue.Queue()
        ranks.end_with_the_first([helper], heard.put, over)
        if run_ends_first:
            over.set()  # whoever is killed now is no failure
        (pid,) = helping()
        os.kill(pid, signal.SIGKILL)
        if run_ends_first:
            with pytest.raises(queue.Empty):
                heard.get(timeout=0.5)
        else:
            assert heard.get(timeout=20).reason is FailureReason.OUT_OF_MEMORY
            over.set()
        helper.end()


@pytest.mark.parametrize("is_disk_full", [False, True])
def test_a_last_word_is_the_last_and_ends_the_process_whatever_happens(
    is_disk_full: bool, finetune_spec: Build, work_for: WorkFor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(Exception):
        pass

    def end(_: int) -> None:
        raise Ended

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "no room")

    work = work_for(finetune_spec(num_processes=2))
    monkeypatch.setattr(os, "_exit", end)
    if is_disk_full:
        monkeypatch.setattr(work.journal, "_append", refuse)
    with pytest.raises(Ended):
        ranks.last_word(work, OutOfMemory())
    failures = [(event.reason, event.n) for event in said(work, events.JobFailed)]
    assert failures == ([] if is_disk_full else [(FailureReason.OUT_OF_MEMORY, work.journal.lines)])
    later = threading.Thread(target=work.journal.note, args=("one more",), daemon=True)
    later.start()
    later.join(0.2)
    assert later.is_alive()


def test_every_row_of_a_step_belongs_to_one_process(finetune_spec: Build) -> None:
    config = finetune_spec(num_processes=3, batch_size=2, gradient_accumulation_steps=2).config
    plans = [Plan.of(config, 31, rank=rank) for rank in range(3)]
    for step in range(plans[0].total_steps):
        shares = [row for plan in plans for piece in plan.share(step) for row in piece]
        assert sorted(shares) == sorted(row for piece in plans[0].micro_batches(step) for row in piece)
        assert all(len(piece) <= 2 for plan in plans for piece in plan.share(step))
