-- Jobs, stored by their home, and runs, stored by their executor.
-- An island can be both home and executor of a job; the tables do not refer to each other.

CREATE TABLE job (
    id            TEXT PRIMARY KEY,           -- UUIDv7.KEYPREFIX
    kind          TEXT NOT NULL CHECK (kind IN ('session', 'batch')),
    local         INTEGER NOT NULL,           -- the id that Livy's clients use at this island
    user          TEXT NOT NULL,
    name          TEXT,
    idempotency   TEXT,                       -- idempotency key of the client; unique per user
    request_hash  TEXT NOT NULL,
    request       TEXT NOT NULL,              -- JSON of the client's request, without proxyUser
    work          BLOB NOT NULL,              -- messages.Work
    file_hash     TEXT NOT NULL DEFAULT '',   -- file of a batch; its bytes are in job_file
    pin           TEXT NOT NULL DEFAULT '',
    reattach      TEXT NOT NULL,              -- job key: gives the owner access from other islands
    created       REAL NOT NULL,
    ended         REAL,
    phase         TEXT NOT NULL CHECK (phase IN ('routing', 'committing', 'placed', 'ended')),
    epoch         INTEGER NOT NULL DEFAULT 0,
    executor      TEXT NOT NULL DEFAULT '',
    reservation   TEXT NOT NULL DEFAULT '',
    released      INTEGER NOT NULL DEFAULT 0, -- the executor was told that home has stored everything
    stop          INTEGER NOT NULL DEFAULT 0, -- the owner asked to end it
    deleted       INTEGER NOT NULL DEFAULT 0, -- hidden from Livy's clients
    state         TEXT NOT NULL,              -- Livy's
    reason        TEXT NOT NULL DEFAULT '',
    app_id        TEXT NOT NULL DEFAULT '',
    app_info      TEXT NOT NULL DEFAULT '{}',
    engine_log    TEXT NOT NULL DEFAULT '[]',
    notes         INTEGER NOT NULL DEFAULT 0, -- number of the executor's notes that are in job_log
    moved         INTEGER NOT NULL DEFAULT 0,
    statements    INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX job_local ON job (kind, local);
CREATE UNIQUE INDEX job_idempotency ON job (user, idempotency) WHERE idempotency IS NOT NULL;
CREATE INDEX job_name ON job (kind, name) WHERE name IS NOT NULL AND deleted = 0;
CREATE INDEX job_of_user ON job (user) WHERE phase != 'ended';
CREATE INDEX job_seen ON job (kind, local) WHERE deleted = 0;
CREATE INDEX job_live ON job (phase, released) WHERE phase != 'ended' OR released = 0;

-- The next local id, shared by sessions and batches. It only increases, so that an id is never reused.
CREATE TABLE job_counter (next INTEGER NOT NULL) STRICT;
INSERT INTO job_counter VALUES (0);

CREATE TABLE job_log (
    job TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE job_statement (
    job TEXT NOT NULL, number INTEGER NOT NULL,
    code TEXT NOT NULL, language TEXT NOT NULL,
    state TEXT NOT NULL,                      -- Livy's
    output TEXT NOT NULL DEFAULT '',          -- JSON, or ''
    started INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0,
    cancel INTEGER NOT NULL DEFAULT 0,        -- the owner asked to cancel it
    PRIMARY KEY (job, number)
) STRICT;
CREATE INDEX job_statement_open ON job_statement (job, number) WHERE state IN ('waiting', 'running', 'cancelling');

-- Files of batches by SHA-256, kept while a job or a run needs them.
CREATE TABLE job_file (hash TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT;

CREATE TABLE job_decision (
    job TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, decision TEXT NOT NULL,
    PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE run (
    job TEXT NOT NULL, epoch INTEGER NOT NULL,
    home TEXT NOT NULL, user TEXT NOT NULL, request_hash TEXT NOT NULL,
    work BLOB NOT NULL, signature BLOB NOT NULL,
    file_hash TEXT NOT NULL DEFAULT '',
    lease REAL NOT NULL,
    accepted REAL NOT NULL,
    step TEXT NOT NULL CHECK (step IN ('accepted', 'submitting', 'running', 'ended')),
    engine TEXT NOT NULL DEFAULT '',          -- instance of the engine, '' for a stock Livy
    remote INTEGER,                           -- id at the engine
    hidden INTEGER NOT NULL DEFAULT 0,        -- number of statements that create the views of inputs
    state TEXT NOT NULL DEFAULT 'starting',
    reason TEXT NOT NULL DEFAULT '',
    app_id TEXT NOT NULL DEFAULT '', app_info TEXT NOT NULL DEFAULT '{}',
    notes TEXT NOT NULL DEFAULT '[]', log TEXT NOT NULL DEFAULT '[]',
    moved INTEGER NOT NULL DEFAULT 0,
    stop INTEGER NOT NULL DEFAULT 0,
    cleared INTEGER NOT NULL DEFAULT 0,       -- the engine keeps nothing of this run
    released INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, epoch)
) STRICT;

CREATE INDEX run_open ON run (step, cleared) WHERE step != 'ended' OR cleared = 0;

CREATE TABLE run_statement (
    job TEXT NOT NULL, epoch INTEGER NOT NULL, number INTEGER NOT NULL,
    code TEXT NOT NULL, language TEXT NOT NULL,
    remote INTEGER NOT NULL,                  -- id at the engine: expected at first, then confirmed
    state TEXT NOT NULL,
    output TEXT NOT NULL DEFAULT '',
    started INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0,
    cancel INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, epoch, number)
) STRICT;
