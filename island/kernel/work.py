"""Runs functions that would block the event loop, in threads and child processes.

`Workers` is a port. `ThreadWorkers` implements it with bounded thread pools, one for each
purpose, so that work that waits for one thing (a name server that does not answer) cannot
block work that waits for another (the disk). Work that holds the GIL or decodes untrusted
files runs in child processes (`kernel.processes`), also with one pool for each purpose.
The simulator implements the same port with events in virtual time. No other module
starts threads or uses executors.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, TypeVarTuple

from island.kernel.processes import Processes

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Turn = Callable[[], Iterator[None]]
"""Work in steps, separated by `yield`. Between two steps, other threads and the event loop may run."""

DISK_THREADS, BLOCKING_THREADS = 16, 16
CPU_THREADS = max(4, os.cpu_count() or 1)


class Lane(Protocol):
    """Threads of one owner. Its functions start in the order in which they were submitted."""

    def run(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        """Submit `function(*args)` and return a future of its result. Cancelling the future prevents a later start."""

    def post(self, turn: Turn) -> None:
        """Submit a turn, which runs to its end. It must not raise; it reports results by futures from `future`."""

    def future(self) -> asyncio.Future[Any]:
        """A future for the result of a turn."""

    def close(self) -> None:
        """Finish the submitted work, then end the threads. Blocks."""


class Workers(Protocol):
    """Runs functions outside the event loop, in different pools depending on what they wait for.

    Each method submits `function(*args)`, which starts when a thread is free, and returns a future.
    Cancelling the future prevents a later start; a function that has started runs to its end (see `to_the_end`).
    """

    publishing: Processes | None
    """Child processes for long work: describing and converting files. None: run it in this process."""
    streaming: Processes | None
    """Child processes for the files of sources, which must not wait for `publishing`. None: run it in this process."""

    def disk(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        """Run a function that reads, writes or lists files."""

    def cpu(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        """Run a function that computes in native code that releases the GIL: hashing, Arrow, the search index."""

    def blocking(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        """Run a function that waits for something outside this machine, such as a name server."""

    def lane(self, name: str, width: int = 1) -> Lane:
        """Create a lane of `width` threads, for work that must run in order or must not wait for other work."""

    def close(self) -> None:
        """Finish the submitted work on disk and CPU. Does not wait for functions started with `blocking`."""


class ThreadWorkers:
    """`Workers` with threads, which are started on demand, and with the given child processes.

    The caller closes the child processes.
    """

    def __init__(self, publishing: Processes | None = None, streaming: Processes | None = None) -> None:
        self.publishing, self.streaming = publishing, streaming
        self._disk = _Pool("disk", DISK_THREADS)
        self._cpu = _Pool("cpu", CPU_THREADS)
        self._blocking = _Pool("blocking", BLOCKING_THREADS)

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make the loop's own blocking calls (`getaddrinfo` of asyncio and aiohttp) use the pool of `blocking`."""
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
    """Return the result of `work`. If the caller is cancelled, wait until `work` has ended before raising."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await ended(work)
        raise


async def ended(work: asyncio.Future[T]) -> None:
    """Wait until `work` has a result, has failed or is cancelled. Does not raise its exception."""
    await asyncio.wait([work])
    if not work.cancelled():
        work.exception()  # mark as retrieved, so that asyncio does not log it
