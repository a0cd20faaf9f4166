"""`client` for programs with an event loop: the same verbs, to await. What they do is said there.

async with AsyncClient("http://127.0.0.1:8000") as client:
    async for seq, event in client.all_events():
        print(seq, event)
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
from websockets.asyncio.client import connect

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


class AsyncClient(Connection):
    """The same for programs with an event loop. Use as an async context, or await `close`."""

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(**self._http_options)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def do(self, call: Call[T]) -> T:
        with self._reaching():
            answer = await self._http.request(call.method, call.path, params=call.params or None, json=call.body)
        return call.outcome(Answer(answer.status_code, answer.headers, answer.content))

    async def get(self, path: str) -> Any:
        return await self.do(calls.get(path))

    async def post(self, path: str, body: Json) -> Any:
        return await self.do(calls.post(path, body))

    async def submit(self, spec: Json) -> str:
        return await self.do(calls.submit(spec))

    async def job(self, job_id: str) -> Json:
        return await self.do(calls.job(job_id))

    async def jobs(
        self,
        kind: Kind | str | None = None,
        status: Status | str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[Json]:
        return await self.do(calls.jobs(kind, status, limit, before))

    async def cancel(self, job_id: str) -> Json:
        return await self.do(calls.steer(job_id, "cancel"))

    async def pause(self, job_id: str) -> Json:
        return await self.do(calls.steer(job_id, "pause"))

    async def resume(self, job_id: str) -> Json:
        return await self.do(calls.steer(job_id, "resume"))

    async def log(self, job_id: str, offset: int = 0) -> Log:
        return await self.do(calls.log(job_id, offset))

    async def read_log(self, job_id: str, *, follow: bool = False) -> AsyncIterator[Log]:
        has_ended = (await self.job(job_id))["status"] in TERMINAL or not follow
        offset = attempt = 0
        while True:
            piece = await self._patiently(calls.log(job_id, offset))
            if piece.attempt != attempt and offset:
                piece = await self._patiently(calls.log(job_id, 0))
            offset, attempt = piece.offset, piece.attempt
            if piece.text:
                yield piece
            elif has_ended:
                return
            else:
                await asyncio.sleep(calls.LOOK_EVERY_S)
                has_ended = (await self._patiently(calls.job(job_id)))["status"] in TERMINAL

    async def wait(self, job_id: str) -> Json:
        job = await self.job(job_id)
        async for _ in self.events(job_id, after=job["last_seq"]):
            pass
        return calls.completed(await self._patiently(calls.job(job_id)))

    async def export(self, job_id: str, export_format: ExportFormat | str, **fields: Any) -> Json:
        spec = {"kind": "export", "job_id": job_id, "export_format": export_format, **fields}
        result: Json = (await self.wait(await self.submit(spec)))["result"]
        return result

    def events(self, job_id: str, after: int = 0) -> AsyncIterator[Heard]:
        """The job's events behind a cursor, as (`seq`, event), until the one it ends with.

        Leave it early only within `contextlib.aclosing`, which closes the connection at once.
        """
        return self._listen(Subscription(job_id, after, (), self._backoff()))

    def all_events(
        self, after: int | None = None, types: Iterable[str] = (), tag: str | None = None
    ) -> AsyncIterator[Heard]:
        return self._listen(Subscription(None, after, types, self._backoff(), tag=tag))

    async def upload(self, path: Path, on_bytes: OnBytes = quiet) -> Json:
        call, form = calls.upload(), Form(path, on_bytes)
        with self._reaching():
            answer = await self._http.request(call.method, call.path, content=_told(form), headers=form.headers)
        return call.outcome(Answer(answer.status_code, answer.headers, answer.content))

    async def download(self, path: str, target: Path, on_bytes: OnBytes = quiet, sha256: str | None = None) -> None:
        backoff = self._backoff()
        with Landing(target, on_bytes, sha256) as landing:
            while not landing.is_whole:
                try:
                    await self._receive(path, landing, backoff)
                except TrainingError as error:
                    landing.broke()
                    await asyncio.sleep(self._retry_pause(backoff, error))

    async def download_export(self, export: Json, target: Path, on_bytes: OnBytes = quiet) -> None:
        link = await self.do(calls.export_link(export["export_id"]))
        await self.download(link, target, on_bytes, export["archive_sha256"])

    async def webhooks(self) -> list[Json]:
        return await self.do(calls.webhooks())

    async def create_webhook(self, url: str, types: Iterable[str] = (), tag: str | None = None) -> Json:
        return await self.do(calls.create_webhook(url, types, tag))

    async def delete_webhook(self, webhook_id: str) -> Json:
        return await self.do(calls.delete_webhook(webhook_id))

    async def ping_webhook(self, webhook_id: str) -> Json:
        return await self.do(calls.ping_webhook(webhook_id))

    async def rotate_secret(self, webhook_id: str) -> Json:
        return await self.do(calls.rotate_secret(webhook_id))

    async def replay(self, webhook_id: str, after: int = 0, *, undelivered_only: bool = False) -> Json:
        return await self.do(calls.replay(webhook_id, after, undelivered_only))

    async def deliveries(
        self, webhook_id: str, state: str | None = None, limit: int = 100, before: int | None = None
    ) -> list[Json]:
        return await self.do(calls.deliveries(webhook_id, state, limit, before))

    async def _listen(self, subscription: Subscription) -> AsyncIterator[Heard]:
        while not subscription.is_over:
            try:
                async with connect(**self._socket_options()) as socket:
                    await socket.send(subscription.opened(), text=True)
                    while subscription.is_listening:
                        async with asyncio.timeout(SILENCE_S):
                            message = await socket.recv()
                        told = subscription.hear(message)
                        if reply := subscription.reply():
                            await socket.send(reply, text=True)
                        for heard in told:
                            yield heard
            except LOST as error:
                await asyncio.sleep(self._pause_of(subscription, error))
            while subscription.must_read_pages:
                for heard in subscription.read(await self._patiently(subscription.page())):
                    yield heard

    async def _patiently(self, call: Call[T]) -> T:
        backoff = self._backoff(in_contact=True)
        while True:
            try:
                return await self.do(call)
            except TrainingError as error:
                await asyncio.sleep(self._retry_pause(backoff, error))

    async def _receive(self, path: str, landing: Landing, backoff: Backoff) -> None:
        asked = self._http.stream("GET", path, headers=landing.headers, timeout=SILENCE_S)
        with self._reaching():
            async with asked as answer:
                if answer.is_error:
                    raise calls.problem(answer.status_code, await answer.aread())
                landing.begin(answer.status_code, answer.headers)
                async for block in answer.aiter_raw():
                    await asyncio.to_thread(landing.write, block)
                    landing.tell()
                    backoff.contact()
        await asyncio.to_thread(landing.finish)


async def _told(form: Form) -> AsyncIterator[bytes]:
    """Reads where no loop waits for the disk, and tells within the loop."""
    blocks = form.blocks()
    while (block := await asyncio.to_thread(next, blocks, None)) is not None:
        yield block
        form.tell()
