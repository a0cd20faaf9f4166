"""Many WebSockets in a process of their own: how late each event was, and whether every socket got all in order.

`python -m benchmarks.listeners ADDRESS PATH SOCKETS EVENTS WITHIN_S`, started by `live`. It says "ready" once all
sockets are open, then waits until each has had so many `metrics.logged`, whose `step` counts from 1; its last line is
a `Heard` as JSON. The sockets share one reading of a message they all get, so that this process is no bottleneck.
"""

import asyncio
import resource
import sys
import time
from datetime import datetime
from urllib.parse import urlsplit

import msgspec
import uvloop

OPENING_AT_ONCE = 50
_TEXT, _PING, _PONG = 1, 9, 10
_READINGS_KEPT = 64


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; `complete` are the sockets that got every event once and in order."""

    sockets: int
    complete: int
    messages: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    cpu_s: float


class _Event(msgspec.Struct, frozen=True):
    type: str = ""
    step: int = 0
    at: datetime | None = None


class _Numbered(msgspec.Struct, frozen=True):
    event: _Event


class _Message(_Event, frozen=True):
    """A frame of ours, or an event by itself."""

    events: tuple[_Numbered, ...] = ()


class _Reading(msgspec.Struct, frozen=True):
    """Steps `first` to `last`, and when each was said."""

    first: int
    last: int
    said_at: tuple[float, ...]
    is_dense: bool


_decode = msgspec.json.Decoder(_Message).decode


class Tally:
    """What all sockets have heard together."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.complete = 0
        self.messages = 0
        self.done = asyncio.Event()
        self.open: set[Listener] = set()
        self._late_ms = [0] * 60_000
        self._readings: dict[bytes, _Reading | None] = {}

    def take(self, listener: "Listener", payload: bytes, now: float) -> None:
        if payload not in self._readings:
            while len(self._readings) >= _READINGS_KEPT:
                del self._readings[next(iter(self._readings))]
            self._readings[payload] = _read(payload)
        reading = self._readings[payload]
        if reading is None:
            return
        self.messages += 1
        for said_at in reading.said_at:
            self._late_ms[min(int((now - said_at) * 1000), len(self._late_ms) - 1)] += 1
        listener.in_order &= reading.is_dense and reading.first == listener.position + 1
        listener.position = reading.last
        if listener.position == self.expected:
            self.complete += listener.in_order
            self.open.discard(listener)
            if not self.open:
                self.done.set()

    def late_ms(self, share: float) -> float:
        """So many of the deliveries were at most so late, to the millisecond."""
        left = share * sum(self._late_ms)
        for late, count in enumerate(self._late_ms):
            left -= count
            if left <= 0:
                return late + 0.5
        return float("nan")


class Listener(asyncio.Protocol):
    """One socket: just enough of RFC 6455 for a server that behaves."""

    def __init__(self, tally: Tally, host: str, path: str) -> None:
        self.position = 0
        self.in_order = True
        self.opened = asyncio.get_running_loop().create_future()
        self._tally = tally
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        self._rest = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transport.write(self._request.encode())

    def data_received(self, data: bytes) -> None:
        now = time.time()
        data = self._rest + data if self._rest else data
        begin = 0 if self.opened.done() else self._take_handshake(data)
        while begin >= 0 and (frame := _frame(data, begin)) is not None:
            opcode, payload, begin = frame
            if opcode == _TEXT:
                self._tally.take(self, payload, now)
            elif opcode == _PING:
                self._transport.write(bytes((0x80 | _PONG, 0x80 | len(payload), 0, 0, 0, 0)) + payload)
        self._rest = data[max(begin, 0) :]

    def connection_lost(self, error: Exception | None) -> None:
        self._tally.open.discard(self)
        if not self._tally.open:
            self._tally.done.set()

    def _take_handshake(self, data: bytes) -> int:
        head, found, _ = data.partition(b"\r\n\r\n")
        if not found:
            return -1
        if b" 101 " not in head:
            raise RuntimeError(f"no socket: {head!r}")
        self.opened.set_result(None)
        return len(head) + len(found)


def _frame(data: bytes, begin: int) -> tuple[int, bytes, int] | None:
    """(opcode, payload, where the next begins) of the frame there, once it is whole."""
    if len(data) < begin + 2:
        return None
    length, start = data[begin + 1], begin + 2
    if length > 125:
        wide = 2 if length == 126 else 8
        length, start = int.from_bytes(data[start : start + wide], "big"), start + wide
    end = start + length
    return (data[begin] & 15, data[start:end], end) if len(data) >= end and len(data) >= start else None


def _read(payload: bytes) -> _Reading | None:
    message = _decode(payload)
    told = [numbered.event for numbered in message.events] or [message]
    events = [event for event in told if event.type == "metrics.logged" and event.at]
    if not events:
        return None
    first, last = events[0].step, events[-1].step
    is_dense = [event.step for event in events] == list(range(first, last + 1))
    return _Reading(first, last, tuple(event.at.timestamp() for event in events if event.at), is_dense)


async def listen(address: str, path: str, sockets: int, events: int, within_s: float) -> Heard:
    tally, place = Tally(events), urlsplit(address)
    loop = asyncio.get_running_loop()
    for begin in range(0, sockets, OPENING_AT_ONCE):
        batch = [Listener(tally, place.netloc, path) for _ in range(begin, min(begin + OPENING_AT_ONCE, sockets))]
        for listener in batch:
            await loop.create_connection(lambda one=listener: one, place.hostname, place.port)
        await asyncio.gather(*(listener.opened for listener in batch))
        tally.open.update(batch)
    print("ready", flush=True)
    began = time.process_time()
    try:
        await asyncio.wait_for(tally.done.wait(), within_s)
    except TimeoutError:
        print(f"{len(tally.open)} sockets did not get everything", flush=True)
    return Heard(
        sockets=sockets,
        complete=tally.complete,
        messages=tally.messages,
        p50_ms=tally.late_ms(0.5),
        p99_ms=tally.late_ms(0.99),
        worst_ms=tally.late_ms(1.0),
        cpu_s=time.process_time() - began,
    )


def main(address: str, path: str, sockets: str, events: str, within_s: str) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    heard = uvloop.run(listen(address, path, int(sockets), int(events), float(within_s)))
    print(msgspec.json.encode(heard).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
