"""Which islands are dialled when there are more than places, and how often."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from island.errors import Unreachable
from island.kernel.ids import IslandId
from island.kernel.ports import SeededRng
from island.net.limits import PeerLimits
from island.net.mesh import Mesh
from tests.sim.virtual import SimTasks, VirtualClock, run

Lasts = Callable[[IslandId], float | None]
"""For how many seconds the sessions with an island last; None if it cannot be dialled."""


class Sessions:
    """Sessions in virtual time."""

    def __init__(self, known: list[IslandId], lasts: Lasts) -> None:
        self.known, self._lasts = known, lasts
        self.dialled = Counter[IslandId]()
        self.preferred = set[IslandId]()
        self._ends: dict[IslandId, asyncio.Event] = {}

    def targets(self) -> dict[IslandId, list[str]]:
        return {island: ["host:1"] for island in self.known}

    def name(self, island: IslandId) -> str:
        return island

    def is_linked(self, island: IslandId) -> bool:
        return island in self._ends

    def is_preferred(self, island: IslandId) -> bool:
        return island in self.preferred

    async def until_unlinked(self, island: IslandId) -> None:
        if island in self._ends:
            await self._ends[island].wait()

    def paused(self, _: IslandId) -> float:
        return 0.0

    async def dial_control(self, island: IslandId, _: list[str]) -> None:
        self.dialled[island] += 1
        if (seconds := self._lasts(island)) is None:
            raise Unreachable("it does not answer")
        self._ends[island] = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, self._end, island)

    def _end(self, island: IslandId) -> None:
        self._ends.pop(island).set()


def islands(count: int, digit: str) -> list[IslandId]:
    return [IslandId(f"{digit}{number:063x}") for number in range(count)]


def simulate(sessions: Sessions, seconds: float, later: Callable[[], None] = lambda: None) -> None:
    """Run the mesh with 8 places; call `later` after half of the time."""

    async def main() -> None:
        tasks, rng = SimTasks("mesh"), SeededRng(1)
        mesh = Mesh(sessions, PeerLimits(mesh=8), VirtualClock(asyncio.get_running_loop()), rng)
        tasks.forever("mesh", lambda: mesh.look(tasks), rng=rng)
        await asyncio.sleep(seconds / 2)
        later()
        mesh.connect_soon()
        await asyncio.sleep(seconds / 2)
        await tasks.crash()

    run(main())


DEAD, LIVE = islands(30, "d"), islands(5, "a")


def lives(island: IslandId) -> float | None:
    return 10_000.0 if island in LIVE else None


def test_islands_that_cannot_be_dialled_give_their_places_to_others() -> None:
    sessions = Sessions(list(DEAD), lives)
    simulate(sessions, 1200, lambda: sessions.known.extend(LIVE))
    assert all(sessions.is_linked(island) for island in LIVE)
    assert all(sessions.dialled[island] for island in DEAD)
    assert max(sessions.dialled.values()) < 120  # about 80 per place in 20 minutes


def test_an_island_with_a_session_before_is_dialled_before_those_that_fail() -> None:
    sessions = Sessions(list(DEAD), lives)
    sessions.preferred = {LIVE[0]}
    simulate(sessions, 10, lambda: sessions.known.append(LIVE[0]))
    assert sessions.is_linked(LIVE[0])


def test_all_islands_stay_linked_if_there_are_enough_places() -> None:
    sessions = Sessions([*DEAD[:3], *LIVE], lives)
    simulate(sessions, 600)
    assert all(sessions.dialled[island] == 1 for island in LIVE)
    assert all(sessions.dialled[island] > 30 for island in DEAD[:3])  # without end


def test_sessions_that_are_short_are_made_less_and_less_often() -> None:
    sessions = Sessions(LIVE[:1], lambda _: 0.1)
    simulate(sessions, 600)
    assert 40 < sessions.dialled[LIVE[0]] < 80  # every 7.5 to 15 s


def test_a_session_that_ends_after_a_long_time_is_made_again_at_once() -> None:
    sessions = Sessions(LIVE[:1], lambda _: 20.0)
    simulate(sessions, 630)
    assert sessions.dialled[LIVE[0]] >= 30
