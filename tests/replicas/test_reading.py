"""Reads through the chunk store: verified, once, from whoever can give the bytes."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from island.catalog.messages import ResolvedDataset
from island.errors import FilesChanged, Full, NotFound, PeerMisbehaved, Unreachable
from island.kernel.ids import IslandId
from island.kernel.ports import BulkStream
from island.replicas import chunk_files
from island.replicas.fetching import FetchTimeouts
from tests.islands.reading import IMPATIENT, PATIENT, Archipelago, Island, key_of
from tests.standins.member import until_async

MIB = 2**20


def content(size: int, seed: int = 1) -> bytes:
    block = bytes((i * seed * 7 + i // 251) % 256 for i in range(65_537))
    return (block * (size // len(block) + 1))[:size]


@pytest.fixture
def there(tmp_path: Path) -> Archipelago:
    (tmp_path / "islands").mkdir()
    return Archipelago(tmp_path / "islands")


def publish(there: Archipelago, folder: Path, files: dict[str, bytes], owner: str = "owner") -> ResolvedDataset:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return there.catalog.publish(key_of(owner), owner, "data", folder)


async def test_a_read_moves_its_chunks_once_and_both_ends_count_the_same(there: Archipelago, tmp_path: Path) -> None:
    data = content(3 * MIB)
    resolved = publish(there, tmp_path / "pub", {"sub/a.bin": data})
    async with there.island("owner") as owner, there.island("reader") as reader:
        assert await reader.replicas.read(resolved, "sub/a.bin", 70_000, 140_000) == data[70_000:140_000]
        status = await reader.replicas.status(resolved)
        assert (status.bytes, status.bytes_local, status.bytes_moved) == (3 * MIB, 2 * 65_536, 2 * 65_536)
        assert await owner.replicas.sent(resolved) == status.bytes_moved
        assert await reader.replicas.read(resolved, "sub/a.bin", 65_536, 196_608) == data[65_536:196_608]
        assert len(there.network.streams) == 1
        assert await reader.replicas.read(resolved, "sub/a.bin", 0, 3 * MIB) == data
        assert (await reader.replicas.status(resolved)).bytes_moved == 3 * MIB
        assert await owner.replicas.sent(resolved) == 3 * MIB
        assert await reader.replicas.read(resolved, "sub/a.bin", 3 * MIB - 5, 4 * MIB) == data[-5:]


async def test_ten_readers_move_each_chunk_once(there: Archipelago, tmp_path: Path) -> None:
    data = content(5 * MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data, "b.bin": data[::-1]})
    async with there.island("owner") as owner, there.island("reader") as reader:
        reads = [
            reader.replicas.read(resolved, name, start, 5 * MIB)
            for start in (0, 1, 100_000, 2 * MIB, 3 * MIB)
            for name in ("a.bin", "b.bin")
        ]
        results = await asyncio.gather(*reads)
        assert results[0] == data
        assert results[1] == data[::-1]
        assert results[8] == data[3 * MIB :]
        assert await owner.replicas.sent(resolved) == 10 * MIB
        assert (await reader.replicas.status(resolved)).bytes_moved == 10 * MIB


async def test_a_restarted_island_moves_nothing_again(there: Archipelago, tmp_path: Path) -> None:
    data = content(MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data})
    async with there.island("owner"), there.island("reader") as reader:
        await reader.replicas.read(resolved, "a.bin", 0, MIB)
    async with there.island("reader") as reader:
        there.network.kill(key_of("owner"))
        there.catalog.pages.clear()
        assert await reader.replicas.read(resolved, "a.bin", 0, MIB) == data


async def test_a_chunk_that_rots_on_disk_is_fetched_again(there: Archipelago, tmp_path: Path) -> None:
    data = content(MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data})
    async with there.island("owner"), there.island("reader") as reader:
        await reader.replicas.fetch(resolved)
    path = (
        there.folder
        / "reader"
        / "replicas"
        / chunk_files.folder_of(resolved.owner, "data", resolved.snapshot)
        / "a.bin"
    )
    with path.open("r+b") as file:
        file.seek(500_000)
        file.write(b"rotten")
    async with there.island("owner") as owner, there.island("reader") as reader:
        assert await reader.replicas.read(resolved, "a.bin", 0, MIB) == data
        assert await owner.replicas.sent(resolved) == MIB + 65_536


async def test_chunks_whose_bitmap_was_not_written_are_just_not_there(
    there: Archipelago, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data})
    async with there.island("owner"), there.island("reader") as reader:

        async def crash() -> None:
            raise OSError("the process died before this")

        monkeypatch.setattr(reader.replicas.held, "flush", crash)
        await reader.replicas.read(resolved, "a.bin", 0, MIB)
        with pytest.raises(OSError, match="died"):
            await reader.replicas._write_back()
        monkeypatch.undo()
        monkeypatch.setattr(reader.replicas, "_write_back", _nothing)
    async with there.island("owner"), there.island("reader") as reader:
        assert (await reader.replicas.status(resolved)).bytes_local == 0
        assert await reader.replicas.read(resolved, "a.bin", 0, MIB) == data


async def _nothing() -> None:
    return


async def test_a_missing_or_cut_file_of_the_store_is_noticed(there: Archipelago, tmp_path: Path) -> None:
    data = content(MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data, "b.bin": data})
    async with there.island("owner"), there.island("reader") as reader:
        await reader.replicas.fetch(resolved)
    folder = there.folder / "reader" / "replicas" / chunk_files.folder_of(resolved.owner, "data", resolved.snapshot)
    (folder / "a.bin").unlink()
    os.truncate(folder / "b.bin", 1000)
    stray = there.folder / "reader" / "replicas" / "deadbeef00" / "x" / "y"
    stray.mkdir(parents=True)
    async with there.island("owner"), there.island("reader") as reader:
        assert not stray.exists()
        assert await reader.replicas.read(resolved, "a.bin", 0, MIB) == data
        assert await reader.replicas.read(resolved, "b.bin", 0, MIB) == data
        assert (await reader.replicas.status(resolved)).bytes_local == 2 * MIB


# --- holders ----------------------------------------------------------------------------------


async def replica(there: Archipelago, island: Island, resolved: ResolvedDataset) -> None:
    await island.replicas.fetch(resolved)
    there.catalog.complete.setdefault((resolved.owner, resolved.name, resolved.snapshot), []).append(island.me)


async def until_blamed(reader: Island, *holders: IslandId) -> None:
    """Wait until the faults of exactly these holders are stored.

    A reader may have its data before: what comes after the last chunk is seen later, and the service's own write-back
    may be storing a fault.
    """

    async def blamed() -> bool:
        await reader.replicas._write_back()
        return list(await reader.replicas.faults()) == [*holders]

    await until_async(blamed)


def flip(block: bytes, at: int) -> bytes:
    return bytes([block[0] ^ 1]) + block[1:] if at > 300_000 else block


async def test_flipped_bytes_are_caught_named_and_had_from_another_holder(there: Archipelago, tmp_path: Path) -> None:
    data = content(2 * MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data})
    async with there.island("owner") as owner, there.island("second") as second, there.island("reader") as reader:
        await replica(there, second, resolved)
        there.network.change[owner.me] = flip
        reader.peers.bandwidth[owner.me] = 1e9
        assert await reader.replicas.read(resolved, "a.bin", 0, 2 * MIB) == data
        await until_blamed(reader, owner.me)
        assert "a.bin" in (await reader.replicas.faults())[owner.me][2]
        # What came before the flipped byte was kept, and not asked for a second time.
        assert await second.replicas.sent(resolved) < 2 * MIB


async def test_flipped_bytes_from_the_only_holder_are_an_error_that_names_it(
    there: Archipelago, tmp_path: Path
) -> None:
    resolved = publish(there, tmp_path / "pub", {"a.bin": content(2 * MIB)})
    async with there.island("owner") as owner, there.island("reader") as reader:
        there.network.change[owner.me] = flip
        with pytest.raises(PeerMisbehaved, match=r"held only by owner \(sent bytes that do not match their hash"):
            await reader.replicas.read(resolved, "a.bin", 0, 2 * MIB)
        del there.network.change[owner.me]
        assert await reader.replicas.read(resolved, "a.bin", 0, 2 * MIB) == content(2 * MIB)


async def test_a_holder_that_dies_under_way_is_replaced(there: Archipelago, tmp_path: Path) -> None:
    data = content(6 * MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data})
    async with there.island("owner") as owner, there.island("second") as second, there.island("reader") as reader:
        await replica(there, second, resolved)
        sent_before = await owner.replicas.sent(resolved)
        reader.peers.bandwidth[owner.me] = 1e12

        def die(block: bytes, at: int) -> bytes:
            if at >= 1_000_000:
                there.network.kill(owner.me)
            return block

        there.network.change[owner.me] = die
        assert await reader.replicas.read(resolved, "a.bin", 0, 6 * MIB) == data
        assert await owner.replicas.sent(resolved) > sent_before
        assert 0 < await second.replicas.sent(resolved) < 6 * MIB


async def test_a_read_goes_on_when_its_only_holder_returns(there: Archipelago, tmp_path: Path) -> None:
    data = content(4 * MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data})
    async with there.island("owner") as owner, there.island("reader") as reader:
        lost = asyncio.Event()

        def die(block: bytes, at: int) -> bytes:
            if at >= 1_000_000 and not lost.is_set():
                lost.set()
                there.network.kill(owner.me)
            return block

        there.network.change[owner.me] = die
        read = asyncio.ensure_future(reader.replicas.read(resolved, "a.bin", 0, 4 * MIB))
        await lost.wait()
        there.network.revive(owner.me)
        assert await read == data


async def test_when_all_holders_are_down_the_error_says_who_and_since_when(there: Archipelago, tmp_path: Path) -> None:
    resolved = publish(there, tmp_path / "pub", {"a.bin": content(MIB)})
    async with there.island("owner") as owner:
        async with there.island("reader") as reader:
            await reader.replicas.read(resolved, "a.bin", 0, 65_536)
        there.network.kill(owner.me)
        async with there.island("reader", patience=IMPATIENT) as reader:
            with pytest.raises(Unreachable, match=r"held only by owner \(down since 12:03:11 UTC\)"):
                await reader.replicas.read(resolved, "a.bin", 0, MIB)
            assert await reader.replicas.read(resolved, "a.bin", 0, 65_536) == content(MIB)[:65_536]


async def test_a_dataset_that_was_never_read_and_whose_owner_is_down_says_so_too(
    there: Archipelago, tmp_path: Path
) -> None:
    data = content(MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data})
    async with (
        there.island("owner") as owner,
        there.island("hasty", patience=IMPATIENT) as hasty,
        there.island("reader") as reader,
    ):
        there.network.kill(owner.me)
        with pytest.raises(Unreachable, match=r"manifest of owner/data .*owner \(down since 12:03:11 UTC\)"):
            await hasty.replicas.read(resolved, "a.bin", 0, 10)
        read = asyncio.ensure_future(reader.replicas.read(resolved, "a.bin", 0, 10))
        there.network.revive(owner.me)
        assert await read == data[:10]


@pytest.mark.parametrize("fault", ["short", "long", "order", "endless", "empty", "silent"])
async def test_hostile_answers_are_refused_in_bounded_memory(fault: str, there: Archipelago, tmp_path: Path) -> None:
    data = content(2 * MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data})
    patience = replace(PATIENT, block=0.5) if fault == "silent" else PATIENT
    async with (
        there.island("owner") as owner,
        there.island("liar") as liar,
        there.island("reader", patience=patience) as reader,
    ):
        await replica(there, liar, resolved)
        reader.peers.bandwidth[liar.me] = 1e12

        async def lie(_peer: object, _body: bytes, stream: object) -> None:
            send = stream.send  # type: ignore[attr-defined]  # a stream of the network in memory
            if fault == "short":
                await send(data[:65_536])
            elif fault == "long":
                for start in range(0, 2 * MIB, 65_536):
                    await send(data[start : start + 65_536])
                await send(b"x")
            elif fault == "order":
                await send(data[65_536:131_072])
                await send(data[:65_536])
            elif fault == "endless":
                while True:
                    await send(b"\0" * 65_536)
            elif fault == "empty":
                while True:
                    await send(b"")
            else:
                await asyncio.Event().wait()

        liar.peers.handlers["chunks"] = lie
        assert await reader.replicas.read(resolved, "a.bin", 0, 2 * MIB) == data
        await until_blamed(reader, *([] if fault == "silent" else [liar.me]))
        assert (await owner.replicas.sent(resolved)) > 0


async def test_a_slow_holder_is_waited_for_as_long_as_it_delivers(there: Archipelago, tmp_path: Path) -> None:
    data = content(24 * MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data})
    impatient = FetchTimeouts(nothing=0.2, block=60.0, open=60.0)
    async with there.island("owner") as owner, there.island("reader", patience=impatient) as reader:
        real = owner.peers.handlers["chunks"]

        async def slowly(peer: IslandId, body: bytes, stream: BulkStream) -> None:
            send = stream.send

            async def late(block: bytes) -> None:
                await asyncio.sleep(0.005)
                await send(block)

            stream.send = late  # type: ignore[method-assign]  # this end of this one stream
            await real(peer, body, stream)

        owner.peers.handlers["chunks"] = slowly
        reader.peers.bandwidth[owner.me] = 100_000.0
        await reader.replicas.fetch(resolved)
        assert await reader.replicas.read(resolved, "a.bin", 0, 24 * MIB) == data


# --- the owner --------------------------------------------------------------------------------


async def test_a_file_that_changed_at_its_owner_is_told(there: Archipelago, tmp_path: Path) -> None:
    data = content(MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data, "b.bin": data})
    async with there.island("owner") as owner, there.island("reader") as reader:
        (tmp_path / "pub" / "a.bin").write_bytes(data[::-1])
        with pytest.raises(FilesChanged, match=r"a\.bin"):
            await reader.replicas.read(resolved, "a.bin", 0, MIB)
        with pytest.raises(FilesChanged, match=r"a\.bin was changed, moved or deleted after it was published"):
            await owner.replicas.read(resolved, "a.bin", 0, 10)
        assert await reader.replicas.read(resolved, "b.bin", 0, MIB) == data
        (tmp_path / "pub" / "b.bin").unlink()
        with pytest.raises(FilesChanged):
            await owner.replicas.read(resolved, "b.bin", 0, 10)
        assert await reader.replicas.faults() == {}


async def test_an_unknown_file_is_not_found(there: Archipelago, tmp_path: Path) -> None:
    resolved = publish(there, tmp_path / "pub", {"a.bin": content(1000)})
    async with there.island("owner"), there.island("reader") as reader:
        with pytest.raises(NotFound):
            await reader.replicas.read(resolved, "b.bin", 0, 10)


# --- room -------------------------------------------------------------------------------------


async def test_a_quota_is_kept_before_bytes_are_taken(there: Archipelago, tmp_path: Path) -> None:
    data = content(3 * MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data})
    async with there.island("owner") as owner, there.island("reader", quota="1MiB") as reader:
        with pytest.raises(Full, match=r"1\.0 MiB") as caught:
            await reader.replicas.fetch(resolved)
        assert "quota" in caught.value.hint
        assert await owner.replicas.sent(resolved) == 0
        assert await reader.replicas.read(resolved, "a.bin", 0, 1000) == data[:1000]
        with pytest.raises(Full):
            await reader.replicas.read(resolved, "a.bin", 0, 3 * MIB)
        assert await reader.replicas.read(resolved, "a.bin", 0, 1000) == data[:1000]
        assert reader.replicas.held.total <= MIB


async def test_room_is_made_by_dropping_what_others_hold_too(there: Archipelago, tmp_path: Path) -> None:
    first = publish(there, tmp_path / "one", {"a.bin": content(2 * MIB, 3)})
    second = there.catalog.publish(key_of("owner"), "owner", "more", tmp_path / "one")
    third_folder = tmp_path / "three"
    third_folder.mkdir()
    (third_folder / "c.bin").write_bytes(content(2 * MIB, 5))
    third = there.catalog.publish(key_of("owner"), "owner", "third", third_folder)
    async with there.island("owner"), there.island("reader", quota="5MiB") as reader:
        await reader.replicas.fetch(first)
        await reader.replicas.read(second, "a.bin", 0, 2 * MIB)
        await reader.replicas.read(third, "c.bin", 0, 2 * MIB)
        assert (await reader.replicas.status(first)).bytes_local == 2 * MIB  # pinned
        assert (await reader.replicas.status(second)).bytes_local == 0
        assert (await reader.replicas.status(third)).bytes_local == 2 * MIB
        assert await reader.replicas.read(first, "a.bin", 0, 10) == content(10, 3)


async def test_a_whole_replica_of_what_its_owner_no_longer_publishes_is_never_dropped(
    there: Archipelago, tmp_path: Path
) -> None:
    first = publish(there, tmp_path / "pub", {"a.bin": content(2 * MIB, 3)})
    async with there.island("owner"), there.island("reader", quota="3MiB") as reader:
        await reader.replicas.fetch(first, pin=False)
        second = publish(there, tmp_path / "pub", {"a.bin": content(2 * MIB, 5)})
        with pytest.raises(Full):
            await reader.replicas.fetch(second)
        assert await reader.replicas.read(first, "a.bin", 0, 2 * MIB) == content(2 * MIB, 3)
        there.catalog.complete[first.owner, first.name, first.snapshot] = [key_of("third")]
        await reader.replicas.fetch(second)
        assert (await reader.replicas.status(first)).bytes_local == 0


async def test_a_full_disk_is_said_and_everything_before_stays_usable(
    there: Archipelago, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(3 * MIB)
    resolved = publish(there, tmp_path / "pub", {"a.bin": data})
    real = os.pwrite
    room = [MIB]

    def pwrite(handle: int, block: bytes, offset: int) -> int:
        if room[0] <= 0:
            raise OSError(28, "No space left on device")
        room[0] -= len(block)
        return real(handle, block, offset)

    async with there.island("owner"), there.island("reader") as reader:
        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises(Full, match="disk is full"):
            await reader.replicas.fetch(resolved)
        assert await reader.replicas.read(resolved, "a.bin", 0, 65_536) == data[:65_536]
        room[0] = 10 * MIB
        await reader.replicas.fetch(resolved)
        assert await reader.replicas.read(resolved, "a.bin", 0, 3 * MIB) == data


async def test_the_reserve_of_the_disk_is_kept(there: Archipelago, tmp_path: Path) -> None:
    resolved = publish(there, tmp_path / "pub", {"a.bin": content(MIB)})
    async with there.island("owner"), there.island("reader", reserve="1000TiB") as reader:
        with pytest.raises(Full, match="reserve"):
            await reader.replicas.read(resolved, "a.bin", 0, 10)
