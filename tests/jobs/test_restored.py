"""An island whose state.db was restored: what ran after the backup is neither repeated nor taken for something else."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest

from island.errors import IslandError
from island.jobs.executor import store as run_store
from island.jobs.home import store
from island.jobs.home.local_files import BatchFile
from island.livy.messages import BatchRequest
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.jobs import OPEN, USER, PlayedEngine, World


async def islands(a: Archipelago, *, remote: bool) -> tuple[World, SimIsland, PlayedEngine]:
    """An island `home` whose jobs run there, or with `remote` at another island."""
    world, engine = World(a), PlayedEngine()
    home = await world.island("home", engine=None if remote else engine)
    if remote:
        await world.island("exec", engine=engine, jobs=OPEN)
        await world.linked()
    return world, home, engine


async def restore(a: Archipelago, world: World, home: SimIsland, backup: Any) -> None:
    """Kill the island and start it with an older state.db, as `island restore` leaves it."""
    await a.crash(home)
    backup.row_factory = sqlite3.Row
    store.stop_restored(backup, 1.0)
    run_store.stop_restored(backup)
    a.restore(home, backup)
    await a.restart(home)
    await world.linked()


@pytest.mark.parametrize("remote", [False, True])
def test_a_statement_does_not_get_the_result_of_another(remote: bool) -> None:
    """The numbers of statements since the backup are known to the executor, with other code."""

    async def scenario(a: Archipelago) -> None:
        world, home, engine = await islands(a, remote=remote)
        job = await world.open(home)
        await world.run(home, job, "first")
        backup = a.backup(home)
        await world.run(home, job, "second")
        await restore(a, world, home, backup)
        try:
            statement = await world.run(home, job, "third")
        except IslandError:
            statement = None
        if statement is not None:
            assert "did second" not in statement.output
        ended = await world.ended(home, job)
        assert ended.state in ("dead", "killed")
        assert "restored from a backup" in await world.log(home, job)
        assert "third" not in engine.ran
        [first] = [s for s in await world.statements(home, job) if s.code == "first"]
        assert json.loads(first.output)["data"]["text/plain"] == "did first"

    simulate(301, scenario)


@pytest.mark.parametrize("remote", [False, True])
def test_a_batch_that_was_waiting_for_a_place_does_not_run_again(remote: bool) -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, engine = await islands(a, remote=remote)
        request, file = BatchRequest(file="x.py"), BatchFile("x.py", b"print('x')")
        job = await world.jobs["home"].submit_batch(USER, request, file=file)
        backup = a.backup(home)
        (phase,) = backup.execute("SELECT phase FROM job").fetchone()
        assert phase == "routing"
        assert (await world.ended(home, job)).state == "success"
        await restore(a, world, home, backup)
        assert (await world.ended(home, job)).state == "killed"
        assert len(engine.created) == 1

    simulate(302, scenario)


def test_a_batch_that_runs_elsewhere_goes_on() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, engine = await islands(a, remote=True)
        request, file = BatchRequest(file="x.py"), BatchFile("x.py", b"print('x')")
        job = await world.jobs["home"].submit_batch(USER, request, file=file)
        await a.until(lambda: bool(engine.created), within=60)
        backup = a.backup(home)
        await restore(a, world, home, backup)
        assert (await world.ended(home, job)).state == "success"
        assert len(engine.created) == 1

    simulate(303, scenario)


def test_a_run_that_was_not_submitted_yet_is_not_submitted_again() -> None:
    """The backup is that of the executor."""

    async def scenario(a: Archipelago) -> None:
        world, home, engine = await islands(a, remote=True)
        executor = a.islands[1]
        backups: list[Any] = []

        async def fault(what: str, when: str) -> None:
            if what in ("find", "create", "instance") and when == "before" and not backups:
                copy = a.backup(executor)
                if copy.execute("SELECT count(*) FROM run WHERE phase NOT IN ('clearing', 'cleared')").fetchone()[0]:
                    backups.append(copy)

        engine.fault = fault
        request, file = BatchRequest(file="x.py"), BatchFile("x.py", b"print('x')")
        job = await world.jobs["home"].submit_batch(USER, request, file=file)
        await world.ended(home, job)
        engine.fault = None
        engine.start_anew("two")
        await restore(a, world, executor, backups[0])
        await a.until(lambda: executor.up, within=60)
        assert len(engine.created) == 1

    simulate(304, scenario)
