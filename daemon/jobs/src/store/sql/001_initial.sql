-- What is searched for is a column; the rest of a record is JSON in `body`.

CREATE TABLE store (
    -- Made with the file. Resume tokens carry it, so that a token of another store is recognised.
    id TEXT NOT NULL
) STRICT;

CREATE TABLE jobs (
    -- The order of creation; lists and pages follow it.
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL UNIQUE,
    state       TEXT    NOT NULL,
    -- Smaller runs first. Given anew each time the job is queued; meaningless in other states.
    queue_order INTEGER NOT NULL,
    -- Of the job's newest event.
    last_seq    INTEGER NOT NULL DEFAULT 0,
    body        TEXT    NOT NULL
) STRICT;

CREATE INDEX jobs_by_state ON jobs (state, queue_order);

CREATE TABLE events (
    job  TEXT    NOT NULL REFERENCES jobs (id),
    seq  INTEGER NOT NULL,
    time INTEGER NOT NULL,
    body TEXT    NOT NULL,
    PRIMARY KEY (job, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE operations (
    id    TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL,
    body  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Requests that had their effect, written in the same transaction as the effect.
CREATE TABLE requests (
    id       TEXT    NOT NULL PRIMARY KEY,
    method   TEXT    NOT NULL,
    hash     TEXT    NOT NULL,
    -- The id of the job or operation that the request made.
    response TEXT    NOT NULL,
    time     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
