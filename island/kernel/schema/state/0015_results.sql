-- Large outputs of statements are files in HOME/results, named by their SHA-256; the rows refer to them.

ALTER TABLE job_statement ADD COLUMN result TEXT NOT NULL DEFAULT '';          -- SHA-256 of the file, '' if in `output`
ALTER TABLE job_statement ADD COLUMN result_size INTEGER NOT NULL DEFAULT 0;   -- bytes
ALTER TABLE run_statement ADD COLUMN result TEXT NOT NULL DEFAULT '';
ALTER TABLE run_statement ADD COLUMN result_size INTEGER NOT NULL DEFAULT 0;

CREATE INDEX job_statement_result ON job_statement (result) WHERE result != '';
CREATE INDEX run_statement_result ON run_statement (result) WHERE result != '';
