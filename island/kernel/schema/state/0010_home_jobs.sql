-- Lists and retention of jobs at their home: both stay fast with many ended jobs.
ALTER TABLE job ADD COLUMN trimmed INTEGER NOT NULL DEFAULT 0; -- its log and its decisions were deleted

-- Ids begin with the time of acceptance.
CREATE INDEX job_newest_of_user ON job (user, id);
CREATE INDEX job_ended ON job (ended) WHERE phase = 'ended';
CREATE INDEX job_closed ON job (ended) WHERE phase = 'ended' AND deleted = 1;
CREATE INDEX job_untrimmed ON job (ended) WHERE phase = 'ended' AND trimmed = 0;
CREATE INDEX job_states ON job (kind, state);
DROP INDEX job_seen;
