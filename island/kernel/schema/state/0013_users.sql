-- People who use this island with a token of their own. Only the hash of the token is stored.
-- A revoked user keeps her row without a hash, because her jobs and rows of the journal bear her name.
-- Times are in Unix seconds. expires: NULL for a token that does not expire.
CREATE TABLE user (
    name       TEXT PRIMARY KEY,
    role       TEXT NOT NULL CHECK (role IN ('administrator', 'user')),
    token_hash BLOB UNIQUE CHECK (length(token_hash) = 32),
    created    REAL NOT NULL,
    issued     REAL NOT NULL,
    expires    REAL,
    revoked    REAL,
    CHECK ((token_hash IS NULL) = (revoked IS NOT NULL))
) STRICT, WITHOUT ROWID;
