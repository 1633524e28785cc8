"""Small Avro and Parquet files that need very much memory or time to decode. They are created at run time."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SYNC = bytes(range(16))

ONE_LONG = {"type": "record", "name": "row", "fields": [{"name": "n", "type": "long"}]}
TEXTS = {
    "type": "record",
    "name": "row",
    "fields": [{"name": "words", "type": {"type": "array", "items": "string"}}],
}
NAMES = {"type": "record", "name": "row", "fields": [{"name": "m", "type": {"type": "map", "values": "boolean"}}]}


MIB = 2**20


def avro(path: Path, schema: Any, blocks: Iterable[tuple[int, bytes]], codec: str = "deflate") -> Path:
    """Write an Avro container. Each block is a number of records and their uncompressed bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    out.write(b"Obj\x01" + long(2))
    text = schema if isinstance(schema, str) else json.dumps(schema)
    for key, value in (("avro.schema", text), ("avro.codec", codec)):
        out.write(string(key.encode()) + string(value.encode()))
    out.write(long(0) + SYNC)
    packed: dict[bytes, bytes] = {}
    for count, data in blocks:
        body = packed.setdefault(data, b"") or compress(data, codec)
        packed[data] = body
        out.write(long(count) + string(body) + SYNC)
    path.write_bytes(out.getvalue())
    return path


def compress(data: bytes, codec: str) -> bytes:
    """The bytes of a block, compressed with a codec of the Avro specification."""
    if codec == "deflate":
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(data) + packer.flush()
    if codec == "zstandard":
        return bytes(pa.compress(data, codec="zstd", asbytes=True))
    if codec == "snappy":
        return bytes(pa.compress(data, codec="snappy", asbytes=True)) + struct.pack(">I", zlib.crc32(data))
    return data


def long(number: int) -> bytes:
    """A number in Avro's zigzag encoding."""
    value, out = (number << 1) ^ (number >> 63), bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def string(data: bytes) -> bytes:
    """Bytes or a string in Avro's encoding."""
    return long(len(data)) + data


def many_rows(path: Path, codec: str = "deflate", blocks: int = 8) -> Path:
    """Blocks of 50 MiB of zeros, each byte a record: minutes of work in a file of some hundred kB."""
    return avro(path, ONE_LONG, [(50 * MIB, bytes(50 * MIB))] * blocks, codec)


def long_array(path: Path, codec: str = "deflate") -> Path:
    """One record with an array of a hundred million empty strings."""
    items = 100 * MIB
    return avro(path, TEXTS, [(1, long(items) + bytes(items) + long(0))], codec)


def wide_map(path: Path) -> Path:
    """One record with a map of millions of keys."""
    count = 3_000_000
    keys = b"".join(b"\x0e%07d\x01" % number for number in range(count))
    return avro(path, NAMES, [(1, long(count) + keys + long(0))], "zstandard")


def no_bytes(path: Path) -> Path:
    """2^40 records that take no bytes each."""
    schema = {"type": "record", "name": "row", "fields": [{"name": "nothing", "type": "null"}]}
    return avro(path, schema, [(2**40, b"")], "null")


def too_many_said(path: Path) -> Path:
    """A block that claims to have 2^40 records."""
    return avro(path, ONE_LONG, [(2**40, bytes(1000))], "null")


def nested_schema(path: Path) -> Path:
    """A schema with records nested 3,000 levels deep."""
    deep = '{"type":"record","name":"r%d","fields":[{"name":"f","type":'
    text = "".join(deep % level for level in range(3000)) + '"long"' + "}]}" * 3000
    return avro(path, text, [(1, b"\x00")], "null")


def nested_json(path: Path) -> Path:
    """A schema that consists of opening brackets."""
    return avro(path, "[" * 4_000_000, [(1, b"\x00")], "null")


def recursive_schema(path: Path) -> Path:
    """A record that contains records of its own type, nested deeply."""
    schema = {
        "type": "record",
        "name": "node",
        "fields": [{"name": "next", "type": ["null", "node"]}, {"name": "n", "type": "long"}],
    }
    return avro(path, schema, [(1, b"\x02" * 50_000_000 + b"\x00")])


def rle_rows(path: Path, rows: int = 6_000_000) -> Path:
    """One repeated value: millions of rows in some hundred bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), rows), pa.array([7], pa.int64()))
    pq.write_table(pa.table({"n": column}), path, compression="zstd", row_group_size=rows, store_schema=False)
    return path


def repeated_text(path: Path) -> Path:
    """A dictionary with one string of 16 MiB, to which a thousand rows refer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), 1000), pa.array(["x" * (16 * MIB)]))
    pq.write_table(
        pa.table({"text": column}), path, compression="zstd", dictionary_pagesize_limit=64 * MIB, store_schema=False
    )
    return path


def long_list(path: Path) -> Path:
    """One row with a list of 40 million equal numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 40_000_000
    values = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), count), pa.array([7], pa.int64()))
    column = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), values)
    pq.write_table(pa.table({"numbers": column}), path, compression="zstd", store_schema=False)
    return path
