"""An earlier split of a dataset that has grown: where each of its rows is, so that it stays there.

Read by the split recipe before it divides what is new; the prepare recipe checks it before it converts. Rows are
known by their ids.
"""

from collections.abc import Iterable
from typing import NamedTuple

from gpu_runner.sam2 import split_config
from gpu_runner.sam2.splits import PARTS, Division
from jobs.errors import DatasetInvalid
from jobs.paths import SPLIT_CONFIG, DataRoot
from jobs.specs import Kind


class Placed(NamedTuple):
    """`kept` is the place in a Division by row of the dataset; `gone` is how many rows are not in it any more."""

    kept: dict[int, int]
    gone: int


def read(root: DataRoot, name: str, ids: Iterable[str]) -> Placed:
    """Where the rows of a dataset, given by their ids in order, are in the split called `name`.

    Raises:
        DatasetInvalid: there is no split of ours, or it is one of other rows.
    """
    part_of = _read_parts(root, name)
    kept, met = {}, set()
    for row, row_id in enumerate(ids):
        if row_id in part_of:
            kept[row] = part_of[row_id]
            met.add(row_id)
    if not kept:
        raise DatasetInvalid(f"No row of keep, {name}, is in the dataset: name the split that was made of it before.")
    return Placed(kept, len(part_of) - len(met))


def check(root: DataRoot, name: str) -> None:
    """Raises DatasetInvalid unless `name` is a split of ours, whole."""
    folder = root.path_of(name)
    config = split_config.read(folder)
    if (
        config is None
        or config.made_by != Kind.SPLIT
        or not all((folder / f"{part}.jsonl").is_file() for part in PARTS)
    ):
        raise DatasetInvalid(
            f"keep, {name}, is no split: name a folder that a split job wrote, with its {SPLIT_CONFIG}, "
            f"{', '.join(f'{part}.jsonl' for part in PARTS)}."
        )


def _read_parts(root: DataRoot, name: str) -> dict[str, int]:
    check(root, name)
    return {
        row.id: place for place, part in enumerate(Division._fields) for row in split_config.read_part(root, name, part)
    }
