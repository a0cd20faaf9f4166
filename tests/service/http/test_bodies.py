"""The checks of a JSON body cost time in proportion to its length, whatever it holds: they run in the event loop."""

import contextlib
import time

import pytest

from service import bodies
from service.refusal import Refusal


@pytest.mark.parametrize(
    "piece",
    [b'"', b'\\"', b"\\", b'"\\', b'"a', b"[", b"]", b"[]", b'"[', b"\\u0000", b"\\\\u000", b"\\u000", b"9", b" "],
    ids=lambda piece: piece.decode(),
)
@pytest.mark.parametrize("begin", [b"", b'"', b'{"a":"'], ids=["bare", "in text", "in an object"])
def test_a_body_of_any_kind_is_judged_in_time(begin, piece) -> None:
    body = (begin + piece * (2**20 // len(piece)))[: 2**20]
    began = time.process_time()
    with contextlib.suppress(Refusal):
        bodies.check_json(body)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b"[" * 100 + b'"',
        b'"\\"' + b"[" * 100 + b'"',
        b"[" * 32 + b"]" * 32,
        b"[" + b"[]," * 100 + b"1]",
        b'"\\\\u0000"',
    ],
)
def test_sound_json_passes(body) -> None:
    bodies.check_json(body)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'["\\\\",' + b"[" * 32 + b"]" * 33, "too_deep"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "too_deep"),
        (b'"\\\\\\u0000"', "validation_error"),
        (b'{"a":1,"a":1}', "validation_error"),
    ],
)
def test_nesting_outside_of_text_nul_and_repeated_keys_are_refused(body, code) -> None:
    with pytest.raises(Refusal) as refused:
        bodies.check_json(body)
    assert refused.value.code == code
