"""A validation as a report: what was found, where, and what to do about it. Markdown for people, JSON for programs."""

from html import escape
from typing import Any

import msgspec

from jobs.results import Finding, Histogram, ValidateResult

_TITLES = {
    "passed": "Passed",
    "passed_with_warnings": "Passed with warnings",
    "failed": "Failed",
}


def render(name: str, result: ValidateResult) -> str:
    """The whole report. `name` is the dataset's below the data root."""
    findings = (*result.errors, *result.warnings)
    lines = [f"# Validation of {_plain(name)}", "", f"**{_TITLES[result.result]}.** {_counted(result)}", ""]
    for title, chosen in (("Errors", result.errors), ("Warnings", result.warnings)):
        if chosen:
            lines += [f"## {title}", "", *(line for each in chosen for line in _section(each))]
    lines += ["## Figures", "", "| | |", "|---|---|"]
    drawn = {key: value for key, value in result.statistics.items() if isinstance(value, Histogram)}
    lines += [
        f"| {_plain(key)} | {_plain(_shown(value))} |" for key, value in result.statistics.items() if key not in drawn
    ]
    for key, histogram in drawn.items():
        lines += ["", f"### {_plain(key)}", "", "| from | to | count |", "|---|---|---|", *_bars(histogram)]
    if findings:
        lines += ["", "## Recommendations", "", *(f"- {_plain(sentence)}" for sentence in result.recommendations)]
    return "\n".join(lines) + "\n"


def as_json(name: str, result: ValidateResult) -> bytes:
    """The same for programs: the job's result, and whose it is."""
    whole = {"dataset": name, **msgspec.to_builtins(result)}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def _section(finding: Finding) -> list[str]:
    rows = ", ".join(f"`{_plain(row_id)}`" for row_id in finding.rows)
    where = f" In rows {rows}{' …' if finding.count > len(finding.rows) else ''}." if rows else ""
    return [f"### {finding.rule}", "", f"{_plain(finding.message)}{where}", "", f"*{_plain(finding.remedy)}*", ""]


def _counted(result: ValidateResult) -> str:
    return f"{result.num_errors} kinds of errors, {result.num_warnings} kinds of warnings."


def _bars(histogram: Histogram) -> list[str]:
    """A line for every bar that is not empty."""
    bars = zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False)
    return [f"| {begin:.3g} | {end:.3g} | {count} |" for begin, end, count in bars if count]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {figure:g}" for key, figure in value.items()) or "none"
    return str(value)


def _plain(text: str) -> str:
    """Text that cannot become markup: labels and ids are others' words."""
    return escape(text, quote=False).replace("|", "\\|").replace("`", "'").replace("\n", " ")
