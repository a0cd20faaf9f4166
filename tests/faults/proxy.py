"""A network that misbehaves: a TCP proxy before Redis that cuts, delays, or swallows what passes."""

import asyncio
import contextlib
import threading
from typing import Literal

Mode = Literal["pass", "cut", "delay", "swallow", "deaf"]
"""`cut` ends all connections and takes no new ones; `delay` lets each piece wait; `swallow` leaves connections open
and passes nothing (half-open); `deaf` passes what goes to the server and swallows its answers."""

_BLOCK = 1 << 16


class Proxy(threading.Thread):
    """Listens on `port` of 127.0.0.1 from `start` to `stop`, in a thread of its own."""

    def __init__(self, unix_socket: str) -> None:
        super().__init__(daemon=True, name="proxy")
        self.mode: Mode = "pass"
        self.delay_s = 0.0
        self.port = 0
        self._server_socket = unix_socket
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._stopping = asyncio.Event()

    def run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    def begin(self) -> None:
        self.start()
        self._is_up.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self.join(10)

    def set(self, mode: Mode, delay_s: float = 0.0) -> None:
        """From now on; whatever is swallowed stays lost, so leaving `swallow` and `deaf` cuts what was open."""
        had, self.mode, self.delay_s = self.mode, mode, delay_s
        if mode == "cut" or had in ("swallow", "deaf"):
            self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        async with server:
            await self._stopping.wait()
            self._cut()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "cut":
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._server_socket)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, server_writer}
        self._writers |= both
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, server_writer, ("swallow",)))
                group.create_task(self._pass(server_reader, writer, ("swallow", "deaf")))
        except* (OSError, asyncio.IncompleteReadError, EOFError):
            pass
        finally:
            self._writers -= both
            for one in both:
                one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost_in: tuple[str, ...]) -> None:
        while data := await reader.read(_BLOCK):
            if self.mode == "delay":
                await asyncio.sleep(self.delay_s)
            if self.mode not in lost_in:
                writer.write(data)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
        raise EOFError  # one side left: the other is told by the end of its connection
