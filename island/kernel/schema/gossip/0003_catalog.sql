-- Projections of all islands' dataset and replica records, and the cards that were fetched.
CREATE TABLE catalog_entry (
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    card TEXT NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (owner, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX catalog_entry_name ON catalog_entry (name);
CREATE INDEX catalog_entry_card ON catalog_entry (card);

-- A card of NULL is one that was fetched and is not a card.
CREATE TABLE catalog_card (
    hash TEXT PRIMARY KEY,
    card BLOB
) STRICT;

CREATE TABLE catalog_replica (
    holder TEXT NOT NULL,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    state TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (holder, owner, name, snapshot)
) STRICT, WITHOUT ROWID;

-- What the search index has not seen yet.
CREATE TABLE catalog_unindexed (
    change INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    UNIQUE (owner, name)
) STRICT;
