"""Functions in child processes: for work that holds the GIL, and for work on bytes that strangers made.

A child has a limit on its memory and on its processor time, inherits neither secrets nor open
files, ends with its parent, and is killed when its caller is cancelled or when it says nothing
for too long. Children are started when they are needed, used again while they are sound, and
ended when they are idle.

The functions are plain functions of a module, on plain arguments. Arguments, results and items
travel as MessagePack and are decoded into the annotated types: a child that handled hostile
bytes is not trusted with pickle. `island.kernel.process_main` is the child's side.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, TypeVarTuple, get_args, get_type_hints

import msgspec
import structlog
from msgspec import Meta

from island.errors import IslandError, OverLimit, known_error

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Emit = Callable[[T], None]
"""How a function in a child hands over one item."""

log = structlog.get_logger("island")

HEAD = struct.Struct(">IB")
"""What stands before each message of a child: its length and its kind."""

ITEM, DONE, FAILED, BEGUN, ALIVE = range(5)
OUT_OF_MEMORY = 77
"""The exit status of a child that reached its limit of memory."""

CHILDREN = 2
IDLE_SECONDS = 60.0
MAX_TEXT = 4000
_Text = Annotated[str, Meta(max_length=MAX_TEXT)]
_READ_AHEAD = 4 * 1024 * 1024
_MIB = 1024 * 1024


class Limits(msgspec.Struct, frozen=True):
    """What one call may take.

    `cpu_seconds` are counted from the call, or from the last `begin` in it; `silent_seconds` are
    what may pass between two signs of life; `answer_bytes` is the most that one item may take.
    """

    cpu_seconds: float = 60.0
    silent_seconds: float = 600.0
    answer_bytes: int = 64 * _MIB


DEFAULT_LIMITS = Limits()


class Request(msgspec.Struct, frozen=True):
    """What a child is asked to do: a function as `module:name`, and its encoded arguments."""

    function: str
    arguments: bytes
    emits: bool
    cpu_seconds: float


class Failure(msgspec.Struct, frozen=True):
    """What a function raised: the name of the class, and what it says."""

    kind: _Text
    message: _Text
    hint: _Text = ""
    code: _Text = ""
    number: int = 0


class Begun(msgspec.Struct, frozen=True):
    """What the work concerns from now on, and the processor time that it may take."""

    subject: _Text
    cpu_seconds: float


class ProcessDied(IslandError):
    """A child ended by itself; the text says how."""

    code = "process_died"


class FunctionFailed(RuntimeError):
    """A function in a child raised what is no expected error; carries the traceback as text."""


class Processes(Protocol):
    """Runs functions in child processes, or in place where time is virtual."""

    async def run(
        self, function: Callable[[*Ts], T], /, *args: *Ts, limits: Limits = DEFAULT_LIMITS, near: Hashable = None
    ) -> T:
        """What `function(*args)` returns or raises.

        A call with the key of an earlier one (`near`) prefers the child that answered that one.
        Raises `OverLimit` that says which limit was reached, `ProcessDied`, and `FunctionFailed` for
        an unexpected exception. A caller that is cancelled kills the child.
        """

    def stream(
        self, function: Callable[[Emit[T], *Ts], None], /, *args: *Ts, limits: Limits = DEFAULT_LIMITS
    ) -> AsyncGenerator[T, None]:
        """The items that `function(emit, *args)` emits, as they come; raises as `run` does.

        The child waits while items are not taken. Close the generator (`contextlib.aclosing`): one
        that is closed before its end kills the child.
        """

    async def close(self) -> None:
        """End every child, whatever it does; returns when all are gone."""


# --- inside a function ------------------------------------------------------------------------

_tell: Callable[[int, msgspec.Struct | None], None] | None = None
"""How the child that this process is, if it is one, tells its parent; set by `process_main`."""


def begin(subject: str, cpu_seconds: float) -> None:
    """Say what the work of this process concerns from now on, and how much processor time it may take.

    Errors about limits name the subject. Does nothing outside a child of `ProcessPool`.
    """
    if _tell is not None:
        _tell(BEGUN, Begun(subject, cpu_seconds))


def alive() -> None:
    """Say that the work goes on; cheap enough for every batch. Does nothing outside a child."""
    if _tell is not None:
        _tell(ALIVE, None)


# --- messages ---------------------------------------------------------------------------------


def encode(value: Any) -> bytes:
    """Arguments, an item or a result as bytes; paths become text."""
    return msgspec.msgpack.encode(value, enc_hook=_to_plain)  # noqa: TID251 - not a message: paths, any type


def _to_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} does not travel between processes")


def decode(data: bytes, kind: Any) -> Any:
    """The value of an annotated type; raises `msgspec.DecodeError` for anything else."""
    return msgspec.msgpack.decode(data, type=kind, dec_hook=_from_plain)  # noqa: TID251 - as above


def _from_plain(kind: type, value: Any) -> Any:
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} does not travel between processes")


def types_of(function: Callable[..., Any], *, emits: bool) -> tuple[list[Any], Any]:
    """(types of the arguments, type of an item or of the result), by the annotations of a function."""
    hints = get_type_hints(function)
    result = hints.pop("return", None)
    kinds = list(hints.values())
    if emits:
        return kinds[1:], get_args(kinds[0])[0][0]
    return kinds, result


# --- in place ---------------------------------------------------------------------------------


class InPlaceProcesses:
    """Here and now, without limits: for simulations in virtual time, and for tests on files of their own."""

    async def run(
        self, function: Callable[[*Ts], T], /, *args: *Ts, limits: Limits = DEFAULT_LIMITS, near: Hashable = None
    ) -> T:
        """See `Processes.run`."""
        return function(*args)

    async def stream(
        self, function: Callable[[Emit[T], *Ts], None], /, *args: *Ts, limits: Limits = DEFAULT_LIMITS
    ) -> AsyncGenerator[T, None]:
        """See `Processes.stream`; the items come when the function has returned."""
        items: list[T] = []
        function(items.append, *args)
        for item in items:
            yield item

    async def close(self) -> None:
        """There is nothing to end."""


# --- children ---------------------------------------------------------------------------------


class ProcessPool:
    """`Processes` with at most `size` children, each with at most `memory_bytes` of writable memory.

    `hint` is the advice that errors about limits give.
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
        _, kind = types_of(function, emits=False)
        result: T
        async with self._child(near) as child, aclosing(self._ask(child, function, args, False, limits)) as items:
            async for item in items:
                result = self._decoded(item, kind, child)
        return result

    async def stream(
        self, function: Callable[[Emit[T], *Ts], None], /, *args: *Ts, limits: Limits = DEFAULT_LIMITS
    ) -> AsyncGenerator[T, None]:
        """See `Processes.stream`."""
        _, kind = types_of(function, emits=True)
        async with self._child(None) as child, aclosing(self._ask(child, function, args, True, limits)) as items:
            async for item in items:
                yield self._decoded(item, kind, child)

    async def close(self) -> None:
        """See `Processes.close`. Calls that are under way raise `ProcessDied`."""
        self._closed = True
        self._idle.clear()
        for child in list(self._all):
            await child.kill()

    @property
    def pids(self) -> list[int]:
        """The children that live."""
        return sorted(child.process.pid for child in self._all if child.lives)

    @contextlib.asynccontextmanager
    async def _child(self, near: Hashable) -> AsyncIterator[_Child]:
        """A child for one call; one whose call did not end in order is killed."""
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
        # The one that was used last: the others may end when they have been idle for long enough.
        child = known[0] if known else self._idle[-1]
        self._idle.remove(child)
        child.stop_ending()
        return child

    def _put(self, child: _Child) -> None:
        self._idle.append(child)
        child.end_in(self._idle_seconds)

    async def _start(self) -> _Child:
        if self._closed:
            raise ProcessDied(f"no more work is taken for {self._name}: the island stops")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "island.kernel.process_main", str(self._memory_bytes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_environment(),
            limit=_READ_AHEAD,
            # A Ctrl-C in the terminal is for the parent, which ends its children.
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
        while True:
            try:
                async with asyncio.timeout(limits.silent_seconds):
                    kind, data = await child.message(limits.answer_bytes)
            except TimeoutError as error:
                raise self._over(child, f"nothing was heard of it for {limits.silent_seconds:.0f} s") from error
            except _TooLong as error:
                text = f"an item of {error.size} bytes, {limits.answer_bytes} at most"
                raise self._over(child, text) from error
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise await self._death(child) from error
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
            child.asked = True  # not to be used again
            raise ProcessDied(f"the process that read {child.begun.subject} answered nonsense: {error}") from error

    def _over(self, child: _Child, what: str) -> OverLimit:
        return OverLimit(f"{child.begun.subject} is beyond a limit: {what}", hint=self._hint)

    async def _death(self, child: _Child) -> IslandError:
        status = await child.process.wait()
        if status == OUT_OF_MEMORY:
            return self._over(child, f"reading it takes more than {self._memory_bytes // _MIB} MiB of memory")
        if status == -signal.SIGXCPU:
            return self._over(child, f"reading it takes more than {child.begun.cpu_seconds:.0f} s of processor time")
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return ProcessDied(
            f"the process that read {child.begun.subject} was ended {how}",
            hint="SIGKILL is often a machine out of memory; any other means that this file crashes its reader.",
        )


class _TooLong(Exception):
    """A message is longer than the caller allows."""

    def __init__(self, size: int) -> None:
        self.size = size


class _Child:
    """One process, and what it was asked. `asked` is true while a call has not ended in order."""

    def __init__(self, process: asyncio.subprocess.Process, gone: Callable[[], None]) -> None:
        self.process, self._gone = process, gone
        self.asked = False
        self.begun = Begun("", 0.0)
        self.near: deque[Hashable] = deque(maxlen=4)
        self._ending: asyncio.TimerHandle | None = None

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self.process.returncode is None

    async def ask(self, request: Request) -> None:
        """Send a request; the child must have answered the one before."""
        assert self.process.stdin is not None
        self.asked, self.begun = True, Begun(request.function, request.cpu_seconds)
        data = encode(request)
        with contextlib.suppress(ConnectionError):  # it is dead: reading says how it ended
            self.process.stdin.write(HEAD.pack(len(data), 0) + data)
            await self.process.stdin.drain()

    async def message(self, most: int) -> tuple[int, bytes]:
        """The next message: its kind and content. Raises `_TooLong` before anything of it is read."""
        assert self.process.stdout is not None
        size, kind = HEAD.unpack(await self.process.stdout.readexactly(HEAD.size))
        if size > most:
            raise _TooLong(size)
        return kind, await self.process.stdout.readexactly(size)

    def end_in(self, seconds: float) -> None:
        """Kill it after `seconds`, unless `stop_ending` is called before."""
        self._ending = asyncio.get_running_loop().call_later(seconds, self._end)

    def stop_ending(self) -> None:
        """It is used again."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def kill(self) -> None:
        """End it now; returns when it is gone."""
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


_INHERITED = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""The variables of the environment that a child gets: none that may hold a secret."""


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # The limit counts memory that may be written: one heap, by the allocator that gives memory back at
    # once. More threads would each take address space and compete with the daemon for its cores.
    alone = dict.fromkeys(("MALLOC_ARENA_MAX", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_IO_THREADS"), "1")
    return {**kept, **alone, "ARROW_DEFAULT_MEMORY_POOL": "system"}
