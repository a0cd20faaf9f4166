"""validate: every row of a dataset is checked by every rule."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from gpu_runner.rows import Rows, open_rows
from gpu_runner.sam2 import report
from gpu_runner.sam2.observed import Observed, observe
from gpu_runner.sam2.rules import make_rules
from gpu_runner.sam2.rules.tally import Tally
from gpu_runner.sam2.statistics import Statistics
from gpu_runner.work import Work
from jobs.errors import DatasetInvalid
from jobs.results import Finding, ValidateResult
from jobs.specs import ValidateSpec

_AHEAD = 16  # rows a thread opens ahead of the rules


def run(work: Work[ValidateSpec]) -> ValidateResult:
    """Raises DatasetInvalid when the rows cannot be opened at all; what is wrong with single rows is a finding."""
    rows = open_rows(work.root, work.spec.data_path)
    if rows.format is not work.spec.format_type:
        work.journal.note(f"{rows.name} is checked as what it is: {rows.format}, not {work.spec.format_type}.")
    work.journal.phase("checking")
    findings, statistics = _check(work, rows)
    errors = tuple(finding for finding in findings if finding.severity == "error")
    warnings = tuple(finding for finding in findings if finding.severity == "warning")
    outcome: Literal["passed", "passed_with_warnings", "failed"] = (
        "failed" if errors else "passed_with_warnings" if warnings else "passed"
    )
    advice = tuple(f"{finding.rule}: {finding.remedy}" for finding in (*errors, *warnings) if finding.remedy)
    text = report.render(rows.name, outcome, findings, statistics, advice)
    work.folder.report.write_text(text, encoding="utf-8")
    work.journal.artifact("validation_report", work.folder.report, len(text.encode()))
    return ValidateResult(
        passed=not errors,
        result=outcome,
        num_errors=len(errors),
        num_warnings=len(warnings),
        errors=errors,
        warnings=warnings,
        statistics=statistics,
        recommendations=advice,
        report_id=work.job_id,
    )


def _check(work: Work[ValidateSpec], rows: Rows) -> tuple[list[Finding], dict[str, Any]]:
    """One pass over the rows."""
    rules = make_rules(rows, strict=work.spec.level == "strict")
    statistics = Statistics()
    unreadable = Tally()
    first_problem = ""
    for number, seen in enumerate(_observe_all(rows, work.cores)):
        work.stop.check()
        work.journal.progress(number + 1, len(rows))
        if isinstance(seen, DatasetInvalid):
            unreadable.add(f"row {number + 1}")
            first_problem = first_problem or seen.message
            continue
        statistics.look(seen)
        for rule in rules:
            rule.look(seen)
    findings = [*_empty(rows), *_unreadable(unreadable, first_problem)]
    findings.extend(finding for rule in rules for finding in rule.findings())
    summary = statistics.summary()
    return findings, {**summary, "total_samples": len(rows), "total_checks": len(rows) * len(rules)}


def _observe_all(rows: Rows, cores: int) -> Iterator[Observed | DatasetInvalid]:
    """Every row in order; pictures are decoded in threads, a few rows ahead."""
    with ThreadPoolExecutor(max(1, cores)) as pool:
        ahead = _AHEAD * max(1, cores)
        for begin in range(0, len(rows), ahead):
            yield from pool.map(lambda index: _observe(rows, index), range(begin, min(begin + ahead, len(rows))))


def _observe(rows: Rows, index: int) -> Observed | DatasetInvalid:
    try:
        return observe(rows, index)
    except DatasetInvalid as error:
        return error


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
