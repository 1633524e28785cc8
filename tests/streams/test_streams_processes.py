"""Files of a source, read in real child processes: by portions, beside files that end their reader."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.errors import OverLimit
from island.formats.limits import DEFAULT_LIMITS, ReadLimits
from island.kernel.processes import ProcessPool
from island.streams import folder, tables
from tests.formats import bombs

ROWS = 3_000_000


@pytest.fixture
async def pool() -> AsyncIterator[ProcessPool]:
    made = ProcessPool("test", memory_bytes=400 * 2**20, hint="", size=2)
    yield made
    await made.close()


def wanted(path: Path) -> folder.Wanted:
    stat = folder.stat_of(path)
    assert stat is not None
    return folder.Wanted(path.name, stat)


async def test_a_large_file_is_read_by_portions_from_any_row(tmp_path: Path, pool: ProcessPool) -> None:
    path = tmp_path / "large.parquet"
    pq.write_table(pa.table({"n": pa.array(range(ROWS), pa.int64())}), path, row_group_size=ROWS // 2)
    async with aclosing(pool.stream(folder.read_all, tmp_path, [wanted(path)], b"", DEFAULT_LIMITS)) as outcomes:
        [reading] = [outcome async for outcome in outcomes]
    assert isinstance(reading, folder.Reading)
    assert (reading.rows, reading.kept, reading.payload) == (ROWS, False, b"")
    schema = tables.schema_from_bytes(reading.columns)
    for first in (0, 1, ROWS - 1, ROWS):
        at, ended, portions = first, False, 0
        while not ended:
            portion = await pool.run(
                folder.read_portion, tmp_path, wanted(path), reading.columns, at, DEFAULT_LIMITS, near="large"
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
    items = pool.stream(folder.read_all, tmp_path, [wanted(path) for path in files], b"", ReadLimits())
    assert [(await anext(items)).path, (await anext(items)).path] == ["0.avro", "1.avro"]
    with pytest.raises(OverLimit, match=r"bomb\.avro .* 400 MiB of memory"):
        await anext(items)
