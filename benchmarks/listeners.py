"""Many WebSockets in a process of their own: how late each event was, and whether every socket got all in order.

`python -m benchmarks.listeners` reads a `Task` as JSON from its input; `live` starts it. It says "ready" once all
sockets are subscribed, then waits until each has had so many events. Without a number of events it measures how long
it takes until all are caught up. Its last line is a `Heard` as JSON. The sockets share one reading of a message they
all get, so that this process is no bottleneck.
"""

import asyncio
import os
import resource
import socket
import sys
import time
from datetime import datetime
from urllib.parse import urlsplit

import msgspec
import uvloop

from jobs import frames

OPENING_AT_ONCE = 50
_TEXT, _PING, _PONG = 1, 9, 10
_READINGS_KEPT = 64


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Which sockets to open. With `after` they come back at once with that cursor, else they begin with now.

    So many of them are `stalled`: they take nothing once they are open. Without a `subscribe` the address decides.
    """

    address: str
    path: str
    sockets: int
    events: int = 0
    within_s: float = 60
    stalled: int = 0
    after: int | None = None
    subscribes: bool = True


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; `complete` are the sockets that got every event once and in order."""

    sockets: int
    complete: int
    messages: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    cpu_s: float
    caught_up_s: float = 0.0
    """From the first connection until the last socket was told that nothing is missing."""
    replayed: int = 0
    """Events that a socket was told until then, at least."""


class _Event(msgspec.Struct, frozen=True):
    type: str = ""
    step: int = 0
    at: datetime | None = None


class _Numbered(msgspec.Struct, frozen=True):
    event: _Event
    seq: int = 0


class _Points(msgspec.Struct, frozen=True):
    at: tuple[datetime, ...]


class _Message(_Event, frozen=True):
    """A frame of ours, or an event by itself."""

    frame: str = ""
    events: tuple[_Numbered, ...] = ()
    points: tuple[_Points, ...] = ()
    from_seq: int = 0
    to_seq: int = 0
    seq: int = 0


class _Reading(msgspec.Struct, frozen=True):
    """When each event of a message was said, and where it stands: behind `begin` up to `end`."""

    begin: int
    end: int
    said_at: tuple[float, ...]


_decode = msgspec.json.Decoder(_Message).decode


class Tally:
    """What all sockets have heard together."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.fresh = 0
        self.replayed = sys.maxsize
        self.complete = 0
        self.messages = 0
        self.done = asyncio.Event()
        self.open: set[Listener] = set()
        self._late_ms = [0] * 60_000
        self._readings: dict[bytes, _Reading | None] = {}
        self.all_fresh = asyncio.Event()
        self.waiting_for = 0

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
        listener.in_order &= listener.position in (None, reading.begin)
        listener.position = reading.end
        listener.count += len(reading.said_at)
        if listener.count == self.expected:
            self.complete += listener.in_order
            self.open.discard(listener)
            if not self.open:
                self.done.set()

    def is_fresh(self, listener: "Listener") -> None:
        """It was told that nothing is missing, for the first time."""
        self.fresh += 1
        self.replayed = min(self.replayed, listener.count)
        if self.fresh == self.waiting_for:
            self.all_fresh.set()

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

    def __init__(self, tally: Tally, task: Task, *, stalls: bool = False) -> None:
        self.position: int | None = None
        self.count = 0
        self.in_order = True
        self.stalls = stalls
        self.is_fresh = False
        self.opened = asyncio.get_running_loop().create_future()
        self._tally = tally
        self._task = task
        self._request = (
            f"GET {task.path} HTTP/1.1\r\nHost: {urlsplit(task.address).netloc}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\n"
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
                self._hear(payload, now)
            elif opcode == _PING:
                self._say(_PONG, payload)
        self._rest = data[max(begin, 0) :]

    def _hear(self, payload: bytes, now: float) -> None:
        if payload.startswith(b'{"frame":"ping"'):
            self._say(_TEXT, frames.encode(frames.Pong()))
        elif not self.is_fresh and payload.startswith(b'{"frame":"bookmark"'):
            self.is_fresh = True
            self._tally.is_fresh(self)
            if self.stalls:
                self._transport.pause_reading()
        else:
            self._tally.take(self, payload, now)

    def _say(self, opcode: int, payload: bytes) -> None:
        """A frame with a mask of zeros."""
        length = bytes((0x80 | len(payload),)) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
        self._transport.write(bytes((0x80 | opcode,)) + length + bytes(4) + payload)

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
        if self._task.subscribes:
            wish = frames.Subscribe(sub="a", all=True, after=self._task.after, initial="none")
            self._say(_TEXT, frames.encode(wish))
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
    if message.frame == "events":
        said = [one.event.at for one in message.events if one.seq] + [at for block in message.points for at in block.at]
        return _Reading(message.from_seq, message.to_seq, tuple(at.timestamp() for at in said if at))
    if message.type and message.at:  # of the baseline, whose events are numbered by their steps
        return _Reading(message.step - 1, message.step, (message.at.timestamp(),))
    return None


async def listen(task: Task) -> Heard:
    tally, place = Tally(task.events), urlsplit(task.address)
    tally.waiting_for = task.sockets if task.subscribes else 0
    loop = asyncio.get_running_loop()
    began, began_cpu = time.monotonic(), time.process_time()
    listeners = [Listener(tally, task, stalls=number < task.stalled) for number in range(task.sockets)]

    async def open_one(listener: Listener) -> None:
        plain = socket.create_connection((place.hostname, place.port))
        if listener.stalls:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        await loop.create_connection(lambda: listener, sock=plain)
        await listener.opened

    at_once = task.sockets if task.after is not None else OPENING_AT_ONCE
    for begin in range(0, task.sockets, at_once):
        await asyncio.gather(*(open_one(listener) for listener in listeners[begin : begin + at_once]))
    tally.open = {listener for listener in listeners if not listener.stalls}
    if task.subscribes:
        await asyncio.wait_for(tally.all_fresh.wait(), task.within_s)
    caught_up_s = time.monotonic() - began
    print("ready", flush=True)
    if task.events:
        began_cpu = time.process_time()
        try:
            await asyncio.wait_for(tally.done.wait(), task.within_s)
        except TimeoutError:
            print(f"{len(tally.open)} sockets did not get everything", flush=True)
    return Heard(
        sockets=task.sockets - task.stalled,
        complete=tally.complete,
        messages=tally.messages,
        p50_ms=tally.late_ms(0.5),
        p99_ms=tally.late_ms(0.99),
        worst_ms=tally.late_ms(1.0),
        cpu_s=time.process_time() - began_cpu,
        caught_up_s=caught_up_s,
        replayed=tally.replayed if task.subscribes else 0,
    )


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    heard = uvloop.run(listen(msgspec.json.decode(sys.stdin.buffer.read(), type=Task)))
    print(msgspec.json.encode(heard).decode(), flush=True)
    os._exit(0)  # a thousand sockets need no goodbye


if __name__ == "__main__":
    main()
