"""A receiver of webhooks on loopback, in a thread of its own."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook

ANSWER = b"canary"
"""What it says when it refuses, which nobody may be shown."""


class Receiver(ThreadingHTTPServer):
    """Keeps what it gets, headers in lower case; `status` is what it answers, after `slow_s` seconds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 204
        self.slow_s = 0.0
        self.arrived = threading.Semaphore(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"

    def handle_error(self, *_: object) -> None:
        """A sender that is gone before it has its answer."""

    def wait(self, count: int) -> list[tuple[dict[str, str], bytes]]:
        """Until so many more have arrived; all there are."""
        for _ in range(count):
            assert self.arrived.acquire(timeout=20)
        return self.got

    def verified(self, secret: str) -> list[Any]:
        """The messages, each verified as a receiver would."""
        return [Webhook(secret).verify(body, headers) for headers, body in self.got]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_POST(self) -> None:
        receiver = self.server
        length = int(self.headers["content-length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the sender died in the middle of it: nothing was received
            return
        receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        time.sleep(receiver.slow_s)
        answer = ANSWER if receiver.status >= 400 else b""
        self.send_response(receiver.status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        receiver.arrived.release()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def receiving() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
