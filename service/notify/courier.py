"""One webhook's deliveries, in the order of their events, one at a time.

The oldest one that is due is sent; what fails is tried again by the schedule, and those behind it wait, so that a
receiver never hears of an end before its begin, and one that is down is asked once and not a thousand times. How
tries went is written together, several at a time: after a crash a few come twice, under the same id.
"""

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from datetime import datetime

import msgspec
import structlog

from jobs.errors import Unavailable
from service import outbox
from service.notify import schedule, signing
from service.notify.clock import Clock
from service.notify.messages import FORMATS
from service.notify.outgoing import Outgoing, Reply, Session
from service.notify.registry import Registry
from service.records import DeliveryRecord, WebhookRecord
from service.store import Store
from service.upkeep import Upkeep

log = structlog.get_logger()

PAGE = 100
_NOTE_EVERY_S = 0.5
_RETRY_S = 5.0


class Courier:
    """`news` is set when there may be something to deliver, or another wish about how."""

    def __init__(
        self, webhook_id: str, registry: Registry, store: Store, outgoing: Outgoing, clock: Clock, upkeep: Upkeep
    ) -> None:
        self.news = asyncio.Event()
        self.name = f"courier of {webhook_id}"
        self._id = webhook_id
        self._registry = registry
        self._store = store
        self._outgoing = outgoing
        self._clock = clock
        self._upkeep = upkeep

    async def run(self) -> None:
        """Deliver until the webhook is disabled or removed."""
        while (webhook := self._registry.get(self._id)) and webhook.enabled:
            with self._upkeep.of(self.name, Unavailable, OSError, sqlite3.Error):
                async with self._outgoing.session() as session:
                    await self._deliver_to(webhook.url, session)
                continue
            await asyncio.sleep(_RETRY_S)
        self._upkeep.works(self.name)

    async def _deliver_to(self, url: str, session: Session) -> None:
        """As long as that is where the webhook is."""
        while (webhook := self._registry.get(self._id)) and webhook.enabled and webhook.url == url:
            self.news.clear()
            due_at = await self._deliver(session, webhook)
            self._upkeep.works(self.name)
            await self._clock.wait(self.news, due_at)

    async def _deliver(self, session: Session, webhook: WebhookRecord) -> datetime | None:
        """What is due; when something will be, or None while nothing waits."""
        while due := await self._store.due(self._id, PAGE):
            if self._registry.get(self._id) is not webhook:
                self.news.set()  # whoever changed it: begin anew
                return None
            if not _is_due(due[0], self._clock.now()):
                return due[0].next_at
            await self._deliver_some(session, webhook, due)
        return None

    async def _deliver_some(self, session: Session, webhook: WebhookRecord, due: Sequence[DeliveryRecord]) -> None:
        """Up to the first failure, or for as long as what came of them may stay unwritten."""
        tried: list[DeliveryRecord] = []
        began = time.monotonic()
        try:
            for delivery in due:
                reply = await send(session, webhook, delivery, self._clock.now())
                tried.append(_after(delivery, reply, self._clock.now()))
                has_changed = self._registry.get(self._id) is not webhook
                if reply.error or has_changed or time.monotonic() - began > _NOTE_EVERY_S:
                    break
        finally:
            if tried:
                await self._store.apply([outbox.note(tried)])  # also when the service stops
        if tried[-1].state == "delivered":
            if webhook.failing_since is not None:
                await self._registry.succeeded(self._id)
        else:
            log.info("delivery.failed", webhook_id=self._id, seq=tried[-1].seq, tries=tried[-1].tries)
            await self._registry.failed(self._id, self._clock.now(), tried[-1].status)


async def send(session: Session, webhook: WebhookRecord, delivery: DeliveryRecord, now: datetime) -> Reply:
    """One message, signed with every secret that is valid now."""
    body = FORMATS[webhook.format](delivery.type, delivery.seq, delivery.body or b"")
    texts = [each.text for each in webhook.secrets if each.valid_until is None or each.valid_until > now]
    signed = signing.headers(texts, delivery.message_id, int(now.timestamp()), body)
    return await session.post(webhook.url, _HEADERS | signed, body)


_HEADERS = {"content-type": "application/json", "user-agent": "training-api"}


def _is_due(delivery: DeliveryRecord, now: datetime) -> bool:
    """A try that lies in the future says that the clock was set back since: what it planned means nothing."""
    was_set_back = delivery.attempted_at is not None and delivery.attempted_at > now
    return delivery.next_at is None or delivery.next_at <= now or was_set_back


def _after(delivery: DeliveryRecord, reply: Reply, now: datetime) -> DeliveryRecord:
    """The delivery as it is after a try."""
    tries = delivery.tries + 1
    again = schedule.next_try(now, tries, reply.retry_after) if reply.error else None
    return msgspec.structs.replace(
        delivery,
        state="delivered" if reply.error is None else "pending" if again else "failed",
        tries=tries,
        next_at=again,
        attempted_at=now,
        status=reply.status,
        latency_ms=reply.latency_ms,
        error=reply.error,
        response=reply.text,
    )
