"""A receiver on a real socket, names that lead where the tests want them, and webhooks to send to."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hostile_urls import NAMES

from service.notify.outgoing import Outgoing

LOOPBACK = ("127.0.0.0/8",)


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
