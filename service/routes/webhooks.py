"""Webhooks: make one, change it, try it, see what it was sent and send it again. docs/notifications.md has the rest."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.params import Parameter
from msgspec import Meta

from jobs.values import Tag
from service import waiting
from service.answers import Answer, Done
from service.cursors import LAST_SEQ
from service.notify.notifier import Notifier
from service.notify.registry import DEFAULT_TYPES, Registry
from service.outbox import Tally
from service.problems import documented
from service.records import DeliveryRecord, DeliveryState, WebhookRecord
from service.store import Store

_TAGS = ["webhooks"]

Url = Annotated[str, Meta(min_length=1, max_length=2048, description="Where to, https; http only in listed networks.")]
Types = Annotated[
    tuple[str, ...], Meta(min_length=1, max_length=50, description="Event types of docs/events.md that are wanted.")
]
Description = Annotated[str, Meta(max_length=200)]


class WebhookRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new webhook: of the events in `types`, with a `tag` only those of jobs that have it."""

    url: Url
    types: Types = DEFAULT_TYPES
    tag: Tag | None = None
    description: Description = ""


class WebhookChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is not given, or null, stays as it is; an empty `tag` means any job."""

    url: Url | None = None
    types: Types | None = None
    tag: Annotated[str, Meta(max_length=100)] | None = None
    description: Description | None = None
    enabled: bool | None = None


class ReplayRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From where on: everything that is wanted, or only what was not delivered. A cursor is the `seq` of an event."""

    after: Annotated[int, Meta(ge=0, le=LAST_SEQ)] = 0
    undelivered_only: bool = False


class WebhookAnswer(Answer, frozen=True, kw_only=True):
    """A webhook without its secret. `held` events came while it was disabled and `failed` ones were given up: a replay
    of what is undelivered behind `undelivered_after` sends both. `failing_since` is null while all goes well.
    """

    webhook_id: str
    url: str
    types: tuple[str, ...]
    tag: str | None
    description: str
    format: Literal["standard"]
    enabled: bool
    created_at: datetime
    disabled_at: datetime | None
    disabled_reason: str | None
    failing_since: datetime | None
    previous_secret_until: datetime | None
    pending: int
    delivered: int
    failed: int
    held: int
    undelivered_after: int | None


class CreatedWebhook(WebhookAnswer, frozen=True, kw_only=True):
    """A new webhook; `secret` is shown this once."""

    secret: str


class NewSecret(Answer, frozen=True, kw_only=True):
    """Shown this once. Until `previous_until` messages are signed with the previous secret, too."""

    webhook_id: str
    secret: str
    previous_until: datetime


class PingAnswer(Answer, frozen=True, kw_only=True):
    """How the ping went. What the receiver answered is not told."""

    success: bool
    status: int | None
    latency_ms: int
    error: str | None


class DeliveryAnswer(Answer, frozen=True, kw_only=True):
    """One event for a webhook, and how the last of its `tries` went; `response` is the begin of what was answered.

    `next_try_at` is null for one that is done, and for one that waits for those before it. A ping has no `seq`.
    """

    delivery_id: int
    message_id: str
    seq: int | None
    type: str
    job_id: str | None
    state: DeliveryState
    tries: int
    next_try_at: datetime | None
    attempted_at: datetime | None
    status: int | None
    latency_ms: int | None
    error: str | None
    response: str | None


class DeliveryPage(Answer, frozen=True, kw_only=True):
    """Newest first; `before` is the cursor of the next page, null on the last one."""

    deliveries: tuple[DeliveryAnswer, ...]
    before: int | None


class Replayed(Done, frozen=True, kw_only=True):
    """`count` deliveries begin anew."""

    count: int


@post("/webhooks", status_code=201, tags=_TAGS, responses=documented(409, 422))
async def create_webhook(
    data: WebhookRequest, request: Request[Any, Any, Any], webhooks: Registry
) -> Response[CreatedWebhook]:
    """Register a receiver; the answer has its secret, once."""
    webhook = await webhooks.create(data.url, data.types, data.tag, data.description)
    answer = CreatedWebhook(**_fields(webhook, {}), secret=webhook.secrets[0].text)
    address = f"{waiting.prefix_of(request)}/webhooks/{webhook.webhook_id}"
    return Response(answer, headers={"location": address, "cache-control": "no-store"})


@get("/webhooks", tags=_TAGS)
async def list_webhooks(webhooks: Registry, store: Store) -> list[WebhookAnswer]:
    """All webhooks, oldest first."""
    tallies = await store.tallies()
    return [WebhookAnswer(**_fields(each, tallies.get(each.webhook_id, {}))) for each in webhooks.all()]


@get("/webhooks/{webhook_id:str}", tags=_TAGS, responses=documented(404))
async def get_webhook(webhook_id: str, webhooks: Registry, store: Store) -> WebhookAnswer:
    """A webhook, and how much it was sent and waits for."""
    return await _answer(webhooks.known(webhook_id), store)


