-- The newest head of each other island's journal that it gave to this one. A head of NULL: it gave none.
-- mismatch: '' or why the newest offer contradicts the head; claimed: the head of that offer, if it had one.
CREATE TABLE journal_heads (
    island   TEXT NOT NULL PRIMARY KEY,
    head     BLOB,
    mismatch TEXT NOT NULL,
    claimed  BLOB,
    at       REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- The generation of this island's journal is in the newest of these rows.
CREATE INDEX journal_acknowledged ON journal (seq) WHERE act = 'journal.acknowledge';
