"""The tables of webhooks and of deliveries: all their SQL. Reads are methods, writes are statements for `Store.apply`.

`store` writes a delivery in the transaction of its event; `notify` reads what is due and notes what became of it. A
webhook's deliveries are due in the order of `seq`, so one that fails holds up those behind it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from service.queries import Queries
from service.records import DeliveryRecord, DeliveryState, WebhookRecord

Statement = tuple[str, Sequence[Sequence[object] | Mapping[str, object]]]
"""SQL, and the rows it runs for."""
Statements = Sequence[Statement]

_WANTED = """
    FROM events e CROSS JOIN webhooks w
    WHERE e.seq > ? AND EXISTS (SELECT 1 FROM json_each(w.types) WHERE value = e.type)
        AND (w.tag IS NULL OR EXISTS (SELECT 1 FROM tags t WHERE t.tag = w.tag AND t.job_id = e.job_id))
"""
_INSERT_WANTED = f"""
    INSERT INTO deliveries (webhook_id, seq, message_id, type, job_id, state)
    SELECT w.webhook_id, e.seq, 'msg_' || coalesce(nullif(e.job_id, ''), w.webhook_id) || '_' || e.seq, e.type,
        e.job_id, CASE WHEN w.enabled THEN 'pending' ELSE 'held' END {_WANTED}
"""
_REPLAY_WANTED = f"""
    {_INSERT_WANTED} AND w.webhook_id = ? ORDER BY e.seq
    ON CONFLICT (webhook_id, seq) DO UPDATE SET state = excluded.state, tries = 0, next_at = NULL
"""
_REPLAY_UNDELIVERED = """
    UPDATE deliveries SET state = 'pending', tries = 0, next_at = NULL
    WHERE webhook_id = ? AND seq > ? AND state IN ('held', 'failed')
"""
_REPLAY_KEPT_BODIES = """
    UPDATE deliveries SET state = 'pending', tries = 0, next_at = NULL
    WHERE webhook_id = ? AND seq > ? AND body IS NOT NULL
"""
_REPLAY_ONE = "UPDATE deliveries SET state = 'pending', tries = 0, next_at = NULL WHERE delivery_id = ?"
_UPSERT_WEBHOOK = """
    INSERT INTO webhooks (webhook_id, enabled, types, tag, record) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (webhook_id) DO UPDATE SET enabled = excluded.enabled, types = excluded.types, tag = excluded.tag,
        record = excluded.record
"""
_HOLD = "UPDATE deliveries SET state = 'held' WHERE webhook_id = ? AND state = 'pending'"
_DELETE_WEBHOOK = tuple(f"DELETE FROM {table} WHERE webhook_id = ?" for table in ("deliveries", "webhooks"))
_UPDATE_DELIVERY = """
    UPDATE deliveries SET tries = ?, next_at = ?, attempted_at = ?, status = ?, latency_ms = ?, error = ?, response = ?,
        state = CASE WHEN ?8 = 'delivered' OR state = 'pending' THEN ?8 ELSE state END
    WHERE delivery_id = ?
"""
_INSERT_PING = """
    INSERT INTO deliveries
        (webhook_id, message_id, type, job_id, state, tries, attempted_at, status, latency_ms, error)
    VALUES (?, ?, ?, '', ?, 1, ?, ?, ?, ?)
