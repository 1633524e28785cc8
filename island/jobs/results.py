"""Large outputs of statements, as files in HOME/results that are named by their SHA-256.

Home and executor share the folder. A file is written under another name, synced and renamed before a row refers to
it, so a hash in the database means a complete file. Until the row is stored, its owner (a job or a run) has the
hash *pinned*; files that are neither pinned nor in a row are deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import structlog

from island.errors import DiskFailed, NotFound
from island.jobs import result_rows
from island.jobs.messages import ResultRef
from island.kernel.db import Database
from island.kernel.loops import Tasks, is_transient
from island.kernel.ports import Rng
from island.kernel.work import Workers, to_the_end
from island.private_files import sync_folder
from island.regular_file import open_regular

log = structlog.get_logger("island")

FOLDER = "results"
"""The folder in the home folder."""

BLOCK = 1024 * 1024
"""Number of bytes that are read at a time."""

SWEEP_S = 3600.0
"""Seconds between two searches for files that nothing refers to."""

_NEW, _PART = ".new", ".part"


class ResultStore:
    """The folder HOME/results. Its methods raise `OSError` for errors of the disk, unless they say otherwise."""

    def __init__(self, home: Path, workers: Workers, state: Database) -> None:
        self._folder, self._workers, self._state = home / FOLDER, workers, state
        self._pins: dict[str, set[str]] = {}
        self._sweeping = asyncio.Lock()

    def start(self, tasks: Tasks, rng: Rng) -> None:
        """Delete what nothing refers to, at once and then every hour."""
        tasks.forever("jobs.results", self.sweep, rng=rng, pause=SWEEP_S)

    # --- write ----------------------------------------------------------------------------------

    async def keep(self, owner: str, data: bytes) -> ResultRef:
        """Store an output, synced, and pin it for `owner`."""
        ref = ResultRef(hash=await self._workers.cpu(_digest, data), size=len(data))
        await self._pin(owner, ref)
        await to_the_end(self._workers.disk(_write, self._folder, ref.hash, owner, data))
        return ref

    async def adopt(self, owner: str, ref: ResultRef) -> bool:
        """Whether the result is here already; it is then pinned for `owner`."""
        await self._pin(owner, ref)
        return await self.has(ref)

    async def received(self, owner: str, ref: ResultRef) -> int:
        """The number of bytes of a result that `owner` has received so far."""
        return await self._workers.disk(_size, self._part(owner, ref)) or 0

    async def append(self, owner: str, ref: ResultRef, offset: int, data: bytes) -> None:
        """Store bytes of a result that is being received, from `offset` on."""
        await to_the_end(self._workers.disk(_append, self._part(owner, ref), offset, data))

    async def complete(self, owner: str, ref: ResultRef, check: Callable[[bytes], str]) -> str:
        """Make a received result available. Returns "", or what is wrong with it; it is then deleted.

        `check(data)` returns what is wrong with the content, or "". It is called in a thread.
        """
        return await to_the_end(self._workers.cpu(_complete, self._part(owner, ref), self._folder / ref.hash, check))

    def unpin(self, owner: str) -> None:
        """What `owner` has pinned is in its rows now, or is not needed."""
        self._pins.pop(owner, None)

    # --- read -----------------------------------------------------------------------------------

    async def has(self, ref: ResultRef) -> bool:
        """Whether the result is here."""
        return await self._workers.disk(_size, self._folder / ref.hash) == ref.size

    async def blocks(self, ref: ResultRef, offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes of a result from `offset` on, in blocks of `BLOCK` bytes.

        Raises `NotFound` if it is not here, and `DiskFailed`.
        """
        while offset < ref.size:
            block = await self._read(ref, offset)
            yield block
            offset += len(block)

    async def read(self, ref: ResultRef) -> bytes:
        """A whole result. Raises `NotFound` if it is not here, and `DiskFailed`."""
        return b"".join([block async for block in self.blocks(ref)])

    async def _read(self, ref: ResultRef, offset: int) -> bytes:
        try:
            block = await self._workers.disk(_read_block, self._folder / ref.hash, offset)
        except FileNotFoundError as error:
            raise NotFound("the result is no longer stored at this island", code="result_lost") from error
        except OSError as error:
            text = f"a result cannot be read: {error.strerror or error}"
            raise DiskFailed(text, hint=f"Check the disk and the permissions of {self._folder}.") from error
        if not block:
            raise NotFound("the result is not complete at this island", code="result_lost")
        return block

    # --- delete ---------------------------------------------------------------------------------

    async def drop(self, hashes: Iterable[str]) -> None:
        """Delete those of some results that nothing refers to any more. If the disk fails, a later sweep does it."""
        if not (candidates := {each for each in hashes if each}):
            return
        try:
            async with self._sweeping:
                pinned = self._pinned()
                needed = await self._state.read(lambda conn: result_rows.needed_of(conn, candidates))
                await self._delete(candidates - needed - pinned)
        except Exception as error:
            if not is_transient(error):
                raise
            log.info("jobs.results_not_deleted", error=str(error))

    async def sweep(self) -> None:
        """Delete the files that nothing refers to, and what was received for jobs that have ended."""
        async with self._sweeping:
            pinned = self._pinned()
            found = await self._workers.disk(_names, self._folder)
            if not found:
                return
            needed = await self._state.read(result_rows.needed)
            live = await self._state.read(result_rows.live_jobs)
            keep = needed | pinned
            unused = {name for name in found if name not in keep and not _is_for(name, live | self._pins.keys())}
            await self._delete(unused)
            if unused:
                log.info("jobs.results_deleted", count=len(unused))

    async def _delete(self, names: set[str]) -> None:
        if names:
            await to_the_end(self._workers.disk(_delete_files, self._folder, names))

    async def _pin(self, owner: str, ref: ResultRef) -> None:
        async with self._sweeping:
            self._pins.setdefault(owner, set()).add(ref.hash)

    def _pinned(self) -> set[str]:
        return {each for hashes in self._pins.values() for each in hashes}

    def _part(self, owner: str, ref: ResultRef) -> Path:
        return self._folder / f"{ref.hash}-{owner}{_PART}"


def _is_for(name: str, owners: Iterable[str]) -> bool:
    """Whether a file is being written for one of these owners."""
    owner = name.partition("-")[2].removesuffix(_PART).removesuffix(_NEW)
    return bool(owner) and owner in owners


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _made(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True)
        sync_folder(folder.parent)


def _write(folder: Path, name: str, owner: str, data: bytes) -> None:
    _made(folder)
    new = folder / f"{name}-{owner}{_NEW}"
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.rename(folder / name)
    except OSError:
        with contextlib.suppress(OSError):  # the error of the disk is the one that is reported
            new.unlink()
        raise
    sync_folder(folder)


def _append(part: Path, offset: int, data: bytes) -> None:
    _made(part.parent)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+b", buffering=0) as file:
        # A write that failed may have left bytes, which are written again.
        file.truncate(offset)
        file.seek(offset)
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]


def _complete(part: Path, target: Path, check: Callable[[bytes], str]) -> str:
    with open_regular(part) as file:
        data = file.read()
        problem = "it does not match its hash" if _digest(data) != target.name else check(data)
        if not problem:
            os.fsync(file.fileno())
    if problem:
        part.unlink()
        return problem
    part.rename(target)
    sync_folder(target.parent)
    return ""


def _read_block(path: Path, offset: int) -> bytes:
    with open_regular(path) as file:
        file.seek(offset)
        return file.read(BLOCK)


def _delete_files(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
