"""A source that lies: the subscriber blames it, keeps what is committed, and goes on when it is honest again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from island.errors import Full
from island.formats import rows
from island.kernel.codec import encode
from island.kernel.ids import IslandId
from island.kernel.ports import BulkStream
from island.streams import tables
from island.streams.channel import PLAIN
from island.streams.messages import DESCRIBE, READ, Delivery, DescribeAnswer, Heartbeat, StreamSchema
from island.streams.segments import SegmentFolder
from tests.islands.subscribing import ALPHA, BETA, Home, delivered, rows_of, running, total, until, write
from tests.standins.peers import Wire

SCHEMA = pa.schema([("id", pa.int64())])
COLUMNS = tables.schema_to_bytes(SCHEMA)


def payload(count: int, name: str = "id") -> bytes:
    return rows.to_ipc([pa.record_batch({name: pa.array(range(count), pa.int64())})])


async def opened(stream: BulkStream) -> None:
    await stream.send(encode(StreamSchema(columns=COLUMNS)))


async def deliver(stream: BulkStream, frm: bytes, to: bytes, count: int, data: bytes, size: int | None = None) -> None:
    await stream.send(encode(Delivery(frm=frm, to=to, rows=count, size=len(data) if size is None else size)))
    if data:
        await stream.send(data)


async def garbage(stream: BulkStream) -> None:
    await stream.send(b"\xc1garbage")


async def other_columns(stream: BulkStream) -> None:
    other = pa.schema([("other", pa.string())])
    await stream.send(encode(StreamSchema(columns=tables.schema_to_bytes(other))))


async def no_form(stream: BulkStream) -> None:
    schema = pa.schema([("id", pa.int64()), ("nothing", pa.struct([]))])
    await stream.send(encode(StreamSchema(columns=schema.serialize().to_pybytes())))


async def no_columns(stream: BulkStream) -> None:
    await deliver(stream, b"p0", b"p1", 3, payload(3))


async def from_elsewhere(stream: BulkStream) -> None:
    await opened(stream)
    await deliver(stream, b"p7", b"p8", 3, payload(3))


async def wrong_size(stream: BulkStream) -> None:
    await opened(stream)
    await deliver(stream, b"p0", b"p1", 3, payload(3), size=10)


async def wrong_rows(stream: BulkStream) -> None:
    await opened(stream)
    await deliver(stream, b"p0", b"p1", 4, payload(3))


async def wrong_schema(stream: BulkStream) -> None:
    await opened(stream)
    await deliver(stream, b"p0", b"p1", 3, payload(3, "other"))


async def flipped(stream: BulkStream) -> None:
    await opened(stream)
    data = bytearray(payload(3))
    data[len(data) // 2] ^= 0xFF
    await deliver(stream, b"p0", b"p1", 3, bytes(data))


async def rows_without_bytes(stream: BulkStream) -> None:
    await opened(stream)
    await deliver(stream, b"p0", b"p1", 3, b"")


LIES = [
    garbage,
    other_columns,
    no_form,
    no_columns,
    from_elsewhere,
    wrong_size,
    wrong_rows,
    wrong_schema,
    flipped,
    rows_without_bytes,
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
async def test_a_lie_is_blamed_and_not_kept(tmp_path: Path, lie: Callable[[BulkStream], Any]) -> None:
    wire, b = Wire(), Home(tmp_path / "b")
    liar = wire.join(ALPHA)
    honest = asyncio.Event()

    async def describe(_: IslandId, __: bytes, stream: BulkStream) -> None:
        await stream.send(encode(DescribeAnswer(incarnation="0" * 16, position=b"p0", columns=COLUMNS)))

    async def read(_: IslandId, __: bytes, stream: BulkStream) -> None:
        if not honest.is_set():
            await lie(stream)
        else:
            await opened(stream)
            await deliver(stream, b"p0", b"p1", 3, payload(3))
            await stream.send(encode(Heartbeat(position=b"p1")))
        await stream.receive()

    liar.on_bulk(DESCRIBE, describe)
    liar.on_bulk(READ, read)
    async with running(b, wire, BETA) as subscriber:
        channel = await subscriber.subscribe(ALPHA)
        await until(lambda: channel.status.state == "error")
        assert total(b) == 0
        assert sorted(path.name for path in (b.path / "streams" / "mine").iterdir()) == ["part-00000000.parquet"]
        honest.set()
        channel.redial.set()
        await until(lambda: total(b) == 3)


async def test_rows_that_are_packed_a_thousandfold_are_committed_before_more_is_taken(tmp_path: Path) -> None:
    wire, b = Wire(), Home(tmp_path / "b")
    source, most = wire.join(ALPHA), 0
    zeros = pa.record_batch({"id": pa.array(np.zeros(1_000_000, np.int64))})
    packed = rows.to_ipc([zeros])
    assert len(packed) < 64 * 1024

    async def describe(_: IslandId, __: bytes, stream: BulkStream) -> None:
        await stream.send(encode(DescribeAnswer(incarnation="0" * 16, position=b"p0", columns=COLUMNS)))

    async def read(_: IslandId, __: bytes, stream: BulkStream) -> None:
        await opened(stream)
        for number in range(24):
            await deliver(stream, f"p{number}".encode(), f"p{number + 1}".encode(), zeros.num_rows, packed)
        while await stream.receive() is not None:
            pass

    source.on_bulk(DESCRIBE, describe)
    source.on_bulk(READ, read)
    async with running(b, wire, BETA) as subscriber:
        channel = await subscriber.subscribe(ALPHA)

        def look() -> bool:
            nonlocal most
            most = max(most, channel._pending.plain if channel._pending else 0)
            return bool(total(b) == 24 * zeros.num_rows)

        await until(look)
    assert most <= PLAIN + zeros.nbytes


async def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    honest = SegmentFolder.write
    full = True

    def write_segment(
        self: SegmentFolder, attempt: int, number: int, batches: Any, schema: Any
    ) -> tuple[str, int, int]:
        if full and number:
            raise Full("no space is left for part-00000001.parquet", hint="Free space on that disk.")
        return honest(self, attempt, number, batches, schema)

    monkeypatch.setattr(SegmentFolder, "write", write_segment)
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        await source.watch()
        channel = await subscriber.subscribe(ALPHA)
        write(a, "one", 0, 100)
        await until(lambda: channel.status.state == "error")
        assert "no space" in channel.status.reason
        full = False
        channel.redial.set()
        await until(lambda: total(b) == 100)
    assert delivered(b) == rows_of([a.drop / "one.parquet"])


async def test_a_file_whose_columns_cannot_travel_is_a_problem(tmp_path: Path) -> None:
    wire, a = Wire(), Home(tmp_path / "a")
    schema = {
        "type": "record",
        "name": "r",
        "fields": [
            {"name": "id", "type": "long"},
            {"name": "none", "type": {"type": "record", "name": "e", "fields": []}},
        ],
    }
    with (a.drop / "odd.avro").open("wb") as file:
        fastavro.writer(file, schema, [{"id": 1, "none": {}}])
    async with running(a, wire, ALPHA) as source:
        watched = await source.watch()
        await until(lambda: "odd.avro" in watched.problem or bool(watched.problem))
        assert watched.schema is None
