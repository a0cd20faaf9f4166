"""What the benchmarks owe their reader; nothing here is timed."""

import ast
import platform
from pathlib import Path

import pytest

from benchmarks import document, plan
from benchmarks.__main__ import BENCHMARKS
from benchmarks.report import Report, at_least, at_most
from jobs.footprint import MIB

FOLDER = Path(__file__).parents[2] / "benchmarks"


def claims() -> list[str]:
    """The files that measure something: those with a function `run`."""
    return sorted(
        path.stem
        for path in FOLDER.glob("*.py")
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in ast.parse(path.read_text()).body)
    )


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "benchmarks.md"


def report(figure: float) -> Report:
    return Report("It is fast.", "Ten runs.", ("what", "s"), [("ours", f"{figure}")], [at_most("s", figure, 1, "s")])


def test_every_benchmark_is_registered_under_the_name_of_its_file() -> None:
    assert sorted(BENCHMARKS) == claims()
    assert all(BENCHMARKS[name].__name__ == f"benchmarks.{name}" for name in BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_claims_something_in_one_sentence(name: str) -> None:
    assert BENCHMARKS[name].CLAIM.endswith(".")
    assert "\n" not in BENCHMARKS[name].CLAIM


def test_writing_again_replaces_the_figures_and_keeps_what_was_written_by_hand(page: Path) -> None:
    document.write("rest", report(2), page)
    document.write("live", report(0.5), page)
    page.write_text(page.read_text().replace("<!-- /figures: rest -->", "<!-- /figures: rest -->\n\nDisks are slow."))
    before = page.read_text()
    document.write("rest", report(3), page)
    assert page.read_text() == before.replace("| ours | 2 |", "| ours | 3 |").replace("| 2 s |", "| 3 s |")
    assert document.by_hand(page.read_text(), "rest") == "Disks are slow."
    assert document.by_hand(page.read_text(), "live") == ""


def test_figures_with_backslashes_are_written_as_they_are() -> None:
    text = document.with_section("# Benchmarks\n", "rest", "old")
    assert r"\1 and \g<0>" in document.with_section(text, "rest", r"\1 and \g<0>")


def test_an_aim_knows_on_which_side_it_is_met() -> None:
    assert at_least("ratio", 0.6, 0.6).is_met
    assert not at_least("ratio", 0.59, 0.6).is_met
    assert at_most("p99", 150, 150, "ms").is_met
    assert not at_most("p99", 151, 150, "ms").is_met
    assert report(2).missed


def test_a_section_says_when_and_on_what_machine_it_was_measured_but_not_whose(page: Path) -> None:
    document.write("rest", report(1), page)
    text = page.read_text()
    assert " cores" in text
    assert " GiB of memory" in text
    assert f"Python {platform.python_version()}" in text
    assert platform.node() not in text


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missed_aim_in_the_document_has_its_sentence(name: str) -> None:
    text = document.DOCUMENT.read_text()
    figures = document.figures(text, name)
    assert figures, f"docs/benchmarks.md has no figures of {name}: run `python -m benchmarks {name}`."
    if "**missed**" in figures:
        assert document.by_hand(text, name), f"Say below the figures of {name} why an aim was missed."


@pytest.mark.slow
def test_the_memory_of_a_configuration_is_measured_in_a_training() -> None:
    case = next(case for case in plan.CASES if case["name"] == "text, LoRA, no dropout")
    assert 20 * MIB < plan._measure(case) < 400 * MIB
