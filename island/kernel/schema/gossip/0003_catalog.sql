-- Projections of all islands' dataset and replica records, and the cards that were fetched.
CREATE TABLE catalog_entry (
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    card TEXT NOT NULL,
    format TEXT NOT NULL,
    time_from REAL,
    time_to REAL,
    record BLOB NOT NULL,
    PRIMARY KEY (owner, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX catalog_entry_name ON catalog_entry (name);
CREATE INDEX catalog_entry_card ON catalog_entry (card);
CREATE INDEX catalog_entry_time ON catalog_entry (time_from, time_to);

-- A card of NULL is one that was fetched and is not a card.
CREATE TABLE catalog_card (
    hash TEXT PRIMARY KEY,
    card BLOB
) STRICT;

-- Which dataset wants a card that is not here.
CREATE TABLE catalog_wanted (
    card TEXT NOT NULL,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (owner, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX catalog_wanted_card ON catalog_wanted (card);

CREATE TABLE catalog_replica (
    holder TEXT NOT NULL,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    state TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (holder, owner, name, snapshot)
) STRICT, WITHOUT ROWID;

-- Rises with every change of catalog_replica: one number to look at instead of all rows.
CREATE TABLE catalog_version (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    replicas INTEGER NOT NULL
) STRICT;

INSERT INTO catalog_version (one, replicas) VALUES (1, 0);

-- What the search index has not seen yet.
CREATE TABLE catalog_unindexed (
    change INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    UNIQUE (owner, name)
) STRICT;
