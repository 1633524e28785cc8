"""Avro: containers read block by block, schemas as Arrow, Parquet that says the same record by record."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import math
import struct
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from island.errors import BadInput, Corrupt, IslandError, Unsupported
from island.formats import avro, avro_container, avro_types, rows


def write(path: Path, schema: dict[str, Any], records: list[dict[str, Any]], codec: str = "null") -> Path:
    with path.open("wb") as file:
        fastavro.writer(file, fastavro.parse_schema(schema), records, codec=codec)
    return path


def record(*fields: tuple[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "r", "fields": [{"name": name, "type": kind} for name, kind in fields]}


def same(found: Any, expected: Any) -> bool:
    """Equal as values; maps arrive from Arrow as pairs, NaN equals NaN."""
    if isinstance(expected, dict):
        pairs = dict(found) if isinstance(found, list) else found
        return pairs.keys() == expected.keys() and all(same(pairs[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(same(a, b) for a, b in zip(found, expected, strict=True))
    if isinstance(expected, float) and math.isnan(expected):
        return isinstance(found, float) and math.isnan(found)
    return bool(found == expected)


def by_fastavro(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        yield from fastavro.reader(file)


ALERTS = [
    "ztf/ZTF19acihgng.avro",
    "ztf/ZTF19acxxwrs.avro",
    "ztf/ZTF19acyfkzd.avro",
    "ztf/ZTF19acyjzeo.avro",
    "ztf/avro_multi_alerts.avro",
    "ztf/avro_multi_alerts_other.avro",
    "ztf/part-3-305711.avro",
    "lsst/part-2-918301.avro",
]


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_become_the_same_parquet(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = shared_data / "alerts" / name
    (target,) = avro.to_parquet([source], tmp_path / "out.parquet")
    found = pq.ParquetFile(target).read().to_pylist()
    expected = list(by_fastavro(source))
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert same(one, other)


def test_cutouts_arrive_as_bytes(shared_data: Path, tmp_path: Path) -> None:
    (target,) = avro.to_parquet([shared_data / "alerts" / "ztf" / "ZTF19acihgng.avro"], tmp_path / "out.parquet")
    (row,) = pq.ParquetFile(target).read(["cutoutScience"]).to_pylist()
    assert row["cutoutScience"]["stampData"].startswith(b"\x1f\x8b")  # a gzipped FITS image


def test_many_files_make_one_folder(shared_data: Path, tmp_path: Path) -> None:
    sources = sorted((shared_data / "alerts" / "ztf").glob("ZTF19*.avro"))
    told: list[tuple[int, int, str]] = []
    files = avro.to_parquet(sources, tmp_path / "out", lambda *what: told.append(what), part_bytes=1)
    assert [path.name for path in files] == [f"part-{i:05d}.parquet" for i in range(4)]
    assert sum(pq.read_metadata(path).num_rows for path in files) == 4
    assert told[-1][:2] == (told[-1][1], sum(path.stat().st_size for path in sources))
    with pytest.raises(BadInput, match="already exists"):
        avro.to_parquet(sources, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_differing_schemas_name_the_file(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "alerts" / "ztf"
    with pytest.raises(BadInput, match=r"avro_multi_alerts.avro does not have the schema"):
        avro.to_parquet([folder / "ZTF19acihgng.avro", folder / "avro_multi_alerts.avro"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["weather", "weather-deflate", "weather-snappy", "weather-zstd", "weather-sorted"])
def test_codecs_hold_the_expected_table(shared_data: Path, name: str) -> None:
    lines = (shared_data / "avro" / "weather.json").read_text().splitlines()
    expected = [json.loads(line) for line in lines if line]
    found = [row for batch in rows.read_batches(shared_data / "avro" / f"{name}.avro") for row in batch.to_pylist()]
    if name == "weather-sorted":
        expected.sort(key=lambda row: (row["time"], row["temp"]))
        found.sort(key=lambda row: (row["time"], row["temp"]))
    assert found == expected


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy", "bzip2", "xz"])
def test_every_codec_round_trips_and_shows_damage(tmp_path: Path, codec: str) -> None:
    records = [{"x": i, "s": "text " * (i % 5)} for i in range(3000)]
    path = write(tmp_path / "a.avro", record(("x", "long"), ("s", "string")), records, codec)
    assert [row for batch in rows.read_batches(path) for row in batch.to_pylist()] == records
    data = path.read_bytes()
    damaged = bytearray(data)
    damaged[-1] ^= 1  # the last sync marker
    path.write_bytes(bytes(damaged))
    with pytest.raises(Corrupt, match="sync marker"):
        list(rows.read_batches(path))
    path.write_bytes(data[: len(data) - 40])
    with pytest.raises(Corrupt, match=r"block at byte \d+"):
        list(rows.read_batches(path))


def header(schema: Any, codec: str = "null", sync: bytes = b"s" * 16) -> bytes:
    def text(value: bytes) -> bytes:
        return number(len(value)) + value

    entries = [(b"avro.schema", json.dumps(schema).encode()), (b"avro.codec", codec.encode())]
    return b"Obj\x01" + number(2) + b"".join(text(key) + text(value) for key, value in entries) + b"\0" + sync


def number(value: int) -> bytes:
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def block(count: int, data: bytes, sync: bytes = b"s" * 16) -> bytes:
    return number(count) + number(len(data)) + data + sync


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        ("deflate", zlib.compress(bytes(300 * 1024 * 1024), 9)[2:-4]),
        ("snappy", b"\xff\xff\xff\xff\x0f" + bytes(10)),
    ],
)
def test_bombs_are_unsupported_before_they_unfold(tmp_path: Path, codec: str, data: bytes) -> None:
    path = tmp_path / "bomb.avro"
    path.write_bytes(header(record(("x", "long")), codec) + block(1, data))
    with pytest.raises(Unsupported, match=r"(larger|more) than 256 MiB"):
        list(rows.read_batches(path))


def test_lies_in_counts_and_lengths(tmp_path: Path) -> None:
    path = tmp_path / "a.avro"
    schema = record(("x", "long"))
    cases = {
        "count beyond bytes": block(10**12, b"\x02"),
        "negative count": block(-5, b"\x02"),
        "length beyond file": number(1) + number(10**15) + b"\x02" + b"s" * 16,
        "records too few": block(1, b"\x02\x02"),
        "records too many": block(2, b"\x02"),
        "endless number": b"\xff" * 30,
    }
    for what, body in cases.items():
        path.write_bytes(header(schema) + body)
        with pytest.raises(Corrupt, match=r"a\.avro"):
            list(rows.read_batches(path))
            pytest.fail(what)


def test_string_longer_than_the_block(tmp_path: Path) -> None:
    path = tmp_path / "a.avro"
    path.write_bytes(header(record(("s", "string"))) + block(1, number(2**40) + b"abc"))
    with pytest.raises(Corrupt):
        list(rows.read_batches(path))


def test_hostile_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.avro"
    for body in (b"", number(2**40), number(1) + number(2**40), b"\xff" * 20, number(1) + number(3) + b"abc"):
        path.write_bytes(b"Obj\x01" + body)
        with pytest.raises(Corrupt):
            avro_container.header_of(path)
    path.write_bytes(header(record(("x", "long")), "lzo"))
    with pytest.raises(Unsupported, match="lzo"):
        avro_container.header_of(path)
    path.write_bytes(
        b"Obj\x01" + number(1) + number(11) + b"avro.schema" + number(6000) + b"[" * 6000 + b"\0" + bytes(16)
    )
    with pytest.raises(Corrupt, match="not JSON"):
        avro_container.header_of(path)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("string", "not records"),
        (record(("self", ["null", "r"])), "column self refers to itself"),
        (record(("nothing", {"type": "record", "name": "e", "fields": []})), "column nothing is a record without"),
        (record(("x", {"type": "array", "items": "null"})), r"column x is an array of empty items"),
        (record(("x", "null")), "only empty records"),
    ],
)
def test_what_has_no_table_is_unsupported(tmp_path: Path, schema: Any, words: str) -> None:
    path = tmp_path / "a.avro"
    path.write_bytes(header(schema) + block(1, b"\0"))
    with pytest.raises(Unsupported, match=words):
        rows.arrow_schema(path)


@pytest.mark.parametrize("schema", [{"type": "record"}, {"type": "record", "name": "r"}, 7, None, record(("x", "lng"))])
def test_invalid_schemas_are_told(tmp_path: Path, schema: Any) -> None:
    path = tmp_path / "a.avro"
    path.write_bytes(header(schema) + block(1, b"\0"))
    with pytest.raises(IslandError):
        rows.arrow_schema(path)


def test_deep_schema(tmp_path: Path) -> None:
    schema: Any = "long"
    for depth in range(200):
        schema = {"type": "record", "name": f"r{depth}", "fields": [{"name": "x", "type": schema}]}
    path = tmp_path / "a.avro"
    path.write_bytes(header(schema) + block(1, b"\0"))
    with pytest.raises(Unsupported, match="nested too deeply"):
        rows.arrow_schema(path)


def test_logical_types(tmp_path: Path) -> None:
    def logical(base: str, name: str, **more: Any) -> dict[str, Any]:
        return {"type": base, "logicalType": name, **more}

    day, moment = datetime.date(2026, 11, 20), datetime.datetime(2026, 11, 20, 1, 2, 3, 4000, tzinfo=datetime.UTC)
    key = uuid.UUID(int=7)
    schema = record(
        ("day", logical("int", "date")),
        ("ms", logical("long", "timestamp-millis")),
        ("us", ["null", logical("long", "timestamp-micros")]),
        ("local", logical("long", "local-timestamp-micros")),
        ("price", logical("bytes", "decimal", precision=9, scale=2)),
        ("fixed", {"type": "fixed", "name": "f8", "size": 8, "logicalType": "decimal", "precision": 18, "scale": 3}),
        ("key", logical("string", "uuid")),
        ("clock", logical("int", "time-millis")),
        ("odd", logical("long", "furlong")),
    )
    values = {
        "day": day,
        "ms": moment,
        "us": moment,
        "local": moment.replace(tzinfo=None),
        "price": decimal.Decimal("-12.34"),
        "fixed": decimal.Decimal("0.001"),
        "key": key,
        "clock": datetime.time(0, 0, 1),
        "odd": 5,
    }
    path = write(tmp_path / "a.avro", schema, [values])
    (target,) = avro.to_parquet([path], tmp_path / "a.parquet")
    table = pq.ParquetFile(target).read()
    (found,) = table.to_pylist()
    assert found == {**values, "key": str(key), "clock": 1000}
    assert table.schema.field("ms").type == pa.timestamp("ms", tz="UTC")
    assert table.schema.field("price").type == pa.decimal128(9, 2)
    assert table.schema.field("clock").metadata[b"unit"] == b"ms"


def test_unions_enums_fixed_and_maps(tmp_path: Path) -> None:
    inner = {"type": "record", "name": "inner", "fields": [{"name": "v", "type": "int"}]}
    enum = {"type": "enum", "name": "colour", "symbols": ["RED", "BLUE"]}
    schema = record(
        ("wide", ["null", "long", "string", inner, enum]),
        ("again", ["null", "inner"]),
        ("plain", "colour"),
        ("hash", {"type": "fixed", "name": "four", "size": 4}),
        ("numbers", ["int", "long"]),
        ("bag", {"type": "map", "values": ["null", "inner"]}),
        ("list", {"type": "array", "items": ["string", "bytes"]}),
    )
    common = {"again": {"v": 1}, "plain": "RED", "hash": b"abcd", "numbers": 2**40, "bag": {"k": {"v": 2}, "n": None}}
    wides: list[Any] = [None, 7, "text", ("r.inner", {"v": 9}), ("colour", "BLUE")]
    records = [{**common, "wide": wide, "list": ["a", b"b"]} for wide in [None, 7, "text", {"v": 9}]]
    records.append({**common, "again": None, "wide": ("colour", "BLUE"), "list": []})
    path = write(tmp_path / "a.avro", schema, records)
    (target,) = avro.to_parquet([path], tmp_path / "a.parquet")
    found = pq.ParquetFile(target).read().to_pylist()
    assert len(found) == len(wides)
    members = [
        None if row["wide"] is None else {k: v for k, v in row["wide"].items() if v is not None} for row in found
    ]
    assert members == [None, {"member0": 7}, {"member1": "text"}, {"member2": {"v": 9}}, {"member3": "BLUE"}]
    assert [row["again"] for row in found] == [{"v": 1}] * 4 + [None]
    assert found[0]["plain"] == "RED"
    assert found[0]["hash"] == b"abcd"
    assert found[0]["numbers"] == 2**40
    assert found[0]["bag"] == [("k", {"v": 2}), ("n", None)]
    assert found[0]["list"] == [{"member0": "a", "member1": None}, {"member0": None, "member1": b"b"}]


def test_attributes_become_metadata(tmp_path: Path) -> None:
    schema = {
        "type": "record",
        "name": "r",
        "doc": "a table",
        "fields": [{"name": "ra", "type": "double", "doc": "where [deg]", "unit": "deg", "UCD": "pos.eq.ra;meta.main"}],
    }
    found = rows.arrow_schema(write(tmp_path / "a.avro", schema, [{"ra": 1.0}]))
    assert found.field("ra").metadata == {
        b"description": b"where [deg]",
        b"unit": b"deg",
        b"ucd": b"pos.eq.ra;meta.main",
    }
    assert found.metadata == {b"description": b"a table"}


@pytest.mark.parametrize("name", ALERTS)
def test_projection_is_the_cut_of_the_whole(shared_data: Path, name: str) -> None:
    source = shared_data / "alerts" / name
    record_name = "diaSource" if name.startswith("lsst") else "candidate"
    key = "diaSourceId" if name.startswith("lsst") else "objectId"
    wanted = [f"{record_name}.ra", f"{record_name}.dec", key]
    whole = [row for batch in rows.read_batches(source) for row in batch.to_pylist()]
    cut = [row for batch in rows.read_batches(source, wanted) for row in batch.to_pylist()]
    assert cut == [
        {field: ({k: row[field][k] for k in ("ra", "dec")} if field == record_name else row[field]) for field in own}
        for row, own in zip(whole, cut, strict=True)
    ]
    assert set(cut[0]) == {record_name, key}


def test_projection_where_a_definition_is_cut_away(tmp_path: Path) -> None:
    inner = {"type": "record", "name": "inner", "fields": [{"name": "v", "type": "int"}, {"name": "w", "type": "int"}]}
    schema = record(("a", inner), ("b", "inner"), ("c", "string"))
    path = write(tmp_path / "a.avro", schema, [{"a": {"v": 1, "w": 2}, "b": {"v": 3, "w": 4}, "c": "x"}])
    for wanted, expected in (
        (["b"], {"b": {"v": 3, "w": 4}}),
        (["b.w"], {"b": {"w": 4}}),
        (["a.v", "c"], {"a": {"v": 1}, "c": "x"}),
        (["a.v", "b"], {"a": {"v": 1}, "b": {"v": 3, "w": 4}}),
    ):
        assert [row for batch in rows.read_batches(path, wanted) for row in batch.to_pylist()] == [expected]
    with pytest.raises(BadInput, match=r"there is no column b\.u"):
        list(rows.read_batches(path, ["b.u"]))


def test_batches_are_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avro", record(("x", "long")), [{"x": i} for i in range(2500)])
    sizes = [batch.num_rows for batch in rows.read_batches(path, batch_rows=1000)]
    assert sizes == [1000, 1000, 500]
    big = write(tmp_path / "b.avro", record(("x", "bytes")), [{"x": bytes(5_000_000)}] * 4)
    assert [batch.num_rows for batch in rows.read_batches(big)] == [2, 2]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_random_tables_against_fastavro(data: st.DataObject) -> None:
    kinds: dict[str, Any] = {
        "long": st.integers(-(2**63), 2**63 - 1),
        "double": st.floats(),
        "string": st.text(),
        "bytes": st.binary(),
        "boolean": st.booleans(),
    }
    chosen = data.draw(
        st.lists(st.tuples(st.sampled_from(sorted(kinds)), st.sampled_from(["", "?", "[]"])), min_size=1)
    )
    fields, values = [], {}
    for index, (kind, shape) in enumerate(chosen):
        name = f"c{index}"
        fields.append((name, {"": kind, "?": ["null", kind], "[]": {"type": "array", "items": kind}}[shape]))
        base = kinds[kind]
        values[name] = {"": base, "?": st.none() | base, "[]": st.lists(base, max_size=4)}[shape]
    records = data.draw(st.lists(st.fixed_dictionaries(values), max_size=20))
    buffer = io.BytesIO()
    fastavro.writer(buffer, fastavro.parse_schema(record(*fields)), records)
    decoder = avro_types.AvroDecoder(record(*fields))
    plain = buffer.getvalue()
    size = _header_size(plain)
    found: list[Any] = []
    while size < len(plain):
        count, at = _number_at(plain, size)
        length, at = _number_at(plain, at)
        piece = avro_container.AvroBlock(offset=size, count=count, data=plain[at : at + length])
        found += decoder.batch([item for item, _ in decoder.records(piece)]).to_pylist()
        size = at + length + 16
    assert same(found, records)


def _number_at(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7


def _header_size(data: bytes) -> int:
    count, at = _number_at(data, 4)
    while count:
        for _ in range(2 * count):
            length, at = _number_at(data, at)
            at += length
        count, at = _number_at(data, at)
    return at + 16


def test_crc_of_snappy_is_checked(shared_data: Path, tmp_path: Path) -> None:
    data = bytearray((shared_data / "avro" / "weather-snappy.avro").read_bytes())
    at = len(data) - 16 - 4
    data[at : at + 4] = struct.pack(">I", 0)
    path = tmp_path / "a.avro"
    path.write_bytes(bytes(data))
    with pytest.raises(Corrupt, match="checksum is wrong"):
        list(rows.read_batches(path))
