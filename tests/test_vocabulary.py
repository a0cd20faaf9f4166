"""Every word of the language is in each of its places; a failure says which place was forgotten."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import msgspec
import pytest

import jobs
from gpu_runner.exporters import EXPORTERS, UNSUPPORTED
from gpu_runner.recipes import RECIPES
from jobs import documents, frames, lifecycle, settings
from jobs.commands import AnyCommand
from jobs.errors import FailureReason
from jobs.events import LoggedEvent
from jobs.lifecycle import Status
from jobs.results import JobResult
from jobs.settings import Settings
from jobs.specs import DataFormat, ExportFormat, JobSpec, Kind

EVENTS_PAGE = documents.CHECKOUT / "docs" / "events.md"


def tags(union: object) -> set[str]:
    return {str(member.__struct_config__.tag) for member in get_args(union)}


def module_file(module: str) -> Path | None:
    """The file of a module, without importing it."""
    package, _, name = module.rpartition(".")
    places = (find_spec(package) or pytest.fail(f"There is no package {package}.")).submodule_search_locations or ()
    return next((Path(place, f"{name}.py") for place in places if Path(place, f"{name}.py").is_file()), None)


@pytest.mark.parametrize("kind", Kind)
def test_a_kind_of_job_is_in_each_of_its_places(kind: Kind) -> None:
    assert kind in tags(JobSpec), f"The kind {kind!r} has no spec in the union JobSpec of jobs/specs.py."
    assert kind in tags(JobResult), f"The kind {kind!r} has no result in the union JobResult of jobs/results.py."
    assert kind in RECIPES, f"The kind {kind!r} has no line in RECIPES of gpu_runner/recipes/__init__.py."
    words = re.search(r"^kind +(.*)$", jobs.__doc__ or "", re.MULTILINE)
    assert words, "The glossary in jobs/__init__.py has lost its line 'kind'."
    assert kind in words[1].split(" · "), f"The kind {kind!r} is not in the glossary of jobs/__init__.py."


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_of_the_registry_is_there_and_runs(kind: Kind) -> None:
    file = module_file(RECIPES[kind])
    assert file, f"{RECIPES[kind]} is in the registry of recipes and has no file."
    functions = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert "run" in functions, f"{file.name} of gpu_runner/recipes has no function run(work)."


def test_every_spec_and_result_belongs_to_a_kind() -> None:
    for place, union in (("specs", JobSpec), ("results", JobResult)):
        foreign = tags(union) - set(Kind)
        assert not foreign, f"jobs/{place}.py has {sorted(foreign)}, which Kind in jobs/specs.py does not name."


def test_every_recipe_file_is_in_the_registry() -> None:
    folder = documents.CHECKOUT / "gpu_runner" / "recipes"
    written = {f"gpu_runner.recipes.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__"}
    forgotten = written - set(RECIPES.values())
    assert not forgotten, f"{sorted(forgotten)} has no line in RECIPES of gpu_runner/recipes/__init__.py."


@pytest.mark.parametrize("export_format", ExportFormat)
def test_an_export_format_has_an_exporter_or_is_said_to_be_unsupported(export_format: ExportFormat) -> None:
    is_built, is_refused = export_format in EXPORTERS, export_format in UNSUPPORTED
    assert is_built or is_refused, (
        f"The export format {export_format!r} has no line in EXPORTERS of gpu_runner/exporters/__init__.py "
        "and is not listed as UNSUPPORTED there."
    )
    assert not (is_built and is_refused), f"The export format {export_format!r} is both built and unsupported."
    if is_built:
        assert module_file(EXPORTERS[export_format]), f"{EXPORTERS[export_format]} has no file."


@pytest.mark.parametrize(
    ("what", "name"),
    [
        *(("event", tag) for tag in sorted(tags(LoggedEvent))),
        *(("command", tag) for tag in sorted(tags(AnyCommand))),
        *(("frame", tag) for tag in sorted(tags(frames.ServerFrame))),
    ],
)
def test_what_is_said_over_the_wire_is_documented(what: str, name: str) -> None:
    assert f"### `{name}`" in EVENTS_PAGE.read_text(), f"The {what} {name!r} is not in docs/events.md: run `make docs`."


@pytest.mark.parametrize("kind", [*get_args(LoggedEvent), *get_args(AnyCommand), *get_args(frames.ServerFrame)])
def test_what_is_said_over_the_wire_has_its_sentence(kind: type[msgspec.Struct]) -> None:
    assert "__doc__" in vars(kind), f"{kind.__name__} has no docstring, so its chapter in docs/events.md is empty."
    assert (kind.__doc__ or "").strip().endswith((".", "…")), f"The docstring of {kind.__name__} is no sentence."


@pytest.mark.parametrize("status", Status)
def test_a_status_is_in_the_picture_and_can_be_reached(status: Status) -> None:
    assert re.search(rf"\b{status}\b", lifecycle.__doc__ or ""), (
        f"The status {status!r} is not in the picture at the top of jobs/lifecycle.py."
    )
    reached = {after for steps in lifecycle.TRANSITIONS.values() for after in steps.values()}
    assert status in reached | {lifecycle.State().status}, f"No event leads to the status {status!r}."


@pytest.mark.parametrize("event", lifecycle.TRANSITIONS)
def test_an_event_that_changes_a_status_is_in_the_picture(event: type[msgspec.Struct]) -> None:
    word = {"job.placed": "placed"}.get(str(event.__struct_config__.tag), str(event.__struct_config__.tag))
    assert word in (lifecycle.__doc__ or ""), f"{word!r} is not in the picture at the top of jobs/lifecycle.py."


@pytest.mark.parametrize("field", Settings.__struct_fields__)
def test_a_setting_has_its_sentence_and_stands_in_the_readme(field: str) -> None:
    variable = settings.variable(field)
    sentences = {name: sentence for name, _, sentence in settings.described()}
    assert sentences.get(variable, "").endswith("."), f"The setting {field!r} has no sentence in jobs/settings.py."
    readme = (documents.CHECKOUT / "README.md").read_text()
    assert f"| `{variable}` |" in readme, f"{variable} is not in the README's table of settings: run `make docs`."


@pytest.mark.parametrize("member", [*FailureReason, *Status, *DataFormat])
def test_a_word_of_a_closed_set_is_lower_case(member: str) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", member), f"{member!r} goes over the wire and shall be a lower-case word."
