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
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, TypeVarTuple

from island.kernel.processes import Processes

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Turn = Callable[[], Iterator[None]]
"""Work in steps, separated by `yield`. Between two steps, other threads and the event loop may run."""

DISK_THREADS = 16
BLOCKING_THREADS = 64
"""More than the islands that are dialled at a time, so that names without an answer do not delay the others."""
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
        self._blocking = _DetachedPool("blocking", BLOCKING_THREADS)

    def disk(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return self._disk.run(function, *args)

    def cpu(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return self._cpu.run(function, *args)

    def blocking(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return self._blocking.run(function, *args)

    def lane(self, name: str, width: int = 1) -> Lane:
        return _Pool(name, width)

    def lengths(self) -> dict[str, int]:
        """The work that was submitted and is not done, by pool."""
        return {"disk": self._disk.open, "cpu": self._cpu.open, "blocking": self._blocking.open}

    def close(self) -> None:
        self._blocking.close()
        self._cpu.close()
        self._disk.close()


class _Pool:
    """A bounded pool of threads. Implements `Lane`."""

    def __init__(self, name: str, width: int) -> None:
        self.threads = ThreadPoolExecutor(width, thread_name_prefix=name)
        self._open: set[asyncio.Future[Any]] = set()

    @property
    def open(self) -> int:
        """The number of functions that wait or run."""
        return len(self._open)

    def run(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        result = asyncio.get_running_loop().run_in_executor(self.threads, function, *args)
        self._open.add(result)
        result.add_done_callback(self._open.discard)
        return result

    def future(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    def post(self, turn: Turn) -> None:
        self.threads.submit(_exhaust, turn)

    def close(self) -> None:
        self.threads.shutdown(wait=True)


class _DetachedPool:
    """A bounded pool of threads for which nothing waits, not even the end of the program.

    The threads of an executor would be joined at the end of the program, however long their functions take.
    """

    def __init__(self, name: str, width: int) -> None:
        self._name, self._width, self._threads = name, width, 0
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._open: set[asyncio.Future[Any]] = set()

    @property
    def open(self) -> int:
        """The number of functions that wait or run."""
        return len(self._open)

    def run(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        result: Future[T] = Future()
        awaited = asyncio.wrap_future(result)
        self._open.add(awaited)
        awaited.add_done_callback(self._open.discard)
        self._calls.put(functools.partial(_fulfil, result, function, *args))
        if not self._idle.acquire(blocking=False) and self._threads < self._width:
            self._threads += 1
            threading.Thread(target=self._work, name=f"{self._name}_{self._threads}", daemon=True).start()
        return awaited

    def close(self) -> None:
        """Cancel the results that are awaited, and end the threads when their functions return."""
        for awaited in list(self._open):
            awaited.cancel()
        for _ in range(self._threads):
            self._calls.put(None)

    def _work(self) -> None:
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                self._idle.release()
                call = self._calls.get()
            if call is None:
                return
            call()


def _fulfil(result: Future[T], function: Callable[[*Ts], T], *args: *Ts) -> None:
    """Run a function and set its result, unless it was cancelled before its start."""
    if not result.set_running_or_notify_cancel():
        return
    try:
        value = function(*args)
    except BaseException as error:  # noqa: BLE001 - the caller in the event loop gets it
        result.set_exception(error)
    else:
        result.set_result(value)


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
