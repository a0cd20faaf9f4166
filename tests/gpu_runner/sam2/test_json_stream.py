"""JSON of any size, piece by piece: the same values as the standard library gives, and nothing that eats the memory."""

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_runner.sam2 import json_stream
from gpu_runner.sam2.json_stream import BadJson
from jobs.errors import DatasetInvalid


class Dribble(io.BytesIO):
    """Gives at most `block` bytes at once."""

    def __init__(self, content: bytes, block: int) -> None:
        super().__init__(content)
        self.block = block

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.block if size is None or size < 0 else min(size, self.block))


class Source:
    def __init__(self, content: bytes, block: int = 1 << 18) -> None:
        self.content, self.block = content, block

    def open(self, name: str) -> Dribble:
        return Dribble(self.content, self.block)


def read(content: bytes, block: int = 1 << 18, key: str = "a") -> list[Any]:
    source: Any = Source(content, block)
    return list(json_stream.elements(source, "f.json", key))


values = st.recursive(  # the parser refuses -(2**63)
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(-1e300, 1e300) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
brackets = st.text(alphabet='[]{}"\\ab', max_size=20)


@settings(deadline=None, max_examples=50)
@given(st.lists(values | brackets, max_size=6), st.integers(1, 30), st.booleans())
def test_the_elements_of_a_list_are_those_of_the_standard_library_however_they_are_cut(
    elements: list[Any], block: int, is_ascii: bool
) -> None:
    content = json.dumps({"z": ["]["], "a": elements, "b": {"a": [1]}}, ensure_ascii=is_ascii)
    assert read(content.encode(), block) == json.loads(content)["a"]


@pytest.mark.parametrize("opening", ["[", '{"k":', '["]]]",'])
@pytest.mark.parametrize("block", [7, 1 << 18])
def test_what_nests_too_deep_is_refused_before_it_is_parsed(opening: str, block: int) -> None:
    with pytest.raises(BadJson, match="nests more than 64 levels deep"):
        read(b'{"a":[' + opening.encode() * 1000, block)


def test_brackets_within_texts_are_no_nesting() -> None:
    text = '["\\"[[{{' * 100
    assert read(json.dumps({"a": [text, "\\", [text]]}).encode(), 5) == [text, "\\", [text]]


@pytest.mark.parametrize("beginning", [b'{"a":["', b'{"a":[[', b'{"a":[1', b'{"x":"', b'{"'])
def test_a_piece_without_an_end_is_refused(beginning: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_PIECE_BYTES", 1 << 20)
    with pytest.raises(BadJson, match="one frame or value has more than"):
        read(beginning + b"1" * (4 << 20))


def first(content: bytes, key: str = "a") -> Any:
    source: Any = Source(content)
    return json_stream.first(source, "f.json", key)


@settings(deadline=None, max_examples=50)
@given(values, st.dictionaries(st.sampled_from("bcd"), values))
def test_the_value_of_a_key_is_that_of_the_standard_library_wherever_it_stands(
    value: Any, others: dict[str, Any]
) -> None:
    for whole in ({"a": value, **others}, {**others, "a": value}, {"z": {"a": 1}, "y": [{"a": 2}], "a": value}):
        assert first(json.dumps(whole).encode()) == json.loads(json.dumps(value))


@pytest.mark.parametrize("content", [b"{}", b'{"b":{"a":1}}', b"[1]", b'[{"a":1}]', b"3", b'{"a":null}'])
def test_a_key_that_is_not_there_has_no_value(content: bytes) -> None:
    assert first(content) is None


@pytest.mark.parametrize("item", ["[]", "{}", '"' + "x" * 1000 + '"', '[],"' + "x" * 1000 + '"', "1", '{"k":[1]}'])
def test_a_value_that_is_as_large_as_the_file_is_refused_and_not_built(
    item: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "MAX_VALUE_CHARACTERS", 1 << 16)
    large = f"[{','.join([item] * 20_000)}]".encode()
    with pytest.raises(BadJson, match=r"f\.json#/a cannot be read as JSON: the value is larger than"):
        first(b'{"a":' + large + b"}")
    assert first(b'{"z":' + large + b',"a":1}') == 1


@pytest.mark.parametrize("item", ["[]", "{}", '{"k":[1]}'])
def test_a_piece_of_countless_brackets_is_refused(item: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_PIECE_BRACKETS", 10_000)
    with pytest.raises(BadJson, match="one frame or value has more than 10000 brackets"):
        read(f'{{"a":[{{"b":[{",".join([item] * 40_000)}]}}]}}'.encode(), 1 << 14)
    assert len(read(f'{{"a":[{",".join([item] * 40_000)}]}}'.encode(), 1 << 14)) == 40_000


def test_many_pieces_are_no_large_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_PIECE_BYTES", 1 << 20)
    assert len(read(json.dumps({"a": [{"x": "y" * 1000}] * 5000}).encode())) == 5000


@pytest.mark.parametrize("content", [b"{}", b'{"a":null}', b'{"a":3}', b'{"a":{"b":[]}}', b"[1]", b"3"])
def test_a_list_that_is_not_there_is_named(content: bytes) -> None:
    with pytest.raises(DatasetInvalid, match=r"f\.json#/a is missing, or no list"):
        read(content)


def test_an_empty_list_is_a_list() -> None:
    assert read(b'{"a":[]}') == []
