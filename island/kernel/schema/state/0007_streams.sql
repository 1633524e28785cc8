-- Sources of this island: watched folders, and the source journal of their complete files.
-- A source stores nothing about subscribers. `changes` counts all changes of the source journal.
CREATE TABLE stream_sources (
    name        TEXT PRIMARY KEY,
    kind        TEXT NOT NULL,
    path        TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    added       REAL NOT NULL,
    added_by    TEXT NOT NULL,
    format      TEXT NOT NULL DEFAULT '',
    columns     BLOB,
    changes     INTEGER NOT NULL DEFAULT 0,
    files       INTEGER NOT NULL DEFAULT 0,
    rows        INTEGER NOT NULL DEFAULT 0,
    bytes       INTEGER NOT NULL DEFAULT 0,
    updated     REAL NOT NULL
) STRICT;

-- One row per distinct content, in order of arrival. `gone` is the change at which its last file was removed.
CREATE TABLE stream_files (
    source  TEXT NOT NULL REFERENCES stream_sources (name) ON DELETE CASCADE,
    seq     INTEGER NOT NULL,
    path    TEXT NOT NULL,
    size    INTEGER NOT NULL,
    hash    TEXT NOT NULL,
    format  TEXT NOT NULL,
    rows    INTEGER NOT NULL,
    arrived REAL NOT NULL,
    gone    INTEGER,
    problem TEXT NOT NULL DEFAULT '',
    note    TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (source, seq),
    UNIQUE (source, hash)
) STRICT, WITHOUT ROWID;

-- The files that are now in the folder, with their attributes when they were last read.
CREATE TABLE stream_names (
    source   TEXT NOT NULL REFERENCES stream_sources (name) ON DELETE CASCADE,
    path     TEXT NOT NULL,
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    hash     TEXT NOT NULL,
    PRIMARY KEY (source, path)
) STRICT, WITHOUT ROWID;
CREATE INDEX stream_names_hash ON stream_names (source, hash);

-- Subscriptions of this island's users, with the committed position of each.
CREATE TABLE subscriptions (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    owner       TEXT NOT NULL,
    owner_name  TEXT NOT NULL,
    source      TEXT NOT NULL,
    predicate   TEXT NOT NULL,
    region      TEXT NOT NULL,
    start       TEXT NOT NULL,
    user        TEXT NOT NULL,
    created     REAL NOT NULL,
    incarnation TEXT NOT NULL,
    position    BLOB NOT NULL,
    columns     BLOB,
    rows        INTEGER NOT NULL DEFAULT 0,
    bytes       INTEGER NOT NULL DEFAULT 0,
    segments    INTEGER NOT NULL DEFAULT 0,
    halted      TEXT NOT NULL DEFAULT '',
    reason      TEXT NOT NULL DEFAULT '',
    updated     REAL NOT NULL
) STRICT;

-- The files of a subscription's dataset. A file without a row here was never committed.
CREATE TABLE stream_segments (
    subscription TEXT NOT NULL REFERENCES subscriptions (id) ON DELETE CASCADE,
    number       INTEGER NOT NULL,
    file         TEXT NOT NULL,
    rows         INTEGER NOT NULL,
    bytes        INTEGER NOT NULL,
    committed    REAL NOT NULL,
    PRIMARY KEY (subscription, number)
) STRICT, WITHOUT ROWID;
