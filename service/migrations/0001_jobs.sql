-- Jobs, their events, and what the events add up to. Names are relative to the data root; times are ISO 8601 in UTC.

-- One row a job. `record` is the JobRecord as JSON; the other columns are what queries ask for.
CREATE TABLE jobs (
    submitted_seq  INTEGER PRIMARY KEY,  -- the seq of job.submitted: the order of submission
    job_id         TEXT NOT NULL UNIQUE,
    kind           TEXT NOT NULL,
    status         TEXT NOT NULL,
    label          TEXT,                 -- the client's name for a training's or an export's files
    parent_id      TEXT,                 -- the training an export was made from
    input_name     TEXT,                 -- the dataset a validation or a split reads
    output_name    TEXT,                 -- the dataset folder a conversion or a split writes
    duration_s     REAL,
    best_eval_loss REAL,
    record         BLOB NOT NULL
);
CREATE INDEX jobs_by_status ON jobs (status);
CREATE INDEX jobs_by_kind ON jobs (kind, submitted_seq);
CREATE INDEX jobs_by_label ON jobs (label, submitted_seq) WHERE label IS NOT NULL;
CREATE INDEX jobs_by_parent ON jobs (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX jobs_by_input ON jobs (input_name) WHERE input_name IS NOT NULL;
CREATE INDEX jobs_by_output ON jobs (output_name) WHERE output_name IS NOT NULL;

CREATE TABLE tags (
    job_id TEXT NOT NULL,
    tag    TEXT NOT NULL,
    PRIMARY KEY (tag, job_id)
) WITHOUT ROWID;
CREATE INDEX tags_by_job ON tags (job_id);

-- The log. `seq` is the cursor of the outside and is never used twice; `n` is the line of the attempt's journal.
CREATE TABLE events (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id  TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    n       INTEGER,
    type    TEXT NOT NULL,
    at      TEXT NOT NULL,
    body    BLOB NOT NULL
);
CREATE UNIQUE INDEX events_by_line ON events (job_id, attempt, n) WHERE n IS NOT NULL;
CREATE INDEX events_by_job ON events (job_id, seq);

-- NULL stands for a value that is no finite number.
CREATE TABLE metrics (
    job_id  TEXT NOT NULL,
    series  TEXT NOT NULL,
    step    INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    epoch   REAL,
    value   REAL,
    PRIMARY KEY (job_id, series, step)
) WITHOUT ROWID;

CREATE TABLE checkpoints (
    job_id   TEXT NOT NULL,
    path     TEXT NOT NULL,
    attempt  INTEGER NOT NULL,
    step     INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,
    metrics  BLOB NOT NULL,
    saved_at TEXT NOT NULL,
    PRIMARY KEY (job_id, path)
) WITHOUT ROWID;

CREATE TABLE artifacts (
    job_id     TEXT NOT NULL,
    path       TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    bytes      INTEGER NOT NULL,
    sha256     TEXT,
    created_at TEXT NOT NULL,
    PRIMARY KEY (job_id, path)
) WITHOUT ROWID;

-- How far the event stream was read. A position means nothing under another epoch.
CREATE TABLE stream (
    only  INTEGER PRIMARY KEY CHECK (only = 1),
    epoch TEXT NOT NULL,
    after TEXT NOT NULL
);

CREATE TABLE dead_letters (
    epoch    TEXT NOT NULL,
    entry_id TEXT NOT NULL,
    at       TEXT NOT NULL,
    error    TEXT NOT NULL,
    body     BLOB NOT NULL,
    PRIMARY KEY (epoch, entry_id)
) WITHOUT ROWID;
