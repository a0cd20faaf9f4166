"""`split_config.json`: what a folder of splits was cut from, how, and what came of it.

Written by the split recipe; read by `rows.open_rows` (dataset and format only), by rules that look beside a split, and
where an earlier split is kept.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from gpu_runner.lines import Lines, decode_line
from gpu_runner.rows import Rows
from gpu_runner.sam2.splits import GUARD, PARTS
from jobs.errors import DatasetInvalid
from jobs.paths import SPLIT_CONFIG, DataRoot
from jobs.results import Leak
from jobs.specs import DataFormat, SplitStrategy


class SplitConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`class_shares` is by part and class: which share of the class's frames is in the part. `leakage` is by held-out
    part. `kept` names the earlier split whose rows stayed in their parts."""

    made_by: str
    dataset: str
    format: DataFormat
    input: str
    input_sha256: tuple[str, ...]
    strategy: SplitStrategy
    ratios: dict[str, float]
    random_seed: int
    counts: dict[str, int]
    class_shares: dict[str, dict[str, float]]
    leakage: dict[str, Leak] = {}
    kept: str | None = None


def write(folder: Path, config: SplitConfig) -> None:
    (folder / SPLIT_CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")


def read_beside(rows: Rows) -> SplitConfig | None:
    """The configuration of the split these rows are; None when they are no part of one."""
    file = _only(rows.files)
    if file is None or file.stem not in (*PARTS, GUARD):
        return None
    return read(file.parent)


def read(folder: Path) -> SplitConfig | None:
    """The configuration in a folder; None when there is none that can be read."""
    try:
        return msgspec.json.decode((folder / SPLIT_CONFIG).read_bytes(), type=SplitConfig)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


class PartRow(msgspec.Struct, frozen=True):
    """What a line of a part says about its row, whichever format it refers to."""

    id: str
    video_id: str = ""
    frame_index: int = 0


def read_part(
    root: DataRoot, split: str, part: str, pass_over: Callable[[str], None] | None = None
) -> Iterator[PartRow]:
    """The rows of a part of the split called `split`; none of a part that was not written.

    Raises:
        DatasetInvalid: a row cannot be read, and there is no `pass_over` to take its name.
    """
    file = root.path_of(split) / f"{part}.jsonl"
    if not file.is_file():
        return
    lines = Lines(file)
    for index in range(len(lines)):
        try:
            yield decode_line(_PART_ROW, lines, index, f"{split}/{file.name}")
        except DatasetInvalid:
            if pass_over is None:
                raise
            pass_over(f"{file.name} row {index + 1}")


_PART_ROW = msgspec.json.Decoder(PartRow)


def _only(files: Sequence[Path]) -> Path | None:
    return files[0] if len(files) == 1 else None
