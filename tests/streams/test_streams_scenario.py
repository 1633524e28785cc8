"""The service on the daemon's own trust, gossip, membership and catalog, in virtual time."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog

from island.catalog.service import Catalog, CatalogDependencies
from island.config import Config, IslandSection, StreamsSection
from island.errors import BadInput, Conflict, DiskFailed, IslandError, NotFound, Unreachable
from island.kernel.ports import SeededRng
from island.streams.service import Streams, StreamsDependencies
from island.streams.source import HANGS_SECONDS, LONGEST_PAUSE, REPEAT_S
from island.streams.views import ChannelView
from island.trust.users import Principal
from tests.islands.subscribing import rows_of
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.standins.faults import Fault, Gone

ADMIN, USER = Principal("administrator", "administrator"), Principal("user", "user")
EVE = Principal("user", "eve")


class Crash(Exception):
    """The process ends here."""


class Scene:
    """An archipelago whose islands also have a catalog and streams, each with a home on disk."""

    def __init__(self, archipelago: Archipelago, folder: Path) -> None:
        self.archipelago, self.folder = archipelago, folder
        self.streams: dict[str, Streams] = {}
        self.catalogs: dict[str, Catalog] = {}
        self.checkpoints: dict[str, Callable[[str], None]] = {}
        archipelago.services = self._start

    async def _start(self, island: SimIsland) -> None:
        assert island.trust is not None and island.peers is not None
        home = self.home(island.name)
        home.mkdir(exist_ok=True)
        clock = self.archipelago.clock(island)
        rng = SeededRng(f"{self.archipelago.seed}/streams/{island.name}/{island.lives}")
        config = Config(island=IslandSection(name=island.name), streams=StreamsSection(poll=0.5, window="64KiB"))
        catalog = Catalog(
            CatalogDependencies(
                state=island.state,
                db=island.gossip_db,
                gossip=island.g,
                membership=island.m,
                trust=island.trust,
                clock=clock,
                rng=rng,
                home=home,
                workers=island.workers,
            )
        )
        streams = Streams(
            StreamsDependencies(
                state=island.state,
                gossip_db=island.gossip_db,
                catalog=catalog,
                membership=island.m,
                gossip=island.g,
                trust=island.trust,
                peers=island.peers,
                config=config,
                clock=clock,
                rng=rng,
                home=home,
                checkpoint=lambda step: self._at(island.name, step),
                workers=island.workers,
            )
        )
        await catalog.start(island.tasks)
        await streams.start(island.tasks)
        self.streams[island.name], self.catalogs[island.name] = streams, catalog

    def _at(self, name: str, step: str) -> None:
        if name in self.checkpoints:
            self.checkpoints[name](step)

    def home(self, name: str) -> Path:
        return self.folder / f"home-{name}"

    def drop(self, name: str) -> Path:
        folder = self.folder / f"drop-{name}"
        folder.mkdir(exist_ok=True)
        return folder

    async def channel(self, name: str) -> ChannelView:
        return next(view for view in await self.streams[name].channels() if view.direction == "in")

    async def until(self, condition: Callable[[], Awaitable[bool]], within: float = 120.0) -> None:
        async with asyncio.timeout(within):
            while not await condition():
                await asyncio.sleep(0.2)
                self.archipelago.check()


def put(folder: Path, name: str, first: int, count: int) -> None:
    ids = range(first, first + count)
    table = pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "ra": pa.array([(i * 7.3) % 360 for i in ids]),
            "dec": pa.array([(i * 1.7) % 180 - 90 for i in ids]),
            "mag": pa.array([None if i % 11 == 0 else float(10 + i % 13) for i in ids]),
        }
    )
    pq.write_table(table, folder / f".{name}.tmp")
    (folder / f".{name}.tmp").rename(folder / f"{name}.parquet")


def bright(rows: Counter[tuple[Any, ...]]) -> Counter[tuple[Any, ...]]:
    return Counter({row: n for row, n in rows.items() if row[3] is not None and row[3] < 15})


async def two(archipelago: Archipelago, folder: Path) -> Scene:
    scene = Scene(archipelago, folder)
    await archipelago.add("alpha")
    await archipelago.add("beta")
    await archipelago.until(archipelago.converged, within=60)
    return scene


def test_a_folder_that_is_missing_is_logged_when_it_disappears_and_then_once_an_hour(tmp_path: Path) -> None:
    async def scenario(archipelago: Archipelago) -> list[tuple[str, str]]:
        scene = Scene(archipelago, tmp_path)
        await archipelago.add("alpha")
        folder, away = scene.drop("alpha"), tmp_path / "away"
        await scene.streams["alpha"].add_source(ADMIN, folder, "alerts")
        await asyncio.sleep(10)
        with structlog.testing.capture_logs() as lines:
            folder.rename(away)
            await asyncio.sleep(REPEAT_S + 60)
            away.rename(folder)
            await asyncio.sleep(10)
            folder.rename(away)
            await asyncio.sleep(10)
        found = [line for line in lines if line["event"].startswith("source.scan")]
        assert all(line["source"] == "alerts" for line in found)
        return [(line["event"], line.get("error", "")) for line in found]

    failed = ("source.scan_failed", f"folder {tmp_path}/drop-alpha cannot be read: No such file or directory")
    assert simulate(3, scenario) == [failed, failed, ("source.scan_works", ""), failed]


@pytest.mark.slow
def test_a_mount_that_hangs_delays_its_source_only_and_is_shown(tmp_path: Path) -> None:
    async def scenario(archipelago: Archipelago) -> None:
        scene = await two(archipelago, tmp_path)
        disk = archipelago.islands[0].disk
        mounted, local = scene.drop("mounted"), scene.drop("local")
        for folder in (mounted, local):
            await scene.streams["alpha"].add_source(ADMIN, folder, folder.name)
            put(folder, "first", 0, 10)

        async def sources() -> dict[str, Any]:
            return {view.source: view for view in await scene.streams["beta"].sources()}

        async def files(count: int) -> bool:
            return len(found := await sources()) == 2 and all(view.files == count for view in found.values())

        await scene.until(lambda: files(1))
        disk.hangs.add(str(mounted))
        for name in ("drop-mounted", "drop-local"):
            await scene.streams["beta"].subscribe(USER, f"alpha/{name}", start="beginning", into=name)
        for folder in (mounted, local):
            put(folder, "second", 10, 10)

        async def delivered() -> dict[str, int]:
            return {view.source: view.rows for view in await scene.streams["beta"].channels() if view.direction == "in"}

        async def local_is_complete() -> bool:
            return (await delivered())["alpha/drop-local"] == 20

        async def shown() -> bool:
            found = await sources()
            return "does not answer" in found["alpha/drop-mounted"].problem and not found["alpha/drop-local"].problem

        await scene.until(local_is_complete)
        assert (await delivered())["alpha/drop-mounted"] <= 10  # what alpha has in memory
        await scene.until(shown, within=HANGS_SECONDS + 60)
        disk.hangs.clear()

        async def all_is_well() -> bool:
            well = all(not view.problem for view in (await sources()).values())
            return well and await files(2) and set((await delivered()).values()) == {20}

        await scene.until(all_is_well, within=LONGEST_PAUSE + 60)

    simulate(5, scenario)


def test_a_subscription_makes_and_feeds_a_published_dataset(tmp_path: Path) -> None:
    async def scenario(archipelago: Archipelago) -> None:
        scene = await two(archipelago, tmp_path)
        alpha, beta = scene.streams["alpha"], scene.streams["beta"]
        put(scene.drop("alpha"), "one", 0, 300)
        view = await alpha.add_source(ADMIN, scene.drop("alpha"), "alerts")
        assert (view.source, view.state) == ("alpha/alerts", "empty")

        async def known() -> bool:
            return any(view.files == 1 for view in await beta.sources())

        await scene.until(known)
        listed = (await beta.sources())[0]
        assert listed.island == "alpha"
        assert listed.columns[:2] == ["id int64", "ra double"]
        assert listed.path is None

        with pytest.raises(BadInput, match="magnitude"):
            await beta.subscribe(USER, "alpha/alerts", where="magnitude < 15", into="mine")
        with pytest.raises(BadInput):
            await beta.subscribe(USER, "alpha/alerts", where="mag < 15; DROP TABLE x", into="mine")
        with pytest.raises(BadInput):
            await beta.subscribe(USER, "alpha/alerts", into="../mine")
        with pytest.raises(NotFound, match="alert"):
            await beta.subscribe(USER, "alpha/alert", into="mine")
        assert not (scene.home("beta") / "streams" / "mine").exists()

        made = await beta.subscribe(USER, "alpha/alerts", where="mag < 15", start="beginning", into="mine")
        datasets = [view for view in await scene.catalogs["beta"].datasets() if view.name == "mine"]
        assert [view.dataset for view in datasets] == ["beta/mine"], "the dataset is there at once"
        with pytest.raises(Conflict):
            await beta.subscribe(USER, "alpha/alerts", into="mine")
        put(scene.drop("alpha"), "two", 300, 300)

        def expected() -> Counter[tuple[Any, ...]]:
            return bright(rows_of(sorted(scene.drop("alpha").glob("*.parquet"))))

        async def all_there() -> bool:
            return (await scene.channel("beta")).rows == sum(expected().values())

        await scene.until(all_there)
        assert rows_of(sorted((scene.home("beta") / "streams" / "mine").glob("*.parquet"))) == expected()
        newest = next(view for view in await scene.catalogs["beta"].datasets() if view.name == "mine")
        assert newest.rows == sum(expected().values())
        # The subscriber's dataset is in everyone's catalog.
        await scene.until(lambda: _has_rows(scene, "alpha", newest.rows))

        with pytest.raises(NotFound):
            await beta.unsubscribe(USER, "nothing")
        administrators = await beta.subscribe(ADMIN, "alpha/alerts", into="other")
        for ident in (administrators.id, "other"):  # as if it did not exist
            with pytest.raises(NotFound):
                await beta.unsubscribe(USER, ident)
        seen = {who.user: [view.id for view in await beta.subscriptions(who)] for who in (USER, ADMIN, EVE)}
        assert seen == {"user": [made.id], "administrator": [made.id, administrators.id], "eve": []}
        for who in (USER, ADMIN, EVE):
            assert [view.id for view in await beta.channels(who)] == seen[who.user]
        assert [view.direction for view in await scene.streams["alpha"].channels(ADMIN)] == ["out", "out"]
        assert await scene.streams["alpha"].channels(USER) == []
        await beta.unsubscribe(USER, made.id)
        assert [view.id for view in await beta.subscriptions()] == [administrators.id]
        assert any(view.name == "mine" for view in await scene.catalogs["beta"].datasets()), "its rows stay"

    simulate(1, scenario)


async def _has_rows(scene: Scene, name: str, rows: int) -> bool:
    return any(view.name == "mine" and view.rows == rows for view in await scene.catalogs[name].datasets())


def test_a_source_of_one_s_own(tmp_path: Path) -> None:
    async def scenario(archipelago: Archipelago) -> None:
        scene = Scene(archipelago, tmp_path)
        await archipelago.add("alpha")
        alpha = scene.streams["alpha"]
        await alpha.add_source(ADMIN, scene.drop("alpha"), "alerts")
        # No file yet: what `--where` names cannot be checked, and the dataset cannot be made.
        await alpha.subscribe(ADMIN, "alpha/alerts", where="nothing > 3", into="bad")
        await alpha.subscribe(ADMIN, "alpha/alerts", region="circle 10 0 30", into="near")
        put(scene.drop("alpha"), "one", 0, 500)

        async def settled() -> bool:
            channels = {view.into: view for view in await alpha.channels()}
            return channels["alpha/bad"].state == "error" and channels["alpha/near"].rows > 0

        await scene.until(settled)
        bad = next(view for view in await alpha.channels() if view.into == "alpha/bad")
        assert "nothing" in bad.reason
        kept = rows_of(sorted((scene.home("alpha") / "streams" / "near").glob("*.parquet")))
        assert kept and all(row[1] < 41 or row[1] > 339 for row in kept)
        with pytest.raises(NotFound):
            await alpha.remove_source(ADMIN, "other")
        await alpha.remove_source(ADMIN, "alerts")

        async def stopped() -> bool:
            return all(view.state == "stopped" for view in await alpha.channels() if view.into == "alpha/near")

        await scene.until(stopped)

    simulate(2, scenario)


def test_a_source_that_does_not_answer_is_said(tmp_path: Path) -> None:
    async def scenario(archipelago: Archipelago) -> None:
        scene = await two(archipelago, tmp_path)
        await scene.streams["alpha"].add_source(ADMIN, scene.drop("alpha"), "alerts")
        put(scene.drop("alpha"), "one", 0, 50)

        async def known() -> bool:
            return bool(await scene.streams["beta"].sources())

        await scene.until(known)
        await scene.streams["beta"].subscribe(USER, "alpha/alerts", start="beginning", into="mine")

        async def arrived() -> bool:
            return (await scene.channel("beta")).rows == 50

        await scene.until(arrived)
        await archipelago.crash(archipelago.islands[0])

        async def waiting() -> bool:
            return (await scene.channel("beta")).state == "waiting"

        await scene.until(waiting)
        assert "alpha" in (await scene.channel("beta")).reason
        with pytest.raises(Unreachable, match="alpha"):
            await scene.streams["beta"].subscribe(USER, "alpha/alerts", into="later")
        put(scene.drop("alpha"), "two", 50, 50)
        await archipelago.restart(archipelago.islands[0])

        async def complete() -> bool:
            return (await scene.channel("beta")).rows == 100

        await scene.until(complete)

    simulate(3, scenario)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_twenty_crashes_at_random_steps(tmp_path: Path, seed: int) -> None:
    async def scenario(archipelago: Archipelago) -> None:
        scene = await two(archipelago, tmp_path)
        rng = SeededRng(f"crashes/{seed}")
        await scene.streams["alpha"].add_source(ADMIN, scene.drop("alpha"), "alerts")
        put(scene.drop("alpha"), "first", 0, 10)

        async def known() -> bool:
            return any(view.files for view in await scene.streams["beta"].sources())

        await scene.until(known)
        await scene.streams["beta"].subscribe(USER, "alpha/alerts", where="mag < 15", start="beginning", into="mine")
        written = 0
        steps = ("received", "written", "prepared", "committed", "acknowledged")
        for _ in range(20):
            for _ in range(rng.bytes(1)[0] % 3):
                written += 1
                put(scene.drop("alpha"), f"f{written:03d}", written * 1000, 1 + rng.bytes(1)[0])
            victim = archipelago.islands[rng.bytes(1)[0] % 2]
            doomed = rng.choice(steps)

            def at(step: str, doomed: str = doomed) -> None:
                if step == doomed:
                    raise Crash(step)

            if victim.name == "beta":
                scene.checkpoints["beta"] = at
            await _sleep(archipelago, rng.random() * 4)
            scene.checkpoints.clear()
            await archipelago.crash(victim)
            victim.tasks.failure = None
            await asyncio.sleep(rng.random())
            await archipelago.restart(victim)

        expected = bright(rows_of(sorted(scene.drop("alpha").glob("*.parquet"))))

        async def complete() -> bool:
            return (await scene.channel("beta")).rows >= sum(expected.values())

        await scene.until(complete, 300)
        await asyncio.sleep(5)
        assert rows_of(sorted((scene.home("beta") / "streams" / "mine").glob("*.parquet"))) == expected

    simulate(seed, scenario)


async def _sleep(archipelago: Archipelago, seconds: float) -> None:
    """Wait, or until a loop of some island has met its crash."""
    end = archipelago.loop.time() + seconds
    while archipelago.loop.time() < end and not any(island.tasks.failure for island in archipelago.islands):
        await asyncio.sleep(0.05)


def test_who_may_watch_what(tmp_path: Path) -> None:
    async def scenario(archipelago: Archipelago) -> None:
        scene = Scene(archipelago, tmp_path)
        await archipelago.add("alpha")
        alpha = scene.streams["alpha"]
        for path in (tmp_path / "absent", scene.home("alpha"), tmp_path, Path("relative")):
            with pytest.raises(IslandError):
                await alpha.add_source(ADMIN, path, "alerts")
        with pytest.raises(BadInput):
            await alpha.add_source(ADMIN, scene.drop("alpha"), "a/b")
        await alpha.add_source(ADMIN, scene.drop("alpha"), "alerts")
        with pytest.raises(Conflict):
            await alpha.add_source(ADMIN, scene.drop("alpha"), "alerts")

    simulate(4, scenario)


async def _watched(scene: Scene) -> None:
    """`alpha` watches a folder with 300 rows, and `beta` knows."""
    put(scene.drop("alpha"), "one", 0, 300)
    await scene.streams["alpha"].add_source(ADMIN, scene.drop("alpha"), "alerts")

    async def known() -> bool:
        return any(view.files == 1 for view in await scene.streams["beta"].sources())

    await scene.until(known)


async def _delivered(scene: Scene, rows: int) -> None:
    async def all_there() -> bool:
        return [view.rows for view in await scene.streams["beta"].channels()] == [rows]

    await scene.until(all_there)


def test_what_was_begun_by_somebody_who_went_away_is_done_whole(tmp_path: Path) -> None:
    async def scenario(archipelago: Archipelago) -> None:
        scene = await two(archipelago, tmp_path)
        alpha, beta = archipelago.islands
        Gone(alpha.state)
        with pytest.raises(asyncio.CancelledError):
            await _watched(scene)

        async def known() -> bool:
            return any(view.files == 1 for view in await scene.streams["beta"].sources())

        await scene.until(known)
        Gone(beta.state)
        with pytest.raises(asyncio.CancelledError):
            await scene.streams["beta"].subscribe(USER, "alpha/alerts", start="beginning", into="mine")
        await _delivered(scene, 300)
        await scene.until(lambda: _has_rows(scene, "alpha", 300))
        (view,) = await scene.streams["beta"].subscriptions()
        Gone(beta.state)
        with pytest.raises(asyncio.CancelledError):
            await scene.streams["beta"].unsubscribe(USER, view.id)
        assert await scene.streams["beta"].subscriptions() == []
        Gone(alpha.state)
        with pytest.raises(asyncio.CancelledError):
            await scene.streams["alpha"].remove_source(ADMIN, "alerts")

        async def gone() -> bool:
            return await scene.streams["beta"].sources() == []

        await scene.until(gone)

    simulate(21, scenario)


def test_a_removal_that_the_disk_refuses_changes_nothing(tmp_path: Path) -> None:
    async def scenario(archipelago: Archipelago) -> None:
        scene = await two(archipelago, tmp_path)
        alpha, beta = archipelago.islands
        await _watched(scene)
        made = await scene.streams["beta"].subscribe(USER, "alpha/alerts", start="beginning", into="mine")
        await _delivered(scene, 300)
        Fault(beta.state)
        with pytest.raises(DiskFailed):
            await scene.streams["beta"].unsubscribe(USER, made.id)
        Fault(alpha.state)
        with pytest.raises(DiskFailed):
            await scene.streams["alpha"].remove_source(ADMIN, "alerts")
        put(scene.drop("alpha"), "two", 300, 200)
        await _delivered(scene, 500)

    simulate(22, scenario)


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), ValueError("odd")], ids=repr)
@pytest.mark.parametrize("where", ["look", "_publish_record", "_flow"])
def test_a_source_and_a_channel_survive_any_error(tmp_path: Path, where: str, error: Exception) -> None:
    async def scenario(archipelago: Archipelago) -> None:
        scene = await two(archipelago, tmp_path)
        for island in archipelago.islands:
            island.tasks.faults.foreseen = (Exception,)
        await _watched(scene)
        await scene.streams["beta"].subscribe(USER, "alpha/alerts", start="beginning", into="mine")
        await _delivered(scene, 300)
        (channel,), source = scene.streams["beta"]._channels.values(), scene.streams["alpha"]._sources["alerts"]
        if where == "_flow":
            fault = Fault(channel, error, what="_flow")
            archipelago.network.break_session(archipelago.islands[0].id, archipelago.islands[1].id)
        else:
            fault = Fault(source, error, what=where)
        await archipelago.until(lambda: bool(fault.met), within=60)
        put(scene.drop("alpha"), "two", 300, 200)
        await _delivered(scene, 500)
        await archipelago.until(
            lambda: not any(island.tasks.faults.problems() for island in archipelago.islands), within=60
        )

    simulate(23, scenario)


def test_a_source_that_has_ended_is_noted_although_the_disk_fails(tmp_path: Path) -> None:
    async def scenario(archipelago: Archipelago) -> None:
        scene = await two(archipelago, tmp_path)
        _alpha, beta = archipelago.islands
        await _watched(scene)
        await scene.streams["beta"].subscribe(USER, "alpha/alerts", start="beginning", into="mine")
        await _delivered(scene, 300)
        fault = Fault(beta.state, times=3)
        await scene.streams["alpha"].remove_source(ADMIN, "alerts")
        await archipelago.until(lambda: fault.met == 3, within=300)

        async def stopped() -> bool:
            return (await scene.channel("beta")).state == "stopped"

        await scene.until(stopped, within=300)

    simulate(24, scenario)


def test_problems_of_sources_and_channels_are_listed_with_an_action(tmp_path: Path) -> None:
    async def scenario(archipelago: Archipelago) -> None:
        scene = await two(archipelago, tmp_path)
        alpha, _beta = archipelago.islands
        await _watched(scene)
        await scene.streams["beta"].subscribe(USER, "alpha/alerts", start="beginning", into="mine")
        await _delivered(scene, 300)
        assert scene.streams["alpha"].problems() == scene.streams["beta"].problems() == []
        backup = archipelago.backup(alpha)
        put(scene.drop("alpha"), "later", 5000, 200)
        await _delivered(scene, 500)
        await archipelago.crash(alpha)
        archipelago.restore(alpha, backup)
        (scene.drop("alpha") / "later.parquet").unlink()
        (scene.drop("alpha") / "bad.parquet").write_bytes(b"no data")
        await archipelago.restart(alpha)
        await archipelago.until(lambda: bool(scene.streams["beta"].problems()), within=300)
        channel = await scene.channel("beta")
        [problem] = scene.streams["beta"].problems()
        assert channel.state == "stopped"
        assert f"subscription {channel.id} of alpha/alerts has stopped" in problem
        assert "restored from a backup" in problem
        assert "remove the subscription and add it again" in problem
        await archipelago.until(lambda: bool(scene.streams["alpha"].problems()), within=60)
        assert "source alerts: bad.parquet" in scene.streams["alpha"].problems()[0]

    simulate(25, scenario)
