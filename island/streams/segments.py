"""The files of a subscription's dataset: written atomically, and deleted if no commit contains them. Blocking."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from island.errors import Conflict, IslandError, PeerMisbehaved
from island.formats import rows
from island.streams import tables


class StaleAttempt(IslandError):
    """The write belongs to an attempt that has been replaced by a newer one. Nothing was written."""


class SegmentFolder:
    """The folder `HOME/streams/NAME`.

    A write continues in its thread when its task is cancelled. Therefore each attempt has a number,
    which `sweep` increments, and both methods hold the same lock: a write of an old attempt ends
    before the sweep, or raises `StaleAttempt`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._attempt = 0

    def create(self) -> None:
        """Create the folder. Raises `Conflict` if it already exists."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir()
        except FileExistsError as error:
            raise Conflict(
                f"{self.folder} already exists, from an earlier subscription",
                hint="Move or delete it, or choose another name with --into.",
            ) from error

    def sweep(self, named: set[str]) -> tuple[int, list[str]]:
        """Begin an attempt: delete all files except the `named` ones; returns (attempt, names of deleted files)."""
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
                raise StaleAttempt("a newer attempt has begun")
            try:
                count, size = rows.write_parquet(batches, self.folder / name, schema=schema)
            except tables.WRITE_ERRORS as error:
                raise PeerMisbehaved(f"the rows cannot be written as Parquet: {str(error)[:200]}") from error
        return name, count, size

    def remove_empty(self) -> None:
        """Delete the folder if it is empty."""
        try:
            self.folder.rmdir()
        except OSError:  # the folder has files, or does not exist
            return
