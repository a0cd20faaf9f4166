"""Checks that a frame is as `docs/events.schema.json` says; `conftest` does so with every frame that is encoded."""

import json
from functools import cache, lru_cache
from typing import Any

from jsonschema import Draft202012Validator

from jobs import documents

SCHEMA = json.loads((documents.CHECKOUT / "docs" / documents.SCHEMA).read_text())


def check(text: str | bytes, union: str = "ServerFrame") -> Any:
    """The frame; an AssertionError says what is wrong with it."""
    frame = json.loads(text)
    events = [one.get("event") for one in frame.get("events", ())]
    for event in events:
        _check_event(json.dumps(event))
    bare = frame | ({"events": [one | {"event": None} for one in frame["events"]]} if events else {})
    _check(union, "frame", bare)
    return frame


@lru_cache(20_000)  # many listeners hear the same
def _check_event(text: str) -> None:
    _check("LoggedEvent", "type", json.loads(text))


def _check(union: str, tag: str, value: Any) -> None:
    assert isinstance(value, dict), f"{value!r} is no object"
    known = _validators(union, tag)
    assert value.get(tag) in known, f"{value.get(tag)!r} is none of {sorted(known)}"
    problems = [f"{error.json_path}: {error.message}" for error in known[value[tag]].iter_errors(value)]
    assert not problems, f"{problems[:3]} in {json.dumps(value)[:300]}"


@cache
def _validators(union: str, tag: str) -> dict[str, Draft202012Validator]:
    """By tag: the union as a whole would be tried member by member, a hundred times slower."""
    checked_alone = {"LoggedEvent": {}} if union != "LoggedEvent" else {}
    definitions = SCHEMA["$defs"] | checked_alone
    names = [member["$ref"].rpartition("/")[2] for member in SCHEMA["$defs"][union]["anyOf"]]
    schemas = {SCHEMA["$defs"][name]["properties"][tag]["enum"][0]: name for name in names}
    return {
        word: Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": definitions, "additionalProperties": True})
        for word, name in schemas.items()
    }
