-- The network of this island, its invitations, the islands that it admitted, and its journal.
CREATE TABLE network (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id TEXT NOT NULL,
    chain BLOB NOT NULL,
    since REAL NOT NULL
) STRICT;

-- Only the hash of an invitation's secret is stored.
CREATE TABLE invitation (
    secret_hash BLOB PRIMARY KEY,
    created REAL NOT NULL,
    expires REAL NOT NULL,
    uses INTEGER NOT NULL,
    used INTEGER NOT NULL DEFAULT 0 CHECK (used <= uses)
) STRICT, WITHOUT ROWID;

CREATE TABLE admission (
    key TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    secret_hash BLOB NOT NULL REFERENCES invitation (secret_hash),
    chain BLOB NOT NULL,
    at REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE journal (
    seq INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    who TEXT NOT NULL,
    act TEXT NOT NULL,
    what TEXT NOT NULL,
    outcome TEXT NOT NULL,
    detail TEXT NOT NULL,
    previous BLOB NOT NULL,
    hash BLOB NOT NULL
) STRICT;

-- journal_head: the newest row, to detect that rows were removed from the end.
-- journal_seal: the newest head, signed with the island's key.
CREATE TABLE journal_head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL
) STRICT;

CREATE TABLE journal_seal (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    network TEXT NOT NULL,
    signature BLOB NOT NULL
) STRICT;
