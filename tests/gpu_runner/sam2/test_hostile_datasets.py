"""Every hostile dataset has its answer, and no more: no fault, no write elsewhere, little memory, little time."""

import multiprocessing
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hostile_datasets
import pytest
from hostile_datasets import CASES, Case

from jobs.errors import DatasetInvalid, OutputTaken
from jobs.paths import DataRoot
from jobs.specs import ConvertSpec, DataFormat, SplitSpec, ValidateSpec

MOST_MB, MOST_S = 256, 10.0
FORK = multiprocessing.get_context("fork")


class Outcome(NamedTuple):
    """What a validation answered, (rule, severity, message) by finding, and what it took."""

    findings: list[tuple[str, str, str]]
    refusal: str
    fault: str
    split_refusal: str
    grown_mb: float
    cpu_s: float


def _validate(run: Callable[..., Any], path: str, answers: Any) -> None:
    """In a process of its own: what it takes is its own too. A split of the same rows must not fail otherwise."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    findings, refusal, fault, split_refusal = [], "", "", ""
    try:
        result = run(ValidateSpec(data_path=path, level="strict"))
        findings = [(each.rule, each.severity, each.message) for each in (*result.errors, *result.warnings)]
    except DatasetInvalid as error:
        refusal = error.message
    except BaseException as error:
        fault = repr(error)
    try:
        run(SplitSpec(data_path=path, output_dir="datasets/parts-of-it"), job_id="split")
    except (DatasetInvalid, OutputTaken) as error:
        split_refusal = error.message
    except BaseException as error:
        fault += f" split: {error!r}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    grown_mb = grown / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    answers.send(
        Outcome(findings, refusal, fault, split_refusal, grown_mb, time.process_time())
    )  # a process begins with none


def _contents(root: DataRoot) -> dict[str, tuple[int, int]]:
    """Every file outside the attempt's folder, the kept fingerprints and the split: its size and time."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in root.folder.rglob("*")
        if not path.is_relative_to(root.jobs)
        and not {"fingerprints", "parts-of-it"} & {*path.parts}
        and not path.is_dir()
    }


@pytest.fixture
def outcome(run: Callable[..., Any], root: DataRoot) -> Callable[[str], Outcome]:
    def validate(path: str) -> Outcome:
        results, answers = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_validate, args=(run, path, answers))
        process.start()
        answers.close()
        try:
            assert results.poll(10 * MOST_S), "it hangs"  # of time that passes: the machine may be busy
            answer: Outcome = results.recv()
        finally:
            process.kill()
            process.join()
            results.close()
        return answer

    return validate


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name[:60].encode("unicode_escape").decode())
def test_a_hostile_dataset_gets_its_answer(
    case: Case,
    run: Callable[..., Any],
    outcome: Callable[[str], Outcome],
    root: DataRoot,
    make_export: Callable[..., str],
    build: Any,
) -> None:
    folder: Path = root.datasets / "d"
    if case.of == "arrow":
        frames = [build.frame(k, build.thing(build.rectangle(20, 30, 2 + k, 4, 8, 6))) for k in range(6)]
        spec = ConvertSpec(
            sam2_zip_path=make_export(frames), output_dir="datasets/d", target_format=DataFormat.HUGGINGFACE
        )
        run(spec, job_id="made")
    else:
        rows = hostile_datasets.sound_rows()
        if case.of == "rows":
            case.spoil(rows)
        hostile_datasets.write(folder, rows)
    if case.of != "rows":
        case.spoil(folder)
    before = _contents(root)

    answer = outcome(case.path)

    assert not answer.fault
    assert bool(re.search(case.split, answer.split_refusal))
    assert answer.grown_mb < MOST_MB
    assert answer.cpu_s < MOST_S
    assert _contents(root) == before
    assert case.is_answered_by(answer.findings, answer.refusal), answer


def test_the_dataset_they_are_made_of_is_sound(outcome: Callable[[str], Outcome], root: DataRoot) -> None:
    hostile_datasets.write(root.datasets / "d", list(hostile_datasets.sound_rows()))
    assert outcome("datasets/d").findings == []
    assert len(CASES) > 80
