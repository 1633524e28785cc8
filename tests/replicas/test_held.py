"""The chunk store's memory and its database agree, whoever goes away and whatever the disk does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from island.catalog.manifest import FileEntry
from island.errors import DiskFailed, IslandError
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.loops import is_transient
from island.kernel.ports import SystemClock
from island.kernel.work import ThreadWorkers
from island.replicas import store
from island.replicas.chunk_store import ChunkStore, ReplicaFile
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
