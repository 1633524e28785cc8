-- The sum of the sizes of all fetched blobs, so that the limit can be checked without reading them.
CREATE TABLE gossip_blob_bytes (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    total INTEGER NOT NULL
) STRICT;

INSERT INTO gossip_blob_bytes (one, total) SELECT 1, coalesce(sum(length(data)), 0) FROM gossip_blobs;
