"""Workers in virtual time: start, end and delivery of each piece of work are separate events.

The delays between these events come from the seed. Code after a commit, code in a writer's thread
and code in the loop therefore interleave differently for different seeds, and identically for
runs with the same seed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, TypeVarTuple

from island.kernel.ports import Rng
from island.kernel.processes import Processes
from island.kernel.work import FOLDER_THREADS, Turn
from tests.sim.disk import SimDisk

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SimWorkers:
    """The `Workers` of a simulated island for one start. Its files and databases are on `disk`."""

    def __init__(self, rng: Rng, disk: SimDisk) -> None:
        self.rng, self.disk_ = rng, disk
        self.publishing: Processes | None = None
        self.streaming: Processes | None = None
        self.dead = False
        self._lanes: list[SimLane] = []
        self._disk = self._lane(16, disk, files=True)
        self._cpu = self._lane(4, disk, files=True)  # hashing and decoding read files as well
        self._blocking = self._lane(16)
        self._folders: dict[str, SimLane] = {}

    def disk(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return self._disk.run(function, *args)

    def cpu(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return self._cpu.run(function, *args)

    def folder(self, name: str, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        if name not in self._folders:
            self._folders[name] = self._lane(FOLDER_THREADS, self.disk_, files=True, folder=name)
        return self._folders[name].run(function, *args)

    def blocking(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        return self._blocking.run(function, *args)

    def lane(self, name: str, width: int = 1) -> SimLane:
        return self._lane(width, self.disk_, files=not name.startswith("db-"))

    def abandon(self) -> None:
        for lane in self._folders.values():
            lane.forget()

    def close(self) -> None:
        self.abandon()
        for lane in self._lanes:
            lane.close()

    def kill(self) -> None:
        """Simulate the end of the process: drop all work, and start no more."""
        self.dead = True
        for lane in self._lanes:
            lane.forget()

    def _lane(
        self, width: int, disk: SimDisk | None = None, *, files: bool = False, folder: str | None = None
    ) -> SimLane:
        self._lanes.append(SimLane(self, width, disk, files=files, folder=folder))
        return self._lanes[-1]


class SimLane:
    """A `Lane` in virtual time. At most `width` pieces of work run at a time, and each step is an event."""

    def __init__(
        self, workers: SimWorkers, width: int, disk: SimDisk | None, *, files: bool, folder: str | None
    ) -> None:
        self._workers, self._width, self._disk, self._folder = workers, width, disk, folder
        self._files = disk if files else None
        self._waiting: deque[Turn] = deque()
        self._under_way: list[Iterator[None]] = []
        self._futures: dict[int, asyncio.Future[Any]] = {}
        self._count = 0

    def run(self, function: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.future()

        def turn() -> Iterator[None]:
            yield
            if future.cancelled():
                return
            try:
                result = function(*args) if self._files is None else self._files.work(function, *args)
            except Exception as error:  # noqa: BLE001 - passed to the caller, as by a thread
                self._later(_fail, future, error)
            else:
                self._later(_succeed, future, result)

        self.post(turn)
        return future

    def future(self) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._workers.dead:
            future.cancel()
        number = self._count = self._count + 1
        self._futures[number] = future
        future.add_done_callback(lambda _: self._futures.pop(number, None))
        return future

    def post(self, turn: Turn) -> None:
        if not self._workers.dead:
            self._waiting.append(turn)
            self._fill()

    def close(self) -> None:
        """Finish all work at once. The loop does not run meanwhile, as when a thread is joined."""
        for parts in [*self._under_way, *(turn() for turn in self._waiting)]:
            for _ in parts:
                pass
        self._under_way.clear()
        self._waiting.clear()

    def forget(self) -> None:
        """Drop all work."""
        self._waiting.clear()
        self._under_way.clear()
        for future in list(self._futures.values()):
            future.cancel()

    def _fill(self) -> None:
        while self._waiting and len(self._under_way) < self._width:
            parts = self._waiting.popleft()()
            self._under_way.append(parts)
            self._later(self._step, parts)

    def _step(self, parts: Iterator[None]) -> None:
        if parts not in self._under_way:  # killed, or finished by `close`
            return
        if self._disk is not None and self._folder in self._disk.hangs:
            asyncio.get_running_loop().call_later(1.0, self._step, parts)
            return
        try:
            next(parts)
        except StopIteration:
            self._under_way.remove(parts)
            self._fill()
        else:
            self._later(self._step, parts)

    def _later(self, function: Callable[..., object], *args: object) -> None:
        """Call a function after a random delay: usually below 1 ms, sometimes up to 30 ms, more on a slow disk."""
        place = self._workers.rng.random()
        delay = 0.001 * place if place < 0.9 else 0.03 * self._workers.rng.random()
        late = self._disk.slow * self._workers.rng.random() if self._disk is not None else 0.0
        asyncio.get_running_loop().call_later(delay + late, function, *args)


def _succeed(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
