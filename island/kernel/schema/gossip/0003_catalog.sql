-- Projections of the dataset and replica records of all islands, and fetched cards.
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

-- A NULL card: the blob was fetched, but it is not a valid card.
CREATE TABLE catalog_card (
    hash TEXT PRIMARY KEY,
    card BLOB
) STRICT;

-- Datasets whose card is not fetched yet.
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

-- `replicas` is incremented with every change of catalog_replica, so that readers can detect a change cheaply.
CREATE TABLE catalog_version (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    replicas INTEGER NOT NULL
) STRICT;

INSERT INTO catalog_version (one, replicas) VALUES (1, 0);

-- Datasets that changed since the last update of the search index.
CREATE TABLE catalog_unindexed (
    change INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    UNIQUE (owner, name)
) STRICT;
