"""prepare: an export is converted, the dataset checked and divided, as one job with one answer.

Dataset and parts take their places together at the end: until then whatever was there is as it was, so a cancel, a
failure or a kill changes nothing and a second attempt is the same job.
"""

from dataclasses import replace
from typing import Any

from msgspec import structs

from gpu_runner.recipes import convert, split, validate
from gpu_runner.sam2 import earlier_split, output, split_config
from gpu_runner.staging import RootAhead
from gpu_runner.work import Work
from jobs.errors import OutputTaken
from jobs.paths import DataRoot
from jobs.results import ConvertResult, PrepareResult, SplitResult, ValidateResult
from jobs.specs import Kind, PrepareSpec, Spec, parts_of

_CONVERTED, _CHECKED = 0.45, 0.85  # shares of the whole work after which a step is done


def run(work: Work[PrepareSpec]) -> PrepareResult:
    """Raises DatasetInvalid, OutputTaken, DiskFull."""
    spec = _with_keep(work.root, work.spec)
    _check(work.root, spec)
    with output.staged(work.root, work.job_id, work.attempt) as staged:
        dataset = staged.make(spec.output_dir, Kind.CONVERT)
        work.journal.stretch(0.0, _CONVERTED)
        converted = convert.fill(_step(work, spec.conversion), dataset)
        ahead = replace(work, root=RootAhead(work.root, spec.output_dir, dataset))
        work.journal.stretch(_CONVERTED, _CHECKED)
        checked = validate.run(_step(ahead, spec.validation))
        work.journal.stretch(_CHECKED, 1.0)
        is_good = checked.passed or spec.allow_invalid_data
        divided = split.divide(_step(ahead, spec.division), staged) if is_good else None
    convert.announce(_step(work, spec.conversion))
    if divided:
        split.announce(_step(work, spec.division))
    return PrepareResult(
        output_dir=converted.output_dir,
        num_samples=converted.num_samples,
        passed=checked.passed,
        success=divided is not None,
        message=_message(converted, checked, divided),
        convert=converted,
        validate=checked,
        split=divided,
        warnings=(*converted.warnings, *(divided.warnings if divided else ())),
    )


def _with_keep(root: DataRoot, spec: PrepareSpec) -> PrepareSpec:
    """A dataset that grows keeps to the split that was cut from it, unless it is to be divided anew."""
    if spec.add_to is None or spec.keep is not None or spec.divide_anew:
        return spec
    for name in (spec.division.output_dir, parts_of(spec.add_to)):
        cut = split_config.read(root.path_of(name))
        if cut is not None and cut.dataset == spec.add_to:
            return structs.replace(spec, keep=name)
    return spec


def _check(root: DataRoot, spec: PrepareSpec) -> None:
    """What would stop the division is said before the conversion. Raises OutputTaken, DatasetInvalid."""
    parts, dataset = spec.division.output_dir, root.path_of(spec.output_dir)
    output.check_free(root, spec.output_dir, Kind.CONVERT)
    output.check_free(root, parts, Kind.SPLIT)
    if dataset.is_relative_to(root.path_of(parts)):
        raise OutputTaken(f"{parts} is to hold the dataset itself: choose another split_dir.")
    if spec.keep is None:
        return
    if root.path_of(spec.keep).is_relative_to(dataset):
        raise OutputTaken(f"{spec.keep} lies in {spec.output_dir}, which is made anew: choose another output_dir.")
    earlier_split.check(root, spec.keep)


def _step(work: Work[Any], spec: Spec) -> Work[Any]:
    return replace(work, spec=spec)


def _message(converted: ConvertResult, checked: ValidateResult, divided: SplitResult | None) -> str:
    found = f"{checked.num_errors} kinds of errors and {checked.num_warnings} of warnings found."
    if divided is None:
        refused = "The dataset was not divided: mend what the report names, or send allow_invalid_data: true."
        return f"{converted.message} {found} {refused}"
    return f"{converted.message} {found} {divided.message}"
