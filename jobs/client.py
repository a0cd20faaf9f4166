"""The REST API as a Python object, for programs that drive the service: the demo, the command line, yours.

    with Client("http://127.0.0.1:8000") as client:
        job_id = client.submit({"kind": "finetune", "config": {...}})
        for seq, event in client.events(job_id):
            print(seq, event)

`async_client` has the same verbs to await. Needs no torch. What is said and how answers are read stands once, in
`calls`, `subscription` and `transfer`.

Every verb raises `RemoteProblem` for an answer of 400 and above, and `Unreachable` when nobody answers. `events`,
`wait`, `read_log` and `download`, once they were in contact, go on over broken connections and restarts of the service.
"""

import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
from websockets.sync.client import connect

from jobs import calls
from jobs.backoff import Backoff
from jobs.calls import Answer, Call, Json, Log
from jobs.connection import LOST, Connection
from jobs.errors import TrainingError
from jobs.lifecycle import TERMINAL, Status
from jobs.specs import ExportFormat, Kind
from jobs.subscription import SILENCE_S, Heard, Subscription
from jobs.transfer import Form, Landing, OnBytes, quiet

T = TypeVar("T")


class Client(Connection):
    """One service, for programs with a thread to wait in. Use as a context, or call `close`."""

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(**self._http_options)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def do(self, call: Call[T]) -> T:
        """Send one request; `calls` has them all."""
        with self._reaching():
            answer = self._http.request(call.method, call.path, params=call.params or None, json=call.body)
        return call.outcome(Answer(answer.status_code, answer.headers, answer.content))

    def get(self, path: str) -> Any:
        return self.do(calls.get(path))

    def post(self, path: str, body: Json) -> Any:
        """Send a body and wait for the answer; synchronous routes answer when their job has ended."""
        return self.do(calls.post(path, body))

    def submit(self, spec: Json) -> str:
        """Submit a job of any kind, `spec["kind"]` saying which; its id."""
        return self.do(calls.submit(spec))

    def job(self, job_id: str) -> Json:
        """Everything known of a job."""
        return self.do(calls.job(job_id))

    def jobs(
        self,
        kind: Kind | str | None = None,
        status: Status | str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[Json]:
        """Jobs, newest first; `before` is the id of the last one you have."""
        return self.do(calls.jobs(kind, status, limit, before))

    def cancel(self, job_id: str) -> Json:
        """Ask a job to end; the job. One that has ended stays as it is."""
        return self.do(calls.steer(job_id, "cancel"))

    def pause(self, job_id: str) -> Json:
        """Ask a running training to save its state and give its device back; the job."""
        return self.do(calls.steer(job_id, "pause"))

    def resume(self, job_id: str) -> Json:
        """Let a paused training go on; the job."""
        return self.do(calls.steer(job_id, "resume"))

    def log(self, job_id: str, offset: int = 0) -> Log:
        """What the job's newest attempt printed behind an offset; ask again with the offset it says."""
        return self.do(calls.log(job_id, offset))

    def read_log(self, job_id: str, *, follow: bool = False) -> Iterator[Log]:
        """What the job's newest attempt printed, piece by piece; with `follow` to the job's end, over all attempts."""
        has_ended = self.job(job_id)["status"] in TERMINAL or not follow
        offset = attempt = 0
        while True:
            piece = self._patiently(calls.log(job_id, offset))
            if piece.attempt != attempt and offset:
                piece = self._patiently(calls.log(job_id, 0))
            offset, attempt = piece.offset, piece.attempt
            if piece.text:
                yield piece
            elif has_ended:
                return
            else:
                time.sleep(calls.LOOK_EVERY_S)
                has_ended = self._patiently(calls.job(job_id))["status"] in TERMINAL  # then the log grows no more

    def wait(self, job_id: str) -> Json:
        """The job once it is completed; its `result` is there then.

        Raises:
            NotCompleted: it failed or was cancelled.
        """
        job = self.job(job_id)
        for _ in self.events(job_id, after=job["last_seq"]):
            pass
        return calls.completed(self._patiently(calls.job(job_id)))

    def export(self, job_id: str, export_format: ExportFormat | str, **fields: Any) -> Json:
        """Export a completed training and wait until the export is verified; its result.

        `fields` are those of `ExportSpec`. Raises NotCompleted like `wait`.
        """
        spec = {"kind": "export", "job_id": job_id, "export_format": export_format, **fields}
        result: Json = self.wait(self.submit(spec))["result"]
        return result

    def events(self, job_id: str, after: int = 0) -> Iterator[Heard]:
        """The job's events behind a cursor, as (`seq`, event), until the one it ends with."""
        return self._listen(Subscription(job_id, after, (), self._backoff()))

    def all_events(
        self, after: int | None = None, types: Iterable[str] = (), tag: str | None = None
    ) -> Iterator[Heard]:
        """Events of all jobs or of those with a tag, of these types or of all, without end; without a cursor those
        from now on."""
        return self._listen(Subscription(None, after, types, self._backoff(), tag=tag))

    def upload(self, path: Path, on_bytes: OnBytes = quiet) -> Json:
        """Upload a ZIP; the answer's `file_path` names it in later requests."""
        call, form = calls.upload(), Form(path, on_bytes)
        with self._reaching():
            answer = self._http.request(call.method, call.path, content=_told(form), headers=form.headers)
        return call.outcome(Answer(answer.status_code, answer.headers, answer.content))

    def download(self, path: str, target: Path, on_bytes: OnBytes = quiet, sha256: str | None = None) -> None:
        """Write what a download address gives into a file, which appears when it is whole and its checksum right."""
        backoff = self._backoff()
        with Landing(target, on_bytes, sha256) as landing:
            while not landing.is_whole:
                try:
                    self._receive(path, landing, backoff)
                except TrainingError as error:
                    landing.broke()
                    time.sleep(self._retry_pause(backoff, error))

    def download_export(self, export: Json, target: Path, on_bytes: OnBytes = quiet) -> None:
        """Download what `export` made: a ZIP with the model and its card."""
        link = self.do(calls.export_link(export["export_id"]))
        self.download(link, target, on_bytes, export["archive_sha256"])

    def webhooks(self) -> list[Json]:
        """All webhooks, oldest first, without their secrets."""
        return self.do(calls.webhooks())

    def create_webhook(self, url: str, types: Iterable[str] = (), tag: str | None = None) -> Json:
        """Have a receiver told of these types, or of the ends of jobs; the webhook with its `secret`, shown once."""
        return self.do(calls.create_webhook(url, types, tag))

    def delete_webhook(self, webhook_id: str) -> Json:
        """Remove a webhook and its log."""
        return self.do(calls.delete_webhook(webhook_id))

    def ping_webhook(self, webhook_id: str) -> Json:
        """Send a signed `webhook.ping` now; how it went. A receiver that fails is an answer, no error."""
        return self.do(calls.ping_webhook(webhook_id))

    def rotate_secret(self, webhook_id: str) -> Json:
        """A new `secret`, shown once; the one before it signs too, until `previous_until`."""
        return self.do(calls.rotate_secret(webhook_id))

    def replay(self, webhook_id: str, after: int = 0, *, undelivered_only: bool = False) -> Json:
        """Send what lies behind a cursor again, all that is wanted or only what did not arrive; its `count`."""
        return self.do(calls.replay(webhook_id, after, undelivered_only))

    def deliveries(
        self, webhook_id: str, state: str | None = None, limit: int = 100, before: int | None = None
    ) -> list[Json]:
        """What a webhook was sent and what waits, newest first; `before` is the `delivery_id` of the last you have."""
        return self.do(calls.deliveries(webhook_id, state, limit, before))

    def _listen(self, subscription: Subscription) -> Iterator[Heard]:
        while not subscription.is_over:
            try:
                with connect(**self._socket_options()) as socket:
                    socket.send(subscription.opened(), text=True)
                    while subscription.is_listening:
                        heard = subscription.hear(socket.recv(SILENCE_S))
                        if reply := subscription.reply():
                            socket.send(reply, text=True)
                        yield from heard
            except LOST as error:
                time.sleep(self._pause_of(subscription, error))
            while subscription.must_read_pages:
                yield from subscription.read(self._patiently(subscription.page()))

    def _patiently(self, call: Call[T]) -> T:
        """The answer to a question that may be asked again, also while the service restarts."""
        backoff = self._backoff(in_contact=True)
        while True:
            try:
                return self.do(call)
            except TrainingError as error:
                time.sleep(self._retry_pause(backoff, error))

    def _receive(self, path: str, landing: Landing, backoff: Backoff) -> None:
        asked = self._http.stream("GET", path, headers=landing.headers, timeout=SILENCE_S)
        with self._reaching(), asked as answer:
            if answer.is_error:
                raise calls.problem(answer.status_code, answer.read())
            landing.begin(answer.status_code, answer.headers)
            for block in answer.iter_raw():
                landing.write(block)
                landing.tell()
                backoff.contact()
        landing.finish()


def _told(form: Form) -> Iterator[bytes]:
    for block in form.blocks():
        yield block
        form.tell()
