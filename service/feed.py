"""Events for one listener: first from the store, then live, without gap or duplicate. Both encoders use it.

It subscribes before it reads the store's head, so what is committed in between comes twice, and once is dropped by
its `seq`. A listener that was too slow for its queue goes on from the store; one that is too far behind for that is
told so and goes on from the head.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Literal, TypeVar

import msgspec

from service.hub import Hub, Item, Types
from service.store import Store

PAGE = 500
PIECE_BYTES = 256 * 1024  # of event JSON; common clients refuse a message beyond 1 MiB
TOO_FAR_BEHIND = 50_000
QUIET_S = 15.0

T = TypeVar("T")


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Everything with from_seq < seq ≤ to_seq that the listener asked for, in order."""

    items: list[Item]
    from_seq: int
    to_seq: int


class Gap(msgspec.Struct, frozen=True):
    """The listener misses events and must load a snapshot; what follows is newer than `position` says now."""

    reason: Literal["too_far_behind", "lagging"]


class Feed:
    """What one listener hears. `position` is the cursor up to which it is fresh."""

    def __init__(self, store: Store, hub: Hub, *, job_id: str | None, types: Types, after: int) -> None:
        self.position = after
        self.job_id = job_id
        self._store = store
        self._hub = hub
        self._types = types
        self._told = after  # the end of the last piece, where the next one begins

    async def follow(self) -> AsyncIterator[Piece | Gap]:
        """Pieces until the hub closes."""
        reason: Literal["too_far_behind", "lagging"] = "too_far_behind"
        while not self._hub.closing.is_set():
            with self._hub.subscribe(self.job_id, self._types) as subscription:
                head = await self._store.head_seq()
                if await self._store.event_count(self.job_id, self.position) > TOO_FAR_BEHIND:
                    self.position = self._told = head
                    yield Gap(reason)
                async for piece in self._replay(head):
                    yield piece
                async for items in subscription:
                    fresh = [item for item in items if item[0] is None or item[0] > self.position]
                    for piece in self._pieces(fresh):
                        yield piece
            reason = "lagging"

    async def _replay(self, head: int) -> AsyncIterator[Piece]:
        while not self._hub.closing.is_set():
            page = await self._store.events(self.job_id, after=self.position, limit=PAGE, types=self._types)
            for piece in self._pieces([(event.seq, event.type, event.body) for event in page]):
                yield piece
            if len(page) < PAGE:
                self.position = max(self.position, head)
                return

    def _pieces(self, items: list[Item]) -> Iterator[Piece]:
        """Items in pieces of a size that every client takes."""
        gathered: list[Item] = []
        size = 0
        for item in items:
            if gathered and size + len(item[2]) > PIECE_BYTES:
                yield self._piece(gathered)
                gathered, size = [], 0
            gathered.append(item)
            size += len(item[2])
        if gathered:
            yield self._piece(gathered)

    def _piece(self, items: list[Item]) -> Piece:
        begin = self._told
        self._told = self.position = max([self.position, *(seq for seq, _, _ in items if seq is not None)])
        return Piece(items=items, from_seq=begin, to_seq=self._told)


async def with_silences(source: AsyncIterator[T]) -> AsyncIterator[T | None]:
    """What the source gives, and None whenever it gave nothing for a while."""
    upcoming: asyncio.Future[T] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(source))
            done, _ = await asyncio.wait({upcoming}, timeout=QUIET_S)
            if not done:
                yield None
                continue
            item, upcoming = upcoming, None
            try:
                yield item.result()
            except StopAsyncIteration:
                return
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
