"""Faults for tests: callers that are cancelled while their write commits, and methods that fail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from island.kernel.db import Database, explained
from island.kernel.loops import EXPECTED, LoopFaults
from tests.missing import missing

T = TypeVar("T")

_NAMESPACE = ("unshare", "--mount", "--map-root-user")

DISK = "disk I/O error"


def failed_read() -> sqlite3.DatabaseError:
    """The error of SQLite if a page of a database cannot be read."""
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def failed_write() -> sqlite3.OperationalError:
    """The error of SQLite if a page of a database cannot be written."""
    error = sqlite3.OperationalError(DISK)
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    return error


def full_disk() -> sqlite3.OperationalError:
    """The error of SQLite if the disk of a database is full."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def failed_sync() -> sqlite3.OperationalError:
    """The error of SQLite if the disk does not confirm that it has what was written."""
    error = sqlite3.OperationalError(DISK)
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    return error


def busy() -> sqlite3.OperationalError:
    """The error of SQLite if another process has held the lock of a database for too long."""
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error


def on_read_only_disk(folder: Path, *command: str) -> list[str]:
    """The command line that runs `command` where `folder` is on a read-only disk, in a mount namespace of its own."""
    if (
        not shutil.which("unshare")
        or subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False).returncode
    ):
        missing("needs unshare (util-linux) with mount namespaces")
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    return [*_NAMESPACE, "sh", "-c", mount, str(folder), *command]


@contextlib.contextmanager
def disk_with(size: int) -> Iterator[None]:
    """No file of this process can be larger than `size` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@contextlib.contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Make every read of the open descriptors of a small file fail with EIO.

    The descriptors are replaced by one of this process's memory, whose first pages are never mapped.
    SQLite's locks on the file are lost.
    """
    replaced: dict[int, int] = {}
    blind = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        for name in os.listdir("/proc/self/fd"):
            handle = int(name)
            if os.path.realpath(f"/proc/self/fd/{name}") == str(path.resolve()):
                replaced[handle] = os.dup(handle)
                os.dup2(blind, handle)
        yield
    finally:
        for handle, kept in replaced.items():
            os.dup2(kept, handle)
            os.close(kept)
        os.close(blind)


async def cancelled_while_committing(database: Database, work: Callable[[], Awaitable[object]]) -> None:
    """Cancel the task that runs `work()` while its write waits for the writer, then let the write commit.

    `database` has a writer thread. Returns when all waiting writes are committed and their callers are informed.
    """
    busy, gate, asked = threading.Event(), threading.Event(), asyncio.Event()
    original = database.write

    def hold(_: sqlite3.Connection) -> None:
        busy.set()
        gate.wait(60)

    async def tapped(function: Callable[[sqlite3.Connection], T], **more: Any) -> T:
        asked.set()
        return await original(function, **more)

    async def run() -> None:
        await work()

    loop = asyncio.get_running_loop()
    holding = loop.create_task(original(hold))
    assert await asyncio.to_thread(busy.wait, 60)
    database.write = tapped  # type: ignore[method-assign]  # intercepts the calls of the service
    task = loop.create_task(run())
    try:
        await asyncio.wait_for(asked.wait(), 60)
        task.cancel()
        await asyncio.sleep(0)
    finally:
        database.write = original  # type: ignore[method-assign]  # restores the method
        gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await holding
    await database.write(lambda _: None)


class StrictFaults(LoopFaults):
    """Like the daemon, but errors that are not in `foreseen` end the loop and fail the test."""

    def __init__(self) -> None:
        super().__init__()
        self.foreseen: tuple[type[Exception], ...] = EXPECTED

    def met(self, name: str, error: Exception) -> None:
        super().met(name, error)
        if not isinstance(error, self.foreseen):
            raise error


class Fault:
    """Makes an asynchronous method of an object fail: `times` times, or until `mend` if None.

    By default `write` fails, with the error of `Database.write` for a failing disk.
    """

    def __init__(
        self, owner: object, error: Exception | None = None, *, what: str = "write", times: int | None = 1
    ) -> None:
        self._owner, self._what, self._left = owner, what, times
        self._error = error or explained(failed_write(), Path("test.db"))
        self._original = getattr(owner, what)
        self.met = 0
        """The number of calls that have failed."""
        setattr(owner, what, self._call)

    async def _call(self, *arguments: Any, **more: Any) -> Any:
        if self._left is None or self._left > 0:
            if self._left is not None:
                self._left -= 1
            self.met += 1
            raise self._error
        return await self._original(*arguments, **more)

    def mend(self) -> None:
        """Restore the method."""
        setattr(self._owner, self._what, self._original)


class Gone:
    """Cancels the next caller of a method of an object when it is done, as if its client or peer had disconnected.

    By default that is the `write` of a database, whose write is then committed.
    """

    def __init__(self, owner: object, *, what: str = "write") -> None:
        self._owner, self._what, self._original = owner, what, getattr(owner, what)
        setattr(owner, what, self._call)

    async def _call(self, *arguments: Any, **more: Any) -> Any:
        setattr(self._owner, self._what, self._original)  # only one call is intercepted
        await self._original(*arguments, **more)
        raise asyncio.CancelledError
