"""What one listener hears: first what it missed, from the store, then what the hub hands out, without gap or duplicate.

A listener subscribes before it reads, so nothing falls between the two; what it hears twice for that is dropped by
its `seq`: until then it makes pieces of its own, from then on it hands on those it shares with its group. A listener
that was too slow for its queue goes on from the store; one that is too far behind for that is told so and goes on
from the head.

Many who come back at once miss the same: what is read for one of them is read once, in windows of fixed bounds.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from service.hub import Backlog, Hub, Item, Piece, in_pieces
from service.records import Interest
from service.store import Store

TOO_FAR_BEHIND = 50_000
WINDOW = 512  # numbers that are read at once; where events of others stand between, more
SMALL_WINDOW = 32
WINDOWS_AT_MOST = 64
WINDOWS_KEPT = 32
KEPT_FOR_S = 5.0


class Gap(msgspec.Struct, frozen=True):
    """The listener misses events and must load a snapshot; what follows is newer than `position` says now."""

    reason: Literal["too_far_behind", "lagging"]


class Feeds:
    """Makes feeds. What the store holds is read once for all who ask for the same within a few seconds."""

    def __init__(self, store: Store, hub: Hub) -> None:
        self.store = store
        self.hub = hub
        self._kept: OrderedDict[tuple[Interest, int, int], asyncio.Task[Sequence[Piece]]] = OrderedDict()

    def feed(self, interest: Interest, after: int, *, calm: bool = False, backlog: Backlog | None = None) -> "Feed":
        """What a listener hears behind a cursor."""
        return Feed(self, interest, after, calm=calm, backlog=backlog or Backlog())

    async def replay(self, interest: Interest, from_seq: int, to_seq: int) -> Sequence[Piece]:
        """Everything with from_seq < seq ≤ to_seq, which must be recorded."""
        key = (interest, from_seq, to_seq)
        reading = self._kept.get(key)
        if reading is None:
            while len(self._kept) >= WINDOWS_KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = reading = asyncio.create_task(self._read(interest, from_seq, to_seq))
            asyncio.get_running_loop().call_later(KEPT_FOR_S, self._kept.pop, key, None)
        return await asyncio.shield(reading)  # whoever leaves does not take it from the others

    async def _read(self, interest: Interest, from_seq: int, to_seq: int) -> Sequence[Piece]:
        try:
            stored = await self.store.events_of(interest, after=from_seq, up_to=to_seq)
        except BaseException:
            self._kept.pop((interest, from_seq, to_seq), None)
            raise
        return list(in_pieces(((event.seq, event.type, event.body) for event in stored), from_seq, to_seq))


class Feed:
    """What one listener hears. `position` is the cursor up to which it is fresh."""

    def __init__(self, feeds: Feeds, interest: Interest, after: int, *, calm: bool, backlog: Backlog) -> None:
        self.position = after
        self.interest = interest
        self._feeds = feeds
        self._store = feeds.store
        self._hub = feeds.hub
        self._calm = calm
        self._backlog = backlog
        self._told = after  # the end of the last piece with events, where the next one begins

    async def follow(self) -> AsyncIterator[Piece | Gap]:
        """Pieces until the hub closes; one without events when a replay is over, and when nothing came for a while."""
        reason: Literal["too_far_behind", "lagging"] = "too_far_behind"
        while not self._hub.closing.is_set():
            with self._hub.listen(self.interest, calm=self._calm, backlog=self._backlog) as subscription:
                head = await self._store.head_seq()
                if await self._misses_too_much(head):
                    self.position = self._told = head
                    yield Gap(reason)
                async for piece in self._replay(head):
                    yield piece
                yield Piece((), self.position, self.position)
                async for shared in subscription:
                    for piece in self._new_in(shared):
                        yield piece
            reason = "lagging"

    async def _misses_too_much(self, head: int) -> bool:
        """More events than are told again, or some that are gone; whoever begins at 0 gets what there is."""
        if 0 < self.position < head and await self._store.has_thinned(self.interest, self.position):
            return True
        if head - self.position <= TOO_FAR_BEHIND:
            return False
        return await self._store.count_of(self.interest, self.position, TOO_FAR_BEHIND + 1) > TOO_FAR_BEHIND

    async def _replay(self, head: int) -> AsyncIterator[Piece]:
        for begin, end in _windows(self.position, head):
            if self._hub.closing.is_set():
                return
            for piece in await self._feeds.replay(self.interest, begin, end):
                for own in self._new_in(piece):
                    yield own
            self.position = max(self.position, end)

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


def _windows(position: int, head: int) -> Iterator[tuple[int, int]]:
    """(from, to) of windows that cover position < seq ≤ head: large ones and then halves, halves of halves …, with the
    same bounds for all who read there."""
    size = WINDOW
    while (head - position) / size > WINDOWS_AT_MOST:
        size *= 2
    begin = position - position % size if head - position > SMALL_WINDOW else position
    while size >= SMALL_WINDOW:
        while begin + size <= head:
            yield begin, begin + size
            begin += size
        size //= 2
    if begin < head:
        yield begin, head
