"""Publishing, listing, resolving and withdrawing on one island, with real files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from island.catalog import file_listing
from island.catalog.messages import SearchQuery
from island.errors import BadInput, Corrupt, FilesChanged, IslandError, NotFound, Unsupported
from island.formats.describe import describe
from island.kernel.processes import ProcessPool
from island.trust import journal
from tests.islands.publishing import Island, Islands, write_table
from tests.standins import bombs

WHO = "administrator@alpha"


@pytest.fixture
async def alpha(tmp_path: Path) -> AsyncIterator[Island]:
    async with Islands(tmp_path).island("alpha", alone=True) as island:
        yield island


async def check_snapshot(island: Island, snapshot: str) -> list[str]:
    """Every chunk of every file of a snapshot is what the manifest says; returns the paths."""
    listed = await island.catalog.manifest(island.trust.me, snapshot)
    paths = []
    for entry in await listed.listing():
        own = await island.catalog.own_file(snapshot, entry.path)
        assert own is not None
        data = own.path.read_bytes()
        hashes = await listed.hashes(entry)
        assert hashes.is_whole()
        hashes.check_whole()
        chunks = hashes.chunks(0, entry.size)
        assert [chunk.start for chunk in chunks] == [0, *(chunk.end for chunk in chunks)][:-1]
        assert all(hashes.verify(chunk.index, data[chunk.start : chunk.end]) for chunk in chunks)
        if chunks:
            flipped = bytes([data[0] ^ 1]) + data[1 : chunks[0].end]
            assert not hashes.verify(0, flipped)
        paths.append(entry.path)
    return paths


async def test_a_file_is_published_listed_resolved_and_found(alpha: Island, tmp_path: Path) -> None:
    path = write_table(tmp_path / "data" / "galaxies.parquet", 5000)
    told: list[tuple[int, int, str]] = []
    view = await alpha.catalog.publish(
        WHO, path, "galaxies", title="Bright galaxies", progress=lambda *step: told.append(step)
    )
    assert (view.island, view.name, view.format, view.rows, view.files) == ("alpha", "galaxies", "parquet", 5000, 1)
    assert view.bytes == path.stat().st_size
    assert told[-1][0] == told[-1][1] == 2 * view.bytes
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert await alpha.catalog.datasets() == [view]
    for text in ("alpha/galaxies", f"alpha/galaxies@{view.snapshot[:8]}", f"{alpha.trust.me}/galaxies"):
        resolved = await alpha.catalog.resolve(text)
        assert (resolved.owner, resolved.snapshot, resolved.newest) == (alpha.trust.me, view.snapshot, True)
    assert await check_snapshot(alpha, view.snapshot) == ["galaxies.parquet"]
    assert await alpha.catalog.search(SearchQuery(words="galaxy")) == [view]
    details = await alpha.catalog.show("alpha/galaxies")
    assert details.card is not None
    assert [(c.name, c.unit) for c in details.card.columns][1:3] == [("ra", "deg"), ("dec", "deg")]
    assert details.card.area is not None
    assert 0 < details.card.area < 10
    assert (details.status.bytes, details.status.bytes_local) == (view.bytes, view.bytes)
    assert [(holder.display, holder.role, holder.state) for holder in details.holders] == [("alpha", "owner", "self")]
    entries = await alpha.state.read(lambda conn: journal.entries(conn, contains="dataset.publish"))
    assert [(entry.who, entry.what) for entry in entries] == [(WHO, "alpha/galaxies")]
    assert "no other island yet" in alpha.catalog.audience()


async def test_only_new_files_are_read_again(alpha: Island, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    for number in range(5):
        write_table(folder / f"part-{number}.parquet", 500, ra=10.0 + number, seed=number * 500)
    first = await alpha.catalog.publish(WHO, folder, "parts")
    write_table(folder / "part-9.parquet", 500, ra=200.0, seed=5000)
    totals = []
    second = await alpha.catalog.publish(WHO, folder, "parts", progress=lambda _, total, __: totals.append(total))
    assert set(totals) == {2 * (folder / "part-9.parquet").stat().st_size}
    assert (second.rows, second.files) == (3000, 6)
    assert second.created == first.created
    # What was put together in two steps is what one look finds.
    whole = await alpha.catalog.publish(WHO, folder, "whole")
    assert whole.snapshot == second.snapshot
    assert (whole.record.coverage, whole.record.columns) == (second.record.coverage, second.record.columns)
    cards = [(await alpha.catalog.show(f"alpha/{name}")).card for name in ("parts", "whole")]
    assert cards[0] is not None
    assert cards[1] is not None
    assert cards[0].moc == cards[1].moc
    # The old snapshot is still served: its files are all there.
    await check_snapshot(alpha, first.snapshot)
    resolved = await alpha.catalog.resolve(f"alpha/parts@{first.snapshot[:10]}")
    assert (resolved.snapshot, resolved.newest, resolved.record.rows) == (first.snapshot, True, 2500)


async def test_publishing_unchanged_files_reads_nothing_and_keeps_the_snapshot(alpha: Island, tmp_path: Path) -> None:
    write_table(tmp_path / "data" / "a.parquet")
    first = await alpha.catalog.publish(WHO, tmp_path / "data", "same")
    totals: list[int] = []
    again = await alpha.catalog.publish(WHO, tmp_path / "data", "same", progress=lambda _, t, __: totals.append(t))
    assert totals == []
    assert again == first
    titled = await alpha.catalog.publish(WHO, tmp_path / "data", "same", title="A title")
    assert (titled.snapshot, titled.title) == (first.snapshot, "A title")
    kept = await alpha.catalog.publish(WHO, tmp_path / "data", "same")
    assert kept.title == "A title"


async def test_removed_file_is_excluded_from_row_count_and_coverage(alpha: Island, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_table(folder / "a.parquet", 100, ra=10.0)
    write_table(folder / "b.parquet", 100, ra=200.0)
    await alpha.catalog.publish(WHO, folder, "parts")
    assert await alpha.catalog.search(SearchQuery(region="circle 200.5 12.5 2"))
    (folder / "b.parquet").unlink()
    write_table(folder / "c.parquet", 100, ra=100.0)
    view = await alpha.catalog.publish(WHO, folder, "parts")
    assert view.rows == 200
    assert not await alpha.catalog.search(SearchQuery(region="circle 200.5 12.5 2"))
    assert await alpha.catalog.search(SearchQuery(region="circle 100.5 12.5 2"))
    assert await alpha.catalog.search(SearchQuery(region="circle 10.5 12.5 2"))


async def test_changed_bytes_are_reported_when_they_are_read(alpha: Island, tmp_path: Path) -> None:
    path = write_table(tmp_path / "data" / "a.parquet")
    first = await alpha.catalog.publish(WHO, path, "a")
    assert await alpha.catalog.own_file(first.snapshot, "a.parquet") is not None
    write_table(path, 2000)
    with pytest.raises(FilesChanged) as caught:
        await alpha.catalog.own_file(first.snapshot, "a.parquet")
    assert "again" in caught.value.hint
    second = await alpha.catalog.publish(WHO, path, "a")
    assert second.snapshot != first.snapshot
    await check_snapshot(alpha, second.snapshot)
    with pytest.raises(FilesChanged):
        await alpha.catalog.own_file(first.snapshot, "a.parquet")
    # The old content again is the old snapshot again.
    write_table(path)
    third = await alpha.catalog.publish(WHO, path, "a")
    assert third.snapshot == first.snapshot
    await check_snapshot(alpha, first.snapshot)
    with pytest.raises(NotFound):
        await alpha.catalog.own_file(third.snapshot, "b.parquet")
    assert await alpha.catalog.own_file("0" * 64, "a.parquet") is None


async def test_touching_a_file_keeps_the_snapshot(alpha: Island, tmp_path: Path) -> None:
    path = write_table(tmp_path / "data" / "a.parquet")
    first = await alpha.catalog.publish(WHO, path, "a")
    os.utime(path, (1, 1))
    with pytest.raises(FilesChanged):
        await alpha.catalog.own_file(first.snapshot, "a.parquet")
    assert (await alpha.catalog.publish(WHO, path, "a")).snapshot == first.snapshot
    await check_snapshot(alpha, first.snapshot)


async def test_unpublish_withdraws_everything(alpha: Island, tmp_path: Path) -> None:
    path = write_table(tmp_path / "data" / "a.parquet", 200_000)
    view = await alpha.catalog.publish(WHO, path, "a")
    await alpha.catalog.unpublish(WHO, "a")
    assert await alpha.catalog.datasets() == []
    assert await alpha.catalog.search(SearchQuery(words="a")) == []
    assert await alpha.catalog.own_file(view.snapshot, "a.parquet") is None
    with pytest.raises(NotFound):
        await alpha.catalog.resolve("alpha/a")
    with pytest.raises(NotFound):
        await alpha.catalog.manifest(alpha.trust.me, view.snapshot)
    with pytest.raises(NotFound):
        await alpha.catalog.unpublish(WHO, "a")
    assert path.exists()
    await alpha.catalog.sweep()
    assert list((alpha.home / "manifests").iterdir()) == []
    again = await alpha.catalog.publish(WHO, path, "a")
    assert again.snapshot == view.snapshot
    await check_snapshot(alpha, again.snapshot)


async def test_sweeping_keeps_every_page_that_is_needed(alpha: Island, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_table(folder / "big.parquet", 300_000)
    snapshots = []
    for number in range(4):
        write_table(folder / f"part-{number}.parquet", 100, seed=number)
        snapshots.append((await alpha.catalog.publish(WHO, folder, "parts")).snapshot)
    await alpha.catalog.publish(WHO, folder, "other")
    assert await alpha.catalog.sweep() == 0
    for snapshot in snapshots:
        await check_snapshot(alpha, snapshot)
    await alpha.catalog.unpublish(WHO, "parts")
    assert await alpha.catalog.sweep() > 0
    await check_snapshot(alpha, snapshots[-1])  # published as `other`, too


@pytest.mark.parametrize("name", ["a/b", "", ".hidden", "x" * 65, "a b", "a\x00b"])
async def test_bad_names_are_refused(alpha: Island, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput) as caught:
        await alpha.catalog.publish(WHO, write_table(tmp_path / "data" / "a.parquet"), name)
    assert "letters" in caught.value.hint


async def test_failed_publish_leaves_nothing(alpha: Island, tmp_path: Path, shared_data: Path) -> None:
    good = write_table(tmp_path / "good" / "a.parquet")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    avro = tmp_path / "cut.avro"
    avro.write_bytes((shared_data / "avro" / "weather-snappy.avro").read_bytes()[:200])
    empty = tmp_path / "empty.parquet"
    empty.touch()
    text = tmp_path / "notes.txt"
    text.write_text("not a table")
    bare = tmp_path / "bare"
    bare.mkdir()
    cases: list[tuple[Path, type[IslandError]]] = [
        (tmp_path / "missing.parquet", BadInput),
        (empty, Corrupt),
        (cut, Corrupt),
        (avro, Corrupt),
        (text, Unsupported),
        (bare, BadInput),
        (shared_data / "parquet" / "datapage_v1-corrupt-checksum.parquet", Corrupt),
        (Path("relative.parquet"), BadInput),
        (tmp_path / "good" / ".." / "good" / "a.parquet", BadInput),
    ]
    for path, kind in cases:
        with pytest.raises(kind) as caught:
            await alpha.catalog.publish(WHO, path, "bad")
        assert caught.value.hint, path
    assert await alpha.catalog.datasets() == []
    assert not (alpha.home / "manifests").exists() or list((alpha.home / "manifests").iterdir()) == []


async def test_the_home_and_links_that_leave_the_folder_are_refused(alpha: Island, tmp_path: Path) -> None:
    secret = alpha.home / "key.parquet"
    write_table(secret)
    folder = tmp_path / "data"
    write_table(folder / "a.parquet")
    (folder / "b.parquet").symlink_to(secret)
    for path in (alpha.home, tmp_path, secret, folder):
        with pytest.raises(BadInput) as caught:
            await alpha.catalog.publish(WHO, path, "leak")
        assert caught.value.hint
    (folder / "b.parquet").unlink()
    os.link(secret, folder / "b.parquet")
    with pytest.raises(BadInput, match="home folder"):
        await alpha.catalog.publish(WHO, folder, "leak")
    (folder / "b.parquet").unlink()
    (folder / "b.parquet").symlink_to(folder / "a.parquet")
    assert (await alpha.catalog.publish(WHO, folder, "fine")).files == 2


async def test_a_file_that_becomes_a_link_after_the_survey_is_not_read(alpha: Island, tmp_path: Path) -> None:
    secret = write_table(tmp_path / "private" / "secret.parquet", 7)
    folder = tmp_path / "data"
    path = write_table(folder / "a.parquet")
    listing = file_listing.survey(folder, alpha.home)
    path.unlink()
    path.symlink_to(secret)
    found = listing.files[0]
    status = secret.stat()
    forged = replace(found, size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)
    with pytest.raises(BadInput, match="leads out of"):
        describe(folder)
    with pytest.raises(BadInput, match="leads out of"):
        file_listing.hash_file(
            listing.base, forged, [], form="parquet", role="data", rows=7, sink=lambda _: "", progress=lambda *_: None
        )


async def test_another_schema_is_refused_also_when_only_the_new_file_is_read(alpha: Island, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "data"
    write_table(folder / "a.parquet")
    before = await alpha.catalog.publish(WHO, folder, "parts")
    pq.write_table(pa.table({"id": ["x"]}), folder / "b.parquet")
    with pytest.raises(BadInput, match="another schema"):
        await alpha.catalog.publish(WHO, folder, "parts")
    assert await alpha.catalog.datasets() == [before]


async def test_two_publishes_of_one_name_at_once(alpha: Island, tmp_path: Path) -> None:
    one = write_table(tmp_path / "one" / "a.parquet", 3000)
    two = write_table(tmp_path / "two" / "a.parquet", 4000)
    views = await asyncio.gather(*(alpha.catalog.publish(WHO, path, "a") for path in (one, two, one, two)))
    assert {view.rows for view in views} == {3000, 4000}
    [shown] = await alpha.catalog.datasets()
    assert shown == views[-1]
    await check_snapshot(alpha, shown.snapshot)


async def test_a_cancelled_publish_leaves_nothing(alpha: Island, tmp_path: Path) -> None:
    path = write_table(tmp_path / "data" / "a.parquet", 400_000, row_group_size=1000)
    begun = asyncio.Event()
    task = asyncio.get_running_loop().create_task(
        alpha.catalog.publish(WHO, path, "a", progress=lambda *_: begun.set())
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await alpha.catalog.datasets() == []
    assert list((alpha.home / "manifests").iterdir()) == []
    assert (await alpha.catalog.publish(WHO, path, "a")).rows == 400_000


async def test_dropped_snapshot_leaves_nothing(alpha: Island, tmp_path: Path) -> None:
    path = write_table(tmp_path / "data" / "a.parquet", 300_000)
    prepared = await alpha.catalog.prepare(path, "a")
    assert await alpha.catalog.datasets() == []
    assert await alpha.catalog.sweep() == 0
    assert list((alpha.home / "manifests").iterdir()) != []
    del prepared
    await alpha.catalog.sweep()
    assert list((alpha.home / "manifests").iterdir()) == []


async def test_a_transaction_that_fails_publishes_nothing(alpha: Island, tmp_path: Path) -> None:
    prepared = await alpha.catalog.prepare(write_table(tmp_path / "data" / "a.parquet"), "a")

    def fail(conn: object) -> None:
        alpha.catalog.commit(conn, prepared, WHO, 1.0)  # type: ignore[arg-type]  # a connection
        raise BadInput("the caller's own part failed")

    with pytest.raises(BadInput):
        await alpha.state.write(fail)
    alpha.catalog.committed()
    await alpha.gossip.flush()
    assert await alpha.catalog.datasets() == []
    await alpha.state.write(lambda conn: alpha.catalog.commit(conn, prepared, WHO, 1.0))
    await alpha.gossip.flush()
    assert [view.name for view in await alpha.catalog.datasets()] == ["a"]


async def test_a_restart_keeps_what_was_published(tmp_path: Path) -> None:
    islands = Islands(tmp_path)
    path = write_table(tmp_path / "data" / "a.parquet", 100_000)
    async with islands.island("alpha", alone=True) as alpha:
        view = await alpha.catalog.publish(WHO, path, "a", title="Stars")
        assert await alpha.catalog.search(SearchQuery(words="stars")) == [view]
    for left in ("0123.tmp", "4567"):
        (tmp_path / "alpha" / "manifests" / left).write_bytes(b"left by a crash")
    (tmp_path / "alpha" / "search" / "meta.json").write_text("damaged")
    async with islands.island("alpha", alone=True) as alpha:
        assert not (tmp_path / "alpha" / "manifests" / "0123.tmp").exists()
        assert await alpha.catalog.datasets() == [view]
        assert await alpha.catalog.search(SearchQuery(words="stars")) == [view]
        await check_snapshot(alpha, view.snapshot)
        await alpha.catalog.sweep()
        assert not (tmp_path / "alpha" / "manifests" / "4567").exists()
        totals: list[int] = []
        await alpha.catalog.publish(WHO, path, "a", progress=lambda _, total, __: totals.append(total))
        assert totals == []


async def test_lost_pack_is_reported_and_repaired_by_publishing_again(alpha: Island, tmp_path: Path) -> None:
    path = write_table(tmp_path / "data" / "a.parquet")
    view = await alpha.catalog.publish(WHO, path, "a")
    for pack in (alpha.home / "manifests").iterdir():
        pack.write_bytes(b"\0" * pack.stat().st_size)
    alpha.catalog._manifests.clear()
    with pytest.raises(Corrupt, match="lost or damaged"):
        await alpha.catalog.manifest(alpha.trust.me, view.snapshot)
    again = await alpha.catalog.publish(WHO, path, "a")
    assert again.snapshot == view.snapshot
    await check_snapshot(alpha, again.snapshot)


async def test_a_million_rows_in_many_files_share_their_pages(alpha: Island, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    source = write_table(folder / "part-00000.parquet", 10)
    for number in range(1, 1500):
        os.link(source, folder / f"part-{number:05d}.parquet")
    first = await alpha.catalog.publish(WHO, folder, "many")
    assert (first.files, first.rows) == (1500, 15_000)
    listed = await alpha.catalog.manifest(alpha.trust.me, first.snapshot)
    before = {ref.page async for ref in listed.pages()}
    assert len(before) > 3
    write_table(folder / "part-01500.parquet", 10)
    second = await alpha.catalog.publish(WHO, folder, "many")
    listed = await alpha.catalog.manifest(alpha.trust.me, second.snapshot)
    after = {ref.page async for ref in listed.pages()}
    assert len(after - before) == 1
    assert len(await listed.listing()) == 1501
    assert (await listed.find("part-00700.parquet")).rows == 10
    with pytest.raises(NotFound):
        await listed.find("part-00700.parquet2")


async def test_real_catalogs(alpha: Island, shared_data: Path) -> None:
    hats = await alpha.catalog.publish(WHO, shared_data / "hats" / "small_sky_source", "source")
    assert (hats.format, hats.rows) == ("hats", 17_161)
    paths = await check_snapshot(alpha, hats.snapshot)
    assert "hats.properties" in paths
    assert "dataset/_metadata" in paths
    collection = await alpha.catalog.publish(WHO, shared_data / "hats" / "small_sky_o1_collection", "collection")
    listed = await alpha.catalog.manifest(alpha.trust.me, collection.snapshot)
    roles = {
        entry.path.split("/")[0]: entry.role for entry in await listed.listing() if entry.path.endswith("44.parquet")
    }
    assert roles == {"small_sky_order1": "data", "small_sky_order1_margin": "margin"}
    assert sum(entry.rows for entry in await listed.listing()) == collection.rows == 131
    assert {entry.format for entry in await listed.listing() if entry.role != "data"} == {""}
    alert = shared_data / "alerts" / "ztf" / "ZTF19acihgng.avro"
    alerts = await alpha.catalog.publish(WHO, alert, "alerts")
    assert (alerts.format, alerts.record.hidden > 0) == ("avro", True)
    assert await check_snapshot(alpha, alerts.snapshot)
    weather = await alpha.catalog.publish(WHO, shared_data / "avro" / "weather.avro", "weather")
    assert (weather.rows, weather.record.coverage) == (5, b"")
    card = await alpha.catalog.card(await alpha.catalog.resolve("alpha/source"))
    assert dict(card.details)["hats"] and dict(card.details)["hats.rows"] == "dataset"
    card = await alpha.catalog.card(await alpha.catalog.resolve("alpha/collection"))
    assert dict(card.details)["hats.rows"] == "small_sky_order1/dataset"
    region = await alpha.catalog.search(SearchQuery(region="circle 290 -50 20"))
    assert {view.name for view in region} >= {"source"}
    assert [view.name for view in await alpha.catalog.search(SearchQuery(column="magpsf", format="avro"))] == ["alerts"]
    again = await alpha.catalog.publish(WHO, shared_data / "hats" / "small_sky_source", "source")
    assert again == hats


async def test_the_newest_64_snapshots_stay(alpha: Island, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from island.catalog import core

    monkeypatch.setattr(core, "KEEP_SNAPSHOTS", 3)
    folder = tmp_path / "data"
    snapshots = []
    for number in range(5):
        write_table(folder / f"part-{number}.parquet", 10, seed=number)
        snapshots.append((await alpha.catalog.publish(WHO, folder, "parts")).snapshot)
    await alpha.catalog.sweep()
    for snapshot in snapshots[:2]:
        assert await alpha.catalog.own_file(snapshot, "part-0.parquet") is None
    for snapshot in snapshots[2:]:
        await check_snapshot(alpha, snapshot)
    cards = await alpha.state.read(lambda conn: conn.execute("SELECT count(*) FROM gossip_own_blobs").fetchone()[0])
    assert cards == 3


async def test_invalid_region_is_refused_with_an_example(alpha: Island) -> None:
    for region in ("circle 1 2", "circle a b c", "circle 1 2 nan", "round", "circle 0 91 1", "x" * 5000):
        with pytest.raises(BadInput) as caught:
            await alpha.catalog.search(SearchQuery(region=region))
        assert "circle 187.7 12.4 5" in caught.value.hint


async def test_search_words_are_not_query_syntax(alpha: Island, tmp_path: Path) -> None:
    path = write_table(tmp_path / "data" / "a.parquet")
    view = await alpha.catalog.publish(WHO, path, "m31_halo", title="Andromeda's halo: (M31) AND more*")
    for words in ('"andromeda', "halo*", "(m31)", "m31 AND more", "halo:", "+halo", "m31_halo", "HALO^", "androm"):
        assert await alpha.catalog.search(SearchQuery(words=words)) == [view], words
    for words in ("*", '"', "\\", "[a TO b]", "halo -andromedas2", "\0"):
        assert await alpha.catalog.search(SearchQuery(words=words)) == [], words


async def test_index_damaged_while_in_use_is_rebuilt(alpha: Island, tmp_path: Path) -> None:
    view = await alpha.catalog.publish(WHO, write_table(tmp_path / "data" / "a.parquet"), "a", title="Halo stars")
    assert await alpha.catalog.search(SearchQuery(words="halo")) == [view]

    def broken(*_: object) -> list[object]:
        raise ValueError("damaged")

    index = alpha.catalog._searching._index
    index._index = None  # what a failed read of its files leaves
    index.find, kept = broken, index.find  # type: ignore[method-assign, assignment]  # once
    original_open = index.open

    def opened(*, rebuild: bool = False) -> bool:
        index.find = kept  # type: ignore[method-assign]  # as it was
        return original_open(rebuild=rebuild)

    index.open = opened  # type: ignore[method-assign]  # as above
    assert await alpha.catalog.search(SearchQuery(words="halo")) == [view]


@pytest.fixture
async def pool() -> AsyncIterator[ProcessPool]:
    made = ProcessPool("test", memory_bytes=400 * 2**20, hint="")
    yield made
    await made.close()


async def test_child_processes_describe_files_as_this_process_does(
    alpha: Island, tmp_path: Path, pool: ProcessPool
) -> None:
    folder = tmp_path / "data"
    for number in range(3):
        write_table(folder / f"part-{number}.parquet", 500, ra=10.0 + number, seed=number * 500)
    (tmp_path / "other").mkdir()
    here = await alpha.catalog.publish(WHO, folder, "parts")
    async with Islands(tmp_path / "other", pool).island("beta", alone=True) as beta:
        told: list[tuple[int, int, str]] = []
        there = await beta.catalog.publish(WHO, folder, "parts", progress=lambda *step: told.append(step))
        assert there.snapshot == here.snapshot
        assert told[-1][0] == told[-1][1] == 2 * there.bytes
        assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
        details = await beta.catalog.show("beta/parts"), await alpha.catalog.show("alpha/parts")
        assert details[0].card is not None and details[1].card is not None
        assert details[0].card.moc == details[1].card.moc != ""
        write_table(folder / "part-9.parquet", 500, ra=200.0, seed=5000)
        assert (await beta.catalog.publish(WHO, folder, "parts")).rows == 2000


async def test_a_publish_that_is_cancelled_while_a_child_reads_leaves_nothing(
    tmp_path: Path, pool: ProcessPool
) -> None:
    path = bombs.many_rows(tmp_path / "endless.avro", blocks=1)
    async with Islands(tmp_path, pool).island("alpha", alone=True) as alpha:
        reading = asyncio.Event()
        task = asyncio.create_task(
            alpha.catalog.publish(WHO, path, "endless", progress=lambda _done, _total, _what: reading.set())
        )
        await reading.wait()
        [child] = pool.pids
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() and pool.pids == []
        assert not Path(f"/proc/{child}").exists()
        assert await alpha.catalog.datasets() == []
        assert list((alpha.home / "manifests").iterdir()) == []
