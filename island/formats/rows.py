"""Rows of Parquet and Avro files: reading in bounded batches, writing Parquet, and encoding for the wire."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from island.errors import BadInput, Corrupt, Full, PeerMisbehaved, Unsupported
from island.formats import avro_types, parquet
from island.formats.columns import project_schema
from island.formats.files import sniff
from island.formats.limits import DEFAULT_LIMITS, ReadLimits
from island.private_files import sync_folder

MAX_BATCH_ROWS = 65_536
# Bytes of encoded Avro. The Python objects during decoding take about ten times as much memory.
MAX_AVRO_BATCH_BYTES = 8 * 1024 * 1024
MAX_ROW_GROUP_BYTES = 64 * 1024 * 1024
_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT


def open_table(
    path: Path,
    columns: Sequence[str] | None = None,
    batch_rows: int = MAX_BATCH_ROWS,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> tuple[Any, Iterator[tuple[Any, int]]]:
    """(Arrow schema, iterator of (record batch, bytes of the file read so far)) of one file.

    `columns` are names or dotted paths of record fields; the order of columns is that of the
    file. Checksums are verified while reading. Raises BadInput, Corrupt or Unsupported, and
    OverLimit for more rows than `limits` allow.
    """
    limits.begin(path)
    rows = max(1, min(batch_rows, MAX_BATCH_ROWS))
    if sniff(path) == "avro":
        schema, stream = avro_types.open_batches(path, columns, rows, MAX_AVRO_BATCH_BYTES)
        return schema, limits.watched(stream, path)
    file = parquet.open_file(path)
    limits.check_rows(file.metadata.num_rows, path)
    schema = file.schema_arrow
    wanted = schema if columns is None else project_schema(schema, columns)
    return wanted, limits.watched(parquet.record_batches(file, path, columns, rows), path)


def arrow_schema(path: Path) -> Any:
    """The pyarrow schema of a Parquet or Avro file."""
    return open_table(path)[0]


def read_batches(path: Path, columns: Sequence[str] | None = None, batch_rows: int = MAX_BATCH_ROWS) -> Iterator[Any]:
    """The rows of one file as pyarrow RecordBatches of at most `batch_rows` rows, in order. Raises as `open_table`."""
    _, stream = open_table(path, columns, batch_rows)
    for batch, _ in stream:
        check_text(batch, path)
        yield batch


def check_text(batch: Any, path: Path) -> None:
    """Raise Corrupt if a text column contains bytes that are not UTF-8, or an array is inconsistent."""
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        try:
            array.validate(full=True)
        except MemoryError:
            raise
        except (pa.ArrowException, ValueError) as error:
            raise Corrupt(
                f"{path}: column {name} contains values that are invalid for its type: {error}",
                hint="Write the file again. Text must be UTF-8; use binary for other bytes.",
            ) from error


def write_parquet(rows: Iterable[Any], path: Path, *, schema: Any = None) -> tuple[int, int]:
    """Write record batches as one Parquet file (zstd) and return (rows, bytes).

    The file is written atomically: temporary file, fsync, rename, fsync of the folder. `schema`
    is required if there may be no batch. Raises Full on a full disk, BadInput without batches
    and schema.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{id(rows):x}.tmp")
    try:
        count = _write(rows, temporary, schema)
        size = temporary.stat().st_size
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise Full(f"the disk is full: {path} cannot be written", hint="Free disk space and try again.") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return count, size


def _write(rows: Iterable[Any], path: Path, schema: Any) -> int:
    count = 0
    writer: Any = None
    pending: list[Any] = []
    pending_rows = pending_bytes = 0
    with path.open("wb") as file:
        try:
            for batch in rows:
                schema = batch.schema if schema is None else schema
                writer = writer or pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)
                pending.append(batch)
                pending_rows += batch.num_rows
                pending_bytes += batch.nbytes
                count += batch.num_rows
                # Small batches are combined, so that row groups are large compared with their metadata.
                if pending_rows >= 4 * MAX_BATCH_ROWS or pending_bytes >= MAX_ROW_GROUP_BYTES:
                    writer.write_table(pa.Table.from_batches(pending, schema))
                    pending, pending_rows, pending_bytes = [], 0, 0
            if schema is None:
                raise BadInput("there are neither rows nor a schema to write", hint="Pass the schema.")
            writer = writer or pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)
            writer.write_table(pa.Table.from_batches(pending, schema))
        finally:
            if writer is not None:
                writer.close()
        file.flush()
        os.fsync(file.fileno())
    return count


