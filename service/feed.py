"""Events for one listener: first from the store, then live, without gap or duplicate. All encoders use it.

It subscribes before it reads the store's head, so what is committed in between comes twice, and once is dropped by
its `seq`: until then it makes pieces of its own, from then on it hands on those it shares with its group. A listener
that was too slow for its queue goes on from the store; one that is too far behind for that is told so and goes on
from the head.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from service.hub import Hub, Item, Piece, Types, in_pieces
from service.store import Store

PAGE = 500
TOO_FAR_BEHIND = 50_000


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
        self._told = after  # the end of the last piece with events, where the next one begins

    async def follow(self) -> AsyncIterator[Piece | Gap]:
        """Pieces until the hub closes; one without events when nothing came for a while."""
        reason: Literal["too_far_behind", "lagging"] = "too_far_behind"
        while not self._hub.closing.is_set():
            with self._hub.subscribe(self.job_id, self._types) as subscription:
                head = await self._store.head_seq()
                if await self._store.event_count(self.job_id, self.position) > TOO_FAR_BEHIND:
                    self.position = self._told = head
                    yield Gap(reason)
                async for piece in self._replay(head):
                    yield piece
                async for shared in subscription:
                    for piece in self._new_in(shared):
                        yield piece
            reason = "lagging"

    async def _replay(self, head: int) -> AsyncIterator[Piece]:
        while not self._hub.closing.is_set():
            page = await self._store.events(self.job_id, after=self.position, limit=PAGE, types=self._types)
            is_last = len(page) < PAGE
            reached = max(head, self.position) if is_last else page[-1].seq
            for piece in self._own([(event.seq, event.type, event.body) for event in page], reached):
                yield piece
            if is_last:
                return

    def _new_in(self, piece: Piece) -> Iterable[Piece]:
        """The shared piece where it goes on from what was told; otherwise what of it is new, for this one alone."""
        if piece.from_seq == self._told and piece.items:
            self.position = self._told = piece.to_seq
            return (piece,)
        if piece.items:
            return self._own([item for item in piece.items if item[0] is None or item[0] > self.position], piece.to_seq)
        if piece.to_seq < self.position:
            return ()
        self.position = piece.to_seq
        return (piece,)

    def _own(self, items: Sequence[Item], to_seq: int) -> Iterator[Piece]:
        reached = max([self.position, to_seq, *(seq for seq, _, _ in items if seq is not None)])
        for piece in in_pieces(items, self._told, reached):
            self.position = self._told = piece.to_seq
            yield piece
        self.position = reached
