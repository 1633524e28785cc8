-- This island's own log: its signed records, changes that are not signed yet, log batches, and its own blobs.

-- The newest signed state of each key. A NULL value is a tombstone.
CREATE TABLE gossip_own_records (
    key   TEXT NOT NULL PRIMARY KEY,
    value BLOB,
    epoch INTEGER NOT NULL,
    seq   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Changes that are not signed yet, at most one per key. `change` increases with every change.
CREATE TABLE gossip_own_pending (
    change INTEGER PRIMARY KEY AUTOINCREMENT,
    key    TEXT NOT NULL UNIQUE,
    value  BLOB
) STRICT;

-- Every signed log batch, byte for byte.
CREATE TABLE gossip_own_batches (
    epoch  INTEGER NOT NULL,
    first  INTEGER NOT NULL,
    last   INTEGER NOT NULL,
    hash   BLOB NOT NULL,
    signed BLOB NOT NULL,
    PRIMARY KEY (epoch, first)
) STRICT;

CREATE TABLE gossip_own_blobs (
    hash TEXT NOT NULL PRIMARY KEY,
    uses INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;
