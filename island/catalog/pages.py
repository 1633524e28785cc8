"""Storage of the pages of this island's manifests: packs in HOME/manifests, with an index in state.db.

A pack is written completely and synced before the transaction that adds its pages to the index. A
pack without pages in the index is deleted. Pages are shared between snapshots, so a page is
deleted when no served snapshot refers to it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import blake3
import structlog

from island.catalog import store
from island.errors import Full, IslandError
from island.kernel.db import Database
from island.kernel.work import Workers
from island.private_files import sync_folder

log = structlog.get_logger("island")

UNFINISHED = ".tmp"
"""Suffix of the name of a pack that is being written."""


@dataclass(frozen=True, slots=True)
class Pack:
    """A written pack: its name, and (hash, offset, size) of each page. A pack without pages has no file."""

    name: str
    pages: tuple[tuple[str, int, int], ...]


class PackWriter:
    """Writes the pages of one publication. Not thread-safe. End it with `finish` or `abandon`."""

    def __init__(self, folder: Path, name: str, known: Container[str]) -> None:
        self._folder = folder
        self._name = name
        self._known = known
        self._file: BinaryIO | None = None
        self._pages: dict[str, tuple[int, int]] = {}
        self._size = 0

    def add(self, data: bytes) -> str:
        """Write a page unless it is already stored, and return its hash. Raises `Full`."""
        name = blake3.blake3(data).hexdigest()
        if name in self._known or name in self._pages:
            return name
        try:
            if self._file is None:
                self._file = self._temporary.open("wb")
            self._file.write(data)
        except OSError as error:
            raise _full(self._temporary, error) from error
        self._pages[name] = (self._size, len(data))
        self._size += len(data)
        return name

    def finish(self) -> Pack:
        """Sync the pages to disk and return the pack. Raises `Full`."""
        if self._file is None:
            return Pack(self._name, ())
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.rename(self._folder / self._name)
            sync_folder(self._folder)
        except OSError as error:
            raise _full(self._temporary, error) from error
        self._file = None
        return Pack(self._name, tuple((name, at, size) for name, (at, size) in self._pages.items()))

    def abandon(self) -> None:
        """Delete the files of this pack."""
        if self._file is not None:
            # Closing writes what is buffered, which fails on a full disk. The content is not needed any more.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        for path in (self._temporary, self._folder / self._name):
            path.unlink(missing_ok=True)

    @property
    def _temporary(self) -> Path:
        return self._folder / f"{self._name}{UNFINISHED}"


def _full(path: Path, error: OSError) -> IslandError:
    return Full(
        f"{path} cannot be written: {error.strerror or error}",
        hint="Free some space on that disk, and check its permissions.",
    )


class PageStore:
    """Reads pages by hash, and deletes unused ones."""

    def __init__(self, state: Database, folder: Path, workers: Workers) -> None:
        self._state, self._workers = state, workers
        self.folder = folder

    def writer(self, name: str, known: Container[str]) -> PackWriter:
        """Create a writer for the pages of one publication. Pages with `known` hashes are not written."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return PackWriter(self.folder, name, known)

    @staticmethod
    def insert(conn: sqlite3.Connection, pack: Pack) -> None:
        """Add the pages of a written pack to the index, in the transaction that adds their snapshot."""
        store.put_pages(conn, pack.name, pack.pages)

    async def get(self, name: str) -> bytes | None:
        """A page by its hash; None if it is not stored, or if it is damaged (which is logged)."""
        place = await self._state.read(lambda conn: store.page_place(conn, name))
        if place is None:
            return None
        pack, at, size = place
        try:
            data = await self._workers.disk(_read, self.folder / pack, at, size)
        except OSError as error:
            log.error("catalog.page_lost", pack=pack, error=str(error))
            return None
        if blake3.blake3(data).hexdigest() != name:
            log.error("catalog.page_damaged", pack=pack, page=name)
            return None
        return data

    async def clear(self) -> None:
        """Delete packs that were being written when the daemon was killed. Call it before the first publication."""
        names = await self._workers.disk(_names, self.folder)
        await self._workers.disk(_unlink, self.folder, [name for name in names if name.endswith(UNFINISHED)])

    async def sweep(self, live: Container[str], still: Callable[[sqlite3.Connection], bool]) -> int:
        """Delete all pages except `live`, and all packs without pages; returns the number of deleted pages.

        Call it while no publication is open. `still` is called in the transaction and returns whether
        `live` is still up to date; if not, no page is deleted. Only packs that existed at the start are deleted.
        """
        before = await self._workers.disk(_names, self.folder)

        def forget(conn: sqlite3.Connection) -> tuple[int, set[str]]:
            dead = [name for name in store.page_names(conn) if name not in live] if still(conn) else []
            store.drop_pages(conn, dead)
            return len(dead), store.packs(conn)

        gone, packs = await self._state.write(forget)
        await self._workers.disk(_unlink, self.folder, [name for name in before if name not in packs])
        return gone


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _unlink(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _read(path: Path, at: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(size)
