"""Parquet files: verifies page checksums, decodes in bounded batches, classifies errors.

`parquet_borders` (in `footer`) returns the offsets at which the parts of a file begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from island.errors import Corrupt, IslandError, Unsupported
from island.formats.columns import project_batch, project_schema
from island.formats.files import sniff, unreadable
from island.formats.footer import MAX_FOOTER, parquet_borders

__all__ = ["classify", "open_file", "parquet_borders", "record_batches", "undecodable"]

MAX_BATCH_ROWS = 65_536
MAX_BATCH_BYTES = 64 * 1024 * 1024
MAX_ROW_BYTES = 256 * 1024 * 1024
# Thrift checks these limits before it allocates memory for a string or a list of the footer.
_THRIFT_STRING = MAX_FOOTER
_THRIFT_CONTAINER = 50_000_000
READ_ERRORS = (pa.ArrowException, OSError, ValueError, NotImplementedError)
_CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "BROTLI", "LZ4", "LZ4_RAW", "ZSTD")
_LACKING = ("not yet implemented", "not supported", "not implemented", "unsupported", "support for codec")


def open_file(path: Path) -> Any:
    """A pyarrow ParquetFile that verifies page checksums and reads column chunks in pieces.

    Raises BadInput (missing), Corrupt (empty, truncated, malformed footer), Unsupported (encrypted,
    a type unknown to pyarrow).
    """
    if sniff(path) != "parquet":
        raise Unsupported(f"{path} is not a Parquet file", hint="Give the path of a *.parquet file.")
    try:
        file = pq.ParquetFile(
            path,
            page_checksum_verification=True,
            pre_buffer=False,
            buffer_size=256 * 1024,
            memory_map=False,
            thrift_string_size_limit=_THRIFT_STRING,
            thrift_container_size_limit=_THRIFT_CONTAINER,
        )
        # Decoded here so that a type without an Arrow type is reported when the file is opened.
        file.schema_arrow  # noqa: B018
    except READ_ERRORS as error:
        _raise(path, "its footer", error)
    return file


def undecodable(file: Any) -> dict[str, str]:
    """Top-level columns of an open file with an unsupported compression: {name: reason}. Reads only the footer."""
    found: dict[str, str] = {}
    metadata = file.metadata
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            chunk = row_group.column(index)
            if chunk.compression not in _CODECS:
                name = chunk.path_in_schema
                top = name if name in file.schema_arrow.names else name.partition(".")[0]
                found[top] = f"compression {chunk.compression}"
    return found


def classify(path: Path, part: str, error: Exception) -> IslandError:
    """The island error for an error of pyarrow: Unsupported if the reader lacks a feature, else Corrupt."""
    text = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    lacking = isinstance(error, NotImplementedError) or any(word in text.lower() for word in _LACKING)
    if lacking:
        return Unsupported(
            f"{path}: {part} cannot be decoded by this version: {text}",
            hint="The file may be valid: write this column with another type, encoding or compression.",
        )
    return Corrupt(f"{path} is corrupt: {part}: {text}", hint="Copy or write the file again.")


def _raise(path: Path, part: str, error: Exception) -> NoReturn:
    if isinstance(error, MemoryError):  # a limit of this process; the file may be valid
        raise error
    # Errors of the operating system have an errno, errors of the format do not.
    if isinstance(error, OSError) and error.errno is not None:
        raise unreadable(path, error) from error
    raise classify(path, part, error) from error


def record_batches(
    file: Any, path: Path, columns: Sequence[str] | None = None, batch_rows: int = MAX_BATCH_ROWS
) -> Iterator[tuple[Any, int]]:
    """Pairs of a record batch and the bytes of the file read so far, for all row groups in order.

    Raises Corrupt or Unsupported with the row group and the column, BadInput if the file cannot be read.
    """
    metadata = file.metadata
    done = 0
    wanted = None if columns is None else project_schema(file.schema_arrow, columns)
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        size = sum(row_group.column(index).total_compressed_size for index in range(row_group.num_columns))
        rows = 0
        for batch in _row_group(file, path, group, columns, batch_rows):
            rows += batch.num_rows
            done_here = done + int(size * rows / max(1, row_group.num_rows))
            yield (batch if wanted is None else project_batch(batch, wanted)), done_here
        if rows != row_group.num_rows:
            raise Corrupt(
                f"{path} is corrupt: row group {group} has {rows} rows, but its metadata says {row_group.num_rows}",
                hint="Write the file again.",
            )
        done += size


def _row_group(file: Any, path: Path, group: int, columns: Sequence[str] | None, batch_rows: int) -> Iterator[Any]:
    row_group = file.metadata.row_group(group)
    if row_group.num_rows == 0:
        return
    if row_group.total_byte_size // row_group.num_rows > MAX_ROW_BYTES:
        raise Unsupported(
            f"{path}: row group {group} takes {row_group.total_byte_size} bytes for {row_group.num_rows} rows;"
            f" the limit is {MAX_ROW_BYTES >> 20} MiB per row",
            hint="Store large values in separate files, and their names in the table.",
        )
    # Sizes are uncompressed but encoded. Dictionary encoding may take less than the decoded values: hence the factor.
    per_row = max(1, 2 * row_group.total_byte_size // row_group.num_rows)
    size = max(1, min(batch_rows, MAX_BATCH_ROWS, MAX_BATCH_BYTES // per_row))
    try:
        stream = file.iter_batches(batch_size=size, row_groups=[group], columns=columns, use_threads=False)
        while True:
            batch = next(stream, None)
            if batch is None:
                return
            yield batch
    except READ_ERRORS as error:
        _raise_located(file, path, group, columns, error)


def _raise_located(file: Any, path: Path, group: int, columns: Sequence[str] | None, error: Exception) -> NoReturn:
    """Raise the error for the first column of the row group that cannot be read."""
    if isinstance(error, MemoryError):
        raise error
    for name in file.schema_arrow.names if columns is None else columns:
        try:
            for _ in file.iter_batches(batch_size=1024, row_groups=[group], columns=[name], use_threads=False):
                pass
        except READ_ERRORS as column_error:
            _raise(path, f"row group {group}, column {name}", column_error)
    _raise(path, f"row group {group}", error)
