-- The logs of all islands (that of this island is a copy), the records in them, and fetched blobs.
-- The whole database can be rebuilt.

CREATE TABLE gossip_origins (
    origin TEXT NOT NULL PRIMARY KEY,
    chain  BLOB NOT NULL,
    epoch  INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    head   BLOB NOT NULL,
    keys   INTEGER NOT NULL,
    bytes  INTEGER NOT NULL
) STRICT;

CREATE TABLE gossip_batches (
    origin TEXT NOT NULL REFERENCES gossip_origins,
    epoch  INTEGER NOT NULL,
    first  INTEGER NOT NULL,
    last   INTEGER NOT NULL,
    hash   BLOB NOT NULL,
    signed BLOB NOT NULL,
    PRIMARY KEY (origin, epoch, first)
) STRICT;

-- The newest state of each key. A NULL value is a tombstone. Records of this island that are not
-- signed yet are included with seq 0.
CREATE TABLE gossip_records (
    origin TEXT NOT NULL,
    key    TEXT NOT NULL,
    value  BLOB,
    epoch  INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    PRIMARY KEY (origin, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX gossip_records_key ON gossip_records (key);

-- Proofs of forks: two different log batches at the same position. The origin is frozen.
CREATE TABLE gossip_proofs (
    origin TEXT NOT NULL PRIMARY KEY REFERENCES gossip_origins,
    one    BLOB NOT NULL,
    other  BLOB NOT NULL
) STRICT;

-- The version of the projection with which the records of each kind were last applied.
CREATE TABLE gossip_projections (
    kind    TEXT NOT NULL PRIMARY KEY,
    version TEXT NOT NULL
) STRICT;

CREATE TABLE gossip_blobs (
    fetched INTEGER PRIMARY KEY AUTOINCREMENT,
    hash    TEXT NOT NULL UNIQUE,
    data    BLOB NOT NULL
) STRICT;
