"""What reading one file may take, in rows and time. Memory is limited by the process that reads it.

| what | limit |
|---|---|
| rows of a file | `ReadLimits.rows` |
| processor time for a file | `ReadLimits.cpu_seconds`, and a second for each `BYTES_A_SECOND` of its size |
| memory of the process that reads it | `[decoding] memory` in the configuration |
| a block of Avro, compressed and plain | `container.MAX_BLOCK` |
| a row group of Parquet, bytes a row | `parquet.MAX_ROW_BYTES` |
| columns, and how deep they nest | `columns.MAX_COLUMNS`, `columns.MAX_DEPTH` |
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from island.errors import OverLimit
from island.formats import files
from island.kernel import processes

BYTES_A_SECOND = 1024 * 1024
"""The slowest sound file takes less than a second for this many of its bytes."""


class ReadLimits(msgspec.Struct, frozen=True):
    """The limits for one file."""

    rows: int = 1_000_000_000
    cpu_seconds: float = 60.0

    def begin(self, path: Path) -> None:
        """Reading `path` begins: from now on its own processor time is counted, where a child process reads it."""
        processes.begin(str(path)[:2000], self.cpu_seconds + files.regular_size(path) / BYTES_A_SECOND)

    def check_rows(self, rows: int, path: Path) -> None:
        """Raises `OverLimit` where a file has, or says it has, more rows than are read."""
        if rows > self.rows:
            raise OverLimit(
                f"{path} has {rows} rows or more, and {self.rows} are the most that are read of one file",
                hint="If you trust the file, cut it into several, or raise `rows` under [decoding] in island.toml.",
            )

    def watched(self, stream: Iterator[tuple[Any, int]], path: Path) -> Iterator[tuple[Any, int]]:
        """(batch, bytes read so far) as they come, counted."""
        rows = 0
        for batch, done in stream:
            rows += batch.num_rows
            self.check_rows(rows, path)
            processes.alive()
            yield batch, done


DEFAULT_LIMITS = ReadLimits()
