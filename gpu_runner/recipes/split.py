"""split: the rows of a dataset are divided into train, val and test."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from gpu_runner.rows import Rows, open_rows
from gpu_runner.sam2 import earlier_split, fingerprints, leakage, output, repair, split_config
from gpu_runner.sam2.earlier_split import Placed
from gpu_runner.sam2.manifest import sha256_of
from gpu_runner.sam2.output import Staged
from gpu_runner.sam2.split_config import SplitConfig
from gpu_runner.sam2.splits import GUARD, PARTS, STRATEGIES, Division, Key
from gpu_runner.sam2.statistics import MOST_LABELS, OTHERS, largest
from gpu_runner.sam2.stratification import TOLERANCE
from gpu_runner.work import Work
from jobs.errors import DatasetInvalid, OutputTaken
from jobs.results import Leak, Repair, SplitResult
from jobs.specs import Kind, SplitSpec, SplitStrategy

_SHOWN = 10  # classes named in a warning


def run(work: Work[SplitSpec]) -> SplitResult:
    """Raises DatasetInvalid, OutputTaken, DiskFull."""
    with output.staged(work.root, work.job_id, work.attempt) as staged:
        result = divide(work, staged)
    announce(work)
    return result


def announce(work: Work[SplitSpec]) -> None:
    """Say that the parts are in their place."""
    parts = work.root.path_of(work.spec.output_dir)
    work.journal.artifact("splits", parts, output.size_bytes(parts))


def divide(work: Work[SplitSpec], staged: Staged) -> SplitResult:
    """Make the parts aside. Raises DatasetInvalid, OutputTaken."""
    spec = work.spec
    rows = open_rows(work.root, spec.data_path)
    if not len(rows):
        raise DatasetInvalid(f"{spec.data_path} has no rows to divide.")
    if any(file.is_relative_to(work.root.path_of(spec.output_dir)) for file in rows.files):
        raise OutputTaken(f"{spec.output_dir} holds the rows that are to be divided: choose another output_dir.")
    work.journal.phase("reading")
    keys = _read_keys(work, rows)
    kept, gone = earlier_split.read(work.root, spec.keep, rows.ids()) if spec.keep else Placed({}, 0)
    work.journal.phase("comparing pictures")
    pictures = fingerprints.of(rows, work.root, work.cores, work.stop.check)
    work.stop.check()
    ratios = (spec.train_ratio, spec.val_ratio, spec.test_ratio)
    division = STRATEGIES[spec.strategy](keys, ratios, spec.random_seed, kept)
    leaks = leakage.measure(keys, division, pictures)
    config = _config(work, rows, division, _class_shares(keys, division), leaks)
    work.journal.phase("writing")
    folder = staged.make(spec.output_dir, Kind.SPLIT)
    _write_parts(work, folder, rows, division)
    split_config.write(folder, config)
    return _result(spec, config, gone, repair.propose(spec, keys, kept, pictures, leaks))


def _read_keys(work: Work[SplitSpec], rows: Rows) -> list[Key]:
    keys = []
    sets: dict[tuple[str, ...], frozenset[str]] = {}  # few are different, and each is larger than its row's key
    videos: dict[str, str] = {}  # every row brings a text of its own
    for index, mark in enumerate(rows.marks()):
        work.stop.check()
        work.journal.progress(index, 2 * len(rows))
        video_id = videos.setdefault(mark.video_id, mark.video_id)
        keys.append(Key(video_id, mark.frame_index, sets.setdefault(mark.labels, frozenset(mark.labels))))
    return keys


def _write_parts(work: Work[SplitSpec], folder: Path, rows: Rows, division: Division) -> None:
    parts = {row: part for part, indices in division._asdict().items() for row in indices}
    with ExitStack() as files:
        file_of = {
            part: files.enter_context((folder / f"{part}.jsonl").open("wb"))
            for part in (*PARTS, *([GUARD] if division.guard else []))
        }
        for index, line in enumerate(rows.split_lines()):
            work.stop.check()
            work.journal.progress(len(rows) + index + 1, 2 * len(rows))
            file_of[parts[index]].write(line + b"\n")


def _config(
    work: Work[SplitSpec],
    rows: Rows,
    division: Division,
    shares: dict[str, dict[str, float]],
    leaks: dict[str, Leak],
) -> SplitConfig:
    spec = work.spec
    return SplitConfig(
        made_by=Kind.SPLIT,
        dataset=work.root.name_of(rows.dataset),
        format=rows.format,
        input=rows.name,
        input_sha256=tuple(sha256_of(file) for file in rows.files),
        strategy=spec.strategy,
        ratios=dict(zip(PARTS, (spec.train_ratio, spec.val_ratio, spec.test_ratio), strict=True)),
        random_seed=spec.random_seed,
        counts=_counts(division),
        class_shares=shares,
        leakage=leaks,
        kept=spec.keep,
    )


def _counts(division: Division) -> dict[str, int]:
    return {part: len(rows) for part, rows in division._asdict().items()}


def _class_shares(keys: Sequence[Key], division: Division) -> dict[str, dict[str, float]]:
    """By part and class: which share of the class's frames is in the part. The guard counts for none.

    Beyond the most frequent classes, the others are one.
    """
    counts = {part: Counter(label for row in getattr(division, part) for label in keys[row].labels) for part in PARTS}
    told = largest(sum(counts.values(), Counter()), MOST_LABELS)
    for part, by_label in counts.items():
        rest = by_label.total() - sum(by_label[label] for label in told)
        if rest:
            counts[part] = by_label + Counter({OTHERS: rest})
    return {part: {label: round(counts[part][label] / told[label], 4) for label in sorted(told)} for part in PARTS}


def _result(spec: SplitSpec, config: SplitConfig, gone: int, repaired: Repair | None) -> SplitResult:
    counts = config.counts
    stayed = f" What {config.kept} had stayed in its part." if config.kept else ""
    guarded = f", {counts[GUARD]} left out between them" if counts[GUARD] else ""
    return SplitResult(
        train_path=f"{spec.output_dir}/train.jsonl",
        val_path=f"{spec.output_dir}/val.jsonl",
        test_path=f"{spec.output_dir}/test.jsonl",
        train_samples=counts["train"],
        val_samples=counts["val"],
        test_samples=counts["test"],
        guard_samples=counts[GUARD],
        message=f"{sum(counts.values())} rows divided ({spec.strategy}): {counts['train']} train, {counts['val']} val, "
        f"{counts['test']} test{guarded}.{stayed}",
        warnings=(*_missing(config, gone), *_empty_parts(counts), *_uneven_classes(config), *_leaks(config)),
        class_shares=config.class_shares,
        leakage=config.leakage,
        kept=config.kept,
        repair=repaired,
    )


def _missing(config: SplitConfig, gone: int) -> list[str]:
    return [f"{gone} rows of {config.kept} are not in the dataset any more, so they are in no part."] if gone else []


def _empty_parts(counts: dict[str, int]) -> list[str]:
    return [f"{part} is empty: there are too few rows for these ratios." for part in PARTS if not counts[part]]


def _uneven_classes(config: SplitConfig) -> list[str]:
    """Classes whose frames are not spread over the parts like the frames altogether."""
    total = sum(config.counts[part] for part in PARTS)
    uneven = [
        f"{label!r} ({', '.join(f'{config.class_shares[part][label]:.0%} {part}' for part in PARTS)})"
        for label in config.class_shares["train"]
        if any(abs(config.class_shares[part][label] - config.counts[part] / total) > TOLERANCE for part in PARTS)
    ]
    if not uneven:
        return []
    more = f" and {len(uneven) - _SHOWN} more" if len(uneven) > _SHOWN else ""
    return [f"Some classes are not divided like the rows: {'; '.join(uneven[:_SHOWN])}{more}."]


def _leaks(config: SplitConfig) -> list[str]:
    remedy = "add videos"
    if config.strategy is not SplitStrategy.TEMPORAL:
        remedy = "the strategy 'temporal' keeps them apart"
    elif config.kept:
        remedy = f"what leaked in {config.kept} was kept, so divide by time without keep, or add videos"
    near = [
        f"{leak.near_share:.0%} of the {part} frames lie within {leakage.REACH} frames of a training frame of the same "
        f"video, so scores on them flatter: {remedy}."
        for part, leak in config.leakage.items()
        if leak.near
    ]
    alike = [
        f"{leak.look_alikes} of {leak.rows} {part} pictures look like a training picture, so scores on them flatter."
        for part, leak in config.leakage.items()
        if leak.look_alikes
    ]
    return [*near, *alike]
