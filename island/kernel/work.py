"""Runs functions that would block the event loop, in threads and child processes.

`Workers` is a port. `ThreadWorkers` implements it with bounded thread pools, one for each
purpose, so that work that waits for one thing (a name server that does not answer) cannot
block work that waits for another (the disk). Folders of users may be on a mount that hangs, so
each of them has threads of its own, for which nothing waits. Work that holds the GIL or decodes
untrusted files runs in child processes (`kernel.processes`), also with one pool for each purpose.
The simulator implements the same port with events in virtual time. No other module
starts threads or uses executors, except `kernel.log_writer`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections import Counter
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
FOLDER_THREADS = 4
"""Maximum number of threads that work on one folder of a user at a time."""
FOLDERS_THREADS = 256
"""Maximum number of threads that work on folders of users at a time: many folders must hang to delay the others."""


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
        """Run a function that reads, writes or lists files of the home folder."""

    def folder(self, name: str, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        """Run a function on files outside the home folder, where a mount may hang.

        At most `FOLDER_THREADS` functions with the same `name`, such as the path of a published folder, run at a time.
        """

    def cpu(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        """Run a function that computes in native code that releases the GIL: hashing, Arrow, the search index."""

    def blocking(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        """Run a function that waits for something outside this machine, such as a name server."""

    def lane(self, name: str, width: int = 1) -> Lane:
        """Create a lane of `width` threads, for work that must run in order or must not wait for other work."""

    def abandon(self) -> None:
        """Cancel the results of all functions started with `folder` and `blocking`."""

    def close(self) -> None:
        """Finish the submitted work on disk and CPU, and abandon the other work."""


class ThreadWorkers:
    """`Workers` with threads, which are started on demand, and with the given child processes.

    The caller closes the child processes.
    """

    def __init__(self, publishing: Processes | None = None, streaming: Processes | None = None) -> None:
        self.publishing, self.streaming = publishing, streaming
        self._disk = _Pool("disk", DISK_THREADS)
        self._cpu = _Pool("cpu", CPU_THREADS)
        self._blocking = _DetachedThreads("blocking", BLOCKING_THREADS, BLOCKING_THREADS)
        self._folders = _DetachedThreads("folder", FOLDER_THREADS, FOLDERS_THREADS)

    def disk(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return self._disk.run(function, *args)

    def cpu(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return self._cpu.run(function, *args)

    def folder(self, name: str, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return self._folders.run(name, function, *args)

    def blocking(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return self._blocking.run("", function, *args)

    def lane(self, name: str, width: int = 1) -> Lane:
        return _Pool(name, width)

    def abandon(self) -> None:
        self._blocking.abandon()
        self._folders.abandon()

    def lengths(self) -> dict[str, int]:
        """The work that was submitted and is not done, by pool."""
        return {
            "disk": self._disk.open,
            "cpu": self._cpu.open,
            "blocking": self._blocking.open,
            "folders": self._folders.open,
        }

    def close(self) -> None:
        self.abandon()
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


class _DetachedThreads:
    """Threads for which nothing waits, at most `width` for each key and `most` in all.

    The threads of an executor would be joined at the end of the program, however long their functions take.
    A thread ends when no function waits for it.
    """

    def __init__(self, name: str, width: int, most: int) -> None:
        self._name, self._width, self._most = name, width, most
        self._lock = threading.Lock()
        self._threads = 0
        self._busy: Counter[str] = Counter()
        self._waiting: dict[str, dict[Future[Any], Callable[[], None]]] = {}
        self._open: set[asyncio.Future[Any]] = set()

    @property
    def open(self) -> int:
        """The number of functions that wait or run."""
        return len(self._open)

    def run(self, key: str, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        result: Future[T] = Future()
        awaited = asyncio.wrap_future(result)
        self._open.add(awaited)
        awaited.add_done_callback(self._open.discard)
        with self._lock:
            self._waiting.setdefault(key, {})[result] = functools.partial(_fulfil, result, function, *args)
            begin = self._busy[key] < self._width and self._threads < self._most
            self._threads += begin
        # While a mount hangs, callers may come and go without end: forget the functions of those that are gone.
        result.add_done_callback(functools.partial(self._forget, key))
        if begin:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        return awaited

    def abandon(self) -> None:
        """Cancel the results that are awaited. The threads end when their functions return."""
        for awaited in list(self._open):
            awaited.cancel()

    def _forget(self, key: str, result: Future[Any]) -> None:
        with self._lock:
            self._pop(key, result)

    def _pop(self, key: str, result: Future[Any]) -> Callable[[], None] | None:
        calls = self._waiting.get(key, {})
        call = calls.pop(result, None)
        if not calls:
            self._waiting.pop(key, None)
        return call

    def _next(self) -> tuple[str, Callable[[], None]] | None:
        """The next function that may run, with its key, now counted as running; None if this thread must end."""
        with self._lock:
            for key, calls in self._waiting.items():
                if self._busy[key] < self._width and (call := self._pop(key, next(iter(calls)))) is not None:
                    self._busy[key] += 1
                    return key, call
            self._threads -= 1
            return None

    def _work(self) -> None:
        while (found := self._next()) is not None:
            key, call = found
            call()
            with self._lock:
                self._busy[key] -= 1
                if not self._busy[key]:
                    del self._busy[key]


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


def exit_after(seconds: float, last: Callable[[], object]) -> None:
    """End this process after `seconds` with code 1, even if threads or tasks hang. Calls `last` before, in a thread."""

    def end() -> None:
        try:
            last()
        finally:
            os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


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
