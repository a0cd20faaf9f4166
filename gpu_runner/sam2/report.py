"""A validation as Markdown, for people: what was found, where, and what to do about it."""

from collections.abc import Sequence
from html import escape
from typing import Any

from jobs.results import Finding

_TITLES = {
    "passed": "Passed",
    "passed_with_warnings": "Passed with warnings",
    "failed": "Failed",
}


def render(
    name: str, result: str, findings: Sequence[Finding], statistics: dict[str, Any], advice: Sequence[str]
) -> str:
    """The whole report. `name` is the dataset's below the data root."""
    lines = [f"# Validation of {_plain(name)}", "", f"**{_TITLES[result]}.** {_counted(findings)}", ""]
    for severity in ("error", "warning"):
        chosen = [finding for finding in findings if finding.severity == severity]
        if chosen:
            lines += [f"## {severity.capitalize()}s", "", *(line for each in chosen for line in _section(each))]
    lines += ["## Figures", "", "| | |", "|---|---|"]
    lines += [f"| {_plain(key)} | {_plain(_shown(value))} |" for key, value in statistics.items()]
    if advice:
        lines += ["", "## Recommendations", "", *(f"- {_plain(sentence)}" for sentence in advice)]
    return "\n".join(lines) + "\n"


def _section(finding: Finding) -> list[str]:
    rows = ", ".join(f"`{_plain(row_id)}`" for row_id in finding.rows)
    where = f" In rows {rows}{' …' if finding.count > len(finding.rows) else ''}." if rows else ""
    return [f"### {finding.rule}", "", f"{_plain(finding.message)}{where}", "", f"*{_plain(finding.remedy)}*", ""]


def _counted(findings: Sequence[Finding]) -> str:
    errors = sum(finding.severity == "error" for finding in findings)
    return f"{errors} kinds of errors, {len(findings) - errors} kinds of warnings."


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {figure:g}" for key, figure in value.items()) or "none"
    return str(value)


def _plain(text: str) -> str:
    """Text that cannot become markup: labels and ids are others' words."""
    return escape(text, quote=False).replace("|", "\\|").replace("`", "'").replace("\n", " ")
