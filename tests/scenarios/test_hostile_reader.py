"""A member with abusive reads, while other members are still served."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.catalog.messages import ResolvedDataset
from island.daemon import Daemon
from island.errors import PeerRefused
from island.jobs.messages import MAX_MESSAGE, JobBulkRequest
from island.kernel import codec
from island.kernel.ports import BulkStream
from island.kernel.stranger_log import PER_ADDRESS
from island.replicas import chunk_server
from island.replicas.messages import ChunkRequest, FileRanges
from tests.standins.member import Member, logged, member, packed, resident, until, victim, well


async def published(daemon: Daemon, folder: Path) -> tuple[ResolvedDataset, ChunkRequest]:
    """Publish a dataset at the victim. Returns the dataset and a request for its only file."""
    folder.mkdir()
    table = pa.table({"x": np.random.default_rng(1).integers(0, 2**62, 200_000)})
    pq.write_table(table, folder / "part.parquet")
    await daemon.catalog.publish("administrator", folder, "stars")
    resolved = await daemon.catalog.resolve("victim/stars")
    [entry] = await daemon.replicas.listing(resolved)
    whole = FileRanges(path=entry.path, ranges=((0, entry.size),))
    return resolved, ChunkRequest(owner=resolved.owner, name=resolved.name, snapshot=resolved.snapshot, pieces=(whole,))


async def read(reader: Member, request: ChunkRequest) -> int:
    """The number of bytes that are received."""
    size = 0
    async with reader.peers.bulk(reader.to, "chunks", codec.encode(request)) as stream:
        while (block := await stream.receive()) is not None:
            size += len(block)
    return size


@contextlib.asynccontextmanager
async def opened(reader: Member, kind: str, body: bytes, count: int) -> AsyncIterator[list[BulkStream]]:
    """Open streams and leave them idle."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(reader.peers.bulk(reader.to, kind, body)) for _ in range(count)]


async def test_stalled_readers_do_not_block_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_server, "STALL_S", 2.0)
    with logged() as logs:
        async with (
            victim(tmp_path) as daemon,
            member(daemon, tmp_path, "honest") as honest,
            member(daemon, tmp_path) as mallory,
        ):
            _, request = await published(daemon, tmp_path / "data")
            async with opened(mallory, "chunks", codec.encode(request), 60):
                async with asyncio.timeout(20):
                    assert await read(honest, request) == request.size()
                await until(lambda: len(logs.of("replicas.answer_stalled")) == PER_ADDRESS)
            assert {line["peer"] for line in logs.of("replicas.answer_stalled")} == {mallory.id[:10]}
            await well(daemon)


async def test_requests_for_unknown_data_use_no_memory_and_no_disk(tmp_path: Path) -> None:
    with logged() as logs:
        await ask_for_unknown_data(tmp_path)
    assert len(logs.of("replicas.not_served")) == PER_ADDRESS


async def ask_for_unknown_data(tmp_path: Path) -> None:
    async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
        _, request = await published(daemon, tmp_path / "data")
        before = len(daemon.replicas.held._moved)
        for number in range(300):
            asked = ChunkRequest(
                owner=request.owner, name=f"n{number}\n", snapshot=f"{number:064x}", pieces=request.pieces
            )
            with pytest.raises(PeerRefused):
                await read(mallory, asked)
        assert len(daemon.replicas.held._moved) == before


PATHS = (
    "../../key",
    "/etc/passwd",
    "part.parquet/../../x",
    "part.parquet\0",
    "\x1b[2J",
    "x" * 1024,
    ".",
    "//",
    "~/key",
)


async def test_paths_that_lead_elsewhere_are_not_found(tmp_path: Path) -> None:
    with logged():
        async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
            _, request = await published(daemon, tmp_path / "data")
            for path in PATHS:
                asked = ChunkRequest(
                    owner=request.owner,
                    name=request.name,
                    snapshot=request.snapshot,
                    pieces=(FileRanges(path=path, ranges=((0, 10),)),),
                )
                with pytest.raises(PeerRefused) as refused:
                    await read(mallory, asked)
                assert refused.value.code != "internal_error", path
            await well(daemon)


RANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "within a chunk": ((1, 100),),
    "beyond the end": ((0, 2**50),),
    "backwards": ((100, 0),),
    "empty": ((0, 0),),
    "the same again and again": ((0, 2**16),) * 512,
    "more than may be asked for": ((0, 2**25 + 2**16),),
}


async def test_invalid_ranges_are_refused(tmp_path: Path) -> None:
    with logged():
        async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
            _, request = await published(daemon, tmp_path / "data")
            [piece] = request.pieces
            for what, ranges in RANGES.items():
                asked: Any = packed(
                    owner=request.owner,
                    name=request.name,
                    snapshot=request.snapshot,
                    pieces=[{"path": piece.path, "ranges": ranges}],
                )
                try:
                    async with mallory.peers.bulk(mallory.to, "chunks", asked) as stream:
                        size = 0
                        while (block := await stream.receive()) is not None:
                            size += len(block)
                    assert what == "the same again and again" and size == 2**25, what
                except PeerRefused as refused:
                    assert refused.code != "internal_error", what


async def test_unfinished_long_requests_use_limited_memory(tmp_path: Path) -> None:
    block = bytes(200 * 1024)
    with logged():
        async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
            opening = codec.encode(JobBulkRequest(kind="commit", size=MAX_MESSAGE))
            before = resident()
            async with opened(mallory, "job", opening, 60) as streams, asyncio.TaskGroup() as group:

                async def feed(stream: BulkStream) -> None:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(2):
                            for _ in range(MAX_MESSAGE // len(block) - 1):
                                await stream.send(block)

                for stream in streams:
                    group.create_task(feed(stream))
            # 60 of 4 MiB would be 240; 8 turns and the windows of the rest are some 47, on both sides.
            assert resident() - before < 160 * 2**20
            await well(daemon)


async def test_too_many_empty_blocks_end_a_long_request(tmp_path: Path) -> None:
    with logged() as logs:
        async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
            opening = codec.encode(JobBulkRequest(kind="commit", size=MAX_MESSAGE))
            with contextlib.suppress(Exception):
                async with mallory.peers.bulk(mallory.to, "job", opening) as stream:
                    for _ in range(5000):
                        await stream.send(b"")
            await until(lambda: bool(logs.of("peer.misbehaved")))
            assert logs.of("peer.misbehaved")[0]["key"] == mallory.id