# --- over the wire ----------------------------------------------------------------------------

_FRAME = struct.Struct(">4sBQQ")  # magic, compressed, rows, bytes of the Arrow stream
_MAGIC = b"ISR1"
_MAX_FIELDS = 50_000
_MAX_TYPE_DEPTH = 64
_MAX_LIST_SIZE = 65_536


class RowLimits(msgspec.Struct, frozen=True):
    """Limits for rows from a peer: bytes as received, bytes after decompression, number of rows."""

    wire_bytes: int = 64 * 1024 * 1024
    plain_bytes: int = 256 * 1024 * 1024
    rows: int = 1_000_000


def to_ipc(rows: Iterable[Any], *, schema: Any = None, compress: bool = True) -> bytes:
    """Encode record batches of one schema: a header, then an Arrow IPC stream, compressed with zstd.

    Dictionary and extension columns become plain ones. `schema` is required if there may be no
    batch. Raises Unsupported for types that `from_ipc` would reject.
    """
    sink = io.BytesIO()
    writer: Any = None
    count = 0
    for batch in rows:
        plain = _plain(batch)
        if writer is None:
            _check_sendable(plain.schema)
        writer = writer or pa.ipc.new_stream(sink, plain.schema)
        writer.write_batch(plain)
        count += plain.num_rows
    if writer is None:
        if schema is None:
            raise BadInput("there are neither rows nor a schema to send", hint="Give the schema of the empty table.")
        writer = pa.ipc.new_stream(sink, _plain(pa.RecordBatch.from_pylist([], schema=schema)).schema)
    writer.close()
    body = sink.getvalue()
    packed = pa.compress(body, codec="zstd", asbytes=True) if compress else body
    return _FRAME.pack(_MAGIC, compress, count, len(body)) + packed


def _plain(batch: Any) -> Any:
    """The batch without dictionary encoding and extension types.

    The row limits do not cover dictionaries, and extension types are known only to some programs.
    """
    fields = [field.with_type(_plain_type(field.type)) for field in batch.schema]
    schema = pa.schema(fields, metadata=batch.schema.metadata)
    return batch if schema.equals(batch.schema) else batch.cast(schema)


def _plain_type(kind: Any) -> Any:
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    return _plain_type(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _check_sendable(schema: Any) -> None:
    """Raise Unsupported if the receiver would reject the types."""
    try:
        _check_types(list(schema), 0, [0])
    except PeerMisbehaved as error:
        raise Unsupported(
            f"these rows cannot be sent: {error.message}", hint="Remove that column, or write it in a plain type."
        ) from error


def from_ipc(data: bytes, limits: RowLimits | None = None) -> list[Any]:
    """Decode the result of `to_ipc` into record batches, and validate every array.

    Raises PeerMisbehaved for data that are malformed, exceed the limits, have compressed buffers
    inside the stream, or have a type whose values may take no bytes.
    """
    allowed = limits or RowLimits()
    if len(data) > allowed.wire_bytes:
        raise _misbehaved(f"{len(data)} bytes, at most {allowed.wire_bytes} allowed")
    if len(data) < _FRAME.size:
        raise _misbehaved("too short")
    magic, compressed, count, length = _FRAME.unpack_from(data)
    if magic != _MAGIC or compressed > 1:
        raise _misbehaved("invalid header")
    if count > allowed.rows or length > allowed.plain_bytes:
        raise _misbehaved(
            f"{count} rows in {length} bytes, at most {allowed.rows} rows in {allowed.plain_bytes} bytes allowed"
        )
    body = memoryview(data)[_FRAME.size :]
    try:
        plain = pa.py_buffer(_inflate(body, length) if compressed else bytes(body))
        if plain.size != length:
            raise _misbehaved("the length differs from that in the header")
        found = _read_stream(plain, allowed)
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        struct.error,
        MemoryError,
    ) as error:
        raise _misbehaved(f"not an Arrow stream: {str(error)[:200]}") from error
    if sum(batch.num_rows for batch in found) != count:
        raise _misbehaved("the number of rows differs from that in the header")
    return found


