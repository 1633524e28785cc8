"""The runs of an earlier version, which knew one engine and recorded a failed clear as cleared, under this version."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from island.jobs.executor import store as run_store
from island.jobs.messages import JobSpec
from island.kernel import codec
from island.kernel.db import migrations
from tests.sim.archipelago import Archipelago, simulate
from tests.sim.jobs import PlayedEngine, World

EXECUTOR = 11
"""The migration to phases and names of engines."""


def _migrated(*rows: tuple[str, str, int | None, int, int]) -> sqlite3.Connection:
    """A database of this version, of which an earlier version wrote the runs: step, instance, remote, stop, cleared."""
    conn = sqlite3.connect(":memory:", isolation_level=None)
    conn.row_factory = sqlite3.Row
    scripts = sorted(migrations("state"))
    for number, sql in scripts:
        if number < EXECUTOR:
            conn.executescript(sql)
    work = codec.encode(JobSpec(kind="session", language="sql"))
    for epoch, (step, instance, remote, stop, cleared) in enumerate(rows):
        conn.execute(
            "INSERT INTO run (job, epoch, home, user, request_hash, work, signature, lease, accepted, step, engine,"
            " remote, stop, cleared) VALUES ('j', ?, 'h', 'u', 'r', ?, x'00', 600, 1, ?, ?, ?, ?, ?)",
            (epoch, work, step, instance, remote, stop, cleared),
        )
    for number, sql in scripts:
        if number >= EXECUTOR:
            conn.executescript(sql)
    return conn


def test_each_step_becomes_a_phase() -> None:
    rows = [
        ("accepted", "", None, 0, 0),
        ("submitting", "i", None, 0, 0),
        ("running", "i", 7, 1, 0),
        ("ended", "i", 7, 0, 0),
        ("ended", "i", 7, 0, 1),
    ]
    with contextlib.closing(_migrated(*rows)) as conn:
        runs = [run_store.get(conn, "j", epoch) for epoch in range(len(rows))]
        found = [(run.phase, run.instance, run.remote, run.stop, run.doubt) for run in runs if run is not None]
        assert found == [
            ("waiting", "", None, "", False),
            ("submitting", "i", None, "", False),
            ("starting", "i", 7, "owner", False),
            ("clearing", "i", 7, "", True),
            ("cleared", "i", 7, "", False),
        ]
        assert [run.epoch for run in run_store.unfinished(conn)] == [0, 1, 2, 3]


@pytest.mark.parametrize("state", ["idle", "ended"])
def test_a_session_of_an_earlier_version_belongs_to_the_first_engine(state: str) -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine()
        home = await world.island("home", engine=engine)
        job = await world.settled(home, await world.open(home))
        assert "did one" in (await world.run(home, job, "one")).output
        await a.crash(home)
        with contextlib.closing(sqlite3.connect(home.state.path, isolation_level=None)) as conn:
            # What the migration makes of such a run.
            phase = "starting" if state == "idle" else "clearing"
            conn.execute("UPDATE run SET engine = '', phase = ?, doubt = ?", (phase, phase == "clearing"))
        await a.restart(home)
        if state == "idle":
            assert "did two" in (await world.run(home, job, "two")).output
            assert engine.ran == ["one", "two"]
        else:
            await a.until(lambda: not engine.alive(), within=30)

    simulate(1, scenario)
