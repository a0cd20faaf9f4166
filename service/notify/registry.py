"""The webhooks: made, changed, disabled. Each change is on the disk before it counts; routes and couriers share it."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

import msgspec
import structlog

from jobs.errors import Conflict, InvalidInput, UnknownWebhook
from jobs.events import JobProgressed, LoggedEvent, WebhookDisabled
from service import outbox
from service.ledger import Ledger, Write, unavailable
from service.notify import schedule, signing
from service.notify.clock import Clock
from service.notify.outgoing import Outgoing
from service.records import Secret, WebhookRecord
from service.store import Store

log = structlog.get_logger()

TYPES = tuple(
    str(kind.__struct_config__.tag) for kind in get_args(LoggedEvent) if kind is not JobProgressed
)  # which is not stored, so it could not be delivered for certain
DEFAULT_TYPES = ("job.completed", "job.failed", "job.cancelled")
OVERLAP = timedelta(hours=24)
_MOST = 100
_MOST_SECRETS = 5
_GONE = 410


class Registry:
    """`on_change` is called with the id of a webhook that was changed, made or removed."""

    def __init__(self, store: Store, ledger: Ledger, outgoing: Outgoing, clock: Clock) -> None:
        self.on_change: Callable[[str], None] = _nobody
        self._store = store
        self._ledger = ledger
        self._outgoing = outgoing
        self._clock = clock
        self._webhooks: dict[str, WebhookRecord] = {}
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        self._webhooks = {webhook.webhook_id: webhook for webhook in await self._store.webhooks()}

    def all(self) -> list[WebhookRecord]:
        """Oldest first."""
        return list(self._webhooks.values())

    def get(self, webhook_id: str) -> WebhookRecord | None:
        return self._webhooks.get(webhook_id)

    def known(self, webhook_id: str) -> WebhookRecord:
        """Raises UnknownWebhook where there is none of that id."""
        webhook = self._webhooks.get(webhook_id)
        if webhook is None:
            raise UnknownWebhook
        return webhook

    # -- what people do

    async def create(
        self, url: str, types: Sequence[str] = DEFAULT_TYPES, tag: str | None = None, description: str = ""
    ) -> WebhookRecord:
        """A new webhook; its secret is the first one of the record.

        Raises:
            AddressNotAllowed: the URL is none that the service calls.
            InvalidInput: there is no such type.
            Conflict: there are too many webhooks.
            Unavailable: the database cannot be written.
        """
        _check_types(types)
        await self._outgoing.check(url)
        webhook = WebhookRecord(
            webhook_id=f"hook_{secrets.token_hex(10)}",
            url=url,
            secrets=(Secret(text=signing.new_secret()),),
            types=tuple(dict.fromkeys(types)),
            created_at=self._clock.now(),
            tag=tag,
            description=description,
        )
        async with self._turn:
            if len(self._webhooks) >= _MOST:
                raise Conflict(f"There are {_MOST} webhooks already: remove one that is not needed.")
            await self._save(webhook)
        log.info("webhook.created", webhook_id=webhook.webhook_id)
        return webhook

    async def change(self, webhook_id: str, **changes: Any) -> WebhookRecord:
        """With other fields. Whoever enables it, or changes its URL, gives it a new chance.

        Raises:
            UnknownWebhook, AddressNotAllowed, InvalidInput, Unavailable: as above.
        """
        self.known(webhook_id)
        if "types" in changes:
            _check_types(changes["types"])
            changes["types"] = tuple(dict.fromkeys(changes["types"]))
        if "url" in changes:
            await self._outgoing.check(changes["url"])
        if "url" in changes or "enabled" in changes:
            changes |= {"failing_since": None, "last_failed_at": None}
        if "enabled" in changes:
            changes |= {"disabled_at": None if changes["enabled"] else self._clock.now(), "disabled_reason": None}
        async with self._turn:
            changed = msgspec.structs.replace(self.known(webhook_id), **changes)
            await self._save(changed)
        log.info("webhook.changed", webhook_id=webhook_id, fields=sorted(changes))
        return changed

    async def rotate(self, webhook_id: str) -> WebhookRecord:
        """With a new secret; those before it sign for a day more. Raises UnknownWebhook, Unavailable."""
        async with self._turn:
            webhook, now = self.known(webhook_id), self._clock.now()
            newest, *older = webhook.secrets
            still = [secret for secret in older if secret.valid_until and secret.valid_until > now]
            previous = Secret(text=newest.text, valid_until=now + OVERLAP)
            kept = (Secret(text=signing.new_secret()), previous, *still)[:_MOST_SECRETS]
            changed = msgspec.structs.replace(webhook, secrets=kept)
            await self._save(changed)
        log.info("webhook.rotated", webhook_id=webhook_id)
        return changed

    async def remove(self, webhook_id: str) -> None:
        """With its log. Raises UnknownWebhook, Unavailable."""
        async with self._turn:
            self.known(webhook_id)
            with unavailable("nothing was removed"):
                await self._store.apply(outbox.remove(webhook_id))
            del self._webhooks[webhook_id]
        log.info("webhook.removed", webhook_id=webhook_id)
        self.on_change(webhook_id)

    # -- what couriers learn

    async def succeeded(self, webhook_id: str) -> None:
        """Whatever failed before, it works now."""
        async with self._turn:
            webhook = self.get(webhook_id)
            if webhook is not None and webhook.failing_since is not None:
                await self._save(msgspec.structs.replace(webhook, failing_since=None, last_failed_at=None))

    async def failed(self, webhook_id: str, now: datetime, status: int | None) -> None:
        """One more failure: the last one, if the receiver says that it is gone, or it has failed for days."""
        async with self._turn:
            webhook = self.get(webhook_id)
            if webhook is None or not webhook.enabled:
                return
            since = schedule.failing_since(now, webhook.failing_since, webhook.last_failed_at)
            failing = msgspec.structs.replace(webhook, failing_since=since, last_failed_at=now)
            if status == _GONE:
                await self._disable(failing, now, "The receiver answered 410: it is gone.")
            elif schedule.is_hopeless(now, since):
                days = schedule.DISABLED_AFTER.days
                await self._disable(failing, now, f"Every delivery failed for {days} days.")
            else:
                await self._save(failing)

    async def _disable(self, webhook: WebhookRecord, now: datetime, reason: str) -> None:
        disabled = msgspec.structs.replace(webhook, enabled=False, disabled_at=now, disabled_reason=reason)
        event = WebhookDisabled(webhook_id=webhook.webhook_id, reason=reason, at=now)
        await self._ledger.commit(Write([(event, None)], disabled=[disabled]))
        log.warning("webhook.disabled", webhook_id=webhook.webhook_id, reason=reason)
        self._install(disabled)

    async def _save(self, webhook: WebhookRecord) -> None:
        with unavailable("nothing was changed"):
            await self._store.apply(outbox.save(webhook))
        self._install(webhook)

    def _install(self, webhook: WebhookRecord) -> None:
        self._webhooks[webhook.webhook_id] = webhook
        self.on_change(webhook.webhook_id)


def _check_types(types: Sequence[str]) -> None:
    for place, name in enumerate(types):
        if name not in TYPES:
            raise InvalidInput(f"There is no event {name!r}: one of {', '.join(TYPES)}.", path=f"types[{place}]")


def _nobody(webhook_id: str) -> None:
    """Nobody wants to know yet."""
