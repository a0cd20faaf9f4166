"""Who may do what: the outermost layer around the application, before any route is looked up.

Loopback is no access control by itself: a page anywhere can reach 127.0.0.1 through the user's browser. So the Host
is matched exactly (against DNS rebinding), and Origin and Sec-Fetch-Site are checked on every change and socket.
Where a token is set, everything wants it: a request as `Authorization: Bearer` or by a session's cookie, a socket so
or as its first frame. Free are only the page's own files and the address where a browser brings the token.
"""

import asyncio
import hmac
import re
from http import HTTPStatus
from typing import Any

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send, WebSocketScope

from jobs import frames
from jobs.errors import Misconfigured
from jobs.settings import Settings
from service import bodies, problems, sessions
from service.refusal import Refusal

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
AUTH_WITHIN_S = 5.0
SHORTEST_TOKEN = 32  # characters

_HEADERS_MAX_BYTES = 32 * 1024
_PATH_MAX_BYTES = 1024
_PART_MAX_BYTES = 255  # of a path's component
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::\d{1,5})?")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_SESSION = ("/api/session", "/api/training/session")
_ONLY_ONCE = (b"host", b"authorization", b"origin", b"content-type", b"content-length")
_SECURITY = {
    b"content-security-policy": b"default-src 'self'; img-src 'self' data: blob:; "
    b"object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"x-frame-options": b"DENY",
}
"""A response that sets one of these itself keeps its own."""


def check_settings(settings: Settings) -> None:
    """Whether the service may listen where it is told to.

    Raises:
        Misconfigured: it would be open to others without a token, or the token is too short to be one.
    """
    if settings.token is not None and len(settings.token) < SHORTEST_TOKEN:
        raise Misconfigured(
            f"TRAINING_TOKEN has fewer than {SHORTEST_TOKEN} characters: `openssl rand -hex 32` makes one."
        )
    if settings.token is None and settings.host not in LOOPBACK:
        raise Misconfigured(
            f"TRAINING_HOST={settings.host} would open the service to others without a token: "
            "set TRAINING_TOKEN (or TRAINING_TOKEN_FILE), or bind 127.0.0.1."
        )


def is_token(given: str | None, token: str) -> bool:
    return hmac.compare_digest((given or "").encode(), token.encode())


def unauthenticated() -> Refusal:
    """What whoever does not know the token is told."""
    message = "Send the service's token as `Authorization: Bearer <token>`, or begin a session with it."
    return Refusal(HTTPStatus.UNAUTHORIZED, "unauthenticated", message, {"www-authenticate": "Bearer"})


class Access:
    """ASGI middleware; wraps the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._token = settings.token
        self._hosts = LOOPBACK | {name.lower().strip("[]") for name in (*settings.allowed_hosts, settings.host)}
        self._origins = frozenset(origin.lower().rstrip("/") for origin in settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            await self._request(scope, receive, send)
        elif scope["type"] == ScopeType.WEBSOCKET:
            await self._socket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    # -- requests

    async def _request(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        origin: str | None = None
        try:
            headers = _headers(scope)
            self._check_host(headers)
            origin = self._foreign_origin(headers)
            if origin and scope["method"] == "OPTIONS":
                await _answer_preflight(_with_headers(send, origin))
                return
            if not (_is_free(scope) or self._is_trusted(headers)):
                raise unauthenticated()
            _check_path(scope["path"])
            if scope["method"] not in _SAFE_METHODS:
                self._check_origin(headers)
                receive = await bodies.checked(scope["path"], headers, receive)
        except Refusal as refusal:
            await _refuse(scope["path"], refusal, _with_headers(send, origin))
            return
        await self._app(scope, receive, _with_headers(send, origin))

    def _check_host(self, headers: dict[bytes, str]) -> None:
        host = _HOST.fullmatch(headers.get(b"host", "").lower())
        if host is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, "bad_host", "The Host header is missing or malformed.")
        if (host["ipv6"] or host["name"]) not in self._hosts:
            raise Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                "unknown_host",
                "Add this host name to TRAINING_ALLOWED_HOSTS to use it.",
            )

    def _is_trusted(self, headers: dict[bytes, str]) -> bool:
        """By the token, or by a session's cookie. Browsers add that whichever page asks: `_check_origin` asks which."""
        if self._token is None or is_token(_bearer(headers), self._token):
            return True
        return sessions.is_open(headers.get(b"cookie", ""), self._token)

    def _check_origin(self, headers: dict[bytes, str]) -> None:
        """A change must come from our own page, an allowed one, or a program that is no browser."""
        if self._foreign_origin(headers) is not None:
            return
        origin = headers.get(b"origin", "").lower()
        is_ours = origin in ("", f"http://{headers[b'host'].lower()}", f"https://{headers[b'host'].lower()}")
        if not is_ours or headers.get(b"sec-fetch-site", "none") not in ("same-origin", "none"):
            raise Refusal(
                HTTPStatus.FORBIDDEN, "foreign_origin", "Add the page's origin to TRAINING_ALLOWED_ORIGINS to allow it."
            )

    def _foreign_origin(self, headers: dict[bytes, str]) -> str | None:
        """The Origin of a page elsewhere that the settings allow."""
        origin = headers.get(b"origin")
        return origin if origin is not None and origin.lower() in self._origins else None

    # -- sockets

    async def _socket(self, scope: WebSocketScope, receive: Receive, send: Send) -> None:
        try:
            headers = _headers(scope)
            self._check_host(headers)
            self._check_origin(headers)
        except Refusal:
            await send({"type": "websocket.close", "code": frames.CLOSE_UNAUTHENTICATED, "reason": ""})  # becomes a 403
            return
        if self._is_trusted(headers):
            await self._app(scope, receive, send)
        else:
            may_wait = b"authorization" not in headers
            await self._socket_with_frame(scope, receive, send, self._token if may_wait else None)

    async def _socket_with_frame(self, scope: Scope, receive: Receive, send: Send, token: str | None) -> None:
        """A socket is accepted before it is judged: a browser reads close codes, but not a refused handshake."""
        connect = [await receive()]
        await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
        if token is None or not is_token(await _token_of_first_frame(receive), token):
            await send({"type": "websocket.close", "code": frames.CLOSE_UNAUTHENTICATED, "reason": "unauthenticated"})
            return

        async def receive_again() -> Any:
            return connect.pop() if connect else await receive()

        async def send_once_accepted(message: Message) -> None:
            if message["type"] != "websocket.accept":
                await send(message)

        await self._app(scope, receive_again, send_once_accepted)


