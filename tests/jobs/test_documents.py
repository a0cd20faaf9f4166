"""Generated pages are what the code says now."""

import json
from pathlib import Path
from typing import get_args

import pytest

from jobs import documents, frames
from jobs.errors import Misconfigured

STALE = "is stale: run `make docs` and commit what it writes."


def test_the_page_of_events_is_up_to_date() -> None:
    page = documents.CHECKOUT / "docs" / "events.md"
    assert page.exists(), f"docs/events.md {STALE}"
    assert page.read_text() == documents.events_page(), f"docs/events.md {STALE}"


def test_the_schema_of_frames_is_up_to_date_and_knows_all_of_them() -> None:
    text = (documents.CHECKOUT / "docs" / documents.SCHEMA).read_text()
    assert text == documents.frames_schema(), f"docs/{documents.SCHEMA} {STALE}"
    definitions = json.loads(text)["$defs"]
    for name, union in {"ServerFrame": frames.ServerFrame, "ClientFrame": frames.ClientFrame}.items():
        assert len(definitions[name]["anyOf"]) == len(get_args(union))
    assert definitions["Numbered"]["properties"]["event"] == {"$ref": "#/$defs/LoggedEvent"}


def test_the_page_of_what_works_together_is_up_to_date() -> None:
    page = documents.CHECKOUT / "docs" / "support.md"
    assert page.exists(), f"docs/support.md {STALE}"
    assert page.read_text() == documents.support_page(), f"docs/support.md {STALE}"


def test_the_table_of_settings_is_up_to_date() -> None:
    readme = (documents.CHECKOUT / "README.md").read_text()
    assert readme == documents.with_settings(readme), f"The table of settings in README.md {STALE}"


def test_writing_brings_all_of_them_up_to_date_once(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a\n<!-- settings -->\nyesterday's\n<!-- /settings -->\nb\n")
    written = {path.name for path in documents.write(tmp_path)}
    assert written == {"events.md", documents.SCHEMA, "support.md", "README.md"}
    assert documents.write(tmp_path) == []
    readme = (tmp_path / "README.md").read_text()
    assert "`TRAINING_PORT` | `8000`" in readme
    assert "yesterday" not in readme
    assert readme.startswith("a\n")
    assert readme.endswith("\nb\n")


@pytest.mark.parametrize("readme", ["", "<!-- settings -->", "<!-- /settings -->"])
def test_a_readme_without_its_markers_is_told_so(readme: str) -> None:
    with pytest.raises(Misconfigured, match="<!-- /settings -->"):
        documents.with_settings(readme)


def test_a_chapter_tells_fields_types_defaults_and_what_it_does_to_a_status() -> None:
    page = documents.events_page()
    chapter = page.partition("### `job.started`")[2].partition("###")[0]
    assert "Status: queued → running." in chapter
    assert "| `device` | string |  |" in chapter
    assert '| `runner_id` | string | `""` |' in chapter
    assert "job_id" not in chapter, "the envelope is described once"
