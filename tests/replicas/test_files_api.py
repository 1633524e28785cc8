"""Files over HTTP: ranges, pages, pins, errors before and after the first byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from island.catalog.messages import ResolvedDataset
from island.errors import IslandError
from island.kernel import codec
from island.kernel.db import Database
from island.replicas.fsspec import IslandFileSystem
from island.replicas.messages import ChunkRequest, FileRanges
from island.trust import journal
from tests.islands.reading import Archipelago, Island, good_until, user_port

DATA = bytes(range(256)) * 12_000


class Site:
    def __init__(self, there: Archipelago, owner: Island, reader: Island, http: aiohttp.ClientSession) -> None:
        self.there, self.owner, self.reader, self.http = there, owner, reader, http
        self.resolved: ResolvedDataset


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    (tmp_path / "islands").mkdir()
    there = Archipelago(tmp_path / "islands")
    folder = tmp_path / "data"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "a.bin").write_bytes(DATA)
    (folder / "empty").write_bytes(b"")
    for index in range(30):
        (folder / "sub dir" / f"f{index:02d}#%.bin").write_bytes(DATA[index : index + 100])
    async with there.island("owner") as owner, there.island("reader") as reader, user_port(there, reader) as url:
        headers = {"Authorization": "Bearer user-token"}
        async with aiohttp.ClientSession(url, headers=headers) as http:
            made = Site(there, owner, reader, http)
            made.resolved = there.catalog.publish(owner.me, "owner", "data", folder)
            yield made


def data_url(site: Site, path: str = "a.bin") -> str:
    return f"/api/v1/files/owner/data/{site.resolved.snapshot}/data/{path}"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-99", 10, 100),
        ("bytes=3071990-", 3_071_990, 3_072_000),
        ("bytes=-5", 3_071_995, 3_072_000),
        ("bytes=5-99999999", 5, 3_072_000),
        ("bytes=-99999999", 0, 3_072_000),
    ],
)
async def test_one_range_is_answered_with_exactly_it(site: Site, asked: str, start: int, end: int) -> None:
    async with site.http.get(data_url(site), headers={"Range": asked}) as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
        assert answer.headers["ETag"] == f'"{(await site.reader.replicas.find(site.resolved, "a.bin")).hash.hex()}"'
        assert await answer.read() == DATA[start:end]


@pytest.mark.parametrize("asked", ["", "bytes=0-1,5-6", "lines=1-2", "bytes=x-y", "bytes=9-3", "bytes=-", "bytes=²-3"])
async def test_what_is_not_one_range_gets_the_whole_file(site: Site, asked: str) -> None:
    async with site.http.get(data_url(site), headers={"Range": asked} if asked else {}) as answer:
        assert answer.status == 200
        assert await answer.read() == DATA


async def test_ranges_beyond_the_end_heads_and_known_content(site: Site) -> None:
    async with site.http.get(data_url(site), headers={"Range": "bytes=9999999-"}) as answer:
        assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")
    async with site.http.head(data_url(site)) as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(DATA)))
    async with site.http.get(data_url(site), headers={"If-None-Match": answer.headers["ETag"]}) as same:
        assert same.status == 304
    async with site.http.get(data_url(site), headers={"Range": "bytes=0-9", "If-Range": '"other"'}) as whole:
        assert whole.status == 200
    async with site.http.get(data_url(site, "empty")) as empty:
        assert (empty.status, await empty.read()) == (200, b"")
    async with site.http.get(data_url(site) + "?align=chunk", headers={"Range": "bytes=70000-70001"}) as aligned:
        assert aligned.headers["Content-Range"] == f"bytes 65536-131071/{len(DATA)}"
        assert await aligned.read() == DATA[65_536:131_072]


async def test_a_listing_comes_in_pages_and_odd_names_can_be_read(site: Site) -> None:
    seen: list[dict[str, Any]] = []
    after = ""
    while True:
        query = {"limit": "7", "after": after}
        async with site.http.get(f"/api/v1/files/owner/data/{site.resolved.snapshot}/list", params=query) as answer:
            page = await answer.json()
        assert len(page["files"]) <= 7
        seen += page["files"]
        if not (after := page["next"]):
            break
    assert len(seen) == 32
    assert [entry["path"] for entry in seen] == sorted(entry["path"] for entry in seen)
    async with site.http.get(data_url(site, "sub%20dir/f03%23%25.bin")) as answer:
        assert await answer.read() == DATA[3:103]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/files/owner/nothing", 404),
        ("/api/v1/files/owner/da:ta", 400),
        ("/api/v1/files/owner/data@zz", 400),
        ("/api/v1/files/owner/data/abc/list", 400),
        ("/api/v1/files/owner/data/{}/list?limit=0", 400),
        ("/api/v1/files/owner/data/{}/list?limit=x", 400),
        ("/api/v1/files/owner/data/{}/data/nothing", 404),
        ("/api/v1/files/owner/data/{}/data/..%2f..%2fkey", 404),
        ("/api/v1/files/owner/data/" + "0" * 64 + "/list", 404),
    ],
)
async def test_bad_input_gets_a_clear_error(site: Site, path: str, status: int) -> None:
    async with site.http.get(path.format(site.resolved.snapshot)) as answer:
        assert answer.status == status
        error = await answer.json()
        assert error["message"]


async def test_a_token_is_needed_and_a_user_may_not_drop(site: Site) -> None:
    async with site.http.get("/api/v1/files", headers={"Authorization": "Bearer other"}) as answer:
        assert answer.status == 401
    async with site.http.delete("/api/v1/files/owner/data") as answer:
        assert answer.status == 403


async def test_fetch_reports_progress_and_drop_frees_it_again(site: Site) -> None:
    async with site.http.post("/api/v1/files/owner/data/fetch") as answer:
        lines = [json.loads(line) async for line in answer.content]
    assert lines[0]["progress"]["total"] == site.resolved.record.size
    result = lines[-1]["result"]
    assert result["bytes_local"] == result["bytes"] == result["fetched"] == site.resolved.record.size
    assert site.reader.gossip.records
    async with site.http.delete("/api/v1/files/owner/data", headers={"Authorization": "Bearer admin-token"}) as gone:
        assert (await gone.json())["freed"] == site.resolved.record.size
    assert not site.reader.gossip.records
    assert not list((site.reader.home / "replicas").rglob("*.bin"))
    state = Database.open(site.reader.home, "state")
    try:
        told = await state.read(journal.entries)
    finally:
        state.close()
    assert sorted(entry.act for entry in told) == ["dataset.drop", "dataset.fetch"]


async def test_a_replica_of_a_withdrawn_dataset_can_be_dropped(site: Site) -> None:
    administrator = {"Authorization": "Bearer admin-token"}
    await site.reader.replicas.fetch(site.resolved)
    site.there.catalog.versions.clear()
    site.there.catalog.published.clear()
    async with site.http.delete("/api/v1/files/owner/data@0000", headers=administrator) as other:
        assert other.status == 404
    async with site.http.delete("/api/v1/files/owner/data", headers=administrator) as gone:
        answer = await gone.json()
    assert (answer["freed"], answer["bytes_local"]) == (site.resolved.record.size, 0)
    assert (answer["dataset"], answer["snapshot"]) == ("owner/data", site.resolved.snapshot)
    assert not list((site.reader.home / "replicas").rglob("*.bin"))
    async with site.http.delete("/api/v1/files/owner/data", headers=administrator) as again:
        assert again.status == 404


async def test_an_error_after_the_first_byte_breaks_the_connection(site: Site) -> None:
    site.there.network.change[site.owner.me] = good_until(1_200_000)
    async with site.http.get(data_url(site)) as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    async with site.http.get(data_url(site), headers={"Range": "bytes=2500000-"}) as answer:
        assert answer.status == 502
        assert "owner" in (await answer.json())["message"]


async def test_a_token_has_a_limit_of_concurrent_reads(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("island.net.api.files.DOWNLOADS", 2)
    monkeypatch.setattr("island.replicas.fsspec.BUSY_S", 0.02)
    monkeypatch.setattr("island.replicas.fsspec.BUSY_TRIES", 5000)
    (tmp_path / "long").mkdir()
    (tmp_path / "long" / "a.bin").write_bytes(bytes(24 * 2**20))  # does not fit into the buffers of the system
    site.resolved = site.there.catalog.publish(site.owner.me, "owner", "data", tmp_path / "long")
    administrator = {"Authorization": "Bearer admin-token"}
    first_byte = {"Range": "bytes=0-0"}
    unread = [await site.http.get(data_url(site)) for _ in range(2)]
    async with site.http.get(data_url(site), headers=first_byte) as refused:
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert (await refused.json())["error"] == "too_many_requests"
    async with site.http.get(data_url(site), headers={**first_byte, **administrator}) as other:
        assert other.status == 206
    # The client of `island://` tries again until the other reads have ended.
    filesystem = IslandFileSystem(home=str(site.reader.home), skip_instance_cache=True)
    reading = asyncio.ensure_future(asyncio.to_thread(filesystem.cat_file, "owner/data/a.bin", 0, 1))
    assert await unread[0].read() == bytes(24 * 2**20)
    unread[1].close()
    assert await reading == b"\0"


# --- what other islands may ask ---------------------------------------------------------------


def chunk_request(site: Site, path: str, *ranges: tuple[int, int]) -> bytes:
    return codec.encode(
        ChunkRequest(
            owner=site.resolved.owner,
            name="data",
            snapshot=site.resolved.snapshot,
            pieces=(FileRanges(path=path, ranges=ranges),),
        )
    )


async def ask(site: Site, body: bytes) -> bytes:
    received = b""
    async with site.reader.peers.bulk(site.owner.me, "chunks", body) as stream, asyncio.timeout(60):
        while (block := await stream.receive()) is not None:
            received += block
    return received


async def test_chunks_are_served_by_their_borders(site: Site) -> None:
    body = chunk_request(site, "a.bin", (65_536, 196_608), (0, 65_536))
    assert await ask(site, body) == DATA[65_536:196_608] + DATA[:65_536]


@pytest.mark.parametrize(
    "make",
    [
        lambda site: b"",
        lambda site: b"\xc1",
        lambda site: chunk_request(site, "a.bin", (1, 65_536)),
        lambda site: chunk_request(site, "a.bin", (0, 65_535)),
        lambda site: chunk_request(site, "a.bin", (65_536, 65_536)),
        lambda site: chunk_request(site, "a.bin", (65_536, 0)),
        lambda site: chunk_request(site, "a.bin", (0, 1 << 40)),
        lambda site: chunk_request(site, "a.bin", (0, 33 * 2**20)),
        lambda site: chunk_request(site, "../key", (0, 65_536)),
        lambda site: chunk_request(site, "nothing", (0, 65_536)),
        lambda site: chunk_request(site, "a.bin", (0, 65_536)).replace(site.resolved.snapshot.encode(), b"0" * 64),
        lambda site: chunk_request(site, "a.bin", (0, 65_536)).replace(site.resolved.owner.encode(), b"f" * 64),
    ],
)
async def test_hostile_requests_are_refused_and_move_nothing(site: Site, make: Any) -> None:
    with pytest.raises(IslandError):
        await ask(site, make(site))
    assert await site.owner.replicas.sent(site.resolved) == 0
