"""Writes `docs/benchmarks.md`, one section a benchmark.

Only what stands between a section's two markers is written; the text around them is by hand and stays. That is where
a missed aim gets its sentence.
"""

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.report import Report

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_HEAD = """\
# Benchmarks

`make bench` runs them all, `python -m benchmarks NAME` one. What stands between the markers is written by that run;
the rest is by hand. Ratios are against a baseline of the same run on the same machine.
"""
_VERSIONS = ("litestar", "uvicorn", "msgspec", "fastapi", "torch", "transformers", "peft")


def write(name: str, report: Report, document: Path = DOCUMENT) -> None:
    """Bring the section of a benchmark up to date."""
    text = document.read_text() if document.exists() else _HEAD
    document.write_text(with_section(text, name, f"{report.as_markdown()}\n\nMeasured {_when_and_where()}."))


def with_section(text: str, name: str, new: str) -> str:
    """The document with the figures of a benchmark replaced, or added at its end."""
    start, end = _markers(name)
    section = f"{start}\n{new}\n{end}"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: section, text)
    return f"{text.rstrip()}\n\n## {name}\n\n{section}\n"


def figures(text: str, name: str) -> str:
    """What the last run wrote about a benchmark."""
    start, end = _markers(name)
    return text.partition(start)[2].partition(end)[0].strip()


def by_hand(text: str, name: str) -> str:
    """What somebody wrote below the figures of a benchmark."""
    _, _, after = text.partition(_markers(name)[1])
    return after.partition("\n## ")[0].strip()


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- figures: {name} -->", f"<!-- /figures: {name} -->"


def _when_and_where() -> str:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    where = f"{os.cpu_count()} cores ({platform.machine()}), {memory_gib:.0f} GiB of memory, {platform.system()}"
    versions = ", ".join(f"{package} {found}" for package in _VERSIONS if (found := _version(package)))
    return f"on {datetime.now(UTC):%Y-%m-%d} on {where}; Python {platform.python_version()}, {versions}"


def _version(package: str) -> str | None:
    """None where it is not installed: not every benchmark needs them all."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
