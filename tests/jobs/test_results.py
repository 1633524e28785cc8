"""Large outputs of statements: whole at home and executor, over lost links, restarts, full disks and bad executors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from island.jobs.home.store import JobRow, StatementRow
from island.jobs.messages import MAX_INLINE, MAX_OUTPUT, JobReport, StatusRequest
from island.jobs.results import ResultStore
from island.kernel.ids import IslandId
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.jobs import OPEN, PlayedEngine, World, folder_of

MIB = 1024 * 1024


def table(size: int) -> dict[str, Any]:
    """Livy's output for a table of about `size` bytes."""
    rows = [[f"{row:07d}" + "x" * 1000] for row in range(size // 1012)]
    return {"status": "ok", "execution_count": 0, "data": {"application/json": {"schema": {}, "data": rows}}}


async def played(
    a: Archipelago, size: int, *, home_jobs: dict[str, Any] | None = None, there_jobs: dict[str, Any] | None = None
) -> tuple[World, SimIsland, SimIsland, JobRow]:
    """A home, and its session at another island whose statement `big` has an output of about `size` bytes."""
    world, engine = World(a), PlayedEngine()
    engine.outputs["big"] = table(size)
    home = await world.island("home", jobs=home_jobs)
    there = await world.island("there", engine=engine, jobs={**OPEN, **(there_jobs or {})})
    await world.linked()
    return world, home, there, await world.settled(home, await world.open(home))


async def output(world: World, home: SimIsland, statement: StatementRow) -> Any:
    """The output of a statement, as clients get it."""
    parts = world.jobs[home.name].output_of(statement.report())
    return json.loads(b"".join([part async for part in parts]))


def kept(world: World, island: SimIsland) -> list[Path]:
    """The files of an island's results."""
    folder = folder_of(world, island) / "results"
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("size", [200_000, 300_000, 2_200_000, 20_000_000])
def test_a_result_of_any_size_is_whole_after_one_hop(size: int) -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, job = await played(a, size)
        found = await world.run(home, job, "big")
        assert await output(world, home, found) == table(size)
        large = len(json.dumps(table(size))) > MAX_INLINE
        assert (found.result is not None, found.output == "") == (large, large)
        assert len(kept(world, home)) == len(kept(world, there)) == int(large)
        # The next statement acknowledges the result, and the executor deletes its file.
        await world.run(home, job, "next")
        await a.until(lambda: not kept(world, there), within=30)
        assert await output(world, home, found) == table(size)

    simulate(1, scenario)


def test_at_one_island_a_result_is_stored_once() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine()
        engine.outputs["big"] = table(3 * MIB)
        home = await world.island("home", engine=engine)
        job = await world.settled(home, await world.open(home))
        found = [await world.run(home, job, "big") for _ in range(2)]
        assert len(kept(world, home)) == 1
        await world.jobs["home"].end(job, deleted=True)
        await world.ended(home, job)
        assert [await output(world, home, each) for each in found] == [table(3 * MIB)] * 2

    simulate(1, scenario)


@pytest.mark.parametrize("side", ["home", "there"])
def test_a_result_over_the_limit_is_an_error_that_names_the_key(side: str) -> None:
    async def scenario(a: Archipelago) -> None:
        limit = {"max_result": "2MiB"}
        world, home, _, job = await played(
            a, 3 * MIB, home_jobs=limit if side == "home" else None, there_jobs=limit if side == "there" else None
        )
        found = await world.run(home, job, "big")
        shown = await output(world, home, found)
        assert (found.state, shown["status"], shown["ename"]) == ("available", "error", "ResultTooLarge")
        assert "the limit is 2.0 MiB" in shown["evalue"] and "jobs.max_result" in shown["evalue"]
        assert kept(world, home) == []

    simulate(1, scenario)


def test_an_interrupted_result_is_continued() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, job = await played(a, 20 * MIB)
        offsets: list[int] = []
        store = world.jobs["home"].results
        append = store.append

        async def cut(owner: str, ref: Any, offset: int, data: bytes) -> None:
            await append(owner, ref, offset, data)
            offsets.append(offset)
            if len(offsets) in (3, 7):
                a.network.break_session(home.id, there.id)

        received, begun = store.received, list[int]()

        async def noted(owner: str, ref: Any) -> int:
            begun.append(await received(owner, ref))
            return begun[-1]

        store.received = noted  # type: ignore[method-assign]
        store.append = cut  # type: ignore[method-assign]  # the link is lost in the midst of a result
        found = await world.run(home, job, "big", within=600)
        assert await output(world, home, found) == table(20 * MIB)
        assert len(offsets) == len(set(offsets)) and offsets == sorted(offsets), "a part was fetched twice"
        assert len(begun) == 3 and begun[0] == 0 < begun[1] < begun[2], begun

    simulate(3, scenario)


@pytest.mark.parametrize("crashed", ["home", "there"])
@pytest.mark.parametrize("seed", range(4))
def test_a_result_survives_crashes(crashed: str, seed: int) -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, job = await played(a, 5 * MIB)
        statement = await world.jobs["home"].post(job, "big", None)
        await a.until(lambda: bool(kept(world, home if seed % 2 else there)), within=60)
        island = home if crashed == "home" else there
        await a.crash(island)
        await a.restart(island)
        found, _ = await world.jobs["home"].finished_statement(job, statement.number, 300)
        assert await output(world, home, found) == table(5 * MIB)
        assert world.engines["there"].ran == ["big"]  # type: ignore[union-attr]  # it has one

    simulate(seed, scenario)


@pytest.mark.parametrize("name", ["home", "there"])
def test_a_full_disk_delays_a_result_and_leaves_nothing_half(name: str) -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, job = await played(a, 3 * MIB)
        disk = (home if name == "home" else there).disk
        statement = await world.jobs["home"].post(job, "big", None)
        await a.until(lambda: world.engines["there"].ran == ["big"], within=30)  # type: ignore[union-attr]  # it has one
        disk.full = True
        _, now = await world.jobs["home"].finished_statement(job, statement.number, 20)
        assert now.state in ("running", "waiting")
        assert [path for path in kept(world, home if name == "home" else there) if path.stat().st_size] == []
        disk.full = False
        found, _ = await world.jobs["home"].finished_statement(job, statement.number, 120)
        assert await output(world, home, found) == table(3 * MIB)

    simulate(1, scenario)


def test_a_result_that_is_damaged_or_gone_at_the_executor_is_an_error() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, job = await played(a, 3 * MIB)
        keep = ResultStore.keep
        for number, damage in enumerate((lambda path: path.write_bytes(b"{" * path.stat().st_size), Path.unlink)):

            async def damaged(self: ResultStore, owner: str, data: bytes, damage: Any = damage) -> Any:
                ref = await keep(self, owner, data)
                damage(folder_of(world, there) / "results" / ref.hash)
                return ref

            world.jobs["there"].results.keep = damaged.__get__(world.jobs["there"].results)  # type: ignore[method-assign]
            found = await world.run(home, job, "big")
            shown = await output(world, home, found)
            assert (found.number, shown["ename"]) == (number, "ResultLost"), shown
            assert kept(world, home) == []

    simulate(1, scenario)


def test_a_result_whose_file_was_removed_is_an_error_at_one_island_too() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine()
        engine.outputs["big"] = table(3 * MIB)
        home = await world.island("home", engine=engine)
        job = await world.settled(home, await world.open(home))
        keep = world.jobs["home"].results.keep

        async def removed(owner: str, data: bytes) -> Any:
            ref = await keep(owner, data)
            (folder_of(world, home) / "results" / ref.hash).unlink()
            return ref

        world.jobs["home"].results.keep = removed  # type: ignore[method-assign]  # an administrator cleans up
        found = await world.run(home, job, "big")
        assert (await output(world, home, found))["ename"] == "ResultLost"
        world.jobs["home"].results.keep = keep  # type: ignore[method-assign]
        found = await world.run(home, job, "big")
        [file] = kept(world, home)
        file.unlink()
        assert "missing in HOME/results" in (await output(world, home, found))["evalue"]

    simulate(1, scenario)


def test_a_home_of_an_earlier_version_gets_outputs_in_the_report() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, job = await played(a, 1 * MIB)
        engine = world.engines["there"]
        assert engine is not None
        engine.outputs["bigger"] = table(MAX_OUTPUT + MIB)
        exchange = world.jobs["home"].driver._exchange

        async def reported() -> Any:
            request = StatusRequest(job=job.id, epoch=1)
            report = await exchange.ask(IslandId(there.id), "status", request, JobReport)
            [statement] = report.statements
            assert statement.result is None
            return json.loads(statement.output)

        await world.run(home, job, "big")
        assert await reported() == table(MIB)
        await world.run(home, job, "bigger")
        found = await reported()
        assert found["ename"] == "ResultTooLarge" and "upgrade island at the home" in found["evalue"]

    simulate(1, scenario)


def test_another_island_does_not_get_a_result() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, there, job = await played(a, 3 * MIB)
        found = await world.run(home, job, "big")
        other = await world.island("other")
        await world.linked()
        assert found.result is not None and other.peers is not None
        stranger = world.jobs["other"].driver._fetcher
        report = JobReport(job=job.id, epoch=1, version=1, state="idle", statements=(found.report(),))
        collected = await stranger.collected(IslandId(there.id), report)
        assert "no such result for you" in collected.statements[0].output

    simulate(1, scenario)


def test_files_without_a_statement_are_deleted() -> None:
    async def scenario(a: Archipelago) -> None:
        world, home, _, job = await played(a, 3 * MIB)
        await world.run(home, job, "big")
        [file] = kept(world, home)
        for name in ("a" * 64, f"{'b' * 64}-{'0' * 36}.0123456789.part", f"{'c' * 64}-isl-x-1.new"):
            (file.parent / name).write_bytes(b"left")
        live = file.parent / f"{'d' * 64}-{job.id}.part"
        live.write_bytes(b"of a live job")
        await world.jobs["home"].results.sweep()
        assert kept(world, home) == sorted([file, live])

    simulate(1, scenario)
