"""Parquet files: opened with page checksums verified, decoded in bounded batches, errors told apart.

`parquet_borders` (in `footer`) tells where the parts of a file begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from island.errors import BadInput, Corrupt, IslandError, Unsupported
from island.formats.columns import project_batch, project_schema
from island.formats.files import sniff
from island.formats.footer import MAX_FOOTER, parquet_borders

__all__ = ["classify", "open_file", "parquet_borders", "record_batches", "undecodable"]

MAX_BATCH_ROWS = 65_536
MAX_BATCH_BYTES = 64 * 1024 * 1024
MAX_ROW_BYTES = 256 * 1024 * 1024
# Thrift's own limits stand before allocation: a footer string and a footer list.
_THRIFT_STRING = MAX_FOOTER
_THRIFT_CONTAINER = 50_000_000
READ_ERRORS = (pa.ArrowException, OSError, ValueError, NotImplementedError)
_CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "BROTLI", "LZ4", "LZ4_RAW", "ZSTD")
_LACKING = ("not yet implemented", "not supported", "not implemented", "unsupported", "support for codec")


def open_file(path: Path) -> Any:
    """A pyarrow ParquetFile that verifies page checksums and reads column chunks in pieces.

    Raises BadInput (missing), Corrupt (empty, cut short, malformed footer), Unsupported (encrypted,
    a type that pyarrow does not know).
    """
    if sniff(path) != "parquet":
        raise Unsupported(f"{path} is not a Parquet file", hint="Name a *.parquet file.")
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
        # Decoded here so that a type without an Arrow form is told now.
        file.schema_arrow  # noqa: B018
    except READ_ERRORS as error:
        _raise(path, "its footer", error)
    return file


def undecodable(file: Any) -> dict[str, str]:
    """Top-level columns of an open file that cannot be decoded here, with the reason, by the footer alone."""
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
    """What pyarrow's error means: Unsupported where the reader lacks something, else Corrupt."""
    text = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    lacking = isinstance(error, NotImplementedError) or any(word in text.lower() for word in _LACKING)
    if lacking:
        return Unsupported(
            f"{path}: {part} cannot be decoded by this version: {text}",
            hint="The file may be sound: write this column in another type, encoding or compression.",
        )
    return Corrupt(f"{path} is corrupt: {part}: {text}", hint="Copy or write the file again.")


def _raise(path: Path, part: str, error: Exception) -> NoReturn:
    if isinstance(error, MemoryError):  # of Arrow or of Python; the limit is not the file's fault
        raise error
    # Errors of the operating system carry a number, those of the format do not.
    if isinstance(error, OSError) and error.errno is not None:
        raise BadInput(f"{path} cannot be read: {error.strerror}", hint="Check permissions and disk.") from error
    raise classify(path, part, error) from error


def record_batches(
    file: Any, path: Path, columns: Sequence[str] | None = None, batch_rows: int = MAX_BATCH_ROWS
) -> Iterator[tuple[Any, int]]:
    """(record batch, bytes of the file read so far) of every row group in order.

    Raises Corrupt or Unsupported that name the row group and the column.
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
                f"{path} is corrupt: row group {group} says {row_group.num_rows} rows and holds {rows}",
                hint="Write the file again.",
            )
        done += size


def _row_group(file: Any, path: Path, group: int, columns: Sequence[str] | None, batch_rows: int) -> Iterator[Any]:
    row_group = file.metadata.row_group(group)
    if row_group.num_rows == 0:
        return
    if row_group.total_byte_size // row_group.num_rows > MAX_ROW_BYTES:
        raise Unsupported(
            f"{path}: row group {group} takes {row_group.total_byte_size} bytes for {row_group.num_rows} rows,"
            f" {MAX_ROW_BYTES >> 20} MiB a row at most can be read",
            hint="Keep large values in files of their own, and their names in the table.",
        )
    # Sizes are uncompressed and encoded; a dictionary may hide more, hence the factor.
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
    """Raise with the first column of the row group that cannot be read alone."""
    if isinstance(error, MemoryError):
        raise error
    for name in file.schema_arrow.names if columns is None else columns:
        try:
            for _ in file.iter_batches(batch_size=1024, row_groups=[group], columns=[name], use_threads=False):
                pass
        except READ_ERRORS as one:
            _raise(path, f"row group {group}, column {name}", one)
    _raise(path, f"row group {group}", error)
