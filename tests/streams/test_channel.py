"""From a watched folder to a subscriber's dataset: exactly the right rows, whatever is killed when."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from island.kernel.codec import encode
from island.kernel.ids import IslandId
from island.streams.messages import READ, ReadRequest, decode_position
from tests.islands.subscribing import (
    ALPHA,
    BETA,
    Crash,
    Home,
    Running,
    delivered,
    rows_of,
    running,
    total,
    until,
    write,
)
from tests.standins.peers import Wire


def bright(row: tuple[Any, ...]) -> bool:
    """`mag < 15 and dec > 0`, as SQL: a null magnitude is not kept."""
    return row[3] is not None and row[3] < 15 and row[2] > 0


def expected(home: Home) -> Counter[tuple[Any, ...]]:
    everything = rows_of(sorted(home.drop.glob("*.parquet")))
    return Counter({row: count for row, count in everything.items() if bright(row)})


async def at_head(source: Running, subscriber: Running) -> None:
    """Wait until the committed position is the source's head."""

    def done() -> bool:
        channel, watched = subscriber.channel, source.sources["alerts"]
        if channel is None or channel.status.state != "live" or watched.schema is None:
            return False
        known = watched._known or {}
        files = {path.name for path in Path(watched.root).glob("[!_]*.parquet")}
        position = decode_position(channel.row.position)
        return (
            files <= set(known)
            and position.row == 0
            and channel.status.behind.files == 0
            and newest(source) < position.seq
        )

    await until(done)


def newest(source: Running) -> int:
    import sqlite3

    conn = sqlite3.connect(source.home.path / "state.db")
    try:
        return int(conn.execute("SELECT coalesce(max(seq), 0) FROM stream_files WHERE problem=''").fetchone()[0])
    finally:
        conn.close()


async def test_backfill_and_live_without_a_seam(tmp_path: Path) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    for i in range(5):
        write(a, f"old{i}", i * 1000, 1000)
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        await source.watch()
        await until(lambda: source.sources["alerts"].schema is not None)
        await subscriber.subscribe(ALPHA, where="mag < 15 and dec > 0")
        for i in range(5, 10):
            write(a, f"new{i}", i * 1000, 1000)
        await at_head(source, subscriber)
        assert delivered(b) == expected(a)
        assert total(b) == sum(expected(a).values()) > 0


async def test_from_now_skips_what_was_there(tmp_path: Path) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    write(a, "old", 0, 500)
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        await source.watch()
        await until(lambda: source.sources["alerts"].schema is not None and newest(source) > 0)
        await subscriber.subscribe(ALPHA, start="now")
        write(a, "new", 1000, 500)
        await at_head(source, subscriber)
        assert delivered(b) == rows_of([a.drop / "new.parquet"])


async def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        await source.watch()
        await subscriber.subscribe(ALPHA)
        write(a, "one", 0, 100)
        await at_head(source, subscriber)
        assert total(b) == 100
        (a.drop / "copy.parquet").write_bytes((a.drop / "one.parquet").read_bytes())
        (a.drop / "one.parquet").touch()
        (a.drop / "_hidden.parquet").write_bytes(b"no")
        (a.drop / "x.tmp").write_bytes(b"no")
        (a.drop / "one.parquet").rename(a.drop / "moved.parquet")
        write(a, "copy", 1000, 50)  # rewritten: new content under a known name
        await at_head(source, subscriber)
        assert total(b) == 150
        assert not source.sources["alerts"].problem


