"""The files of a subscription's dataset: written whole, and swept where no commit names them. Blocking."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from island.errors import Conflict, IslandError, PeerMisbehaved
from island.formats import rows
from island.streams import tables


class StaleAttempt(IslandError):
    """The write belongs to an attempt that was given up meanwhile; nothing was written."""


class SegmentFolder:
    """The folder `HOME/streams/NAME`.

    A write goes on in its thread when the task that wanted it is cancelled. So every attempt has a
    number that `sweep` raises, and both hold one lock: an old write ends before the sweep, or never
    happens.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._attempt = 0

    def create(self) -> None:
        """Make the folder; raises `Conflict` where something stands there already."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir()
        except FileExistsError as error:
            raise Conflict(
                f"{self.folder} exists already, from an earlier subscription",
                hint="Move it away or delete it, or choose another name with --into.",
            ) from error

    def sweep(self, named: set[str]) -> tuple[int, list[str]]:
        """Begin an attempt: delete every file that is not `named`; (attempt, what was deleted)."""
        with self._lock:
            self._attempt += 1
            self.folder.mkdir(parents=True, exist_ok=True)
            swept = []
            for entry in sorted(self.folder.iterdir()):
                if entry.name not in named and entry.is_file():
                    entry.unlink()
                    swept.append(entry.name)
            return self._attempt, swept

    def write(self, attempt: int, number: int, batches: Sequence[Any], schema: Any) -> tuple[str, int, int]:
        """Write one segment durably: (file name, rows, bytes). Raises `StaleAttempt`, `Full`, `PeerMisbehaved`."""
        name = f"part-{number:08d}.parquet"
        with self._lock:
            if attempt != self._attempt:
                raise StaleAttempt("this attempt was given up")
            try:
                count, size = rows.write_parquet(batches, self.folder / name, schema=schema)
            except tables.WRITE_ERRORS as error:
                raise PeerMisbehaved(f"the rows have no Parquet form: {str(error)[:200]}") from error
        return name, count, size

    def remove_empty(self) -> None:
        """Take the folder back where it holds nothing."""
        try:
            self.folder.rmdir()
        except OSError:  # it holds files, or is gone: either is as it should be
            return
