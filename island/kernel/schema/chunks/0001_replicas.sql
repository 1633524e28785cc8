-- The chunk store: local replicas of other islands' snapshots, the chunks of their files, and transferred bytes.

CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,               -- key of the owning island, 64 hex digits
    name TEXT NOT NULL,                -- the dataset's name
    snapshot TEXT NOT NULL,            -- hash of the manifest's root, 64 hex digits
    folder TEXT NOT NULL UNIQUE,       -- below HOME/replicas
    bytes INTEGER NOT NULL,            -- size of all files
    bytes_local INTEGER NOT NULL DEFAULT 0,
    complete INTEGER NOT NULL DEFAULT 0,
    pinned INTEGER NOT NULL DEFAULT 0, -- fetched explicitly; never evicted
    used_at REAL NOT NULL,             -- unix seconds of the last read
    kept_until REAL NOT NULL DEFAULT 0, -- unix seconds until which a session may read its files by path
    UNIQUE (owner, name, snapshot)
) STRICT;

CREATE TABLE file (
    id INTEGER PRIMARY KEY,
    snapshot INTEGER NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
    path TEXT NOT NULL,                -- as published
    bytes_local INTEGER NOT NULL DEFAULT 0,
    bits BLOB NOT NULL,                -- one bit per chunk, lowest bit first; set after the data are written
    mtime_ns INTEGER,                  -- of the complete, synced file; NULL until it is complete
    UNIQUE (snapshot, path)
) STRICT;

CREATE TABLE page (
    hash BLOB NOT NULL,                -- of a manifest page, which is needed to verify local chunks
    snapshot INTEGER NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
    data BLOB NOT NULL,
    PRIMARY KEY (hash, snapshot)
) STRICT, WITHOUT ROWID;

CREATE INDEX page_snapshot ON page (snapshot);

CREATE TABLE moved (
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    received INTEGER NOT NULL DEFAULT 0, -- bytes, from any holder
    sent INTEGER NOT NULL DEFAULT 0,     -- bytes, to any island
    PRIMARY KEY (owner, name, snapshot)
) STRICT, WITHOUT ROWID;

CREATE TABLE fault (
    holder TEXT PRIMARY KEY,           -- key of an island that sent bytes that do not match their hash
    times INTEGER NOT NULL,
    last_at REAL NOT NULL,
    what TEXT NOT NULL                 -- the last mismatch: dataset, file, chunk
) STRICT, WITHOUT ROWID;
