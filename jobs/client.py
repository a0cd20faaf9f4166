"""The REST API as a Python object, for programs that drive the service: the demo and the command line.

Needs no torch and no running event loop. Every method raises `RemoteProblem` for an answer of 400 and above and
`Unreachable` when nobody answers.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from jobs.errors import RemoteProblem, Unreachable
from jobs.lifecycle import TERMINAL

Json = dict[str, Any]
_POLL_S = 0.3


class Client:
    """One service. `on_bytes` callbacks get the bytes moved so far and their total."""

    def __init__(self, base_url: str, token: str | None = None, *, timeout_s: float = 630) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout_s, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, path: str) -> Json:
        return self._json("GET", path)

    def post(self, path: str, body: Json) -> Json:
        """Send a body and wait for the answer; synchronous routes answer when their job has ended."""
        return self._json("POST", path, json=body)

    def upload(self, path: Path, on_bytes: Callable[[int, int], None] = lambda done, total: None) -> Json:
        """Upload a ZIP; the answer's `file_path` names it in later requests."""
        with path.open("rb") as file:
            watched = _Watched(file, path.stat().st_size, on_bytes)
            return self._json("POST", "/api/data/upload", files={"file": (path.name, watched, "application/zip")})

    def submit(self, spec: Json) -> str:
        """Submit a job of any kind, `spec["kind"]` saying which; its id."""
        return str(self.post("/api/jobs", spec)["job_id"])

    def follow(self, job_id: str) -> Iterator[Json]:
        """The job again and again until it has ended; the last one yielded has a terminal status."""
        while True:
            job = self.get(f"/api/jobs/{job_id}")
            yield job
            if job["status"] in TERMINAL:
                return
            time.sleep(_POLL_S)

    def download(
        self, path: str, target: Path, on_bytes: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Write what a download address gives into a file."""
        with self._reaching(), self._http.stream("GET", path) as answer:
            if answer.is_error:
                answer.read()
                raise _problem(answer)
            total = int(answer.headers.get("content-length", 0))
            with target.open("wb") as file:
                for block in answer.iter_bytes(1 << 18):
                    file.write(block)
                    on_bytes(file.tell(), total)

    def _json(self, method: str, path: str, **arguments: Any) -> Json:
        with self._reaching():
            answer = self._http.request(method, path, **arguments)
        if answer.is_error:
            raise _problem(answer)
        body: Json = answer.json()
        return body

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise Unreachable(f"No service answers at {self._http.base_url}: {error}") from error


class _Watched:
    """A file that tells how much of it was read."""

    def __init__(self, file: BinaryIO, size: int, on_bytes: Callable[[int, int], None]) -> None:
        self._file, self._size, self._on_bytes = file, size, on_bytes

    def read(self, count: int = -1) -> bytes:
        block = self._file.read(count)
        self._on_bytes(self._file.tell(), self._size)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _problem(answer: httpx.Response) -> RemoteProblem:
    try:
        body = answer.json()
        return RemoteProblem(body["message"], status=answer.status_code, code=body.get("code", "error"))
    except (ValueError, KeyError, TypeError):
        return RemoteProblem(answer.text[:300] or answer.reason_phrase, status=answer.status_code, code="error")
