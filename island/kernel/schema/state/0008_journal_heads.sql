-- The newest journal head that each other island has sent to this island; NULL if it sent none.
-- mismatch: '' or how the newest offer contradicts the head. claimed: the head of that offer, if it had one.
CREATE TABLE journal_heads (
    island   TEXT NOT NULL PRIMARY KEY,
    head     BLOB,
    mismatch TEXT NOT NULL,
    claimed  BLOB,
    at       REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- The newest of these rows has the generation of this island's journal.
CREATE INDEX journal_acknowledged ON journal (seq) WHERE act = 'journal.acknowledge';

-- Versions without this migration sealed the journal from time to time only. The next start seals the rows up to this one,
-- which they may have left unsealed, and drops the table.
CREATE TABLE journal_unsealed (seq INTEGER NOT NULL PRIMARY KEY) STRICT;
INSERT INTO journal_unsealed (seq) SELECT seq FROM journal_head;
