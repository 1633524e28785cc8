"""Runs functions in child processes: work that holds the GIL, and work on untrusted bytes.

A child has limits on its memory and processor time, inherits neither secrets nor open files,
ends with its parent, and is killed if its caller is cancelled or if it sends no message for too
long. Children are started on demand, reused after calls that ended normally, and ended when
they have been idle for a while.

The functions are module-level functions with plain arguments; paths among them are absolute.
Arguments, results and items are sent as MessagePack and decoded into the annotated types, not with
pickle, because a child that has read hostile bytes is not trusted. `island.kernel.process_main` is
the child's side.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar, TypeVarTuple

import msgspec
import structlog

from island.errors import IslandError, OverLimit, known_error
from island.kernel.interpreter import SAFE_FOLDER, import_path, module_command
from island.kernel.process_messages import (
    BEGUN,
    DONE,
    FAILED,
    HEAD,
    ITEM,
    OUT_OF_MEMORY,
    Begun,
    Emit,
    Failure,
    Request,
    decode,
    encode,
    types_of,
)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = structlog.get_logger("island")

_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS)
"""The signals that a process gets because of its own work."""

CHILDREN = 2
IDLE_SECONDS = 60.0
_READ_AHEAD = 4 * 1024 * 1024
_MIB = 1024 * 1024


class Limits(msgspec.Struct, frozen=True):
    """Limits of one call.

    `cpu_seconds` is the maximum processor time since the start of the call or its last `begin`,
    `silent_seconds` the maximum time between two messages of the child, and `answer_bytes` the
    maximum size of one item.
    """

    cpu_seconds: float = 60.0
    silent_seconds: float = 600.0
    answer_bytes: int = 64 * _MIB


DEFAULT_LIMITS = Limits()


class ProcessDied(IslandError):
    """A child ended or sent a malformed answer; the message has its exit status or signal.

    `crashed` is true if its own work is the probable cause. Otherwise the machine ended it, for example
    because it ran out of memory, and the same call may succeed later.
    """

    code = "process_died"
    crashed = False


class Stalled(OverLimit):
    """A child sent no message for too long: it hangs, or the machine or its disk is too slow."""


class FunctionFailed(RuntimeError):
    """A function in a child raised an unexpected exception; the message contains its traceback."""


class Processes(Protocol):
    """Runs functions in child processes, or in this process where time is virtual."""

    async def run(
        self, function: Callable[[*Ts], T], /, *args: *Ts, limits: Limits = DEFAULT_LIMITS, near: Hashable = None
    ) -> T:
        """Return what `function(*args)` returns, or raise the `IslandError` or `OSError` that it raises.

        If possible, a call runs in the child that ran an earlier call with the same key `near`.
        Raises `OverLimit` with the exceeded limit (`Stalled` for silence), `ProcessDied` if the child ends, and
        `FunctionFailed` for an unexpected exception. If the caller is cancelled, the child is killed.
        """

    def stream(
        self, function: Callable[[Emit[T], *Ts], None], /, *args: *Ts, limits: Limits = DEFAULT_LIMITS
    ) -> AsyncGenerator[T, None]:
        """Yield the items that `function(emit, *args)` emits, as they arrive; raises as `run` does.

        The child waits while the caller does not take items. Close the generator
        (`contextlib.aclosing`): closing it before its end kills the child.
        """

    async def close(self) -> None:
        """Kill all children, also busy ones, and wait until they have ended."""


# --- in this process --------------------------------------------------------------------------


class InPlaceProcesses:
    """Runs functions in this process, without limits: for simulations in virtual time and for tests."""

    async def run(
        self, function: Callable[[*Ts], T], /, *args: *Ts, limits: Limits = DEFAULT_LIMITS, near: Hashable = None
    ) -> T:
        """See `Processes.run`."""
        return function(*args)

    async def stream(
        self, function: Callable[[Emit[T], *Ts], None], /, *args: *Ts, limits: Limits = DEFAULT_LIMITS
    ) -> AsyncGenerator[T, None]:
        """See `Processes.stream`. Yields all items after the function has returned."""
        items: list[T] = []
        function(items.append, *args)
        for item in items:
            yield item

    async def close(self) -> None:
        """Do nothing: there are no children."""


# --- children ---------------------------------------------------------------------------------


class ProcessPool:
    """`Processes` with at most `size` children, each with at most `memory_bytes` of writable memory.

    `hint` is the hint of errors about limits.
    """

    def __init__(
        self, name: str, *, memory_bytes: int, hint: str, size: int = CHILDREN, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._name, self._memory_bytes, self._hint, self._idle_seconds = name, memory_bytes, hint, idle_seconds
        self._turns = asyncio.Semaphore(size)
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._closed = False

    async def run(
        self, function: Callable[[*Ts], T], /, *args: *Ts, limits: Limits = DEFAULT_LIMITS, near: Hashable = None
    ) -> T:
        """See `Processes.run`."""
        result: T
        async with aclosing(self._items(function, args, False, limits, near)) as items:
            async for item in items:
                result = item
        return result

    def stream(
        self, function: Callable[[Emit[T], *Ts], None], /, *args: *Ts, limits: Limits = DEFAULT_LIMITS
    ) -> AsyncGenerator[T, None]:
        """See `Processes.stream`."""
        return self._items(function, args, True, limits, None)

    async def close(self) -> None:
        """See `Processes.close`. Running calls raise `ProcessDied`."""
        self._closed = True
        self._idle.clear()
        for child in list(self._all):
            await child.kill()

    @property
    def pids(self) -> list[int]:
        """The process ids of the running children."""
        return sorted(child.process.pid for child in self._all if child.lives)

    async def _items(
        self, function: Callable[..., Any], args: Sequence[Any], emits: bool, limits: Limits, near: Hashable
    ) -> AsyncGenerator[Any, None]:
        """The decoded items of one call."""
        _, kind = types_of(function, emits=emits)
        while True:
            try:
                async with (
                    self._child(near) as child,
                    aclosing(self._ask(child, function, args, emits, limits)) as items,
                ):
                    async for item in items:
                        yield self._decoded(item, kind, child)
                return
            except _NotBegun:  # one idle child less: the next one is idle too, or new
                continue

    @contextlib.asynccontextmanager
    async def _child(self, near: Hashable) -> AsyncIterator[_Child]:
        """A child for one call. It is killed unless the call ended normally."""
        async with self._turns:
            child = self._take(near) or await self._start()
            try:
                yield child
                if near is not None:
                    child.near.append(near)
            finally:
                if child.asked or self._closed or not child.lives:
                    self._all.discard(child)
                    await child.kill()
                else:
                    self._put(child)

    def _take(self, near: Hashable) -> _Child | None:
        self._idle = [child for child in self._idle if child.lives]
        if not self._idle:
            return None
        known = [child for child in self._idle if near is not None and near in child.near]
        # Prefer the child that was used last, so that the others reach their idle time and end.
        child = known[0] if known else self._idle[-1]
        self._idle.remove(child)
        child.stop_ending()
        child.reused = True
        return child

    def _put(self, child: _Child) -> None:
        self._idle.append(child)
        # A child that is being ended still lives for a moment, in which no call may get it.
        child.end_in(self._idle_seconds, lambda: self._drop(child))

    def _drop(self, child: _Child) -> None:
        self._idle = [other for other in self._idle if other is not child]

    async def _start(self) -> _Child:
        if self._closed:
            raise ProcessDied(f"the process pool {self._name} is closed: the island is stopping")
        process = await asyncio.create_subprocess_exec(
            *module_command("island.kernel.process_main", str(self._memory_bytes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_environment(),
            cwd=SAFE_FOLDER,
            limit=_READ_AHEAD,
            # A Ctrl-C in the terminal must only reach the parent, which ends its children.
            start_new_session=True,
        )
        child = _Child(process, lambda: self._all.discard(child))
        self._all = {other for other in self._all if other.lives} | {child}
        log.debug("process.started", pool=self._name, pid=process.pid)
        return child

    async def _ask(
        self, child: _Child, function: Callable[..., Any], args: Sequence[Any], emits: bool, limits: Limits
    ) -> AsyncGenerator[bytes, None]:
        name = f"{function.__module__}:{function.__qualname__}"
        await child.ask(Request(name, encode(list(args)), emits, limits.cpu_seconds))
        begun = False
        while True:
            try:
                async with asyncio.timeout(limits.silent_seconds):
                    kind, data = await child.message(limits.answer_bytes)
            except TimeoutError as error:
                text = f"{child.begun.subject} exceeds a limit: no progress for {limits.silent_seconds:.0f} s"
                raise Stalled(text, hint=self._hint) from error
            except _TooLong as error:
                text = f"one item of the result has {error.size} bytes, more than {limits.answer_bytes}"
                raise self._over(child, text) from error
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                death = await self._death(child)
                raise (_NotBegun() if child.reused and not begun else death) from error
            begun = True  # the first message of a call is `ALIVE`, before its work
            if kind == ITEM:
                yield data
            elif kind == BEGUN:
                child.begun = self._decoded(data, Begun, child)
            elif kind == FAILED:
                child.asked = False
                _raise(self._decoded(data, Failure, child), name)
            elif kind == DONE:
                child.asked = False
                return

    def _decoded(self, data: bytes, kind: Any, child: _Child) -> Any:
        try:
            return decode(data, kind)
        except msgspec.DecodeError as error:
            child.asked = True  # must not be reused
            text = f"the process that read {child.begun.subject} sent a malformed answer: {error}"
            died = ProcessDied(text)
            died.crashed = True
            raise died from error

    def _over(self, child: _Child, what: str) -> OverLimit:
        return OverLimit(f"{child.begun.subject} exceeds a limit: {what}", hint=self._hint)

    async def _death(self, child: _Child) -> IslandError:
        status = await child.process.wait()
        if status == OUT_OF_MEMORY:
            return self._over(child, f"reading it takes more than {self._memory_bytes // _MIB} MiB of memory")
        if status == -signal.SIGXCPU:
            return self._over(child, f"reading it takes more than {child.begun.cpu_seconds:.0f} s of processor time")
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        died = ProcessDied(
            f"the process that read {child.begun.subject} was ended {how}",
            hint="SIGKILL often means that the machine ran out of memory. Any other signal means that this file "
            "crashes the library that reads it.",
        )
        died.crashed = -status in _CRASHES
        return died


class _TooLong(Exception):
    """A message is longer than `Limits.answer_bytes`."""

    def __init__(self, size: int) -> None:
        self.size = size


class _NotBegun(Exception):
    """A child ended while it was idle, before it could begin a call."""


class _Child:
    """One child process and its current call.

    `asked` is true until the call has ended normally. `reused` is true if there were calls before it.
    """

    def __init__(self, process: asyncio.subprocess.Process, gone: Callable[[], None]) -> None:
        self.process, self._gone = process, gone
        self.asked = self.reused = False
        self.begun = Begun("", 0.0)
        self.near: deque[Hashable] = deque(maxlen=4)
        self._ending: asyncio.TimerHandle | None = None

    @property
    def lives(self) -> bool:
        """Whether the process is running."""
        return self.process.returncode is None

    async def ask(self, request: Request) -> None:
        """Send a request. The child must have answered the previous one."""
        assert self.process.stdin is not None
        self.asked, self.begun = True, Begun(request.function, request.cpu_seconds)
        data = encode(request)
        # The child has ended, and uvloop may have closed the pipe: `_death` will report how.
        with contextlib.suppress(ConnectionError, RuntimeError):
            self.process.stdin.write(HEAD.pack(len(data), 0) + data)
            await self.process.stdin.drain()

    async def message(self, most: int) -> tuple[int, bytes]:
        """Return (kind, content) of the next message. Raises `_TooLong` without reading the content."""
        assert self.process.stdout is not None
        size, kind = HEAD.unpack(await self.process.stdout.readexactly(HEAD.size))
        if size > most:
            raise _TooLong(size)
        return kind, await self.process.stdout.readexactly(size)

    def end_in(self, seconds: float, ending: Callable[[], None]) -> None:
        """Call `ending` and kill the child after `seconds`, unless `stop_ending` is called before."""

        def end() -> None:
            ending()
            self._end()

        self._ending = asyncio.get_running_loop().call_later(seconds, end)

    def stop_ending(self) -> None:
        """Cancel `end_in`."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def kill(self) -> None:
        """Kill the child and wait until it has ended."""
        self.stop_ending()
        if self.lives:
            self._end()
        await self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._gone()


def _raise(failure: Failure, name: str) -> None:
    if (kind := known_error(failure.kind)) is not None:
        raise kind(failure.message, hint=failure.hint, code=failure.code)
    if failure.kind == "OSError":
        raise OSError(failure.number or None, failure.message)
    raise FunctionFailed(f"{name} failed in a child process:\n{failure.message}")


_INHERITED = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""The environment variables that a child inherits, besides PYTHONPATH: none that may hold a secret."""


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # RLIMIT_DATA counts all writable memory: use one heap, and the allocator that returns memory to the
    # system at once. Each thread would take more address space and compete with the daemon for the cores.
    single = dict.fromkeys(("MALLOC_ARENA_MAX", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_IO_THREADS"), "1")
    return {**kept, **single, "PYTHONPATH": import_path(os.environ), "ARROW_DEFAULT_MEMORY_POOL": "system"}
