"""A receiver on a real socket, names that lead where the tests want them, and webhooks to send to."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hostile_urls import NAMES

from service.hub import Hub
from service.ledger import Ledger
from service.notify.clock import Clock
from service.notify.notifier import Notifier
from service.notify.outgoing import Outgoing, Reply
from service.store import Store

LOOPBACK = ("127.0.0.0/8",)
WITHIN_S = 60


@dataclass
class Got:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


Script = Callable[[Got], int | bytes | Awaitable[int | bytes]]


@dataclass
class Receiver:
    """`script` says what is answered: a status, or raw bytes after which the connection is closed."""

    port: int = 0
    script: Script = lambda got: 204
    got: list[Got] = field(default_factory=list)
    connections: int = 0
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
                body = await reader.readexactly(int(headers["content-length"]))
                self.got.append(Got(head[0].split(" ")[1], headers, body))
                answer: Any = self.script(self.got[-1])
                answer = await answer if isinstance(answer, Awaitable) else answer
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await writer.drain()
                    break
                writer.write(b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n" % answer)
        writer.close()


@pytest.fixture
async def listen() -> AsyncIterator[Callable[..., Awaitable[Receiver]]]:
    """Opens receivers on loopback."""
    async with contextlib.AsyncExitStack() as opened:

        async def start(tls: ssl.SSLContext | None = None, **fields: Any) -> Receiver:
            receiver = Receiver(**fields)
            server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls)
            opened.push_async_callback(end, server, receiver)
            receiver.port = server.sockets[0].getsockname()[1]
            return receiver

        yield start


async def end(server: asyncio.Server, receiver: Receiver) -> None:
    server.close()
    for writer in receiver.open:
        writer.transport.abort()
    await asyncio.sleep(0.01)  # until the transports have noticed


@pytest.fixture
async def receiver(listen: Any) -> Receiver:
    return await listen()


class Names:
    """A resolver; `names` may change, and `asked` counts."""

    def __init__(self) -> None:
        self.names: dict[str, Sequence[str]] = dict(NAMES)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host in self.names:
            return self.names[host]
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            raise socket.gaierror(socket.EAI_NONAME, "not known") from None


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture(scope="session")
def tls() -> ssl.SSLContext:
    """Costs as much as a hundred requests."""
    return httpx.create_ssl_context()


@pytest.fixture
def outgoing(names: Names, tls: ssl.SSLContext) -> Outgoing:
    """As it is without any setting."""
    return Outgoing((), names, tls)


@pytest.fixture
def local(names: Names, tls: ssl.SSLContext) -> Outgoing:
    """For receivers on loopback."""
    return Outgoing(LOOPBACK, names, tls)


class Memory(Outgoing):
    """The client's twin without a socket: what is posted reaches `script`, which answers with a status."""

    def __init__(self, script: Callable[[Got], int]) -> None:
        super().__init__(LOOPBACK)
        self.script = script
        self.got: list[Got] = []

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Any]:
        yield self

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Reply:
        self.got.append(Got(url, headers, body))
        await asyncio.sleep(0)
        status = self.script(self.got[-1])
        return Reply(latency_ms=0, status=status, error=None if status < 300 else f"The receiver answered {status}.")


@pytest.fixture
def memory() -> type[Memory]:
    return Memory


class FakeClock(Clock):
    """Stands still until it is turned; whoever waits for a time is woken when it has come."""

    def __init__(self, began: datetime) -> None:
        self.time = began
        self.waiting: dict[asyncio.Event, datetime] = {}

    def now(self) -> datetime:
        return self.time

    async def wait(self, news: asyncio.Event, until: datetime | None) -> None:
        if until is not None:
            self.waiting[news] = until
        try:
            await news.wait()
        finally:
            self.waiting.pop(news, None)

    def turn(self) -> datetime:
        """On to the next time that somebody waits for."""
        self.time = min(self.waiting.values())
        for news, until in self.waiting.items():
            if until <= self.time:
                news.set()
        return self.time


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(datetime(2026, 1, 1, tzinfo=UTC))


class Sender:
    """A notifier on a store of its own, opened again and again like a service that restarts."""

    def __init__(self, folder: Path, outgoing: Outgoing, clock: FakeClock) -> None:
        self._folder = folder
        self._outgoing = outgoing
        self.clock = clock

    async def __aenter__(self) -> "Sender":
        self.store = await Store.open(self._folder / "training.db")
        self.hub = Hub()
        self.ledger = Ledger(self.store, self.hub)
        self.notifier = Notifier(self.store, self.ledger, self.hub, self._outgoing, self.clock)
        self.webhooks = self.notifier.webhooks
        await self.ledger.open()
        await self.notifier.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hub.close()
        await self.notifier.stop()
        await self.ledger.close()
        await self.store.close()

    async def log(self, webhook_id: str) -> list[Any]:
        """Oldest first."""
        return list(reversed(await self.store.deliveries(webhook_id, limit=10**6)))

    async def until_waiting(self) -> datetime:
        """When the one courier there is tries again, once it waits for that."""
        await self.until(lambda: self.clock.waiting)
        return min(self.clock.waiting.values())

    async def until(self, is_so: Callable[[], Any]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not is_so():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def settled(self, webhook_id: str, state: str = "delivered") -> list[Any]:
        """The log once everything in it is in a state."""
        async with asyncio.timeout(WITHIN_S):
            while set(tally := (await self.store.tallies()).get(webhook_id, {})) != {state}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert tally
        return await self.log(webhook_id)


@pytest.fixture
def sender_at(tmp_path: Path, local: Outgoing, clock: FakeClock) -> Callable[..., Sender]:
    return lambda outgoing=local: Sender(tmp_path, outgoing, clock)


@pytest.fixture
async def sender(sender_at: Callable[..., Sender]) -> AsyncIterator[Sender]:
    async with sender_at() as opened:
        yield opened
