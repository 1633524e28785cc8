"""Work elsewhere: the one way to run what would hold up the event loop.

`Workers` is a port. `ThreadWorkers` runs the work in bounded pools of threads, one for each
purpose, so that work that waits for one thing (a name server that does not answer) cannot
hold up work that waits for another (the disk). The simulator implements the same port with
events in virtual time. Nothing else in the program starts a thread or uses an executor.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Turn = Callable[[], Iterator[None]]
"""Work in parts. Between two parts, other threads and the event loop may do anything."""

DISK_THREADS, BLOCKING_THREADS = 16, 16
CPU_THREADS = max(4, os.cpu_count() or 1)


class Lane(Protocol):
    """Threads of one owner: what it asks for begins in the order in which it asked."""

    def run(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        """Start `function(*args)`; the future has its result. One that is cancelled in time never begins."""

    def post(self, turn: Turn) -> None:
        """Start a turn and run it to its end. It must not raise; it settles futures of this lane."""

    def future(self) -> asyncio.Future[Any]:
        """A future that a turn of this lane will settle."""

    def close(self) -> None:
        """Finish what was asked for, then end the threads. Blocks."""


class Workers(Protocol):
    """Runs functions outside the event loop, by what they spend their time on.

    Each method starts `function(*args)` at once or when a thread is free, and returns a future.
    Cancelling the future prevents a start; what has begun goes on to its end (see `to_the_end`).
    """

    def disk(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        """Reads, writes and lists files."""

    def cpu(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        """Computes in native code that releases the GIL: hashing, Arrow, the search index."""

    def blocking(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        """Waits for something outside this machine, such as a name server."""

    def lane(self, name: str, width: int = 1) -> Lane:
        """`width` threads of their own, for work that must be in order or must never wait for others."""

    def close(self) -> None:
        """Finish what has begun on the disk and CPU; work that blocks elsewhere is left alone."""


class ThreadWorkers:
    """`Workers` with threads of this process. Threads are started when there is work for them."""

    def __init__(self) -> None:
        self._disk = _Pool("disk", DISK_THREADS)
        self._cpu = _Pool("cpu", CPU_THREADS)
        self._blocking = _Pool("blocking", BLOCKING_THREADS)

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the loop's own blocking calls (`getaddrinfo` of asyncio and aiohttp) use the pool for such calls."""
        loop.set_default_executor(self._blocking.threads)

    def disk(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return self._disk.run(function, *args)

    def cpu(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return self._cpu.run(function, *args)

    def blocking(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return self._blocking.run(function, *args)

    def lane(self, name: str, width: int = 1) -> Lane:
        return _Pool(name, width)

    def close(self) -> None:
        self._blocking.threads.shutdown(wait=False, cancel_futures=True)
        self._cpu.close()
        self._disk.close()


class _Pool:
    """A bounded pool of threads. Implements `Lane`."""

    def __init__(self, name: str, width: int) -> None:
        self.threads = ThreadPoolExecutor(width, thread_name_prefix=name)

    def run(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self.threads, function, *args)

    def future(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    def post(self, turn: Turn) -> None:
        self.threads.submit(_exhaust, turn)

    def close(self) -> None:
        self.threads.shutdown(wait=True)


def _exhaust(turn: Turn) -> None:
    for _ in turn():
        pass


async def to_the_end(work: asyncio.Future[T]) -> T:
    """The result of `work`. A caller that is cancelled waits until it has ended: nothing goes on unseen."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await ended(work)
        raise


async def ended(work: asyncio.Future[T]) -> None:
    """Wait until `work` has ended, however it ended."""
    await asyncio.wait([work])
    if not work.cancelled():
        work.exception()  # retrieved: asyncio need not complain that nobody looked
