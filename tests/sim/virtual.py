"""An event loop in virtual time. It advances time to the next timer, and is deterministic."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import selectors
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

from island.gossip import logs
from island.kernel.ids import IslandId, NetworkId
from island.kernel.loops import EXPECTED, Tasks
from tests.standins.faults import StrictFaults

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH = 1_800_000_000.0
"""Unix time at virtual time 0."""


LONGEST = 6 * 3600.0
"""Virtual seconds after which a simulation that has not ended fails."""


class Stuck(RuntimeError):
    """The simulation cannot end: every task is waiting and no timer is set, or it has run for too long."""


class _NoInput(selectors.BaseSelector):
    """A selector without input. Waiting advances the virtual time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._keys[fileobj] = selectors.SelectorKey(fileobj, 0, events, data)
        return self._keys[fileobj]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("every task waits and no timer is set")
        self._loop.advance(timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time does not advance while code is running; it jumps when all tasks are waiting."""

    def __init__(self) -> None:
        self._virtual = 0.0
        super().__init__(_NoInput(self))
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._virtual

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        # There is only one thread, so the loop need not be woken up: work of threads is simulated in this loop.
        return self.call_soon(callback, *args, context=context)

    def advance(self, seconds: float) -> None:
        if self._virtual > LONGEST:
            raise Stuck(f"still running after {LONGEST:g} virtual seconds")
        if seconds > 0:
            self._virtual += seconds


class VirtualClock:
    """The clocks of one simulated machine. Its wall clock differs from virtual time by `offset` seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, offset: float = 0.0) -> None:
        self._loop, self._offset = loop, offset

    def wall(self) -> float:
        return EPOCH + self._loop.time() + self._offset

    def monotonic(self) -> float:
        return self._loop.time()

    def boottime(self) -> float:
        return self._loop.time()


class SimTasks(Tasks):
    """The tasks of one simulated island. They are cancelled in the order of their start."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.faults: StrictFaults = StrictFaults()
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._count = 0
        self.failure: BaseException | None = None

    def loop(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._start(name, coroutine)

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, object]) -> asyncio.Task[None]:
        task = self._start(name, self._guard(coroutine))
        task.add_done_callback(lambda _: coroutine.close())  # the task may be cancelled before its first step
        return task

    async def _guard(self, coroutine: Coroutine[Any, Any, object]) -> None:
        try:
            await coroutine
        except EXPECTED:
            return
        except Exception as error:  # noqa: BLE001 - the daemon logs such a bug; the simulation fails with it
            self.failure = self.failure or error

    def _start(self, name: str, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        number = self._count = self._count + 1
        task = asyncio.get_running_loop().create_task(coroutine, name=f"{self._name}/{name}")
        self._tasks[number] = task
        task.add_done_callback(lambda done: self._ended(number, done))
        return task

    def _ended(self, number: int, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(number, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failure = self.failure or error

    async def crash(self) -> None:
        """Cancel all tasks, as at the end of a killed process."""
        while self._tasks:
            tasks, self._tasks = list(self._tasks.values()), {}
            for task in tasks:
                task.cancel()
            for task in tasks:
                try:
                    await task
                except asyncio.CancelledError:
                    pass
                except Exception as error:  # noqa: BLE001 - `check` raises it
                    self.failure = self.failure or error


@functools.lru_cache(maxsize=100_000)
def _verified_once(
    island: IslandId, kind: str, network: NetworkId, payload: bytes, signature: bytes, verify: Callable[..., bool]
) -> bool:
    return verify(island, kind, network, payload, signature)


@contextlib.contextmanager
def _signatures_remembered() -> Iterator[None]:
    """Verify each signature once, not at each of many islands: it is the largest part of a simulation's time.

    The outcome is a function of the arguments alone, so every island decides as it would by verifying.
    """
    names = vars(logs)
    real = names["verify"]
    names["verify"] = lambda *arguments: _verified_once(*arguments, real)
    try:
        yield
    finally:
        names["verify"] = real


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in virtual time."""
    with _signatures_remembered():
        return _run(main)


def _run(main: Coroutine[Any, Any, T]) -> T:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        leftover = asyncio.all_tasks(loop)
        for task in leftover:
            task.cancel()
        if leftover:
            loop.run_until_complete(asyncio.gather(*leftover, return_exceptions=True))
        loop.close()
