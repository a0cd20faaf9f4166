"""Every hostile dataset has its answer, and no more: no fault, no write elsewhere, little memory, little time."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import hostile_datasets
import pytest
from hostile_datasets import CASES, Case
from measured import MOST_BYTES, MOST_S, in_a_child

from jobs.errors import DatasetInvalid, OutputTaken
from jobs.paths import DataRoot
from jobs.specs import ConvertSpec, DataFormat, SplitSpec, ValidateSpec


class Answer(NamedTuple):
    """What a validation answered, (rule, severity, message) by finding, and what a split of the same rows did."""

    findings: list[tuple[str, str, str]]
    refusal: str
    split_refusal: str


def _answer(run: Callable[..., Any], path: str) -> Answer:
    """Raises whatever is no refusal."""
    findings, refusal, split_refusal = [], "", ""
    try:
        result = run(ValidateSpec(data_path=path, level="strict"))
        findings = [(each.rule, each.severity, each.message) for each in (*result.errors, *result.warnings)]
    except DatasetInvalid as error:
        refusal = error.message
    try:
        run(SplitSpec(data_path=path, output_dir="datasets/parts-of-it"), job_id="split")
    except (DatasetInvalid, OutputTaken) as error:
        split_refusal = error.message
    return Answer(findings, refusal, split_refusal)


def _contents(root: DataRoot) -> dict[str, tuple[int, int]]:
    """Every file outside the attempt's folder, the kept fingerprints and the split: its size and time."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in root.folder.rglob("*")
        if not path.is_relative_to(root.jobs)
        and not {"fingerprints", "parts-of-it"} & {*path.parts}
        and not path.is_dir()
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name[:60].encode("unicode_escape").decode())
def test_a_hostile_dataset_gets_its_answer(
    case: Case,
    run: Callable[..., Any],
    root: DataRoot,
    make_export: Callable[..., str],
    build: Any,
) -> None:
    def make_table() -> None:
        frames = [build.frame(k, build.thing(build.rectangle(20, 30, 2 + k, 4, 8, 6))) for k in range(6)]
        spec = ConvertSpec(
            sam2_zip_path=make_export(frames), output_dir="datasets/d", target_format=DataFormat.HUGGINGFACE
        )
        run(spec, job_id="made")

    case.lay(root.datasets / "d", make_table)
    before = _contents(root)

    answer, grown_bytes, cpu_s = in_a_child(lambda: _answer(run, case.path))

    assert isinstance(answer, Answer), repr(answer)
    assert bool(re.search(case.split, answer.split_refusal))
    assert grown_bytes < MOST_BYTES
    assert cpu_s < MOST_S
    assert _contents(root) == before
    assert case.is_answered_by(answer.findings, answer.refusal), answer


def test_the_dataset_they_are_made_of_is_sound(run: Callable[..., Any], root: DataRoot) -> None:
    hostile_datasets.write(root.datasets / "d", list(hostile_datasets.sound_rows()))
    assert _answer(run, "datasets/d").findings == []
    assert len(CASES) > 80