async def _token_of_first_frame(receive: Receive) -> str | None:
    try:
        async with asyncio.timeout(AUTH_WITHIN_S):
            message: Any = await receive()
        frame = frames.decode_client(message.get("text") or "")
    except (TimeoutError, msgspec.MsgspecError, RecursionError):
        return None
    return frame.token if isinstance(frame, frames.Auth) else None


def _headers(scope: HTTPScope | WebSocketScope) -> dict[bytes, str]:
    """The headers by lower-case name; of a repeated one that may repeat, the last."""
    found: dict[bytes, str] = {}
    if sum(len(name) + len(value) for name, value in scope["headers"]) > _HEADERS_MAX_BYTES:
        raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "The headers are too large.")
    for name, value in scope["headers"]:
        if name in found and name in _ONLY_ONCE:
            raise Refusal(HTTPStatus.BAD_REQUEST, "repeated_header", f"Send the header {name.decode()} once.")
        found[name] = value.decode("latin-1")
    return found


def _check_path(path: str) -> None:
    """Raises Refusal for what nothing is called: the file system below the static pages would stumble over it."""
    may_be = path.isprintable() and len(path.encode()) <= _PATH_MAX_BYTES
    if not may_be or any(len(part.encode()) > _PART_MAX_BYTES for part in path.split("/")):
        raise Refusal(HTTPStatus.NOT_FOUND, "not_found", problems.NOTHING_HERE)


def _is_free(scope: HTTPScope) -> bool:
    """The page's own files, which are public, and the address where a browser brings the token."""
    if scope["method"] in ("GET", "HEAD"):
        return scope["path"] == "/ui" or scope["path"].startswith("/ui/")
    return scope["method"] == "POST" and scope["path"] in _SESSION


def _bearer(headers: dict[bytes, str]) -> str | None:
    scheme, _, token = headers.get(b"authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else None


def _with_headers(send: Send, origin: str | None) -> Send:
    """Adds the security headers, and those that let an allowed page elsewhere read the answer."""
    added = dict(_SECURITY)
    if origin is not None:
        added |= {
            b"access-control-allow-origin": origin.encode("latin-1"),
            b"access-control-expose-headers": b"location, retry-after, etag, content-disposition, "
            b"x-log-attempt, x-log-offset",
            b"vary": b"origin",
        }

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = [(name.lower(), value) for name, value in message["headers"]]
            own = {name for name, _ in present}
            message["headers"] = [*present, *((name, value) for name, value in added.items() if name not in own)]
        await send(message)

    return send_with_headers


async def _answer_preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST, PATCH, DELETE"),
        (
            b"access-control-allow-headers",
            b"authorization, content-type, prefer, last-event-id, range",
        ),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _refuse(path: str, refusal: Refusal, send: Send) -> None:
    problem = problems.problem_of(refusal.status.value, refusal.code, refusal.message, path)
    body = msgspec.json.encode(problem)
    headers = {"content-type": problems.MEDIA_TYPE, "content-length": str(len(body)), **refusal.headers}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status.value, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": False})
