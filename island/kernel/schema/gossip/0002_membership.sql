-- Projections of `island/self` and `server/ID`.

CREATE TABLE membership_islands (
    island    TEXT NOT NULL PRIMARY KEY,
    name      TEXT NOT NULL,
    addresses TEXT NOT NULL, -- JSON array
    version   TEXT NOT NULL,
    software  TEXT NOT NULL,
    started   REAL NOT NULL
) STRICT;

CREATE TABLE membership_servers (
    island  TEXT NOT NULL,
    id      TEXT NOT NULL,
    kind    TEXT NOT NULL,
    url     TEXT NOT NULL,
    comment TEXT NOT NULL,
    PRIMARY KEY (island, id)
) STRICT, WITHOUT ROWID;
