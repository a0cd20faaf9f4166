"""The pipe a child rings: an empty line says that the journal grew, any other is a `job.progressed` in full.

Both ends are non-blocking: a child never waits for its runner, and a full pipe has rung already.
"""

import asyncio
import os
from collections.abc import Callable

_READ_BYTES = 1 << 16


class Doorbell:
    """Listens from `open` to `close`; `write_end` is for the child, and closed here by `hand_over`."""

    def __init__(self, on_ring: Callable[[], None], on_line: Callable[[bytes], None]) -> None:
        self._on_ring = on_ring
        self._on_line = on_line
        self._rest = b""
        self._is_handed_over = False
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._read_end, self._hear)

    def hand_over(self) -> None:
        """The child has the write end now, or nobody will."""
        if not self._is_handed_over:
            self._is_handed_over = True
            os.close(self.write_end)

    def close(self) -> None:
        self.hand_over()
        asyncio.get_running_loop().remove_reader(self._read_end)
        os.close(self._read_end)

    def _hear(self) -> None:
        heard = os.read(self._read_end, _READ_BYTES)
        if not heard:  # nobody has the other end any more
            asyncio.get_running_loop().remove_reader(self._read_end)
            return
        *lines, self._rest = (self._rest + heard).split(b"\n")
        if b"" in lines:
            self._on_ring()
        for line in filter(None, lines):
            self._on_line(line)
