"""Files on their way to the service and from it, as far as both clients do the same: no HTTP here.

Called by `client`. An upload is a multipart form made block by block (RFC 7578); a download lands under a temporary
name, goes on where it broke off (RFC 9110, section 14) and gets its own name when it is whole and its checksum right.
"""

import hashlib
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from jobs.errors import RemoteProblem

BLOCK_BYTES = 2**18

OnBytes = Callable[[int, int], None]
"""Gets the bytes moved so far and their total; 0 where nobody knows it."""

_SHA256 = re.compile(r'"([0-9a-f]{64})"')
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/\d+")


def quiet(_done: int, _total: int) -> None:
    """Shows no progress."""


class Form:
    """A multipart body with one file."""

    def __init__(self, path: Path, on_bytes: OnBytes = quiet) -> None:
        boundary = secrets.token_hex(16)
        name = path.name.replace("\\", "\\\\").replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        self._head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/zip\r\n\r\n"
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._path = path
        self._size = path.stat().st_size
        self._on_bytes = on_bytes
        self._done = 0
        self.headers = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(len(self._head) + self._size + len(self._tail)),
        }

    def blocks(self) -> Iterator[bytes]:
        """The body; a block was sent when the next one is asked for."""
        yield self._head
        with self._path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
                self._done += len(block)
        yield self._tail

    def tell(self) -> None:
        """Report how much of the file was sent."""
        self._on_bytes(self._done, self._size)


class Landing:
    """A file being downloaded. Use as a context: what is not whole at the end is removed.

    `sha256` is what the file must have; without it the answer's ETag counts, where it is such a sum.
    """

    def __init__(self, target: Path, on_bytes: OnBytes = quiet, sha256: str | None = None) -> None:
        self.is_whole = False
        self._target = target
        self._part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        self._on_bytes = on_bytes
        self._sha256 = sha256
        self._etag = ""
        self._total = 0
        self._begin_anew()

    def __enter__(self) -> "Landing":
        self._file = self._part.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    @property
    def headers(self) -> dict[str, str]:
        """What the next request must say to get the rest."""
        plain = {"accept-encoding": "identity"}  # bytes are counted as they lie in the file
        return plain | ({"range": f"bytes={self._done}-", "if-range": self._etag} if self._done else {})

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """An answer begins: with the rest, or with all of it when the file is another one by now."""
        match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if not (status == 206 and match and int(match[1]) == self._done):
            self._begin_anew()
            self._file.seek(0)
            self._file.truncate()
        self._etag = headers.get("etag", "")
        self._total = self._done + int(headers.get("content-length", 0))

    def write(self, block: bytes) -> None:
        self._file.write(block)
        self._digest.update(block)
        self._done += len(block)

    def tell(self) -> None:
        """Report how much of the file is here."""
        self._on_bytes(self._done, self._total)

    def broke(self) -> None:
        """The connection ended early. What has no strong ETag cannot be continued."""
        if not self._etag.startswith('"'):
            self._done = 0

    def finish(self) -> None:
        """The answer ended as it should: give the file its name.

        Raises:
            RemoteProblem: its checksum is not the one it must have.
        """
        found = _SHA256.fullmatch(self._etag)
        wanted = self._sha256 or (found[1] if found else None)
        if wanted not in (None, self._digest.hexdigest()):
            text = f"What arrived for {self._target.name} has not the checksum it must have: download it again."
            raise RemoteProblem(text, status=200, code="checksum_mismatch")
        self._file.close()
        self._part.replace(self._target)
        self.is_whole = True

    def _begin_anew(self) -> None:
        self._done = 0
        self._digest = hashlib.sha256()
