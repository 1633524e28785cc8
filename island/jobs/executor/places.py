"""The places at the engines of an island, and the line of the runs that wait for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from island.jobs.engines.engines import Engines
from island.jobs.engines.port import EnginePort
from island.kernel.ports import Clock

RunKey = tuple[str, int]

FULL_S = 2.0
"""Seconds after which an engine that had no place is tried again, unless one of its runs is cleared before. Doubled
after each failure, up to `FULL_CAP_S`."""

FULL_CAP_S = 30.0

TICK_S = 2.0
"""Seconds between two looks at engines that do not answer, while runs wait."""


@dataclass(slots=True)
class PlaceRequest:
    """What a waiting run needs: the kind of its session, or `batch`; an engine, or ""; and the engines that refused.

    `since` is the time of its acceptance, which orders the line.
    """

    key: RunKey
    since: float
    language: str
    bound: str
    refused: Mapping[str, str]
    granted: asyncio.Future[str]


@dataclass(slots=True)
class _Closed:
    """An engine that has refused a run because it has no place, although runs of this island left one."""

    until: float
    failures: int = 1


@dataclass(slots=True)
class Places:
    """Gives each run a place at one engine, first come, first served.

    A place is taken until it is given back, which is when the engine has nothing of the run any more.
    """

    engines: Engines
    clock: Clock
    _taken: dict[RunKey, str] = field(default_factory=dict)
    _line: list[PlaceRequest] = field(default_factory=list)
    _closed: dict[str, _Closed] = field(default_factory=dict)

    def hold(self, key: RunKey, engine: str) -> None:
        """Take a place for a run that had one before the island was started."""
        self._taken[key] = engine

    def free(self, key: RunKey, *, full: bool = False) -> None:
        """Give a place back, if the run has one. `full`: the engine had no place for the run."""
        engine = self._taken.pop(key, None)
        if engine is None:
            return
        if full:
            failures = self._closed[engine].failures + 1 if engine in self._closed else 1
            pause = min(FULL_CAP_S, FULL_S * 2.0 ** (failures - 1))
            self._closed[engine] = _Closed(self.clock.monotonic() + pause, failures)
        else:
            self._closed.pop(engine, None)
        self._serve()

    def works(self, engine: str) -> None:
        """The engine has accepted a run, so it is not full."""
        self._closed.pop(engine, None)

    async def take(
        self,
        key: RunKey,
        since: float,
        language: str,
        bound: str,
        refused: Mapping[str, str],
        waits: Callable[[str], None],
    ) -> str:
        """Wait for a place, and return the name of its engine, or "" if no engine of this island may run it.

        `waits(text)` is called once if the run has to wait.
        """
        request = PlaceRequest(key, since, language, bound, refused, asyncio.get_running_loop().create_future())
        self._line.append(request)
        self._line.sort(key=lambda each: (each.since, each.key))
        self._serve()
        try:
            if not request.granted.done():
                waits(self._why(request))
            while not request.granted.done():
                await asyncio.wait([request.granted], timeout=TICK_S)
                self._serve()
            return request.granted.result()
        except asyncio.CancelledError:
            if request.granted.done():
                self.free(key)
            raise
        finally:
            if request in self._line:
                self._line.remove(request)

    def room(self, engine: EnginePort) -> int:
        """The number of free places at an engine; 0 while it does not answer."""
        return 0 if engine.problem else self.untaken(engine)

    def untaken(self, engine: EnginePort) -> int:
        """The number of places at an engine that no run has, whether it answers or not."""
        if self._is_closed(engine.name):
            return 0
        return max(0, engine.capacity - sum(taken == engine.name for taken in self._taken.values()))

    def line(self, engine: EnginePort) -> int:
        """The number of waiting runs that the engine could run."""
        return sum(_may(request, engine.name, engine.kinds()) for request in self._line)

    def _serve(self) -> None:
        """Give the free places to the runs in line that can use them."""
        rooms = {engine.name: self.room(engine) for engine in self.engines.all()}
        for request in list(self._line):
            able = self._able(request)
            chosen = next((engine.name for engine in able if rooms[engine.name]), "")
            if able and not chosen:
                continue
            self._line.remove(request)
            if not request.granted.done():
                if chosen:
                    self._taken[request.key] = chosen
                    rooms[chosen] -= 1
                request.granted.set_result(chosen)

    def _able(self, request: PlaceRequest) -> list[EnginePort]:
        return [engine for engine in self.engines.all() if _may(request, engine.name, engine.kinds())]

    def _is_closed(self, engine: str) -> bool:
        closed = self._closed.get(engine)
        return closed is not None and closed.until > self.clock.monotonic()

    def _why(self, request: PlaceRequest) -> str:
        """Why a run waits, as text."""
        able = self._able(request)
        if all(engine.problem for engine in able):
            return f"waiting for an engine: {able[0].problem}" if able else "waiting for an engine"
        limit = sum(engine.capacity for engine in able)
        taken = sum(taken in {engine.name for engine in able} for taken in self._taken.values())
        before = self._line.index(request)
        line = f"; jobs before it: {before}" if before else ""
        return f"waiting for a place: {taken} of {limit} are taken (livy.max_sessions){line}"


def _may(request: PlaceRequest, engine: str, kinds: tuple[str, ...]) -> bool:
    """Whether an engine may run what a run needs. The kinds of an engine that has not answered yet are unknown."""
    if request.bound:
        return request.bound == engine
    return engine not in request.refused and (request.language in kinds or not kinds)
