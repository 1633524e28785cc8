-- One row from the restore of a backup until another island has shown its copy of this island's log.
-- at: when the backup was restored, in Unix seconds.
CREATE TABLE gossip_own_restored (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    at  REAL NOT NULL
) STRICT;
