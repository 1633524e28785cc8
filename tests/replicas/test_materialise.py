"""Datasets as paths for Spark: in place, as links, converted; and what is told to other islands about replicas."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.catalog.messages import ReplicaRecord, ResolvedDataset
from island.errors import BadInput, Conflict, Corrupt, FilesChanged, IslandError
from island.formats.limits import DEFAULT_LIMITS
from island.kernel import codec
from island.kernel.processes import ProcessPool
from island.kernel.work import ThreadWorkers
from island.replicas import chunk_files
from island.replicas.materialise import DatasetFolders
from tests.islands.reading import IMPATIENT, Archipelago, Island, key_of
from tests.standins import bombs

SCHEMA = {"type": "record", "name": "r", "fields": [{"name": "x", "type": "long"}]}


@pytest.fixture
def there(tmp_path: Path) -> Archipelago:
    (tmp_path / "islands").mkdir()
    return Archipelago(tmp_path / "islands")


@pytest.fixture
async def pair(there: Archipelago) -> AsyncIterator[tuple[Island, Island]]:
    async with there.island("owner") as owner, there.island("reader") as reader:
        yield owner, reader


def publish(there: Archipelago, folder: Path) -> ResolvedDataset:
    return there.catalog.publish(key_of("owner"), "owner", "data", folder)


def rows(path: str) -> list[int]:
    return sorted(pq.read_table(path, partitioning=None)["x"].to_pylist())


async def test_nested_and_mixed_folders_become_a_flat_folder_of_the_data_files(
    there: Archipelago, pair: tuple[Island, Island], tmp_path: Path
) -> None:
    owner, reader = pair
    folder = tmp_path / "hats"
    for number, path in enumerate(("Norder=0/Dir=0/Npix=1.parquet", "Norder=0/Dir=0/Npix=2.parquet")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"x": [number], "Norder": [0]}), folder / path)
    (folder / "properties").write_text("obs_collection=x")
    resolved = publish(there, folder)
    for island in (owner, reader):
        local = await island.replicas.materialise(resolved)
        assert rows(local.path) == [0, 1]
        assert sorted(os.listdir(local.path)) == ["part-000000.parquet", "part-000001.parquet"]
        assert (await island.replicas.materialise(resolved)).path == local.path
    assert local.moved == local.bytes == resolved.record.size
    assert (tmp_path / "islands/reader/replicas" / chunk_files.folder_of(owner.me, "data", resolved.snapshot)).is_dir()


async def test_one_plain_file_is_its_own_path(there: Archipelago, pair: tuple[Island, Island], tmp_path: Path) -> None:
    owner, reader = pair
    folder = tmp_path / "one"
    folder.mkdir()
    pq.write_table(pa.table({"x": [1, 2]}), folder / "t.parquet")
    resolved = publish(there, folder)
    assert (await owner.replicas.materialise(resolved)).path == str(folder / "t.parquet")
    assert rows((await reader.replicas.materialise(resolved)).path) == [1, 2]


async def test_a_replica_is_kept_for_a_session_until_it_is_released(there: Archipelago, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    pq.write_table(pa.table({"x": [1, 2]}), folder / "t.parquet")
    resolved = publish(there, folder)
    async with there.island("owner"), there.island("reader") as reader:
        await reader.replicas.materialise(resolved)
        with pytest.raises(Conflict, match="a session"):
            await reader.replicas.drop(resolved)
    async with there.island("owner"), there.island("reader") as reader:
        with pytest.raises(Conflict, match="a session"):
            await reader.replicas.drop(resolved)
        await reader.replicas.release(resolved.owner, resolved.name, resolved.snapshot)
    async with there.island("owner"), there.island("reader") as reader:
        assert await reader.replicas.drop(resolved) == resolved.record.size
        await reader.replicas.release(resolved.owner, resolved.name, resolved.snapshot)  # there is nothing to release


async def test_avro_is_converted_once_a_snapshot(
    there: Archipelago, pair: tuple[Island, Island], tmp_path: Path
) -> None:
    _, reader = pair
    folder = tmp_path / "avro"
    folder.mkdir()
    for number in range(2):
        with (folder / f"{number}.avro").open("wb") as file:
            fastavro.writer(file, SCHEMA, [{"x": number * 10 + i} for i in range(5)])
    resolved = publish(there, folder)
    told: list[str] = []
    local, again = await asyncio.gather(
        reader.replicas.materialise(resolved, lambda _done, _total, what: told.append(what)),
        reader.replicas.materialise(resolved),
    )
    assert rows(local.path) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert again.path == local.path == str(reader.home / "converted" / resolved.snapshot)
    assert reader.replicas.space.other_bytes > 0
    assert told


async def test_a_broken_avro_file_is_told_as_such(
    there: Archipelago, pair: tuple[Island, Island], tmp_path: Path
) -> None:
    _, reader = pair
    folder = tmp_path / "avro"
    folder.mkdir()
    with (folder / "x.avro").open("wb") as file:
        fastavro.writer(file, SCHEMA, [{"x": i} for i in range(1000)])
    whole = (folder / "x.avro").read_bytes()
    (folder / "x.avro").write_bytes(whole[: len(whole) // 2])
    resolved = publish(there, folder)
    with pytest.raises(IslandError, match=r"x\.avro") as caught:
        await reader.replicas.materialise(resolved)
    assert caught.value.code == Corrupt.code
    assert not (reader.home / "converted" / resolved.snapshot).exists()


async def test_an_own_file_that_changed_and_a_dataset_without_data_are_refused(
    there: Archipelago, pair: tuple[Island, Island], tmp_path: Path
) -> None:
    owner, reader = pair
    folder = tmp_path / "t"
    folder.mkdir()
    pq.write_table(pa.table({"x": [1]}), folder / "t.parquet")
    resolved = publish(there, folder)
    pq.write_table(pa.table({"x": [1, 2, 3]}), folder / "t.parquet")
    for island in (owner, reader):
        with pytest.raises(FilesChanged, match=r"t\.parquet"):
            await island.replicas.materialise(resolved)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "readme").write_text("x")
    with pytest.raises(BadInput):
        await owner.replicas.materialise(publish(there, tmp_path / "none"))


async def test_a_replica_that_was_touched_is_verified_again_before_spark_sees_it(
    there: Archipelago, tmp_path: Path
) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    pq.write_table(pa.table({"x": list(range(100_000))}), folder / "t.parquet")
    async with there.island("owner") as owner, there.island("reader") as reader:
        resolved = publish(there, folder)
        path = Path((await reader.replicas.materialise(resolved)).path)
        sent = await owner.replicas.sent(resolved)
        with path.open("r+b") as file:
            file.seek(100_000)
            file.write(b"broken")
        assert rows((await reader.replicas.materialise(resolved)).path) == list(range(100_000))
        assert sent < await owner.replicas.sent(resolved) <= sent + 2 * 65_536
        path.unlink()
        assert rows((await reader.replicas.materialise(resolved)).path) == list(range(100_000))
    async with there.island("owner") as owner, there.island("reader") as reader:
        sent = await owner.replicas.sent(resolved)
        assert rows((await reader.replicas.materialise(resolved)).path) == list(range(100_000))
        assert await owner.replicas.sent(resolved) == sent


async def test_a_fetch_that_was_cut_is_taken_up_and_told_to_others(there: Archipelago, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02d}.bin").write_bytes(os.urandom(300_000))
    (folder / "empty").write_bytes(b"")
    resolved = publish(there, folder)
    size = resolved.record.size
    async with there.island("owner") as owner, there.island("reader", patience=IMPATIENT) as reader:
        lost = asyncio.Event()

        def die(block: bytes, at: int) -> bytes:
            if at >= 1_000_000 and not lost.is_set():
                lost.set()
                there.network.kill(owner.me)
            return block

        there.network.change[owner.me] = die
        with pytest.raises(IslandError, match="held only by owner"):
            await reader.replicas.fetch(resolved)
        status = await reader.replicas.status(resolved)
        assert 0 < status.bytes_local < size
        assert [held.state for held in record(reader).held] == ["begun"]
    async with there.island("owner") as owner, there.island("reader") as reader:
        there.network.change.clear()
        await reader.replicas.fetch(resolved)
        status = await reader.replicas.status(resolved)
        assert status.bytes_local == size
        assert status.bytes_moved < size + 8 * 2**20
        told = record(reader)
        assert [(held.snapshot, held.state, held.size) for held in told.held] == [(resolved.snapshot, "complete", size)]
        folder_here = reader.home / "replicas" / chunk_files.folder_of(owner.me, "data", resolved.snapshot)
        for path in folder.iterdir():
            assert (folder_here / path.name).read_bytes() == path.read_bytes()
        # Nothing is moved by a second fetch.
        await reader.replicas.fetch(resolved)
        assert (await reader.replicas.status(resolved)).bytes_moved == status.bytes_moved


def record(island: Island) -> ReplicaRecord:
    (data,) = island.gossip.records.values()
    return codec.decode(data, ReplicaRecord)


async def test_a_conversion_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    source = bombs.many_rows(tmp_path / "endless.avro")
    pool = ProcessPool("test", memory_bytes=400 * 2**20, hint="")
    workers = ThreadWorkers(publishing=pool)
    views = DatasetFolders(tmp_path, workers, DEFAULT_LIMITS)
    writing = asyncio.Event()
    task = asyncio.create_task(views.path("snapshot", "avro", [source], lambda *_: writing.set()))
    await writing.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled() and pool.pids == []
    assert list((tmp_path / "converted").iterdir()) == []
    await pool.close()
    workers.close()
