"""Avro through a channel: real alert packets, files still being written, files cut in half."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fastavro
import pyarrow.parquet as pq
import pytest

from tests.islands.subscribing import ALPHA, BETA, Home, running, total, until
from tests.standins.peers import Wire


def segments(home: Home) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted((home.path / "streams" / "mine").glob("*.parquet")):
        found += pq.read_table(path).to_pylist()
    return found


def container(first: int, count: int) -> bytes:
    schema = {
        "type": "record",
        "name": "r",
        "fields": [{"name": "id", "type": "long"}, {"name": "x", "type": "double"}],
    }
    out = io.BytesIO()
    fastavro.writer(out, schema, ({"id": i, "x": i / 2} for i in range(first, first + count)), sync_interval=100)
    return out.getvalue()


async def test_real_alerts_with_their_images(tmp_path: Path, shared_data: Path) -> None:
    source_files = sorted((shared_data / "alerts" / "ztf").glob("*.avro"))
    # The plainest comes first: what the broker added to the others is left out.
    assert source_files[0].name == "ZTF19acihgng.avro"
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    (a.drop / source_files[0].name).write_bytes(source_files[0].read_bytes())
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        watched = await source.watch()
        await until(lambda: watched.schema is not None)
        await subscriber.subscribe(ALPHA, where="candidate.magpsf < 19 AND objectId LIKE 'ZTF%'")
        want: dict[tuple[str, int], bytes] = {}
        for path in source_files:
            if path != source_files[0]:
                (a.drop / f"{path.name}.part").write_bytes(path.read_bytes())
                (a.drop / f"{path.name}.part").rename(a.drop / path.name)
            with path.open("rb") as file:
                for record in fastavro.reader(file):
                    assert isinstance(record, dict)
                    if record["candidate"]["magpsf"] < 19:
                        key = record["objectId"], record["candid"]
                        want[key] = record["cutoutScience"]["stampData"]
        await until(lambda: len(watched._known or {}) == len(source_files))
        await until(lambda: total(b) >= len(want))
    found = segments(b)
    assert {(row["objectId"], row["candid"]): row["cutoutScience"]["stampData"] for row in found} == want
    assert len(found) == len(want) > 5
    assert not watched.problem
    assert "part-3-305711.avro" in watched.note


async def test_real_alerts_of_two_brokers_do_not_mix(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "alerts" / "ztf"
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    (a.drop / "1.avro").write_bytes((folder / "part-3-305711.avro").read_bytes())
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        watched = await source.watch()
        await until(lambda: watched.schema is not None)
        channel = await subscriber.subscribe(ALPHA, where="tns <> ''")
        (a.drop / "2.avro").write_bytes((folder / "avro_multi_alerts.avro").read_bytes())
        await until(lambda: channel.status.state == "error")
    assert "2.avro" in channel.status.reason
    assert "timestamp" in channel.status.reason
    assert segments(b)
    assert all(row["tns"] for row in segments(b))


async def test_an_avro_file_that_grows_is_not_taken_early(tmp_path: Path) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    whole = container(0, 500)
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        watched = await source.watch()
        await subscriber.subscribe(ALPHA)
        with (a.drop / "growing.avro").open("wb") as file:
            for start in range(0, len(whole), 400):
                version = watched.looked.version
                file.write(whole[start : start + 400])
                file.flush()
                await watched.looked.after(version)
        await until(lambda: total(b) > 0)
    assert [row["id"] for row in segments(b)] == list(range(500))


async def test_an_avro_file_cut_in_half_is_a_problem_of_its_own(tmp_path: Path) -> None:
    wire, a, b = Wire(), Home(tmp_path / "a"), Home(tmp_path / "b")
    whole = container(0, 500)
    async with running(a, wire, ALPHA) as source, running(b, wire, BETA) as subscriber:
        watched = await source.watch()
        channel = await subscriber.subscribe(ALPHA)
        (a.drop / "half.avro").write_bytes(whole[: len(whole) // 2])
        (a.drop / "good.avro").write_bytes(container(1000, 20))
        await until(lambda: total(b) == 20)
        await until(lambda: "half.avro" in watched.problem)
        assert channel.status.state == "live"


@pytest.mark.parametrize("kind", ["empty", "text"])
async def test_what_is_no_avro_at_all(tmp_path: Path, kind: str) -> None:
    wire, a = Wire(), Home(tmp_path / "a")
    (a.drop / "x.avro").write_bytes(b"" if kind == "empty" else b"hello, this is no container")
    async with running(a, wire, ALPHA) as source:
        watched = await source.watch()
        await until(lambda: "x.avro" in watched.problem)
        assert watched.schema is None
