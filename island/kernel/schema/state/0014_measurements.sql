-- What the parts of a run took, and what earlier jobs of this home cost, beside what was expected of them.

ALTER TABLE run ADD COLUMN times TEXT NOT NULL DEFAULT '{}';  -- RunTimes as JSON

CREATE TABLE job_observation (
    number INTEGER PRIMARY KEY,               -- grows; the newest 2,000 are kept
    job TEXT NOT NULL, epoch INTEGER NOT NULL,
    observed TEXT NOT NULL,                   -- JobObservation as JSON
    predicted TEXT NOT NULL,                  -- JobPrediction as JSON
    UNIQUE (job, epoch)
) STRICT;
