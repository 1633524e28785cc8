"""Files of a source, read in real child processes: by portions, beside files that end their reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.errors import OverLimit
from island.formats.limits import DEFAULT_LIMITS, ReadLimits
from island.kernel.ports import SystemClock
from island.kernel.process_messages import Emit
from island.kernel.processes import DEFAULT_LIMITS as DEFAULT
from island.kernel.processes import InPlaceProcesses, Limits, ProcessPool
from island.streams import store, tables, watched_folder
from tests.islands.subscribing import ALPHA, Home, running, write
from tests.standins import bombs
from tests.standins.peers import Wire

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SlowClock(SystemClock):
    """A clock that says that reading a file took `late` seconds."""

    late = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.late


class SlowProcesses(InPlaceProcesses):
    """Reads in place, and makes the clock say that each call took long."""

    def __init__(self, clock: SlowClock) -> None:
        self._clock = clock

    async def stream(
        self, function: Callable[[Emit[T], *Ts], None], /, *args: *Ts, limits: Limits = DEFAULT
    ) -> AsyncGenerator[T, None]:
        async for item in super().stream(function, *args, limits=limits):
            yield item
        self._clock.late += 3600.0


ROWS = 3_000_000


@pytest.fixture
async def pool() -> AsyncIterator[ProcessPool]:
    made = ProcessPool("test", memory_bytes=400 * 2**20, hint="", size=2)
    yield made
    await made.close()


def wanted(path: Path) -> watched_folder.Wanted:
    stat = watched_folder.stat_of(path)
    assert stat is not None
    return watched_folder.Wanted(path.name, stat)


async def test_a_large_file_is_read_by_portions_from_any_row(tmp_path: Path, pool: ProcessPool) -> None:
    path = tmp_path / "large.parquet"
    pq.write_table(pa.table({"n": pa.array(range(ROWS), pa.int64())}), path, row_group_size=ROWS // 2)
    async with aclosing(
        pool.stream(watched_folder.read_all, tmp_path, [wanted(path)], b"", DEFAULT_LIMITS)
    ) as outcomes:
        [reading] = [outcome async for outcome in outcomes]
    assert isinstance(reading, watched_folder.DecodedFile)
    assert (reading.rows, reading.kept, reading.payload) == (ROWS, False, b"")
    schema = tables.schema_from_bytes(reading.columns)
    for first in (0, 1, ROWS - 1, ROWS):
        at, ended, portions = first, False, 0
        while not ended:
            portion = await pool.run(
                watched_folder.read_portion, tmp_path, wanted(path), reading.columns, at, DEFAULT_LIMITS, near="large"
            )
            for batch in tables.from_child(portion.payload, schema):
                assert batch.column(0).to_pylist()[:1] == [at]
                at += batch.num_rows
            ended, portions = portion.ended, portions + 1
        assert at == ROWS
        assert portions > 2 if first < 2 else portions == 1


async def test_what_was_read_before_a_bomb_is_kept(tmp_path: Path, pool: ProcessPool) -> None:
    files = [bombs.avro(tmp_path / f"{n}.avro", bombs.ONE_LONG, [(10, bytes(10))]) for n in range(3)]
    files.insert(2, bombs.long_array(tmp_path / "bomb.avro"))
    items = pool.stream(watched_folder.read_all, tmp_path, [wanted(path) for path in files], b"", ReadLimits())
    assert [(await anext(items)).path, (await anext(items)).path] == ["0.avro", "1.avro"]
    with pytest.raises(OverLimit, match=r"bomb\.avro .* 400 MiB of memory"):
        await anext(items)


async def test_reading_for_long_does_not_put_off_the_next_look(tmp_path: Path) -> None:
    home = Home(tmp_path / "alpha")
    async with running(home, Wire(), ALPHA) as alpha, asyncio.timeout(120):
        clock = SlowClock()
        alpha.clock, alpha.processes = clock, SlowProcesses(clock)
        write(home, "one", 0, 10)
        source = await alpha.watch()
        for name, files in (("two", 1), ("three", 2)):
            while len(await alpha.state.read(lambda conn: store.names(conn, "alerts"))) < files:
                await source.looked.after(source.looked.version)
            write(home, name, files * 100, 10)
        while len(await alpha.state.read(lambda conn: store.names(conn, "alerts"))) < 3:
            await source.looked.after(source.looked.version)
