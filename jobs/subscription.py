"""What one listener has heard, and what it does next: pure, so that both clients share it.

`client` opens the sockets and asks for the pages. The cursor moves with every event and never back: after a broken
connection the listener asks for what lies behind it, ignores what it has, and takes a hole for a broken connection.
Where the socket cannot tell all that is missing (`reset`), or will tell nothing more (the job has ended), it reads
the rest of the job's events page by page.
"""

from collections.abc import Iterable

import msgspec
import structlog

from jobs import calls, columns, frames
from jobs.backoff import Backoff
from jobs.calls import Call, Page
from jobs.errors import RemoteProblem, TrainingError, Unreachable
from jobs.events import JobCancelled, JobCompleted, JobFailed, LoggedEvent, decode_event
from jobs.frames import Numbered
from jobs.lifecycle import TERMINAL

log = structlog.get_logger()

SILENCE_S = 45.0
"""A server says something every 15 s; one that says nothing for so long is gone."""

Heard = tuple[int | None, LoggedEvent]
"""An event and its `seq`, which `job.progressed` has not."""

_PONG = frames.encode(frames.Pong())
_ENDED = (JobCompleted, JobFailed, JobCancelled)
_STOPS = {frames.CLOSE_BAD_FRAME: 400, frames.CLOSE_UNAUTHENTICATED: 401, frames.CLOSE_NO_SUCH_JOB: 404}
_SENTENCES = {
    400: "The service does not take this subscription.",
    401: "The service wants its token: set TRAINING_TOKEN, or give it to the client.",
    404: "There is no job with that id.",
}


PATH = "/api/ws"
_SUB = "1"  # the name of the one subscription on a client's socket


class Subscription:
    """The events of one job to its end, or of all jobs (`job_id` None) or those with a tag for ever.

    `after` None begins with what happens from now on.
    """

    def __init__(
        self,
        job_id: str | None,
        after: int | None,
        types: Iterable[str],
        backoff: Backoff,
        *,
        tag: str | None = None,
    ) -> None:
        self.is_over = False
        self.is_listening = False  # the open socket has more to say
        self.must_read_pages = False  # before another socket is opened
        self.position = after
        self.backoff = backoff
        self.come_back_after_s = 0.0  # what the service asked for when it said goodbye
        self._job_id = job_id
        self._types = tuple(types) or None
        self._tag = tag
        self._has_ended = False
        self._owes_pong = False
        self._refusal: frames.Problem | None = None

    def opened(self) -> bytes:
        """What to say on a socket that was just opened."""
        self.is_listening = True
        self.come_back_after_s = 0.0
        self._refusal = None
        return frames.encode(
            frames.Subscribe(
                sub=_SUB,
                jobs=None if self._job_id is None else (self._job_id,),
                tag=self._tag if self._job_id is None else None,
                all=self._job_id is None and self._tag is None,
                types=self._types,
                after=self.position,
                initial="none" if self._job_id is None else "snapshot",  # which says whether the job has ended
            )
        )

    def reply(self) -> bytes | None:
        """What to answer to what was heard; None when nothing was asked."""
        owed, self._owes_pong = self._owes_pong, False
        return _PONG if owed else None

    def hear(self, message: str | bytes) -> list[Heard]:
        """What a message of the socket tells that is new.

        Raises:
            ConnectionError: events before it are missing: another socket must be opened.
            RemoteProblem: it is no frame; or events of all jobs are missing, which nobody can tell again.
        """
        try:
            frame = frames.decode_server(message)
        except msgspec.MsgspecError as error:
            text = f"The service speaks another version of this language: {error}"
            raise RemoteProblem(text, status=200, code="bad_frame") from error
        match frame:
            case frames.Welcome():
                self.backoff.greeted()
            case frames.Snapshot():
                self._learn(frame)
            case frames.Events():
                return self._take(frame)
            case frames.Bookmark():
                self.backoff.contact()
                self._move(frame.seq)
            case frames.Reset():
                self._reset(frame)
            case frames.Problem():
                self._refuse(frame)
            case frames.Ping():
                self._owes_pong = True
            case frames.Bye():
                self.come_back_after_s = frame.retry_after_s
        return []

    def page(self) -> Call[Page]:
        """The request for what lies behind the cursor."""
        return calls.events(str(self._job_id), self.position or 0)

    def read(self, page: Page) -> list[Heard]:
        """What a page tells that is new; the last one is not full."""
        self.backoff.contact()
        heard = self._fresh(page.events)
        if len(page.events) < calls.PAGE:
            self.must_read_pages = False
            self.is_over = self.is_over or self._has_ended
        return heard

    def closed(self, code: int) -> TrainingError:
        """What it means that the service closed the socket."""
        status = _STOPS.get(code)
        if status is None:
            return Unreachable(f"The connection was closed with code {code}.")
        told = self._refusal or frames.Problem(code="refused", message=_SENTENCES[status])
        return RemoteProblem(told.message, status=status, code=told.code)

    def _learn(self, snapshot: frames.Snapshot) -> None:
        if any(job.get("status") in TERMINAL for job in snapshot.jobs):  # what is left can be read at once
            self._has_ended = self.must_read_pages = True
            self.is_listening = False

    def _refuse(self, problem: frames.Problem) -> None:
        """Raises RemoteProblem for a subscription that there cannot be; for anything else the socket is closed."""
        self._refusal = problem
        if problem.sub is not None:
            status = 404 if problem.code == "job_not_found" else 400
            raise RemoteProblem(problem.message, status=status, code=problem.code)

    def _take(self, frame: frames.Events) -> list[Heard]:
        if self.position is not None and frame.from_seq > self.position:
            raise ConnectionError(f"events between {self.position} and {frame.from_seq} are missing")
        self.backoff.contact()
        heard = self._fresh(columns.unfold(frame))
        self._move(frame.to_seq)
        return heard

    def _reset(self, frame: frames.Reset) -> None:
        if self._job_id is None:
            raise RemoteProblem(
                f"More happened since event {self.position} than the service tells again: load the jobs anew, and "
                "listen to what comes after them.",
                status=200,
                code=frame.reason,
            )
        self.must_read_pages = True
        self.is_listening = False

    def _fresh(self, events: Iterable[Numbered]) -> list[Heard]:
        """Events that were not heard before, up to the job's end."""
        heard: list[Heard] = []
        for numbered in events:
            if self.is_over or (numbered.seq is not None and numbered.seq <= (self.position or 0)):
                continue
            if numbered.seq is not None:
                self._move(numbered.seq)
            event = _decode(numbered)
            if event is not None:
                heard.append((numbered.seq, event))
                self.is_over = self._job_id is not None and isinstance(event, _ENDED)
        self.is_listening = self.is_listening and not self.is_over
        return heard

    def _move(self, seq: int) -> None:
        self.position = max(self.position or 0, seq)


def _decode(numbered: Numbered) -> LoggedEvent | None:
    """None for an event that a newer service knows and this client does not."""
    try:
        event: LoggedEvent = decode_event(numbered.event)
        return event
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("event.unknown", seq=numbered.seq, problem=str(error))
        return None
