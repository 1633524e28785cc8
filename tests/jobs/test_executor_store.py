"""The queries of the executor's store, where many runs have ended."""

from __future__ import annotations

import sqlite3

from island.jobs.executor import store as run_store
from island.kernel.db import migrations


def test_a_commit_counts_the_runs_that_are_alive_without_reading_those_that_have_ended() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    for _, sql in sorted(migrations("state")):
        conn.executescript(sql)
    statements: list[str] = []
    conn.set_trace_callback(statements.append)
    run_store.count_alive(conn, without_home="h")
    conn.set_trace_callback(None)
    [query] = statements
    [(*_, plan)] = conn.execute(f"EXPLAIN QUERY PLAN {query}")
    assert "USING INDEX run_open" in plan