"""
_FORGET_DELIVERED = "DELETE FROM deliveries WHERE (state = 'delivered' OR seq IS NULL) AND attempted_at < ?"
_FIELDS = ", ".join(f"d.{name}" for name in DeliveryRecord.__struct_fields__ if name != "body")
_DELIVERIES = f"SELECT {_FIELDS}, coalesce(d.body, e.body) AS body FROM deliveries d LEFT JOIN events e USING (seq)"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(WebhookRecord).decode


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """How many deliveries a webhook has in a state, and the first event of them."""

    count: int
    first_seq: int | None


class Outbox(Queries):
    """What is to be sent to whom, and what was."""

    async def webhooks(self) -> list[WebhookRecord]:
        """All of them, oldest first."""
        found = [_decode(row[0]) for row in await self._rows("SELECT record FROM webhooks")]
        return sorted(found, key=lambda webhook: webhook.created_at)

    async def due(self, webhook_id: str, limit: int) -> list[DeliveryRecord]:
        """What is next for a webhook, in the order in which it must be delivered."""
        sql = f"{_DELIVERIES} WHERE webhook_id = :webhook_id AND state = 'pending' ORDER BY d.seq LIMIT :limit"
        return await self._deliveries(sql, {"webhook_id": webhook_id, "limit": limit})

    async def deliveries(
        self, webhook_id: str, state: DeliveryState | None = None, before: int | None = None, limit: int = 100
    ) -> list[DeliveryRecord]:
        """The log of a webhook, newest first; `before` is the id of the last one that is known."""
        values = {"webhook_id": webhook_id, "state": state, "before": before, "limit": limit}
        conditions = [f"AND {text}" for text, wanted in ((_STATE, state), (_BEFORE, before)) if wanted is not None]
        where = f"WHERE webhook_id = :webhook_id {' '.join(conditions)}"
        return await self._deliveries(f"{_DELIVERIES} {where} ORDER BY delivery_id DESC LIMIT :limit", values)

    async def delivery(self, webhook_id: str, delivery_id: int) -> DeliveryRecord | None:
        sql = f"{_DELIVERIES} WHERE webhook_id = :webhook_id AND delivery_id = :delivery_id"
        found = await self._deliveries(sql, {"webhook_id": webhook_id, "delivery_id": delivery_id})
        return found[0] if found else None

    async def tallies(self) -> dict[str, dict[DeliveryState, Tally]]:
        """By webhook and state; pings are not counted."""
        sql = """
            SELECT webhook_id, state, count(*), min(seq) FROM deliveries
            WHERE seq IS NOT NULL GROUP BY webhook_id, state
        """
        found: dict[str, dict[DeliveryState, Tally]] = {}
        for webhook_id, state, count, first_seq in await self._rows(sql):
            found.setdefault(webhook_id, {})[state] = Tally(count=count, first_seq=first_seq)
        return found

    async def _deliveries(self, sql: str, values: Mapping[str, object]) -> list[DeliveryRecord]:
        return [msgspec.convert(dict(row), DeliveryRecord) for row in await self._rows(sql, values)]


_STATE = "state = :state"
_BEFORE = "delivery_id < :before"


def enqueue(after: int | None) -> Statement:
    """Deliveries of every event behind a cursor, for whoever wants it; for a disabled webhook they are held."""
    return f"{_INSERT_WANTED} ORDER BY e.seq", [] if after is None else [(after,)]


def save(webhook: WebhookRecord) -> Statements:
    """A webhook as it is now; what waits for one that is disabled is held."""
    row = (webhook.webhook_id, webhook.enabled, _encode(webhook.types).decode(), webhook.tag, _encode(webhook))
    return [(_UPSERT_WEBHOOK, [row]), (_HOLD, [] if webhook.enabled else [(webhook.webhook_id,)])]


def disable(webhooks: Iterable[WebhookRecord]) -> Statements:
    return [statement for webhook in webhooks for statement in save(webhook)]


def remove(webhook_id: str) -> Statements:
    """Forget a webhook and its log."""
    return [(sql, [(webhook_id,)]) for sql in _DELETE_WEBHOOK]


def note(deliveries: Iterable[DeliveryRecord]) -> Statement:
    """How tries went. What was held meanwhile stays so, unless it arrived."""
    return _UPDATE_DELIVERY, [
        (d.tries, _text(d.next_at), _text(d.attempted_at), d.status, d.latency_ms, d.error, d.response, d.state,
         d.delivery_id)
        for d in deliveries
    ]  # fmt: skip


def note_ping(ping: DeliveryRecord, status: int | None, latency_ms: int, error: str | None) -> Statement:
    """Without what the receiver answered: a ping must not read for its caller what the caller cannot reach."""
    state: DeliveryState = "failed" if error else "delivered"
    row = (ping.webhook_id, ping.message_id, ping.type, state, _text(ping.attempted_at), status, latency_ms, error)
    return _INSERT_PING, [row]


def replay(webhook_id: str, after: int) -> Statements:
    """Every event behind a cursor that the webhook wants, also those from before there was a webhook."""
    return [(_REPLAY_WANTED, [(after, webhook_id)]), (_REPLAY_KEPT_BODIES, [(webhook_id, after)])]


def replay_undelivered(webhook_id: str, after: int) -> Statements:
    """What was held or given up behind a cursor."""
    return [(_REPLAY_UNDELIVERED, [(webhook_id, after)])]


def replay_one(delivery_id: int) -> Statements:
    return [(_REPLAY_ONE, [(delivery_id,)])]


def forget_delivered(before: datetime) -> Statements:
    """Keep the log short."""
    return [(_FORGET_DELIVERED, [(before.isoformat(),)])]


def _text(time: datetime | None) -> str | None:
    return time.isoformat() if time else None
