"""Reads Avro object container files block by block: header, codecs, sync markers.

See Apache Avro specification 1.11, "Object Container Files". fastavro is not used here: this
module checks every length before it allocates memory, accepts arbitrary bytes as metadata values,
needs no further package for zstandard, and reports errors with their offset. fastavro decodes the
records inside a block (`avro_types.AvroDecoder`).
"""

from __future__ import annotations

import bz2
import json
import lzma
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa

from island.errors import Corrupt, Unsupported
from island.formats.files import open_binary, sniff

MAX_HEADER = 16 * 1024 * 1024
MAX_BLOCK = 256 * 1024 * 1024
CODECS = ("null", "deflate", "snappy", "zstandard", "bzip2", "xz")
_SYNC_SIZE = 16
_PIECE = 4 * 1024 * 1024


class AvroHeader(msgspec.Struct, frozen=True):
    """The header of a file. `schema` is the parsed JSON, `sync` the sync marker, `size` its length in bytes."""

    schema: Any
    codec: str
    sync: bytes
    size: int


class AvroBlock(msgspec.Struct, frozen=True):
    """One decompressed block: its offset in the file, its number of records as stated in the file, their bytes."""

    offset: int
    count: int
    data: bytes


def header_of(path: Path) -> AvroHeader:
    """The header of an Avro file. Raises Corrupt, Unsupported or BadInput."""
    if sniff(path) != "avro":
        raise Unsupported(f"{path} is not an Avro object container", hint="Give the path of an *.avro file.")
    with open_binary(path) as file:
        return _header(file, path, path.stat().st_size)


def blocks(path: Path) -> Iterator[AvroBlock]:
    """All blocks of a file in order.

    Raises Corrupt with the block's offset if the block is truncated, has a wrong sync marker, or
    cannot be decompressed; Unsupported for an unknown codec or a block larger than MAX_BLOCK.
    """
    size = path.stat().st_size
    with open_binary(path) as file:
        header = _header(file, path, size)
        while (offset := file.tell()) < size:
            yield _block(file, path, header, offset, size)


def _header(file: BinaryIO, path: Path, size: int) -> AvroHeader:
    file.seek(4)
    metadata: dict[str, bytes] = {}
    try:
        while (count := _long(file)) != 0:
            if count < 0:
                count = -count
                _long(file)
            if count > 1024:
                raise _Broken("its header has too many entries")
            for _ in range(count):
                key = _bytes(file, size).decode("utf-8", errors="replace")
                metadata[key] = _bytes(file, size)
                if file.tell() > MAX_HEADER:
                    raise _Broken("its header is larger than 16 MiB")
        sync = file.read(_SYNC_SIZE)
        if len(sync) != _SYNC_SIZE:
            raise _Broken("it ends inside its header")
        schema = json.loads(metadata["avro.schema"])
    except _Broken as error:
        raise _corrupt(path, str(error)) from error
    except KeyError as error:
        raise _corrupt(path, "its header has no schema") from error
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"the schema in its header is not JSON: {error}") from error
    codec = metadata.get("avro.codec", b"null").decode("utf-8", errors="replace") or "null"
    if codec not in CODECS:
        raise Unsupported(
            f"{path} is compressed with the unsupported codec {codec[:40]!r}",
            hint=f"Supported codecs are {', '.join(CODECS)}.",
        )
    return AvroHeader(schema=schema, codec=codec, sync=sync, size=file.tell())


def _block(file: BinaryIO, path: Path, header: AvroHeader, offset: int, size: int) -> AvroBlock:
    try:
        count, length = _long(file), _long(file)
        if count < 0 or length < 0:
            raise _Broken("its record count or size is negative")
        if file.tell() + length + _SYNC_SIZE > size:
            raise _Broken(f"the file ends inside the block ({size} bytes)")
        if length > MAX_BLOCK:
            raise Unsupported(
                f"{path}: the block at byte {offset} is larger than 256 MiB", hint="Write smaller blocks."
            )
        raw = file.read(length)
        if file.read(_SYNC_SIZE) != header.sync:
            raise _Broken("its sync marker is wrong")
        data = _decompress(header.codec, raw)
    except _TooLarge as error:
        raise Unsupported(
            f"{path}: the block at byte {offset} decompresses to more than 256 MiB", hint="Write smaller blocks."
        ) from error
    except _Broken as error:
        raise _corrupt(path, f"the block at byte {offset} is invalid: {error}") from error
    # A record takes at least one byte (schemas with empty records are rejected), so a larger count
    # is false. It must not lead to a long loop.
    if count > len(data):
        raise _corrupt(path, f"the block at byte {offset} claims {count} records in {len(data)} bytes")
    return AvroBlock(offset=offset, count=count, data=data)


def _decompress(codec: str, raw: bytes) -> bytes:
    try:
        if codec == "null":
            return raw
        if codec == "deflate":
            inflater = zlib.decompressobj(-15)
            return _whole(inflater.decompress(raw, MAX_BLOCK + 1), inflater.eof)
        if codec == "bzip2":
            bunzip = bz2.BZ2Decompressor()
            return _whole(bunzip.decompress(raw, MAX_BLOCK + 1), bunzip.eof)
        if codec == "xz":
            unxz = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_BLOCK)
            return _whole(unxz.decompress(raw, MAX_BLOCK + 1), unxz.eof)
        if codec == "snappy":
            return _unsnap(raw)
        with pa.CompressedInputStream(pa.BufferReader(raw), "zstd") as stream:
            # In pieces, because `read` allocates its whole argument at once.
            plain = bytearray()
            while len(plain) <= MAX_BLOCK and (piece := stream.read(_PIECE)):
                plain += piece
            return _whole(bytes(plain), True)
    except MemoryError:
        raise
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise _Broken(f"it cannot be decompressed: {error}") from error


def _whole(data: bytes, complete: bool) -> bytes:
    if len(data) > MAX_BLOCK:
        raise _TooLarge
    if not complete:
        raise _Broken("its compressed data end too early")
    return data


def _unsnap(raw: bytes) -> bytes:
    """Decompress snappy as in Avro: a raw snappy body, then the big-endian CRC-32 of the decompressed bytes."""
    body, check = raw[:-4], raw[-4:]
    length = shift = 0
    for byte in body[:5]:
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    else:
        raise _Broken("it cannot be decompressed: the snappy length is missing")
    if length > MAX_BLOCK:
        raise _TooLarge
    data = pa.Codec("snappy").decompress(body, decompressed_size=length, asbytes=True)
    if len(data) != length or struct.unpack(">I", check)[0] != zlib.crc32(data):
        raise _Broken("its checksum is wrong")
    return bytes(data)


class _Broken(Exception):
    """The bytes do not follow the format."""


class _TooLarge(Exception):
    """A block decompresses to more than MAX_BLOCK."""


def _corrupt(path: Path, what: str) -> Corrupt:
    return Corrupt(f"{path} is corrupt or truncated: {what}", hint="Copy or write the file again.")


def _long(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte:
            raise _Broken("the file ends inside a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return (value >> 1) ^ -(value & 1)
        shift += 7
        if shift > 63:
            raise _Broken("a number is longer than ten bytes")


def _bytes(file: BinaryIO, size: int) -> bytes:
    length = _long(file)
    if length < 0 or length > MAX_HEADER or file.tell() + length > size:
        raise _Broken("it ends inside its header")
    return file.read(length)
