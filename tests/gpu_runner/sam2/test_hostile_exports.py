"""Hostile exports: each gets its answer, writes nothing elsewhere, and takes neither much memory nor long."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_exports import HOSTILE
from measured import MOST_BYTES, MOST_S, in_a_child

from jobs.errors import DatasetInvalid
from jobs.paths import DataRoot
from jobs.specs import ConvertSpec


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if path.is_symlink() or not path.is_dir():
            found[str(path.relative_to(folder))] = (status.st_size, status.st_mtime_ns)
    return found


def test_there_are_many() -> None:
    assert len(HOSTILE) >= 45


@pytest.mark.parametrize("name", HOSTILE)
def test_an_export_gets_its_answer_that_has(name: str, root: DataRoot, run: Callable[..., Any]) -> None:
    hostile = HOSTILE[name]
    (root.uploads / "export.zip").write_bytes(hostile.archive())
    run_once = ConvertSpec(sam2_zip_path="uploads/export.zip", output_dir="datasets/out")
    before = files_below(root.folder.parent)

    outcome, grown, seconds = in_a_child(lambda: run(run_once))

    if hostile.refusal is None:
        assert not isinstance(outcome, BaseException), outcome
        assert hostile.check(outcome)
    else:
        assert isinstance(outcome, DatasetInvalid), repr(outcome)
        assert hostile.refusal in outcome.message
        assert str(root.folder) not in outcome.message
        assert len(outcome.message) < 2000
    written = {path for path, status in files_below(root.folder.parent).items() if before.get(path) != status}
    allowed = ("data/jobs/job/", *(("data/datasets/out/",) if hostile.refusal is None else ()))
    assert not [path for path in written if not path.startswith(allowed)]
    assert grown < MOST_BYTES
    assert seconds < MOST_S
