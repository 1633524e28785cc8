"""The chunk store's memory and its database agree, whoever goes away and whatever the disk does."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from island.catalog.manifest import FileEntry, FileHashes, chunk_hash
from island.errors import DiskFailed, IslandError
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.loops import is_transient
from island.kernel.ports import SystemClock
from island.kernel.work import ThreadWorkers
from island.replicas import core, store
from island.replicas.chunk_store import ChunkStore, ReplicaFile, ReplicaSnapshot
from island.replicas.fetching import _arrived
from tests.standins.faults import Fault, Gone

OWNER, NAME, SNAPSHOT = IslandId("a1" * 32), "ngc", "0f" * 32
KEY = (OWNER, NAME, SNAPSHOT)


class Place:
    """A chunk store over a file, which can be opened again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers = ThreadWorkers()
        self.db = Database.open(folder, "chunks", self.workers)
        self.held = ChunkStore(self.db, folder / "replicas", SystemClock(), self.workers)

    async def again(self) -> ChunkStore:
        """What a restart finds."""
        found = ChunkStore(self.db, self.folder / "replicas", SystemClock(), self.workers)
        await found.start()
        return found


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    await made.held.start()
    yield made
    made.db.close()
    made.workers.close()


async def test_a_snapshot_whose_first_reader_goes_away_is_known(place: Place) -> None:
    Gone(place.db)
    with pytest.raises(asyncio.CancelledError):
        await place.held.open(*KEY, 1000)
    assert place.held.get(*KEY) is not None
    assert await place.held.open(*KEY, 1000) is place.held.get(*KEY)


async def test_bytes_that_moved_are_counted_once(place: Place) -> None:
    place.held.count(KEY, received=100, sent=7)
    Gone(place.db)
    with pytest.raises(asyncio.CancelledError):
        await place.held.flush()
    await place.held.flush()
    assert await place.held.moved(KEY) == (100, 7)


async def test_what_the_disk_does_not_take_is_not_believed(place: Place) -> None:
    held = await place.held.open(*KEY, 1000)
    Fault(place.db)
    with pytest.raises(DiskFailed):
        await place.held.update(held, complete=True, pinned=True)
    assert (held.complete, held.pinned) == (False, False)
    await place.held.update(held, complete=True, pinned=True)
    assert (held.complete, held.pinned) == (True, True)


async def test_a_drop_that_fails_changes_nothing_and_one_whose_caller_goes_away_is_whole(place: Place) -> None:
    held = await place.held.open(*KEY, 1000)
    place.held.files.create(held.folder, "a.parquet", 1000)
    Fault(place.db)
    with pytest.raises(DiskFailed):
        await place.held.drop(held)
    assert place.held.get(*KEY) is held
    assert not held.gone
    assert (await place.again()).get(*KEY) is not None
    Gone(place.db)
    with pytest.raises(asyncio.CancelledError):
        await place.held.drop(held)
    assert place.held.get(*KEY) is None
    assert place.held.files.stat(held.folder, "a.parquet") is None
    assert await place.db.read(store.snapshots) == []


async def test_readers_are_told_of_the_disk_that_did_not_keep_what_they_wait_for(place: Place) -> None:
    entry = FileEntry(path="a.parquet", size=1000, hash=bytes(32), chunks=1)
    file = ReplicaFile(1, entry, bytearray(1), 0, None)
    waiting = file.arriving[0] = asyncio.get_running_loop().create_future()
    _arrived(file, (0, 1), OSError(5, "Input/output error"))
    with pytest.raises(IslandError, match=r"cannot be stored: OSError: .*Input/output error") as told:
        await waiting
    assert is_transient(told.value)


PIECES = [b"a" * 1000, b"b" * 1000, b"c" * 1000]


async def _replica(place: Place) -> tuple[ReplicaSnapshot, ReplicaFile, FileHashes]:
    """A replica with one file of three chunks, of which the first one is stored and synced."""
    entry = FileEntry(path="a.parquet", size=3000, hash=bytes(32), chunks=3)
    hashes = FileHashes(entry, 0, [0, 1000, 2000], 3000, [chunk_hash(piece) for piece in PIECES])
    replica = await place.held.open(*KEY, entry.size)
    file = await place.held.file(replica, entry)
    await place.held.make(replica, file)
    assert await place.held.put(replica, file, hashes, 0, PIECES[:1]) == 1
    await place.held.flush()
    return replica, file, hashes


def _fail_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make the next call of a function of `os` fail with EIO."""
    original = getattr(os, name)

    def fail(*_: object) -> None:
        monkeypatch.setattr(os, name, original)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, name, fail)


async def test_chunks_that_could_not_be_synced_are_absent(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    replica, file, hashes = await _replica(place)
    await place.held.put(replica, file, hashes, 1, PIECES[1:])
    assert file.complete
    _fail_once(monkeypatch, "fsync")
    with pytest.raises(IslandError, match="Input/output error") as caught:
        await place.held.flush()
    assert is_transient(caught.value)
    assert core.missing(file.present, (0, 3)) == [(1, 3)]
    assert (file.bytes_local, replica.bytes_local, file.complete) == (1000, 1000, False)
    assert await place.held.get_bytes(replica, file, hashes, 0, 1000) == PIECES[0]
    assert await place.held.get_bytes(replica, file, hashes, 1000, 2000) is None
    # The next sync succeeds, although the system has discarded the chunks.
    await place.held.flush()
    assert "Input/output error" in place.held.problem
    [found] = (await place.again()).snapshots.values()
    assert found.bytes_local == 1000
    await place.held.put(replica, file, hashes, 1, PIECES[1:])
    await place.held.flush()
    assert file.complete and place.held.problem == ""
    [found] = (await place.again()).snapshots.values()
    assert found.bytes_local == 3000


async def test_a_failed_write_is_a_problem_until_another_one_is_synced(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, file, hashes = await _replica(place)
    _fail_once(monkeypatch, "pwrite")
    with pytest.raises(IslandError, match="Input/output error"):
        await place.held.put(replica, file, hashes, 1, PIECES[1:])
    assert "Input/output error" in place.held.problem
    assert core.missing(file.present, (0, 3)) == [(1, 3)]
    await place.held.put(replica, file, hashes, 1, PIECES[1:])
    await place.held.flush()
    assert place.held.problem == ""
