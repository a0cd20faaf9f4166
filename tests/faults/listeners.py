"""Who listens to a world through whatever happens to it, and keeps what was heard for the judge."""

import contextlib
import json
import threading
from collections.abc import Iterator

import event_stream
import httpx

from jobs.client import Client
from jobs.errors import TrainingError

_PATIENCE_S = 3600.0  # longer than any service is away


class Listener(threading.Thread):
    """Hears all events, or one job's to its end, through whatever happens to the service."""

    def __init__(self, address: str, job_id: str | None, after: int = 0) -> None:
        super().__init__(daemon=True, name=f"listener-{job_id or 'all'}")
        self.job_id = job_id
        self.after = after
        self.heard: list[tuple[int, str, str]] = []
        self.fault: str | None = None
        self._address = address
        self._leaving = threading.Event()

    @property
    def position(self) -> int:
        return self.heard[-1][0] if self.heard else self.after

    def run(self) -> None:
        try:
            for heard in self._events():
                self.heard.append(heard)
                if self._leaving.is_set():
                    return
        except _LeavingError:
            return
        except Exception as error:
            self.fault = repr(error)

    def leave(self) -> None:
        self._leaving.set()

    def _events(self) -> Iterator[tuple[int, str, str]]:
        """What has a `seq`; progress has none."""
        with Client(self._address, patience_s=_PATIENCE_S, on_retry=self._on_retry) as client:
            for seq, event in client.events(self.job_id, self.after) if self.job_id else client.all_events(self.after):
                if seq is not None:
                    yield seq, event.job_id, str(event.__struct_config__.tag)

    def _on_retry(self, _: TrainingError, __: float) -> None:
        if self._leaving.is_set():
            raise _LeavingError


class StreamListener(Listener):
    """Hears all events through server-sent events, as a browser does."""

    def __init__(self, address: str, after: int = 0) -> None:
        super().__init__(address, None, after)
        self.name = "stream-all"

    def _events(self) -> Iterator[tuple[int, str, str]]:
        with httpx.Client(base_url=self._address, timeout=30, trust_env=False) as http:  # a comment comes every 15 s
            while not self._leaving.is_set():
                # Not ReadTimeout: a stream that says nothing, not even its comment, hangs.
                with contextlib.suppress(httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout):
                    yield from self._events_of_connection(http)
                self._leaving.wait(0.2)

    def _events_of_connection(self, http: httpx.Client) -> Iterator[tuple[int, str, str]]:
        headers = {"last-event-id": str(self.position)} if self.heard else {}
        with http.stream("GET", "/api/events", params={"after": self.after}, headers=headers) as answer:
            if answer.status_code >= 500:
                return  # it stops, or its database is away
            answer.raise_for_status()
            for one in event_stream.said(answer.iter_lines()):
                if one.kind == "reset":
                    raise AssertionError(f"a stream was told that it misses too much: {one.data}")
                if one.data and one.seq is not None:
                    event = json.loads(one.data)
                    yield one.seq, event["job_id"], event["type"]


class _LeavingError(Exception):
    pass
