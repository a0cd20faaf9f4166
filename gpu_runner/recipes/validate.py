"""validate: every row of a dataset is checked by every rule."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

from gpu_runner import forks
from gpu_runner.rows import Rows, open_rows
from gpu_runner.sam2 import fingerprints, report
from gpu_runner.sam2.observed import Observed, observe
from gpu_runner.sam2.rules import make_rules
from gpu_runner.sam2.rules.tally import Tally
from gpu_runner.sam2.statistics import Statistics
from gpu_runner.work import Work
from jobs.errors import DatasetInvalid
from jobs.results import Finding, ValidateResult
from jobs.specs import ValidateSpec

_SEARCHED = 300  # pictures that are searched for burnt-in overlays, spread over the dataset


def run(work: Work[ValidateSpec]) -> ValidateResult:
    """Raises DatasetInvalid when the rows cannot be opened at all; what is wrong with single rows is a finding."""
    rows = open_rows(work.root, work.spec.data_path)
    if rows.format is not work.spec.format_type:
        work.journal.note(f"{rows.name} is checked as what it is: {rows.format}, not {work.spec.format_type}.")
    work.journal.phase("checking")
    findings, statistics = _check(work, rows)
    result = _result(work, findings, statistics)
    work.folder.report.write_text(report.render(rows.name, result), encoding="utf-8")
    work.folder.report_data.write_bytes(report.as_json(rows.name, result))
    work.journal.artifact("validation_report", work.folder.report, work.folder.report.stat().st_size)
    work.journal.artifact("validation_data", work.folder.report_data, work.folder.report_data.stat().st_size)
    return result


def _check(work: Work[ValidateSpec], rows: Rows) -> tuple[list[Finding], dict[str, Any]]:
    """One pass over the rows."""
    rules = make_rules(rows, work)
    statistics = Statistics()
    unreadable = Tally()
    first_problem = ""
    records = bytearray()
    for number, seen in enumerate(_observe_all(rows, work.cores)):
        work.stop.check()
        work.journal.progress(number + 1, len(rows))
        if isinstance(seen, DatasetInvalid):
            unreadable.add(f"row {number + 1}")
            first_problem = first_problem or seen.message
            records += fingerprints.NONE
            continue
        records += seen.fingerprint
        statistics.look(seen)
        for rule in rules:
            rule.look(seen)
    fingerprints.write(rows, work.root, records)
    findings = [*_empty(rows), *_unreadable(unreadable, first_problem)]
    findings.extend(finding for rule in rules for finding in rule.findings())
    summary = statistics.summary()
    return findings, {**summary, "total_samples": len(rows), "total_checks": len(rows) * len(rules)}


def _observe_all(rows: Rows, cores: int) -> Iterator[Observed | DatasetInvalid]:
    """Every row in order, looked at by as many processes as there are cores."""
    every = max(1, -(-len(rows) // _SEARCHED))
    return forks.map_in_order(partial(_observe, rows, every), len(rows), cores)


def _observe(rows: Rows, every: int, index: int) -> Observed | DatasetInvalid:
    try:
        return observe(rows, index, search=index % every == 0)
    except DatasetInvalid as error:
        return error


def _result(work: Work[ValidateSpec], findings: Sequence[Finding], statistics: dict[str, Any]) -> ValidateResult:
    errors = tuple(finding for finding in findings if finding.severity == "error")
    warnings = tuple(finding for finding in findings if finding.severity == "warning")
    outcome: Literal["passed", "passed_with_warnings", "failed"] = (
        "failed" if errors else "passed_with_warnings" if warnings else "passed"
    )
    return ValidateResult(
        passed=not errors,
        result=outcome,
        num_errors=len(errors),
        num_warnings=len(warnings),
        errors=errors,
        warnings=warnings,
        statistics=statistics,
        recommendations=tuple(f"{each.rule}: {each.remedy}" for each in (*errors, *warnings) if each.remedy),
        report_id=work.job_id,
    )


def _empty(rows: Sequence[object]) -> list[Finding]:
    if len(rows):
        return []
    return [
        Finding(
            rule="rows",
            severity="error",
            message="There are no rows.",
            count=0,
            remedy="Choose larger ratios, or add data.",
        )
    ]


def _unreadable(unreadable: Tally, first_problem: str) -> list[Finding]:
    example = first_problem.replace("{", "(").replace("}", ")")
    return unreadable.finding(
        "rows",
        "error",
        f"{{count}} rows cannot be read. {example}",
        "A row is a JSON object with id, image and conversations: mend these, or convert again.",
    )
