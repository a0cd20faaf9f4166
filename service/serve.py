"""The program behind `training-api serve`: `python -m service.serve`, set up by the environment alone.

One process owns a data root and its database. It refuses, with status 2 and a sentence, what would not be safe or
would not work, before it binds its port.
"""

import asyncio
import fcntl
import gc
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from jobs import logs
from jobs.errors import Misconfigured
from jobs.paths import DataRoot
from jobs.settings import REFUSED, Settings
from service import access
from service.app import create_app, database_file
from service.conversation import FRAME_MAX_BYTES

log = structlog.get_logger()

CUT_OFF_AFTER_S = 10.0
_FAREWELL_WITHIN_S = 1.0
_SHUTDOWN_WITHIN_S = 5
_COLLECT_AFTER = (5_000, 5, 1_000_000)
"""Of Python's cyclic collector: with its own thresholds it took more than half of the time in which a thousand sockets
come back. The whole is never gone through by itself, which with a thousand sockets makes all of them wait for a tenth
of a second: `Server.on_tick` does it where there is something to find."""
_SEND_BUFFER = 128 * 1024  # bytes of a WebSocket in the kernel, which takes twice as many with what it adds
_LEFT = 100  # sockets that left; what they have held is tens of kilobytes each
_COLLECT_EVERY_TICKS = 600  # of the server, which has ten a second


def main(arguments: list[str]) -> int:
    """Serve until a signal ends it; the exit status."""
    try:
        if arguments:
            raise Misconfigured(f"service.serve is one process and takes no arguments, but got {' '.join(arguments)}.")
        settings = Settings.from_environment()
        access.check_settings(settings)
        logs.set_up(settings.log_level)
        root = DataRoot(settings.data_folder)
        with _owned(settings, root):
            return _serve(settings)
    except Misconfigured as error:
        sys.stderr.write(f"training-api: {error.message}\n")
        return REFUSED
    except KeyboardInterrupt:  # uvicorn has ended in order and passes the signal on
        return 0


class Server(uvicorn.Server):
    """Says goodbye to listeners before uvicorn waits for them: it ends sockets, but never event streams. Ends by itself
    when the service cannot go on."""

    def __init__(self, config: uvicorn.Config, app: Litestar) -> None:
        super().__init__(config)
        self._app = app
        self._left = 0  # sockets, when the whole was last collected

    @property
    def is_over(self) -> bool:
        return self.started and bool(self._app.state.recorder.upkeep.is_over)

    async def on_tick(self, counter: int) -> bool:
        left = self._app.state.sockets.left
        if left - self._left >= _LEFT or counter % _COLLECT_EVERY_TICKS == 0:
            self._left = left
            gc.collect()
        return self.is_over or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.hub.close()
        await self._app.state.sockets.wait_for_end(_FAREWELL_WITHIN_S)
        await super().shutdown(sockets)


class Http(HttpToolsProtocol):
    """Lets a handler cut its client off, by the `transport` in the request's state: a close would wait for what the
    client does not take, and for ever. Only event streams do: a download may pause, as it does behind a proxy with a
    full buffer."""

    # The protocol declares any transport; a server gives one that can be written to, as uvicorn's own override says.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = self.app_state | {"transport": transport}


class Socket(WebSocketsSansIOProtocol):
    """Closes also towards a client that takes nothing, which uvicorn would wait for, and for ever. One that takes
    nothing holds little of the kernel's memory, which by itself grows to megabytes a socket."""

    # Narrower than the protocol declares, for the reason given at `Http`.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close" and not self.writable.is_set():
            self.writable.set()  # the close goes behind what waits: a client that takes it after all reads why
            self.loop.call_later(CUT_OFF_AFTER_S, self.transport.abort)
        await super().send(message)


def configure(app: Litestar, settings: Settings) -> Server:
    """The server of an application, not yet started."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        lifespan="on",
        http=Http,
        ws=Socket,
        ws_max_size=FRAME_MAX_BYTES,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=_SHUTDOWN_WITHIN_S,
        server_header=False,
        proxy_headers=False,
        access_log=False,
        log_config=None,
    )
    return Server(config, app)


def _serve(settings: Settings) -> int:
    server = configure(create_app(settings), settings)
    gc.collect()
    gc.freeze()  # what is there now stays
    gc.set_threshold(*_COLLECT_AFTER)
    log.info("service.starting", host=settings.host, port=settings.port, data_root=str(settings.data_folder))
    server.run()  # on uvloop, which asyncio.run would not take
    return 0 if server.started and not server.is_over else 1


@contextmanager
def _owned(settings: Settings, root: DataRoot) -> Iterator[None]:
    """Hold the locks of the data root and of its database, which may lie elsewhere and be named by several.

    Raises:
        Misconfigured: another service holds one, or this is not the database of what lies below the root.
    """
    with _locked(root.service_lock, f"serves {root.folder}", "set TRAINING_DATA_ROOT to another folder"):
        file = database_file(settings, root)
        _check_database(file, root)
        with _locked(Path(f"{file}.lock"), f"writes {file}", "set TRAINING_DATABASE to another file"):
            yield


@contextmanager
def _locked(file: Path, doing: str, remedy: str) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Misconfigured(
                f"Another service (process {lock.read().strip() or 'unknown'}) already {doing}: stop it, or {remedy}. "
                "One process serves a data root and its database."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _check_database(file: Path, root: DataRoot) -> None:
    """Whether this is the database of what lies below the root.

    Raises:
        Misconfigured: the setting is new and the file did not move with it: an empty one would know none of the jobs.
    """
    if file.exists():
        return
    if root.database.exists():
        raise Misconfigured(
            f"TRAINING_DATABASE={file} does not exist, but {root.database} does: move it there, "
            f"and {root.database.name}-wal with it if there is one."
        )
    if root.jobs.is_dir() and any(root.jobs.iterdir()):
        remedy = "if there is a database of theirs, stop this service, restore it or set TRAINING_DATABASE"
        log.warning("database.empty", file=str(file), unknown_jobs=str(root.jobs), remedy=remedy)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
