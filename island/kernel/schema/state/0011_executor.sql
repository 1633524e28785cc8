-- The phases of a run, and the name of the engine that has it. SQLite cannot change the check of a column, so the table
-- is made anew. A run of an earlier version has no engine's name: there was only one engine.

CREATE TABLE run_new (
    job TEXT NOT NULL, epoch INTEGER NOT NULL,
    home TEXT NOT NULL, user TEXT NOT NULL, request_hash TEXT NOT NULL,
    work BLOB NOT NULL, signature BLOB NOT NULL,
    file_hash TEXT NOT NULL DEFAULT '',
    lease REAL NOT NULL,
    accepted REAL NOT NULL,
    phase TEXT NOT NULL CHECK (phase IN ('waiting', 'fetching', 'submitting', 'starting', 'preparing', 'running',
                                         'clearing', 'cleared')),
    engine TEXT NOT NULL DEFAULT '',          -- name of the engine that has the run, or may have it
    instance TEXT NOT NULL DEFAULT '',        -- instance of that engine, '' for a Livy of the site
    doubt INTEGER NOT NULL DEFAULT 0,         -- the engine may have it although its answer was lost
    remote INTEGER,                           -- id at the engine
    hidden INTEGER NOT NULL DEFAULT 0,        -- number of statements that create the views of inputs
    state TEXT NOT NULL DEFAULT 'starting',
    reason TEXT NOT NULL DEFAULT '',
    code TEXT NOT NULL DEFAULT '',            -- `not_started`, or ''
    app_id TEXT NOT NULL DEFAULT '', app_info TEXT NOT NULL DEFAULT '{}',
    notes TEXT NOT NULL DEFAULT '[]', log TEXT NOT NULL DEFAULT '[]',
    moved INTEGER NOT NULL DEFAULT 0,
    stop TEXT NOT NULL DEFAULT '' CHECK (stop IN ('', 'owner', 'administrator')),
    released INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, epoch)
) STRICT;

INSERT INTO run_new (job, epoch, home, user, request_hash, work, signature, file_hash, lease, accepted, phase, instance,
                     doubt, remote, hidden, state, reason, app_id, app_info, notes, log, moved, stop, released)
SELECT job, epoch, home, user, request_hash, work, signature, file_hash, lease, accepted,
       CASE step WHEN 'accepted' THEN 'waiting' WHEN 'submitting' THEN 'submitting' WHEN 'running' THEN 'starting'
                 ELSE CASE cleared WHEN 0 THEN 'clearing' ELSE 'cleared' END END,
       engine, step = 'ended' AND cleared = 0, remote, hidden, state, reason, app_id, app_info, notes, log, moved,
       CASE stop WHEN 0 THEN '' ELSE 'owner' END, released
FROM run;

DROP TABLE run;
ALTER TABLE run_new RENAME TO run;
CREATE INDEX run_open ON run (phase) WHERE phase != 'cleared';