async def test_a_broken_file_is_told_and_stops_nothing(tmp_path: Path) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        watched = await source.watch()
        await subscriber.subscribe(ALPHA)
        write(a, "good", 0, 100)
        whole = (a.drop / "good.parquet").read_bytes()
        (a.drop / "half.parquet").write_bytes(whole[: len(whole) // 2])
        (a.drop / "readme.txt").write_text("not data")
        await until(lambda: "half.parquet" in watched.problem)
        write(a, "later", 100, 100)
        await until(lambda: total(b) == 200)
        assert "readme" not in watched.problem
        # Written to its end, with other content: it is data now.
        write(a, "rest", 5000, 10)
        (a.drop / "rest.parquet").rename(a.drop / "half.parquet")
        await until(lambda: total(b) == 210)
        await until(lambda: not watched.problem)


async def test_a_gap_is_told_and_ends_when_the_file_is_back(tmp_path: Path) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    async with running(a, wire, ALPHA) as source:
        await source.watch()
        async with running(b, wire, BETA) as subscriber:
            await subscriber.subscribe(ALPHA)
        for i in range(3):
            write(a, f"f{i}", i * 10, 10)
        await until(lambda: newest(source) == 3)
        moved = (a.drop / "f1.parquet").rename(a.path / "aside.parquet")
        await until(lambda: set(source.sources["alerts"]._known or {}) == {"f0.parquet", "f2.parquet"})
        async with running(b, wire, BETA) as subscriber:
            channel = await subscriber.subscribe(ALPHA)
            await until(lambda: channel.status.state == "gap")
            assert "f1.parquet" in channel.status.reason
            assert total(b) == 10
            moved.rename(a.drop / "again.parquet")
            await until(lambda: len(source.sources["alerts"]._known or {}) == 3)
            channel.redial.set()
            await until(lambda: total(b) == 30)
    assert delivered(b) == rows_of(sorted(a.drop.glob("*.parquet")))


async def test_who_comes_after_a_deletion_is_not_owed_the_file(tmp_path: Path) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        await source.watch()
        for i in range(3):
            write(a, f"f{i}", i * 10, 10)
        await until(lambda: newest(source) == 3)
        (a.drop / "f1.parquet").unlink()
        await until(lambda: set(source.sources["alerts"]._known or {}) == {"f0.parquet", "f2.parquet"})
        await subscriber.subscribe(ALPHA)
        await until(lambda: total(b) == 20)


async def test_another_incarnation_stops_the_subscription(tmp_path: Path) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    async with running(b, wire, BETA) as subscriber:
        async with running(a, wire, ALPHA) as source:
            await source.watch()
            channel = await subscriber.subscribe(ALPHA)
            write(a, "one", 0, 10)
            await until(lambda: total(b) == 10)
        await until(lambda: channel.status.state == "waiting")
        (a.path / "state.db").unlink()
        async with running(a, wire, ALPHA) as source:
            await source.watch(incarnation="11" * 8)
            await until(lambda: channel.status.state == "stopped")
            assert "removed and added again" in channel.status.reason
    async with running(b, wire, BETA) as subscriber:
        channel = await subscriber.subscribe(ALPHA)
        await until(lambda: channel.status.state == "stopped")
    assert total(b) == 10


async def test_a_predicate_on_an_unknown_column_is_an_error_at_the_first_file(tmp_path: Path) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        await source.watch()
        channel = await subscriber.subscribe(ALPHA, where="magnitude < 3")
        write(a, "one", 0, 10)
        await until(lambda: channel.status.state == "error")
        assert "magnitude" in channel.status.reason
        assert total(b) == 0


async def test_an_incompatible_file_is_an_error_until_it_is_taken_away(tmp_path: Path) -> None:
    import pyarrow as pa

    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        watched = await source.watch()
        channel = await subscriber.subscribe(ALPHA)
        write(a, "a", 0, 10)
        await until(lambda: total(b) == 10)
        # Fewer columns: nulls; a further one: left out and said; narrower: widened.
        write(a, "b", 10, 10, pa.schema([("id", pa.int32()), ("ra", pa.float32()), ("extra", pa.string())]))
        await until(lambda: total(b) == 20)
        await until(lambda: "b.parquet" in watched.note and "extra" in watched.note)
        write(a, "c", 20, 10, pa.schema([("id", pa.int64()), ("mag", pa.string())]))
        await until(lambda: channel.status.state == "error")
        assert "c.parquet" in channel.status.reason
        assert "mag" in channel.status.reason
        write(a, "d", 30, 10)
        (a.drop / "c.parquet").unlink()
        await until(lambda: "c.parquet" not in watched.problem)
        channel.redial.set()
        await until(lambda: total(b) == 30)


@pytest.mark.parametrize("seed", range(3))
async def test_killed_twenty_times_nothing_is_lost_or_doubled(tmp_path: Path, seed: int) -> None:
    """Source and subscriber end at random moments, the subscriber also between any two steps of a commit."""
    rng = random.Random(seed)
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    written = 0
    steps = ("received", "written", "prepared", "committed", "acknowledged")

    for round_ in range(20):
        for _ in range(rng.randrange(3)):
            write(a, f"f{written:03d}", written * 1000, rng.randrange(1, 900))
            written += 1
        crashed = asyncio.Event()
        doomed, countdown = rng.choice(steps), rng.randrange(1, 4)

        def at(step: str, doomed: str = doomed, crashed: asyncio.Event = crashed) -> None:
            nonlocal countdown
            if step == doomed:
                countdown -= 1
                if countdown <= 0:
                    crashed.set()
                    raise Crash(step)

        whole = running(b, wire, BETA, at if round_ % 2 else lambda _: None)
        async with running(a, wire, ALPHA) as source, whole as subscriber:
            await source.watch()
            await subscriber.subscribe(ALPHA, where="mag < 15 and dec > 0")
            try:
                async with asyncio.timeout(rng.random() * 0.4):
                    await crashed.wait()
            except TimeoutError:
                pass
    write(a, "last", written * 1000, 500)
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        await source.watch()
        await subscriber.subscribe(ALPHA, where="mag < 15 and dec > 0")
        await at_head(source, subscriber)
    assert delivered(b) == expected(a)
    assert total(b) == sum(expected(a).values()) > 0


async def test_a_lost_session_is_waited_for(tmp_path: Path) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        await source.watch()
        channel = await subscriber.subscribe(ALPHA)
        for i in range(10):
            write(a, f"f{i}", i * 1000, 1000)
            await wire.cut(ALPHA)
            channel.redial.set()
        await at_head(source, subscriber)
        assert delivered(b) == rows_of(sorted(a.drop.glob("*.parquet")))


async def test_a_folder_that_is_not_there_makes_nothing_gone(tmp_path: Path) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    async with running(a, wire, ALPHA) as source:
        watched = await source.watch()
        write(a, "one", 0, 10)
        await until(lambda: newest(source) == 1)
        a.drop.rename(a.path / "unmounted")
        await until(lambda: "cannot be read" in watched.problem)
        watched._decoded._files.clear()  # else the rows come from memory
        async with running(b, wire, BETA) as subscriber:
            channel = await subscriber.subscribe(ALPHA)
            await until(lambda: channel.status.state == "error")
            assert "one.parquet" in channel.status.reason
            (a.path / "unmounted").rename(a.path / "drop")
            await until(lambda: not watched.problem)
            channel.redial.set()
            await until(lambda: total(b) == 10)


async def test_a_subscriber_that_takes_nothing_slows_nobody(tmp_path: Path) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    for i in range(12):
        write(a, f"f{i:02d}", i * 20_000, 20_000)
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        await source.watch()
        await until(lambda: newest(source) == 12)
        idle = wire.join(IslandId("c3" * 32))
        request = ReadRequest(source="alerts", incarnation="00" * 8, position=b"", window=65536)
        async with idle.bulk(ALPHA, READ, encode(request)) as stream:
            taken: list[int] = []

            async def take() -> None:
                while (block := await stream.receive()) is not None:
                    taken.append(len(block))

            task = asyncio.create_task(take())
            await until(lambda: bool(source.serving.served) and source.serving.served[0].under_way >= 65536)
            await subscriber.subscribe(ALPHA)
            await at_head(source, subscriber)
            assert total(b) == 240_000
            stalled = next(served for served in source.serving.served if served.peer == idle.me)
            assert stalled.rows < 240_000, "it is held at its window"
            assert stalled.under_way <= 65536 + 2 * 1024 * 1024
            task.cancel()
            await asyncio.wait({task})
