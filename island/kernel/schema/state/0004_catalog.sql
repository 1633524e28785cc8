-- Datasets of this island. The pages of their manifests are stored in packs under HOME/manifests;
-- the rows refer to them (protocols/decisions/0002).
CREATE TABLE catalog_dataset (
    name TEXT PRIMARY KEY,
    path TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    title TEXT NOT NULL,
    description TEXT NOT NULL,
    licence TEXT NOT NULL,
    ra TEXT NOT NULL,
    dec TEXT NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    who TEXT NOT NULL,
    record BLOB NOT NULL
) STRICT;

-- Every snapshot that is still served. base: the folder that contains its files. local: the hash of the
-- page with their modification times. card: a gossip blob (each row counts as one use).
CREATE TABLE catalog_snapshot (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    base TEXT NOT NULL,
    local TEXT NOT NULL,
    card TEXT NOT NULL,
    record BLOB NOT NULL,
    published REAL NOT NULL,
    UNIQUE (name, snapshot)
) STRICT;

CREATE INDEX catalog_snapshot_hash ON catalog_snapshot (snapshot);

CREATE TABLE catalog_page (
    hash TEXT PRIMARY KEY,
    pack TEXT NOT NULL,
    at INTEGER NOT NULL,
    size INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX catalog_page_pack ON catalog_page (pack);
