"""All couriers: one for each webhook that is enabled, woken by events. Opened by the app's lifespan; routes ask it for
what is not a change of a webhook: a ping, another delivery, a replay.
"""

import asyncio
import secrets
import sqlite3
from datetime import timedelta

import structlog

from jobs import tasks
from jobs.errors import InvalidInput, UnknownDelivery, WrongState
from service import outbox
from service.hub import Hub, Subscription
from service.ledger import Ledger, unavailable
from service.notify import courier, messages
from service.notify.clock import Clock
from service.notify.courier import Courier
from service.notify.outgoing import Outgoing, Reply
from service.notify.registry import Registry
from service.records import DeliveryRecord, WebhookRecord
from service.store import Store

log = structlog.get_logger()

KEPT = timedelta(days=30)
REPLAY_MOST = 100_000
_TIDY_EVERY_S = 3600.0
_TIDY_AGAIN_S = 60.0
_RETRY_S = 1.0


class Notifier:
    """Tells webhooks what happens. `webhooks` are those there are."""

    def __init__(self, store: Store, ledger: Ledger, hub: Hub, outgoing: Outgoing, clock: Clock | None = None) -> None:
        self._store = store
        self._hub = hub
        self._upkeep = ledger.upkeep
        self._outgoing = outgoing
        self._clock = clock or Clock()
        self.webhooks = Registry(store, ledger, outgoing, self._clock)
        self.webhooks.on_change = self._refresh
        self._couriers: dict[str, Courier] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._own: list[asyncio.Task[None]] = []
        self._heard: Subscription | None = None
        self._stopping = False

    async def start(self) -> None:
        await self.webhooks.open()
        for webhook in self.webhooks.all():
            self._refresh(webhook.webhook_id)
        self._own = [
            asyncio.create_task(self._listen(), name="notifier"),
            asyncio.create_task(self._tidy_forever(), name="deliveries"),
        ]

    async def stop(self) -> None:
        """What was sent is noted; what was not comes after the next start."""
        self._stopping = True
        await tasks.end(*self._own, *self._tasks.values())

    # -- what routes ask for

    async def ping(self, webhook_id: str) -> Reply:
        """Send a `webhook.ping` at once and once, also to a webhook that is disabled.

        Raises:
            UnknownWebhook: there is none of that id.
            Unavailable: the database cannot be written; the ping was sent.
        """
        webhook, now = self.webhooks.known(webhook_id), self._clock.now()
        ping = DeliveryRecord(
            delivery_id=0,
            webhook_id=webhook_id,
            message_id=f"msg_{secrets.token_hex(12)}",
            type="webhook.ping",
            job_id="",
            state="pending",
            tries=0,
            attempted_at=now,
            body=messages.ping(webhook_id, now),
        )
        async with self._outgoing.session() as session:
            reply = await courier.send(session, webhook, ping, now)
        with unavailable("the ping was sent and is not in the log"):
            await self._store.apply([outbox.note_ping(ping, reply.status, reply.latency_ms, reply.error)])
        return reply

    async def redeliver(self, webhook_id: str, delivery_id: int) -> DeliveryRecord:
        """Deliver one again, from the begin of the schedule, before everything newer.

        Raises:
            UnknownWebhook, UnknownDelivery: there is none of that id.
            WrongState: the webhook is disabled, it was a ping, or the event is no more.
            Unavailable: the database cannot be written.
        """
        _check_enabled(self.webhooks.known(webhook_id))
        delivery = await self._store.delivery(webhook_id, delivery_id)
        if delivery is None:
            raise UnknownDelivery
        if delivery.seq is None:
            raise WrongState("A ping is not delivered again: send another one.")
        if delivery.body is None:
            raise WrongState("The event was deleted with its job after it was delivered.")
        with unavailable("nothing is delivered again"):
            await self._store.apply(outbox.replay_one(delivery_id))
        self._ring(webhook_id)
        return await self._store.delivery(webhook_id, delivery_id) or delivery

    async def replay(self, webhook_id: str, after: int, *, undelivered_only: bool) -> int:
        """Deliver what lies behind a cursor, all of it that the webhook wants or only what it did not get; how many.

        Raises:
            UnknownWebhook: there is none of that id.
            WrongState: the webhook is disabled.
            InvalidInput: the cursor is beyond the newest event, or so old that too much lies behind it.
            Unavailable: the database cannot be written.
        """
        _check_enabled(self.webhooks.known(webhook_id))
        if after > await self._store.head_seq():
            raise InvalidInput("is beyond the newest event", path="after")
        if not undelivered_only and await self._store.event_count(after=after) > REPLAY_MOST:
            raise InvalidInput(f"has more than {REPLAY_MOST:,} events behind it: choose a later one", path="after")
        chosen = outbox.replay_undelivered if undelivered_only else outbox.replay
        with unavailable("nothing is replayed"):
            count = await self._store.apply(chosen(webhook_id, after))
        log.info("webhook.replayed", webhook_id=webhook_id, after=after, count=count)
        self._ring(webhook_id)
        return count

    # -- the couriers

    def _refresh(self, webhook_id: str) -> None:
        """A webhook was made, changed or removed: its courier begins, ends or looks again."""
        webhook = self.webhooks.get(webhook_id)
        if webhook is not None and webhook.enabled and webhook_id not in self._tasks and not self._stopping:
            courier = Courier(webhook_id, self.webhooks, self._store, self._outgoing, self._clock, self._upkeep)
            self._couriers[webhook_id] = courier
            task = asyncio.create_task(courier.run(), name=courier.name)
            self._tasks[webhook_id] = task
            task.add_done_callback(lambda _: self._ended(webhook_id))
        self._ring(webhook_id)
        if self._heard is not None and self._heard.key.interest.types != self._wanted():
            self._heard.close()

    def _ended(self, webhook_id: str) -> None:
        """Its webhook may have been enabled again, or changed, while the courier was on its way out."""
        del self._tasks[webhook_id], self._couriers[webhook_id]
        self._refresh(webhook_id)

    def _ring(self, webhook_id: str) -> None:
        if webhook_id in self._couriers:
            self._couriers[webhook_id].news.set()

    async def _listen(self) -> None:
        """Wake the couriers whose webhooks want what just happened."""
        while not self._hub.closing.is_set():
            with self._upkeep.of("notifier"):
                await self._listen_to_wanted()
            if "notifier" in self._upkeep.failing:
                await asyncio.sleep(_RETRY_S)

    async def _listen_to_wanted(self) -> None:
        """Until the hub closes, or other events are wanted."""
        with self._hub.subscribe(types=self._wanted()) as self._heard:
            for webhook_id in self._couriers:
                self._ring(webhook_id)  # for what was recorded before it was listened to
            async for piece in self._heard:
                self._wake({name for _, name, _ in piece.items})
                self._upkeep.works("notifier")

    def _wanted(self) -> frozenset[str]:
        return frozenset(name for webhook in self.webhooks.all() if webhook.enabled for name in webhook.types)

    def _wake(self, types: set[str]) -> None:
        for webhook_id in self._couriers:
            webhook = self.webhooks.get(webhook_id)
            if webhook is not None and not types.isdisjoint(webhook.types):
                self._ring(webhook_id)

    async def _tidy_forever(self) -> None:
        while True:
            with self._upkeep.of("delivery log", sqlite3.Error):
                await self._store.apply(outbox.forget_delivered(self._clock.now() - KEPT))
            await asyncio.sleep(_TIDY_AGAIN_S if "delivery log" in self._upkeep.failing else _TIDY_EVERY_S)


def _check_enabled(webhook: WebhookRecord) -> None:
    if not webhook.enabled:
        raise WrongState("The webhook is disabled: enable it first.")
