"""`island://` as pandas, pyarrow, fastavro and fsspec itself use it, against the real HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import fastavro
import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from island.catalog.messages import ResolvedDataset
from island.replicas.fsspec import PROBED, IslandFileSystem
from tests.islands.reading import IMPATIENT, Archipelago, Island, good_until, key_of, user_port

T = TypeVar("T")
ROWS = 40_000


class Site:
    """A reader with its user port, and an owner with a dataset of three Parquet files and one of Avro."""

    def __init__(self, there: Archipelago, owner: Island, reader: Island, url: str, folder: Path) -> None:
        self.there, self.owner, self.reader, self.url, self.folder = there, owner, reader, url, folder

    @property
    def options(self) -> dict[str, str]:
        return {"home": str(self.reader.home)}

    def publish(self, name: str) -> ResolvedDataset:
        return self.there.catalog.publish(self.owner.me, "owner", name, self.folder / name)

    async def moved(self, resolved: ResolvedDataset) -> int:
        return (await self.reader.replicas.status(resolved)).bytes_moved


def frame(seed: int) -> pd.DataFrame:
    numbers = pd.Series(range(ROWS)) * (seed + 1)
    return pd.DataFrame({f"c{i}": (numbers * 7919 + i * 104_729) % 1_000_003 for i in range(12)})


def write_tables(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    for seed, path in enumerate(("a.parquet", "b.parquet", "deep/er/c.parquet")):
        table = pa.Table.from_pandas(frame(seed))
        pq.write_table(table, folder / path, compression="none", use_dictionary=False, row_group_size=ROWS // 2)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    (tmp_path / "islands").mkdir()
    there = Archipelago(tmp_path / "islands")
    write_tables(tmp_path / "tables")
    async with contextlib.AsyncExitStack() as stack:
        owner = await stack.enter_async_context(there.island("owner"))
        reader = await stack.enter_async_context(there.island("reader"))
        url = await stack.enter_async_context(user_port(there, reader))
        yield Site(there, owner, reader, url, tmp_path)
        IslandFileSystem.clear_instance_cache()
        gc.collect()


async def run(function: Callable[..., T], *args: Any, **options: Any) -> T:
    return await asyncio.to_thread(function, *args, **options)


def expected() -> pd.DataFrame:
    return pd.concat([frame(0), frame(1), frame(2)], ignore_index=True)


async def test_pandas_reads_a_folder_whole_and_warm_reads_move_nothing(site: Site) -> None:
    resolved = site.publish("tables")
    found = await run(pd.read_parquet, "island://owner/tables", storage_options=site.options)
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected())
    moved = await site.moved(resolved)
    assert moved == await site.owner.replicas.sent(resolved)
    await run(pd.read_parquet, "island://owner/tables", storage_options=site.options)
    assert await site.moved(resolved) == moved


async def test_chosen_columns_move_little_more_than_themselves(site: Site) -> None:
    resolved = site.publish("tables")
    columns = ["c3", "c9"]
    found = await run(pd.read_parquet, "island://owner/tables", columns=columns, storage_options=site.options)
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected()[columns])
    ideal = ideal_bytes(site.folder / "tables", columns)
    bound = 1.05 if pa.__version__.partition(".")[0] in PROBED else 2.0
    assert ideal <= await site.moved(resolved) <= bound * ideal
    moved = await site.moved(resolved)
    await run(pd.read_parquet, "island://owner/tables", columns=columns, storage_options=site.options)
    assert await site.moved(resolved) == moved


async def test_an_arrow_that_was_not_tested_gets_the_true_end_of_a_file(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish("tables")
    monkeypatch.setattr("island.replicas.fsspec.PROBED", frozenset())

    def end() -> bytes:
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("island", **site.options)))
        with filesystem.open_input_file("owner/tables/a.parquet") as file:
            data: bytes = file.read_at(65_536, file.size() - 65_536)
        return data

    assert await run(end) == (site.folder / "tables" / "a.parquet").read_bytes()[-65_536:]


def ideal_bytes(folder: Path, columns: list[str]) -> int:
    """Footers and the column chunks of the columns, to the byte."""
    total = 0
    for path in folder.rglob("*.parquet"):
        metadata = pq.read_metadata(path)
        total += metadata.serialized_size + 8
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(index)
                if chunk.path_in_schema in columns:
                    total += chunk.total_compressed_size
    return total


async def test_pyarrow_dataset_reads_with_filters(site: Site) -> None:
    site.publish("tables")

    def read() -> pd.DataFrame:
        filesystem = fsspec.filesystem("island", **site.options)
        dataset = pads.dataset("owner/tables", filesystem=filesystem, format="parquet")
        return dataset.to_table(columns=["c0", "c1"], filter=pads.field("c0") < 1000).to_pandas()

    found = await run(read)
    wanted = expected()[["c0", "c1"]]
    pd.testing.assert_frame_equal(found.reset_index(drop=True), wanted[wanted.c0 < 1000].reset_index(drop=True))


async def test_the_daemon_is_found_by_home_by_environment_and_by_endpoint(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish("tables")
    by_endpoint = {"endpoint": site.url, "token": "user-token"}
    found = await run(pd.read_parquet, "island://owner/tables", columns=["c1"], storage_options=by_endpoint)
    assert len(found) == 3 * ROWS
    by_url = fsspec.filesystem("island", url=site.url, token="user-token")
    assert await run(by_url.isfile, "owner/tables/a.parquet")
    monkeypatch.setenv("ISLAND_HOME", str(site.reader.home / "none"))
    monkeypatch.setenv("ISLAND_URL", site.url)
    file = site.folder / "my-token"
    file.write_text("user-token")
    file.chmod(0o600)
    monkeypatch.setenv("ISLAND_TOKEN_FILE", str(file))
    by_environment = fsspec.filesystem("island", skip_instance_cache=True)
    assert await run(by_environment.isfile, "owner/tables/a.parquet")
    monkeypatch.delenv("ISLAND_URL")
    monkeypatch.delenv("ISLAND_TOKEN_FILE")
    monkeypatch.setenv("ISLAND_HOME", str(site.reader.home))

    def read() -> int:
        dataset = pads.dataset("fsspec+island://owner/tables", format="parquet")
        return int(dataset.to_table(columns=["c1"]).num_rows)

    assert await run(read) == 3 * ROWS


async def test_a_dataset_of_one_file_is_a_folder_with_that_file(site: Site) -> None:
    (site.folder / "one").mkdir()
    frame(5).to_parquet(site.folder / "one" / "only.parquet")
    site.publish("one")
    for path in ("island://owner/one", "island://owner/one/only.parquet"):
        found = await run(pd.read_parquet, path, storage_options=site.options)
        pd.testing.assert_frame_equal(found, frame(5))


async def test_fastavro_reads_from_front_to_back_in_few_requests(site: Site) -> None:
    (site.folder / "packets").mkdir()
    schema = {"type": "record", "name": "r", "fields": [{"name": "x", "type": "long"}, {"name": "s", "type": "string"}]}
    rows = [{"x": i, "s": f"{i:0200d}"} for i in range(20_000)]
    with (site.folder / "packets" / "p.avro").open("wb") as file:
        fastavro.writer(file, schema, rows)
    site.publish("packets")
    asked = 0
    real = site.reader.replicas.stream

    def counted(*args: Any) -> AsyncIterator[bytes]:
        nonlocal asked
        asked += 1
        return real(*args)

    site.reader.replicas.stream = counted  # type: ignore[method-assign,assignment]  # counts the requests

    def read() -> list[Any]:
        with fsspec.open("island://owner/packets/p.avro", **site.options) as file:
            return list(fastavro.reader(file))

    assert await run(read) == rows
    assert asked < 20


async def test_listings_show_the_published_files_only(site: Site) -> None:
    site.publish("tables")
    filesystem = fsspec.filesystem("island", **site.options)

    def look() -> None:
        assert filesystem.ls("island://", detail=False) == ["owner"]
        assert filesystem.ls("island://owner", detail=False) == ["owner/tables"]
        top = filesystem.ls("island://owner/tables", detail=True)
        assert {entry["name"]: entry["type"] for entry in top} == {
            "owner/tables/a.parquet": "file",
            "owner/tables/b.parquet": "file",
            "owner/tables/deep": "directory",
        }
        assert top[0]["size"] == (site.folder / "tables" / "a.parquet").stat().st_size
        assert filesystem.find("owner/tables") == [
            "owner/tables/a.parquet",
            "owner/tables/b.parquet",
            "owner/tables/deep/er/c.parquet",
        ]
        assert filesystem.glob("owner/tables/**/*.parquet")[-1] == "owner/tables/deep/er/c.parquet"
        assert filesystem.isdir("owner/tables/deep/er")
        assert filesystem.isfile("owner/tables/a.parquet")
        assert not filesystem.exists("owner/tables/z.parquet")
        assert filesystem.info("owner/tables")["type"] == "directory"

    await run(look)


async def test_bytes_ranges_and_copies(site: Site) -> None:
    site.publish("tables")
    whole = (site.folder / "tables" / "a.parquet").read_bytes()
    filesystem = fsspec.filesystem("island", **site.options)
    path = "owner/tables/a.parquet"

    def read() -> None:
        assert filesystem.cat_file(path) == whole
        assert filesystem.cat_file(path, 10, 20) == whole[10:20]
        assert filesystem.cat_file(path, -8) == whole[-8:]
        assert filesystem.cat_file(path, 20, 10) == b""
        assert filesystem.cat_ranges([path] * 3, [0, 5, 100_000], [4, 9, 200_000]) == [
            whole[:4],
            whole[5:9],
            whole[100_000:200_000],
        ]
        filesystem.get_file(path, str(site.folder / "copy"))
        assert (site.folder / "copy").read_bytes() == whole
        with filesystem.open(path) as file:
            assert file.read(3) == whole[:3]
            file.seek(-5, 2)
            assert file.read() == whole[-5:]
            assert file.read() == b""

    await run(read)


async def test_it_is_read_only(site: Site) -> None:
    site.publish("tables")
    filesystem = fsspec.filesystem("island", **site.options)
    for write in (
        lambda: filesystem.open("owner/tables/new", "wb"),
        lambda: filesystem.rm("owner/tables/a.parquet"),
        lambda: filesystem.mkdir("owner/new"),
        lambda: filesystem.cp_file("owner/tables/a.parquet", "owner/tables/z"),
    ):
        with pytest.raises(OSError, match="read-only"):
            await run(write)


async def test_errors_are_those_that_programs_expect_in_the_islands_words(site: Site) -> None:
    site.publish("tables")
    filesystem = fsspec.filesystem("island", **site.options)
    with pytest.raises(FileNotFoundError, match="there is no dataset owner/nothing"):
        await run(filesystem.ls, "owner/nothing")
    with pytest.raises(FileNotFoundError, match="no such file"):
        await run(filesystem.open, "owner/tables/nothing")
    with pytest.raises(IsADirectoryError):
        await run(filesystem.open, "owner/tables/deep")
    wrong = fsspec.filesystem("island", url=site.url, token="wrong")
    with pytest.raises(PermissionError, match="token"):
        await run(wrong.ls, "owner/tables")
    away = fsspec.filesystem("island", url="http://127.0.0.1:9", token="x")
    with pytest.raises(ConnectionError, match="island run"):
        await run(away.ls, "owner/tables")
    lost = fsspec.filesystem("island", home=str(site.folder / "nowhere"))
    with pytest.raises(ConnectionError, match="there is no island at"):
        await run(lost.ls, "owner/tables")
    with pytest.raises(OSError, match="there is no island at"):  # pandas and pyarrow keep the words
        await run(pd.read_parquet, "island://owner/tables", storage_options={"home": str(site.folder / "nowhere")})
    async with site.there.island("hasty", patience=IMPATIENT) as hasty, user_port(site.there, hasty):
        filesystem = fsspec.filesystem("island", home=str(hasty.home))
        await run(filesystem.ls, "owner/tables")
        site.there.network.kill(site.owner.me)
        with pytest.raises(OSError, match=r"held only by owner \(down since 12:03:11 UTC\)"):
            await run(filesystem.cat_file, "owner/tables/a.parquet")
        IslandFileSystem.clear_instance_cache()
        gc.collect()


async def test_a_read_stays_at_one_snapshot_until_the_dataset_is_listed_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = site.folder / "tables"
    first = site.publish("tables")
    filesystem = fsspec.filesystem("island", **site.options)
    assert len(await run(filesystem.find, "owner/tables")) == 3
    old = (folder / "a.parquet").read_bytes()
    frame(9).to_parquet(folder / "d.parquet")
    site.publish("tables")
    assert await run(filesystem.cat_file, "owner/tables/a.parquet") == old
    with pytest.raises(FileNotFoundError):
        await run(filesystem.open, "owner/tables/d.parquet")
    pickled = pickle.dumps(filesystem)
    IslandFileSystem.clear_instance_cache()  # otherwise fsspec hands back the very object that was pickled
    clone = pickle.loads(pickled)
    assert clone is not filesystem
    assert len(await run(clone.find, "owner/tables")) == 3
    monkeypatch.setattr("island.replicas.fsspec.PIN_REFRESH_S", 0.0)
    assert len(await run(filesystem.find, "owner/tables")) == 4
    assert len(await run(filesystem.find, f"owner/tables@{first.snapshot}")) == 3
    filesystem.invalidate_cache()


async def test_a_pickle_in_a_new_process_reads_the_same_snapshot_and_moves_nothing(site: Site) -> None:
    resolved = site.publish("tables")
    filesystem = fsspec.filesystem("island", **site.options)
    assert len(await run(filesystem.find, "owner/tables")) == 3
    await run(pd.read_parquet, "island://owner/tables", columns=["c1"], storage_options=site.options)
    moved = await site.moved(resolved)
    frame(9).to_parquet(site.folder / "tables" / "d.parquet")
    site.publish("tables")
    (site.folder / "pickle").write_bytes(pickle.dumps(filesystem))
    code = (
        "import pickle, sys, pandas as pd\n"
        "fs = pickle.load(open(sys.argv[1], 'rb'))\n"
        "paths = fs.find('owner/tables')\n"
        "print(len(paths), len(pd.read_parquet('owner/tables', columns=['c1'], filesystem=fs)))\n"
    )
    done = await run(
        subprocess.run,
        [sys.executable, "-c", code, str(site.folder / "pickle")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["3", str(3 * ROWS)], done.stderr
    assert await site.moved(resolved) == moved


@pytest.mark.skipif(sys.platform != "linux", reason="what other threads do is known on Linux only")
async def test_a_program_ends_after_arrows_threads_have_finished(site: Site) -> None:
    site.publish("tables")
    code = (
        "import fsspec, hashlib, json, os, pyarrow, sys, threading\n"
        "fs = fsspec.filesystem('island', **json.loads(sys.argv[1]))\n"
        "fs.open('owner/tables/a.parquet').read(4)\n"
        "begun = threading.Event()\n"
        "def work():\n"
        "    begun.set()\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 100_000)\n"  # runs outside the interpreter, as Arrow does
        "    os.write(1, b'finished')\n"
        "threading.Thread(target=work, daemon=True).start()\n"  # as Arrow's, whom nobody joins
        "begun.wait()\n"
    )
    command = [sys.executable, "-c", code, json.dumps(site.options)]
    done = await run(subprocess.run, command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "finished"), done.stderr


async def test_many_threads_share_one_filesystem(site: Site) -> None:
    site.publish("tables")
    filesystem = fsspec.filesystem("island", **site.options)
    whole = (site.folder / "tables" / "b.parquet").read_bytes()
    reads = [run(filesystem.cat_file, "owner/tables/b.parquet", i * 1000, i * 1000 + 50_000) for i in range(40)]
    for i, data in enumerate(await asyncio.gather(*reads)):
        assert data == whole[i * 1000 : i * 1000 + 50_000]


async def test_a_daemon_that_breaks_off_never_gives_short_data(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.folder / "big").mkdir()
    data = bytes(range(256)) * 16_384
    (site.folder / "big" / "x.bin").write_bytes(data)
    site.publish("big")
    filesystem = fsspec.filesystem("island", **site.options)
    site.there.network.change[site.owner.me] = good_until(1_500_000)
    with pytest.raises(OSError, match="do not match their hash"):
        await run(filesystem.cat_file, "owner/big/x.bin")
    del site.there.network.change[site.owner.me]
    assert await run(filesystem.cat_file, "owner/big/x.bin") == data
    assert key_of("owner") == site.owner.me
