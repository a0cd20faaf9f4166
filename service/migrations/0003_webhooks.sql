-- Who is told of events, and what was, is and will be sent to them.

CREATE TABLE webhooks (
    webhook_id TEXT PRIMARY KEY,
    enabled    INTEGER NOT NULL,
    types      TEXT NOT NULL,     -- the event types it wants, as a JSON list
    tag        TEXT,              -- only of jobs with this tag
    record     BLOB NOT NULL      -- the WebhookRecord as JSON, with its secrets
) WITHOUT ROWID;

-- An event for a webhook is written with the event itself, in one transaction. What it says stands in `events`; only
-- when its job is deleted before it was delivered, it is kept here.
CREATE TABLE deliveries (
    delivery_id  INTEGER PRIMARY KEY AUTOINCREMENT,
    webhook_id   TEXT NOT NULL,
    seq          INTEGER,         -- the event; NULL for a ping
    message_id   TEXT NOT NULL,   -- the same for every try
    type         TEXT NOT NULL,
    job_id       TEXT NOT NULL,
    state        TEXT NOT NULL,   -- pending, delivered, failed or held
    tries        INTEGER NOT NULL DEFAULT 0,
    next_at      TEXT,            -- NULL: when those before it are delivered
    attempted_at TEXT,            -- this and what follows: the last try
    status       INTEGER,
    latency_ms   INTEGER,
    error        TEXT,
    response     TEXT,
    body         BLOB
);
CREATE UNIQUE INDEX deliveries_by_event ON deliveries (webhook_id, seq);
CREATE INDEX deliveries_by_state ON deliveries (webhook_id, state, seq);
CREATE INDEX deliveries_by_webhook ON deliveries (webhook_id);  -- and so by delivery_id: the log
