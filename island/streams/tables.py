"""Rows as Arrow: reads files as bounded batches in the source's schema, and encodes batches for the wire.

The schema of a source is that of its first file, with every column nullable. A later file may
lack columns (their values are null), have additional ones (ignored, with a note), and have
narrower types (widened without loss). Any other difference is incompatible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from island.errors import Corrupt, PeerMisbehaved, Unsupported
from island.formats import columns, files, parquet, rows
from island.formats.limits import DEFAULT_LIMITS, ReadLimits
from island.streams.messages import MAX_PAYLOAD, MAX_SCHEMA

Schema = Any
ArrowBatch = Any

BATCH_BYTES = 4 * 1024 * 1024
WRITE_ERRORS = (pa.ArrowException, ValueError, OverflowError, TypeError, NotImplementedError)
"""Exceptions of pyarrow for values or types that cannot be written as Parquet."""


class IncompatibleColumns(Unsupported):
    """The columns of a file cannot be converted to those of its source."""


@dataclass(frozen=True, slots=True)
class OpenTable:
    """An open file: its format, its schema with every column nullable, and an iterator over its rows."""

    format: str
    schema: Schema
    batches: Iterator[ArrowBatch]


def open_table(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> OpenTable:
    """Open a Parquet or Avro file for one pass in bounded memory. Blocking.

    Raises Corrupt, Unsupported, BadInput or OverLimit, here or from the iterator.
    """
    kind = files.sniff(path)
    batch_rows = _batch_rows(path) if kind == "parquet" else rows.MAX_BATCH_ROWS
    schema, stream = rows.open_table(path, batch_rows=batch_rows, limits=limits)
    return OpenTable(kind, relaxed(schema), _checked(stream, path))


def _batch_rows(path: Path) -> int:
    """Number of rows of a Parquet file that take about `BATCH_BYTES` when decoded. Many files may be open."""
    metadata = parquet.open_file(path).metadata
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    widest = max((2 * group.total_byte_size // max(1, group.num_rows) for group in groups), default=1)
    return int(max(1, min(rows.MAX_BATCH_ROWS, BATCH_BYTES // max(1, widest))))


def _checked(stream: Iterator[tuple[Any, int]], path: Path) -> Iterator[ArrowBatch]:
    for batch, _ in stream:
        rows.check_text(batch, path)
        yield batch


def relaxed(schema: Schema) -> Schema:
    """The schema with all fields nullable, without dictionary and extension types.

    Of the file-level metadata, only VOTable and astropy headers are kept. Raises Unsupported for
    two columns with the same name.
    """
    if len(set(schema.names)) != len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise Unsupported(f"two columns are named {twice}", hint="Rename one of them and write the file again.")
    fields = [pa.field(f.name, _relaxed_type(f.type), True, _field_metadata(f)) for f in schema]
    return pa.schema(fields, metadata=_kept_metadata(schema.metadata))


def _kept_metadata(metadata: dict[bytes, bytes] | None) -> dict[bytes, bytes] | None:
    # VOTable and astropy headers contain units and UCDs of the columns. Other keys (the index of
    # pandas, the schema of Spark) describe the file and may not fit the rows that are sent.
    keys = (b"IVOA.VOTable-Parquet.version", b"IVOA.VOTable-Parquet.content", b"table_meta_yaml")
    kept = {key: value for key, value in (metadata or {}).items() if key in keys and len(value) <= MAX_SCHEMA // 2}
    return kept or None


def _field_metadata(field: Any) -> dict[bytes, bytes] | None:
    kept = {key: value for key, value in (field.metadata or {}).items() if not key.startswith(b"PARQUET:")}
    return kept or None


def _relaxed_type(kind: Any) -> Any:
    types = pa.types
    if types.is_dictionary(kind):
        return _relaxed_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _relaxed_type(kind.storage_type)
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return pa.string() if types.is_string_view(kind) else pa.binary()
    if types.is_struct(kind):
        return pa.struct([pa.field(f.name, _relaxed_type(f.type), True, _field_metadata(f)) for f in kind])
    if types.is_map(kind):
        return pa.map_(_relaxed_type(kind.key_type), _relaxed_type(kind.item_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(_relaxed_type(kind.value_type), kind.list_size)
    if types.is_large_list(kind):
        return pa.large_list(_relaxed_type(kind.value_type))
    if types.is_list(kind):
        return pa.list_(_relaxed_type(kind.value_type))
    return kind


def check_fits(found: Schema, target: Schema, file: str) -> str:
    """Check that rows of a relaxed schema can be converted to `target`; returns a note on ignored columns, or "".

    Raises `IncompatibleColumns` with the file and the column.
    """
    extra = [name for name in found.names if name not in set(target.names)]
    for field in target:
        if (index := found.get_field_index(field.name)) >= 0:
            extra += _check_type(found.field(index).type, field.type, field.name, file)
    if not extra:
        return ""
    shown = ", ".join(extra[:5]) + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
    return f"{file}: these columns are ignored, because the first file lacks them: {shown}"


def _check_type(have: Any, want: Any, path: str, file: str) -> list[str]:
    """Dotted paths of ignored fields. Raises `IncompatibleColumns` if `have` cannot be converted to `want`."""
    types = pa.types
    if have.equals(want):
        return []
    if types.is_struct(have) and types.is_struct(want):
        mine = {f.name: f.type for f in have}
        extra = [f"{path}.{name}" for name in mine if want.get_field_index(name) < 0]
        for f in want:
            if f.name in mine:
                extra += _check_type(mine[f.name], f.type, f"{path}.{f.name}", file)
        return extra
    if _is_list(have) and (types.is_list(want) or types.is_large_list(want)):
        return _check_type(have.value_type, want.value_type, path, file)
    if types.is_map(have) and types.is_map(want):
        _check_type(have.key_type, want.key_type, path, file)
        return _check_type(have.item_type, want.item_type, path, file)
    if not _widens(have, want):
        here, there = columns.type_name(have), columns.type_name(want)
        raise IncompatibleColumns(
            f"{file}: column {path} is {here}, but {there} in the source's first file",
            hint="Write the file again with the source's types, or remove it; the channel then continues.",
        )
    return []


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _widens(have: Any, want: Any) -> bool:
    """Whether every value of the type `have` can be represented exactly in the type `want`."""
    types = pa.types
    if types.is_null(have):
        return True
    if types.is_integer(have) and types.is_integer(want):
        signed = types.is_signed_integer(want)
        if types.is_signed_integer(have):
            return bool(signed and have.bit_width <= want.bit_width)
        return bool(have.bit_width < want.bit_width or (not signed and have.bit_width == want.bit_width))
    if types.is_integer(have) and types.is_floating(want):
        exact = {16: 11, 32: 24, 64: 53}[want.bit_width]
        return bool(have.bit_width <= exact)
    if types.is_floating(have) and types.is_floating(want):
        return bool(have.bit_width <= want.bit_width)
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    if any(test(have) for test in texts):
        return any(test(want) for test in texts)
    blobs = (types.is_binary, types.is_large_binary, types.is_binary_view)
    if any(test(have) for test in (*blobs, types.is_fixed_size_binary)):
        return any(test(want) for test in blobs)
    if types.is_timestamp(have) and types.is_timestamp(want):
        units = ("s", "ms", "us", "ns")
        return have.tz == want.tz and units.index(have.unit) <= units.index(want.unit)
    if types.is_decimal(have) and types.is_decimal(want):
        return bool(want.scale >= have.scale and want.precision - want.scale >= have.precision - have.scale)
    return False


def fit(batch: ArrowBatch, target: Schema, file: str) -> ArrowBatch:
    """Convert rows to the columns of `target`, after `check_fits`. Raises `IncompatibleColumns`."""
    arrays = []
    for field in target:
        index = batch.schema.get_field_index(field.name)
        if index < 0:
            arrays.append(pa.nulls(batch.num_rows, field.type))
            continue
        column = batch.column(index)
        try:
            arrays.append(column if column.type.equals(field.type) else column.cast(field.type))
        except MemoryError:
            raise
        except pa.ArrowException as error:
            raise IncompatibleColumns(
                f"{file}: column {field.name} has a value that does not fit {columns.type_name(field.type)}: {error}",
                hint="Write the file again with the source's types, or remove it; the channel then continues.",
            ) from error
    return pa.RecordBatch.from_arrays(arrays, schema=target)


def slices(batch: ArrowBatch, target_bytes: int) -> Iterator[tuple[int, ArrowBatch]]:
    """Split a batch into pieces of about `target_bytes` and at least one row: (index of the first row, rows)."""
    if batch.num_rows == 0:
        return
    per_row = max(1, batch.nbytes // batch.num_rows)
    step = max(1, target_bytes // per_row)
    for start in range(0, batch.num_rows, step):
        yield start, batch.slice(start, step)


# --- between processes -------------------------------------------------------------------------


def to_parent(batches: Sequence[ArrowBatch], schema: Schema) -> bytes:
    """Encode batches for the parent process. Raises Unsupported for types that cannot be sent."""
    return rows.to_ipc(batches, schema=schema, compress=False)


def from_child(data: bytes, schema: Schema) -> list[ArrowBatch]:
    """Decode the result of `to_parent` and validate every array, because the child read untrusted files.

    Raises Corrupt.
    """
    try:
        batches = rows.from_ipc(data, rows.RowLimits(wire_bytes=len(data), plain_bytes=len(data), rows=8 * len(data)))
    except PeerMisbehaved as error:
        raise Corrupt(f"the process that read a file returned {error.message}") from error
    if any(not batch.schema.equals(schema) for batch in batches):
        raise Corrupt("the process that read a file returned other columns than were requested")
    return batches


# --- on the wire -------------------------------------------------------------------------------


def schema_to_bytes(schema: Schema) -> bytes:
    """Encode a schema as Arrow IPC. Raises Unsupported if it is too large, or cannot be sent or written."""
    try:
        rows.from_ipc(rows.to_ipc([], schema=schema))
        _check_writable(schema)
    except PeerMisbehaved as error:
        raise Unsupported(
            f"the columns cannot be sent: {error.message}", hint="Write the file again with plain types."
        ) from error
    data: bytes = schema.serialize().to_pybytes()
    if len(data) > MAX_SCHEMA:
        raise Unsupported(
            f"the schema of the columns has {len(data)} bytes; the limit is {MAX_SCHEMA}",
            hint="Write fewer columns, or shorter descriptions of columns.",
        )
    return data


def schema_from_bytes(data: bytes) -> Schema:
    """Decode a schema from a peer. Raises PeerMisbehaved if it is invalid or cannot be used."""
    if len(data) > MAX_SCHEMA:
        raise PeerMisbehaved("the schema is too large")
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PeerMisbehaved(f"the schema is not in Arrow format: {str(error)[:200]}") from error
    try:
        if not relaxed(schema).equals(schema):
            raise PeerMisbehaved("the schema has columns that are not nullable, or types that are not plain")
    except Unsupported as error:
        raise PeerMisbehaved(f"the schema cannot be used: {error.message}") from error
    _check_writable(schema)
    return schema


def _check_writable(schema: Schema) -> None:
    """Raise PeerMisbehaved if the columns cannot be written as Parquet (for example, a record without fields)."""
    try:
        pq.write_table(schema.empty_table(), pa.BufferOutputStream())
    except WRITE_ERRORS as error:
        raise PeerMisbehaved(f"the columns cannot be written as Parquet: {str(error)[:200]}") from error


def rows_from_bytes(data: bytes, schema: Schema, count: int) -> list[ArrowBatch]:
    """Decode and validate the batches of a peer's delivery.

    Raises PeerMisbehaved if they are malformed, or have another schema or number of rows.
    """
    limits = rows.RowLimits(wire_bytes=MAX_PAYLOAD, plain_bytes=4 * MAX_PAYLOAD)
    batches = rows.from_ipc(data, limits)
    if any(not batch.schema.equals(schema) for batch in batches):
        raise PeerMisbehaved("the columns of a delivery differ from the schema of the stream")
    if sum(batch.num_rows for batch in batches) != count:
        raise PeerMisbehaved("the number of rows of a delivery differs from that in its header")
    return batches
