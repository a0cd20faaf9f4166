"""Frames over the wire."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from jobs import frames
from jobs.frames import Auth, Bookmark, Bye, Events, Numbered, Ping, Problem, Reset, ServerFrame, Snapshot, Welcome

EXAMPLES: list[ServerFrame] = [
    Welcome(server_time=datetime(2026, 1, 1, tzinfo=UTC), after=3, status="running"),
    Events(events=(Numbered(event=msgspec.Raw(b'{"type":"x"}'), seq=4),), from_seq=3, to_seq=4),
    Bookmark(seq=4),
    Snapshot(sub="page", seq=4, jobs=({"job_id": "j"},), before="j"),
    Ping(at=datetime(2026, 1, 1, tzinfo=UTC)),
    Reset(reason="lagging", snapshot_url="/api/jobs/j"),
    Problem(code="bad_cursor", message="after must be a number."),
    Bye(code="restarting", retry_after_s=1.5),
]


@pytest.mark.parametrize("frame", EXAMPLES)
def test_a_frame_survives_the_wire(frame: ServerFrame) -> None:
    sent = frames.encode(frame)
    assert frames.encode(msgspec.json.decode(sent, type=ServerFrame)) == sent


def test_an_event_is_embedded_as_the_bytes_it_was_said_in() -> None:
    sent = frames.encode(Events(events=(Numbered(event=msgspec.Raw(b'{"b": 1,  "a":2}')),), from_seq=0, to_seq=0))
    assert b'{"b": 1,  "a":2}' in sent
    assert b'"seq"' not in sent, "an event that is not stored has no cursor"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"{}",
        b'{"frame":"auth"}',
        b'{"frame":"bye","code":"slow","retry_after_s":1}',
        b'{"frame":"subscribe","sub":""}',
        b'{"frame":"subscribe","sub":"a","after":-1}',
        b"\xff",
    ],
)
def test_what_is_no_frame_of_a_client_is_refused(said: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        frames.decode_client(said)
    asked: Any = frames.decode_client(b'{"frame":"auth","token":"t"}')
    assert asked == Auth(token="t")
    everything = frames.decode_client(b'{"frame":"subscribe","sub":"a","all":true}')
    assert everything == frames.Subscribe(sub="a", all=True)
