"""Limits for reading one file: rows and processor time. The process that reads it has a limit of memory.

| what | limit |
|---|---|
| rows of a file | `ReadLimits.rows` |
| processor time for a file | `ReadLimits.cpu_seconds`, plus one second per `BYTES_A_SECOND` of its size |
| memory of the process that reads it | `[decoding] memory` in the configuration |
| a block of Avro, compressed and decompressed | `avro_container.MAX_BLOCK` |
| bytes per row of a row group of Parquet | `parquet.MAX_ROW_BYTES` |
| columns, and their nesting depth | `columns.MAX_COLUMNS`, `columns.MAX_DEPTH` |
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from island.errors import OverLimit
from island.formats import files
from island.kernel import process_messages

BYTES_A_SECOND = 1024 * 1024
"""Bytes of a file for which one second of processor time is granted. Valid files take less."""


class ReadLimits(msgspec.Struct, frozen=True):
    """The limits for reading one file: number of rows, and seconds of processor time."""

    rows: int = 1_000_000_000
    cpu_seconds: float = 60.0

    def begin(self, path: Path) -> None:
        """Start the processor time limit for `path`. Has an effect only in a child process. Raises BadInput."""
        process_messages.begin(str(path)[:2000], self.cpu_seconds + files.regular_size(path) / BYTES_A_SECOND)

    def check_rows(self, rows: int, path: Path) -> None:
        """Raise `OverLimit` if the number of rows, counted or claimed by the file, exceeds the limit."""
        if rows > self.rows:
            raise OverLimit(
                f"{path} has at least {rows} rows; the limit for one file is {self.rows}",
                hint="If you trust the file, split it, or raise `rows` under [decoding] in island.toml.",
            )

    def watched(self, stream: Iterator[tuple[Any, int]], path: Path) -> Iterator[tuple[Any, int]]:
        """Pass on the pairs (batch, bytes read so far), and check the number of rows. Raises `OverLimit`."""
        rows = 0
        for batch, done in stream:
            rows += batch.num_rows
            self.check_rows(rows, path)
            process_messages.alive()
            yield batch, done


DEFAULT_LIMITS = ReadLimits()
