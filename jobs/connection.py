"""What both clients know of the service they talk to: its address, its token, and how long they have patience.

`client` and `async_client` are built on it; those three modules alone know HTTP and WebSockets.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from jobs import calls
from jobs.backoff import Backoff
from jobs.errors import InvalidInput, TrainingError, Unreachable
from jobs.subscription import PATH, Subscription

OnRetry = Callable[[TrainingError, float], None]
"""Gets what went wrong and the seconds until the next try."""

LOST = (OSError, EOFError, TimeoutError, WebSocketException)
"""How a socket ends that should not have ended."""

_CONNECTED_WITHIN_S = 10.0
_MESSAGE_MAX_BYTES = 2**24


class Connection:
    """One service. `patience_s` is how long a conversation that was in contact goes on without any."""

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        timeout_s: float = 630,
        patience_s: float = 600,
        on_retry: OnRetry = lambda error, pause_s: None,
    ) -> None:
        """Raises InvalidInput when the address is none."""
        self.address = base_url.rstrip("/")
        try:
            httpx.URL(self.address)
        except httpx.InvalidURL as error:
            raise InvalidInput(f"{self.address} is no address of a service: {error}.") from None
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http_options: dict[str, Any] = {
            "base_url": self.address,
            "headers": self._headers,
            "timeout": httpx.Timeout(timeout_s, connect=_CONNECTED_WITHIN_S),
            "trust_env": False,
        }
        self._patience_s = patience_s
        self._on_retry = on_retry

    def _backoff(self, *, in_contact: bool = False) -> Backoff:
        return Backoff(self._patience_s, in_contact=in_contact)

    def _retry_pause(self, backoff: Backoff, error: TrainingError, at_least_s: float = 0.0) -> float:
        """Seconds until the next try. Raises the error where there is none."""
        pause_s = backoff.pause_after(error, at_least_s)
        self._on_retry(error, pause_s)
        return pause_s

    def _pause_of(self, subscription: Subscription, error: Exception) -> float:
        """The same, for a socket that was lost."""
        if isinstance(error, ConnectionClosed) and error.rcvd is not None:
            lost = subscription.closed(error.rcvd.code)
        elif isinstance(error, InvalidStatus) and error.response.status_code < 500:  # on its way down it answers 500
            lost = calls.problem(error.response.status_code, bytes(error.response.body or b""))
        else:
            lost = self._unreachable(error)
        return self._retry_pause(subscription.backoff, lost, subscription.come_back_after_s)

    def _socket_options(self) -> dict[str, Any]:
        """How to open a subscription's next socket. Compression would cost memory on both sides."""
        return {
            "uri": f"ws{self.address.removeprefix('http')}{PATH}",
            "additional_headers": self._headers,
            "proxy": None,
            "compression": None,
            "max_size": _MESSAGE_MAX_BYTES,
            "open_timeout": _CONNECTED_WITHIN_S,
            "close_timeout": 1,
        }

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"No service answers at {self.address}: {error or type(error).__name__}")
