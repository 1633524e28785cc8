"""Faults for tests: callers that are cancelled while their write commits, and methods that fail."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from island.kernel.db import Database
from island.kernel.loops import EXPECTED, LoopFaults

T = TypeVar("T")

DISK = "disk I/O error"


async def cancelled_while_committing(database: Database, work: Callable[[], Awaitable[object]]) -> None:
    """Cancel the task that runs `work()` while its write waits for the writer, then let the write commit.

    `database` has a writer thread. Returns when all waiting writes are committed and their callers are informed.
    """
    busy, gate, asked = threading.Event(), threading.Event(), asyncio.Event()
    original = database.write

    def hold(_: sqlite3.Connection) -> None:
        busy.set()
        gate.wait(10)

    async def tapped(function: Callable[[sqlite3.Connection], T], **more: Any) -> T:
        asked.set()
        return await original(function, **more)

    async def run() -> None:
        await work()

    loop = asyncio.get_running_loop()
    holding = loop.create_task(original(hold))
    assert await asyncio.to_thread(busy.wait, 10)
    database.write = tapped  # type: ignore[method-assign]  # intercepts the calls of the service
    task = loop.create_task(run())
    try:
        await asyncio.wait_for(asked.wait(), 10)
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
    """Makes an asynchronous method of an object fail, by default `write`: `times` times, or until `mend` if None."""

    def __init__(
        self, owner: object, error: Exception | None = None, *, what: str = "write", times: int | None = 1
    ) -> None:
        self._owner, self._what, self._left = owner, what, times
        self._error = error or sqlite3.OperationalError(DISK)
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
    """Cancels the next caller of `write` when its write is committed, as if its client or peer had disconnected."""

    def __init__(self, database: Database) -> None:
        self._database, self._original = database, database.write
        database.write = self._write  # type: ignore[method-assign]  # intercepts the calls of the service

    async def _write(self, function: Callable[[sqlite3.Connection], T], **more: Any) -> T:
        self._database.write = self._original  # type: ignore[method-assign]  # only one call is intercepted
        await self._original(function, **more)
        raise asyncio.CancelledError