@patch("/webhooks/{webhook_id:str}", tags=_TAGS, responses=documented(404, 422))
async def change_webhook(webhook_id: str, data: WebhookChange, webhooks: Registry, store: Store) -> WebhookAnswer:
    """Change what is given; `enabled` turns it off and on. What happens while it is off is held for a replay."""
    given = {name: value for name, value in msgspec.structs.asdict(data).items() if value is not None}
    if "tag" in given:
        given["tag"] = given["tag"] or None
    return await _answer(await webhooks.change(webhook_id, **given), store)


@delete("/webhooks/{webhook_id:str}", status_code=200, tags=_TAGS, responses=documented(404))
async def delete_webhook(webhook_id: str, webhooks: Registry) -> Done:
    """Remove a webhook and its log."""
    await webhooks.remove(webhook_id)
    return Done(success=True, message=f"Webhook {webhook_id} is removed.")


@post("/webhooks/{webhook_id:str}/rotate", status_code=200, tags=_TAGS, responses=documented(404))
async def rotate_secret(webhook_id: str, webhooks: Registry) -> Response[NewSecret]:
    """A new secret, shown once; the one before it goes on to sign for 24 hours, so that no message is refused."""
    newest, previous, *_ = (await webhooks.rotate(webhook_id)).secrets
    if previous.valid_until is None:
        raise RuntimeError("a replaced secret has an end")
    answer = NewSecret(webhook_id=webhook_id, secret=newest.text, previous_until=previous.valid_until)
    return Response(answer, headers={"cache-control": "no-store"})


@post("/webhooks/{webhook_id:str}/ping", status_code=200, tags=_TAGS, responses=documented(404))
async def ping_webhook(webhook_id: str, notifier: Notifier) -> PingAnswer:
    """Send a signed `webhook.ping` now and say how it went."""
    reply = await notifier.ping(webhook_id)
    return PingAnswer(success=reply.error is None, status=reply.status, latency_ms=reply.latency_ms, error=reply.error)


@get("/webhooks/{webhook_id:str}/deliveries", tags=_TAGS, responses=documented(404, 422))
async def list_deliveries(
    webhook_id: str,
    webhooks: Registry,
    store: Store,
    only: Annotated[DeliveryState | None, Parameter(query="state", description="Only those in this state.")] = None,
    limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    before: Annotated[
        int | None, Parameter(ge=0, le=LAST_SEQ, description="Cursor: `before` of the last page.")
    ] = None,
) -> DeliveryPage:
    """What was sent and what waits, newest first; what was delivered is kept for thirty days."""
    webhooks.known(webhook_id)
    found = await store.deliveries(webhook_id, only, before, limit)
    cursor = found[-1].delivery_id if len(found) == limit else None
    return DeliveryPage(deliveries=tuple(_delivery(each) for each in found), before=cursor)


@post(
    "/webhooks/{webhook_id:str}/deliveries/{delivery_id:int}/redeliver",
    status_code=200,
    tags=_TAGS,
    responses=documented(400, 404),
)
async def redeliver(
    webhook_id: str, delivery_id: Annotated[int, Parameter(ge=0, le=LAST_SEQ)], notifier: Notifier
) -> DeliveryAnswer:
    """Send one again, before everything newer, under the same id."""
    return _delivery(await notifier.redeliver(webhook_id, delivery_id))


@post("/webhooks/{webhook_id:str}/replay", status_code=200, tags=_TAGS, responses=documented(400, 404, 422))
async def replay(webhook_id: str, data: ReplayRequest, notifier: Notifier) -> Replayed:
    """Send what lies behind a cursor again, in order, under the same ids; also what was before there was a webhook."""
    count = await notifier.replay(webhook_id, data.after, undelivered_only=data.undelivered_only)
    events = "event is" if count == 1 else "events are"
    return Replayed(success=True, count=count, message=f"{count:,} {events} sent again.")


async def _answer(webhook: WebhookRecord, store: Store) -> WebhookAnswer:
    return WebhookAnswer(**_fields(webhook, (await store.tallies()).get(webhook.webhook_id, {})))


def _fields(webhook: WebhookRecord, tally: Mapping[DeliveryState, Tally]) -> dict[str, Any]:
    counts: dict[str, int] = {state: tally[state].count if state in tally else 0 for state in _STATES}
    kept = [tally[state].first_seq for state in ("held", "failed") if state in tally]
    own = {name: getattr(webhook, name) for name in WebhookAnswer.__struct_fields__ if hasattr(webhook, name)}
    previous = webhook.secrets[1].valid_until if len(webhook.secrets) > 1 else None
    first = min((seq for seq in kept if seq is not None), default=None)
    return {
        **own,
        **counts,
        "previous_secret_until": previous,
        "undelivered_after": None if first is None else first - 1,
    }


_STATES: tuple[DeliveryState, ...] = ("pending", "delivered", "failed", "held")


def _delivery(delivery: DeliveryRecord) -> DeliveryAnswer:
    given = msgspec.structs.asdict(delivery)
    fields = {name: given[name] for name in DeliveryAnswer.__struct_fields__ if name in given}
    is_pending = delivery.state == "pending"
    return DeliveryAnswer(
        **fields | {"job_id": delivery.job_id or None}, next_try_at=delivery.next_at if is_pending else None
    )