def _inflate(body: memoryview, length: int) -> bytes:
    with pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(body)), "zstd") as stream:
        return bytes(stream.read(length + 1))


def _read_stream(plain: Any, limits: RowLimits) -> list[Any]:
    """Check every message before Arrow builds arrays from it, then read and validate the batches."""
    source = pa.BufferReader(plain)
    kinds: list[Any] = []
    while True:
        try:
            message = pa.ipc.read_message(source)
        except EOFError:
            break
        rows = _check_message(message.metadata.to_pybytes(), first=not kinds)
        kinds.append(message.type)
        if rows > limits.rows or len(kinds) > limits.rows + 2:
            raise _misbehaved("too many rows in a batch")
    found = []
    with pa.ipc.open_stream(plain) as reader:
        _check_types(list(reader.schema), 0, [0])
        for batch in reader:
            batch.validate(full=True)
            found.append(batch)
    return found


_SCHEMA, _RECORD_BATCH = 1, 3


def _check_message(metadata: bytes, *, first: bool) -> int:
    """Number of rows of one message, read from its flatbuffer (Arrow's format/Message.fbs).

    The first message must be a schema, the others batches without body compression. Raises
    PeerMisbehaved.
    """
    table = struct.unpack_from("<I", metadata)[0]
    kind_at = _slot(metadata, table, 1)
    kind = metadata[kind_at] if kind_at else 0
    if kind != (_SCHEMA if first else _RECORD_BATCH):
        raise _misbehaved("a message that is neither the schema at the start nor rows after it")
    if first:
        return 0
    header_at = _slot(metadata, table, 2)
    if not header_at:
        raise _misbehaved("a message without content")
    header = header_at + struct.unpack_from("<I", metadata, header_at)[0]
    if _slot(metadata, header, 3):
        raise _misbehaved("compressed buffers inside the stream")
    length_at = _slot(metadata, header, 0)
    return int(struct.unpack_from("<q", metadata, length_at)[0]) if length_at else 0


def _slot(metadata: bytes, table: int, slot: int) -> int:
    """Offset of a field of a flatbuffer table; 0 if the field is absent."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if vtable < 0:
        raise _misbehaved("a message that points outside itself")
    size = struct.unpack_from("<H", metadata, vtable)[0]
    if 4 + 2 * slot >= size:
        return 0
    offset = int(struct.unpack_from("<H", metadata, vtable + 4 + 2 * slot)[0])
    return table + offset if offset else 0


def _check_types(fields: list[Any], depth: int, seen: list[int]) -> None:
    """Raise PeerMisbehaved for lists of types whose values take no bytes, and for types that are not plain."""
    if depth > _MAX_TYPE_DEPTH:
        raise _misbehaved("a type nested too deeply")
    types = pa.types
    for field in fields:
        seen[0] += 1
        if seen[0] > _MAX_FIELDS:
            raise _misbehaved("too many columns")
        kind = field.type
        if types.is_struct(kind):
            _check_types(list(kind), depth + 1, seen)
        elif types.is_map(kind):
            _check_types([kind.key_field, kind.item_field], depth + 1, seen)
        elif types.is_list(kind) or types.is_large_list(kind):
            _refuse_empty(kind.value_type)
            _check_types([kind.value_field], depth + 1, seen)
        elif types.is_fixed_size_list(kind):
            if kind.list_size > _MAX_LIST_SIZE:
                raise _misbehaved("a list type that is too long")
            _refuse_empty(kind.value_type)
            _check_types([kind.value_field], depth + 1, seen)
        elif not _is_simple(kind):
            raise _misbehaved(f"type {str(kind)[:80]}")


def _refuse_empty(kind: Any) -> None:
    if pa.types.is_null(kind) or (pa.types.is_struct(kind) and kind.num_fields == 0):
        raise _misbehaved("a list of values that take no bytes")


def _is_simple(kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_primitive(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
        or types.is_decimal(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
    )


def _misbehaved(what: str) -> PeerMisbehaved:
    return PeerMisbehaved(f"malformed rows: {what}", hint="The peer sent invalid data; nothing was stored.")
