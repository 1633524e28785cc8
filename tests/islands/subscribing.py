"""One side of a channel in a test: a home folder with its database, as source, subscriber or both."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from island.kernel.codec import decode, encode
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.loops import forever
from island.kernel.ports import SeededRng, SystemClock
from island.kernel.processes import InPlaceProcesses, Processes
from island.kernel.work import ThreadWorkers
from island.streams import channel, store
from island.streams.channel import Channel
from island.streams.messages import DESCRIBE, DescribeAnswer, DescribeRequest, SourceRecord, Start
from island.streams.segments import SegmentFolder
from island.streams.source import DecodedFileCache, FolderSource
from island.streams.source_server import SourceServer
from island.streams.store import SourceRow, SubscriptionRow
from island.streams.tasks import leaves
from tests.standins.faults import StrictFaults
from tests.standins.peers import MemoryPeers, Wire

ALPHA, BETA = IslandId("a1" * 32), IslandId("b2" * 32)
SCHEMA = pa.schema([("id", pa.int64()), ("ra", pa.float64()), ("dec", pa.float64()), ("mag", pa.float64())])


class Crash(Exception):
    """Simulates the end of the process."""


class Shelf:
    """Stand-in for the catalog. It checks that every snapshot has exactly the committed files."""

    def __init__(self) -> None:
        self.snapshots = 0

    async def prepare(self, path: Path, name: str, *, title: str, description: str) -> list[str]:
        return sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))

    def commit(self, conn: sqlite3.Connection, prepared: Any, who: str, now: float, *, journaled: bool = True) -> str:
        named = {row["file"] for row in conn.execute("SELECT file FROM stream_segments")}
        assert set(prepared) == named, "the files of the snapshot are not the committed files"
        self.snapshots += 1
        return "00" * 32

    def committed(self) -> None:
        pass


@dataclass
class Home:
    """A home folder that is kept after its process ends. It contains the watched folder."""

    path: Path

    @property
    def drop(self) -> Path:
        folder = self.path / "drop"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class Running:
    """The services of one process on a home folder."""

    def __init__(self, home: Home, peers: MemoryPeers, group: asyncio.TaskGroup, checkpoint: Callable[[str], None]):
        self.home, self.peers, self.group, self.checkpoint = home, peers, group, checkpoint
        self.workers = ThreadWorkers()
        self.state = Database.open(home.path, "state", self.workers)
        self.clock, self.rng = SystemClock(), SeededRng(7)
        self.sources: dict[str, FolderSource] = {}
        self.shelf = Shelf()
        self.processes: Processes = InPlaceProcesses()
        self.records: dict[str, SourceRecord] = {}
        self.serving = SourceServer(self.state, self.sources, self.clock, self.workers)
        self.serving.register(peers.on_bulk)
        self.tasks: list[asyncio.Task[None]] = []
        self.channel: Channel | None = None

    def _loop(self, step: Callable[[], Awaitable[object]]) -> asyncio.Task[None]:
        return self.group.create_task(forever(step, name="stream", rng=self.rng, faults=StrictFaults()))

    def _announce(self, conn: sqlite3.Connection, name: str, record: SourceRecord) -> None:
        self.records[name] = record

    async def watch(self, name: str = "alerts", *, incarnation: str = "00" * 8) -> FolderSource:
        row = await self.state.read(lambda conn: store.source(conn, name))
        if row is None:
            now = self.clock.wall()
            row = SourceRow(name, "folder", str(self.home.drop), incarnation, now, "t", "", None, 0, 0, 0, 0, now)
            made = row
            await self.state.write(lambda conn: store.insert_source(conn, made))
        source = FolderSource(
            row,
            self.state,
            self._announce,
            DecodedFileCache(self.clock),
            self.clock,
            poll=0.05,
            poke=lambda: None,
            workers=self.workers,
            processes=self.processes,
        )
        self.sources[name] = source
        self.serving.ready.set()
        self.tasks.append(self._loop(source.step))
        return source

    async def subscribe(
        self, owner: IslandId, *, where: str = "", region: str = "", start: Start = "beginning", window: int = 65536
    ) -> Channel:
        rows = await self.state.read(store.subscriptions)
        segments = SegmentFolder(self.home.path / "streams" / "mine")
        if not rows:
            request = DescribeRequest(source="alerts", where=where, region=region, start=start)
            async with self.peers.bulk(owner, DESCRIBE, encode(request)) as stream:
                described = decode(await stream.receive() or b"", DescribeAnswer, limit=1 << 20)
            now = self.clock.wall()
            row = SubscriptionRow(
                "c0ffee", "mine", owner, "alpha", "alerts", where, region, start, "user", now,
                described.incarnation, described.position, None, 0, 0, 0, "", "", now,
            )  # fmt: skip
            segments.create()
            if described.columns:
                attempt, _ = segments.sweep(set())
                await channel.begin(
                    self.state, self.shelf, segments, attempt, row, described.columns, "user", self.clock,
                    lambda conn: store.insert_subscription(conn, row), workers=self.workers,
                )  # fmt: skip
            else:
                await self.state.write(lambda conn: store.insert_subscription(conn, row))
            rows = await self.state.read(store.subscriptions)
        self.channel = Channel(
            rows[0],
            state=self.state,
            publisher=self.shelf,
            open_bulk=self.peers.bulk,
            segments=segments,
            who="user@beta",
            window=window,
            clock=self.clock,
            rng=self.rng,
            workers=self.workers,
            checkpoint=self.checkpoint,
        )
        self.tasks.append(self._loop(self.channel.step))
        return self.channel

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        self.state.close()
        self.workers.close()


@contextlib.asynccontextmanager
async def running(
    home: Home, wire: Wire, island: IslandId, checkpoint: Callable[[str], None] = lambda _: None
) -> AsyncIterator[Running]:
    """Run services until the end of the context. Then they are cancelled at once, as when a process is killed."""
    home.path.mkdir(parents=True, exist_ok=True)
    peers = wire.join(island)
    try:
        async with asyncio.TaskGroup() as group:
            life = Running(home, peers, group, checkpoint)
            wire.announce(island)
            try:
                yield life
            finally:
                await wire.take_down(island)
                await life.end()
    except BaseExceptionGroup as several:
        if not all(isinstance(error, Crash) for error in leaves(several)):
            raise


def write(home: Home, name: str, first: int, count: int, schema: pa.Schema = SCHEMA) -> None:
    """Write a Parquet file of `count` rows, and rename it into the watched folder."""
    ids = range(first, first + count)
    values = {
        "id": list(ids),
        "ra": [(i * 7.3) % 360 for i in ids],
        "dec": [(i * 1.7) % 180 - 90 for i in ids],
        "mag": [None if i % 11 == 0 else 10 + i % 13 for i in ids],
    }
    usable = {field.name: field.name in values and not pa.types.is_string(field.type) for field in schema}
    table = pa.table({name: values[name] if usable[name] else [None] * count for name in schema.names}, schema=schema)
    partial = home.drop / f"{name}.part"
    pq.write_table(table, partial, row_group_size=max(1, count // 3))
    partial.rename(home.drop / f"{name}.parquet")


def delivered(home: Home) -> Counter[tuple[Any, ...]]:
    """The multiset of rows in the committed files of the subscriber's dataset."""
    with contextlib.closing(sqlite3.connect(home.path / "state.db")) as conn:
        names = [row[0] for row in conn.execute("SELECT file FROM stream_segments ORDER BY number")]
    return rows_of([home.path / "streams" / "mine" / name for name in names])


def rows_of(paths: Sequence[Path]) -> Counter[tuple[Any, ...]]:
    """The multiset of rows of Parquet files."""
    found: Counter[tuple[Any, ...]] = Counter()
    for path in paths:
        for row in pq.read_table(path).to_pylist():
            found[tuple(row.values())] += 1
    return found


def total(home: Home) -> int:
    """The number of rows that were delivered and committed."""
    with contextlib.closing(sqlite3.connect(home.path / "state.db")) as conn:
        return int(conn.execute("SELECT coalesce(sum(rows), 0) FROM stream_segments").fetchone()[0])


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until a condition is true that other processes or threads change."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
