"""The one HTTP client for everything outgoing: it connects to checked addresses only.

A name is resolved once for each request, all its addresses are checked, and one of those is connected to, with the
name in TLS and in the Host header: between check and use nothing can change. No redirect is followed, no cookie kept,
no proxy of the environment used, and nothing unpacked. Opened by `notifier`.
"""

import asyncio
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import NamedTuple, cast

import httpx
import msgspec

from jobs.errors import AddressNotAllowed
from service.notify import addresses
from service.notify.addresses import Address, Target

CONNECT_WITHIN_S = 3.0
WITHIN_S = 10.0
READ_MAX_BYTES = 64 * 1024
KEPT_BYTES = 2048
_IDLE_S = 2.0  # shorter than common servers keep a connection, which would break it under a request
_TIMEOUT = {"connect": CONNECT_WITHIN_S, "read": WITHIN_S, "write": WITHIN_S, "pool": WITHIN_S}

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host, as text. Raises OSError when there is none."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a request. `error` is a sentence for people; `text` the begin of the answer's body."""

    latency_ms: int
    status: int | None = None
    error: str | None = None
    text: str = ""
    retry_after: str | None = None


class Outgoing:
    """`listed` are networks that may be reached beside public addresses, as in the setting; `tls` is made when it
    is needed, with the certificates of `SSL_CERT_FILE` where that is set.

    Raises:
        Misconfigured: one of them is no network.
    """

    def __init__(
        self, listed: Sequence[str] = (), resolve: Resolve | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._allowed = addresses.networks(listed)
        self._resolve = resolve or _resolve
        self._tls = tls

    async def check(self, url: str) -> None:
        """Whether a URL may be called now.

        Raises:
            AddressNotAllowed: it may not, or its name is not known.
        """
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                await self.addresses(addresses.parse(url))
        except TimeoutError:
            raise _unknown(addresses.parse(url)) from None

    async def addresses(self, target: Target) -> list[Address]:
        """Where a target is, all of it checked.

        Raises:
            AddressNotAllowed: one of the addresses may not be called, or there is none.
        """
        try:
            found = [ipaddress.ip_address(text) for text in await self._resolve(target.host, target.port)]
        except (OSError, UnicodeError, ValueError):
            found = []
        if not found:
            raise _unknown(target)
        addresses.check(target, found, self._allowed)
        return found

    @asynccontextmanager
    async def session(self) -> AsyncIterator["Session"]:
        """For requests to one receiver, which share a connection as long as it stays with one name and address."""
        if self._tls is None:
            self._tls = await asyncio.to_thread(httpx.create_ssl_context)
        limits = httpx.Limits(max_connections=1, keepalive_expiry=_IDLE_S)
        async with httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False, limits=limits) as transport:
            yield Session(self, transport)


class Session:
    """Requests to one receiver, one after the other."""

    def __init__(self, outgoing: Outgoing, transport: httpx.AsyncHTTPTransport) -> None:
        self._outgoing = outgoing
        self._transport = transport
        self._last: Address | None = None  # which answered; it is asked first again, over the same connection

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send a body; whatever becomes of it is told by the reply. All URLs of a session have one host."""
        began = time.monotonic()
        answer = _Answer()
        try:
            async with asyncio.timeout(WITHIN_S):
                answer = await self._post(url, headers, body)
            error = _problem(answer.status)
        except TimeoutError:
            error = f"No whole answer came within {WITHIN_S:.0f} s."
        except httpx.ConnectTimeout:
            error = f"No connection could be made within {CONNECT_WITHIN_S:.0f} s."
        except httpx.ConnectError as failure:
            error = f"No connection could be made: {_cause(failure)}."
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as failure:
            error = f"The connection broke: {_cause(failure)}."
        except (AddressNotAllowed, _TooLong) as refusal:
            error = str(refusal)
        return Reply(
            latency_ms=round(1000 * (time.monotonic() - began)),
            status=answer.status,
            error=error,
            text=answer.body[:KEPT_BYTES].decode(errors="replace"),
            retry_after=answer.retry_after,
        )

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> "_Answer":
        target = addresses.parse(url)
        found = await self._outgoing.addresses(target)
        *others, last = sorted(found, key=lambda address: address != self._last)
        for address in others:
            with suppress(httpx.ConnectError, httpx.ConnectTimeout):  # the host has more that may answer
                return await self._post_to(address, target, headers, body)
        return await self._post_to(last, target, headers, body)

    async def _post_to(self, address: Address, target: Target, headers: Mapping[str, str], body: bytes) -> "_Answer":
        place = f"[{address}]" if address.version == 6 else str(address)
        request = httpx.Request(
            "POST",
            f"{target.scheme}://{place}:{target.port}{target.path}",
            headers={"host": target.authority, **headers},
            content=body,
            extensions={"timeout": _TIMEOUT, "sni_hostname": target.host},
        )
        response = await self._transport.handle_async_request(request)
        self._last = address
        try:
            return _Answer(response.status_code, await _read(response), response.headers.get("retry-after"))
        finally:
            await response.aclose()


class _Answer(NamedTuple):
    status: int | None = None
    body: bytes = b""
    retry_after: str | None = None


class _TooLong(Exception):
    """The answer is longer than anybody should read."""


async def _read(response: httpx.Response) -> bytes:
    """The body as it was sent: what was packed stays so."""
    read = bytearray()
    async with aclosing(cast(AsyncGenerator[bytes, None], response.aiter_raw())) as chunks:
        async for chunk in chunks:
            read += chunk
            if len(read) > READ_MAX_BYTES:
                raise _TooLong(f"The answer has more than {READ_MAX_BYTES // 1024} KiB: answer briefly.")
    return bytes(read)


def _problem(status: int | None) -> str | None:
    """Why a whole answer is none that was asked for."""
    if status is None or 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"The receiver redirects ({status}), which is not followed: register the address it leads to."
    return f"The receiver answered {status}."


def _cause(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")


def _unknown(target: Target) -> AddressNotAllowed:
    return AddressNotAllowed(f"No address is known for {target.host}: check the name.", path="url")


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
