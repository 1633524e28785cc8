-- This island's own servers, and the names and times of contact of other islands.

CREATE TABLE membership_own_servers (
    id      TEXT NOT NULL PRIMARY KEY,
    kind    TEXT NOT NULL,
    url     TEXT NOT NULL,
    comment TEXT NOT NULL,
    at      REAL NOT NULL
) STRICT;

-- Every name that an island has ever claimed, so that a name is never silently resolved to another key.
CREATE TABLE membership_names (
    island TEXT NOT NULL,
    name   TEXT NOT NULL,
    since  REAL NOT NULL,
    PRIMARY KEY (island, name)
) STRICT, WITHOUT ROWID;

-- When an island was last linked (wall time), for "down since".
CREATE TABLE membership_seen (
    island TEXT NOT NULL PRIMARY KEY,
    at     REAL NOT NULL
) STRICT, WITHOUT ROWID;
