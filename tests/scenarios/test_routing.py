"""Routing on measurements: each job also runs at every other candidate, and the choice is compared with the best."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pytest

from island.jobs.engines.port import RemoteRef
from island.jobs.home.store import JobRow
from island.kernel.ports import SeededRng
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.jobs import OPEN, PlayedEngine, PlayedSession, Published, World
from tests.sim.network import Shape

SIZES = [200_000, 5_000_000, 80_000_000, 600_000_000]


class TimedEngine(PlayedEngine):
    """An engine with a time of start, and a rate (bytes per second) at which it computes, both with some variation."""

    def __init__(self, starts: float, rate: float, seed: str) -> None:
        super().__init__()
        self.starts, self.rate, self.sizes = starts, rate, dict[str, int]()
        self._rng = SeededRng(seed)
        self._varied: dict[str, float] = {}

    def _vary(self, what: str) -> float:
        return self._varied.setdefault(what, 0.95 + 0.1 * self._rng.random())

    def _state(self, job: PlayedSession) -> str:
        is_ready = self._now() - job.created >= self.starts * self._vary(f"start {job.name}")
        return "dead" if job.ended is not None else "idle" if is_ready else "starting"

    async def follow_statement(
        self, ref: RemoteRef, number: int, known: Mapping[str, Any] | None
    ) -> dict[str, Any] | None:
        if known is not None:  # nothing changes before its end, so that nothing is asked until then
            played = self._job(ref).statements[number]
            await asyncio.sleep(max(0.0, played.posted + self.took - self._now()))
        return await super().follow_statement(ref, number, known)

    def _statement(self, job: PlayedSession, number: int) -> dict[str, Any] | None:
        paths = [str(value) for key, value in job.body["conf"].items() if key.startswith("spark.island.path.")]
        size = max(self.sizes[path.rpartition("/")[2]] for path in paths)
        self.took = (0.2 + size / self.rate) * self._vary(f"compute {job.name}")
        return super()._statement(job, number)


@dataclass
class Place:
    name: str
    starts: float
    rate: float
    """Bytes per second that its engine computes."""
    rtt: float
    bandwidth: float
    """Of its own line: the slower one of two counts between two islands."""


PLACES = [
    Place("home", 4.0, 40e6, 0.001, 10e6),
    Place("campus", 3.0, 120e6, 0.004, 100e6),
    Place("partner", 6.0, 200e6, 0.04, 30e6),
    Place("cloud", 9.0, 900e6, 0.03, 60e6),
    Place("antarctica", 3.0, 60e6, 0.6, 5e6),
]


class Trial:
    """The archipelago, with a dataset of every size at every island but home."""

    def __init__(self, a: Archipelago, seed: int) -> None:
        self.a, self.world, self.seed = a, World(a), seed
        self.islands: dict[str, SimIsland] = {}
        self.datasets: list[Published] = []

    async def build(self) -> None:
        sizes: dict[str, int] = {}
        for place in PLACES:
            engine = TimedEngine(place.starts, place.rate, f"{self.seed}/{place.name}")
            engine.sizes = sizes
            self.islands[place.name] = await self.world.island(place.name, engine=engine, jobs=OPEN)
        for one, other in combinations(PLACES, 2):
            pair = frozenset((self.islands[one.name].id, self.islands[other.name].id))
            shape = Shape(one.rtt + other.rtt, min(one.bandwidth, other.bandwidth))
            self.a.network.shapes[pair] = shape
        for place in PLACES[1:]:
            for size in SIZES:
                name = f"{place.name}-{size}"
                sizes[name] = size
                self.world.publish(self.islands[place.name], name, size)
        self.datasets = self.world.published
        await self.world.linked()

    async def run(self, dataset: Published, at: str = "") -> tuple[JobRow, float]:
        """Run one statement over a dataset. Returns the job, and the seconds from its request to its result."""
        home, holders = self.islands["home"], list(dataset.holders)
        begun = asyncio.get_running_loop().time()
        queue = f"island:{at}" if at else None
        job = await self.world.open(home, f"{dataset.owner_name}/{dataset.name}", queue=queue)
        result = await self.world.run(home, job, "count", within=100_000)
        assert result.state == "available", result
        took = asyncio.get_running_loop().time() - begun
        job = await self.world.settled(home, job)
        await self.world.jobs["home"].end(job, deleted=True)
        await self.a.until(
            lambda: not any(engine and engine.alive() for engine in self.world.engines.values()), within=60
        )
        dataset.holders[:] = holders
        return job, took


async def compare(trial: Trial) -> list[float]:
    """The seconds at the chosen island over those at the best one, for each dataset.

    The job first runs at every island, for the measurement that the choice is compared with; the cost model learns
    from these runs, too.
    """
    names = {str(island.id): name for name, island in trial.islands.items()}
    seconds = {}
    for dataset in trial.datasets:
        for place in PLACES:
            _, seconds[dataset.name, place.name] = await trial.run(dataset, place.name)
    ratios = []
    for dataset in trial.datasets:
        job, _ = await trial.run(dataset)
        best = min(seconds[dataset.name, place.name] for place in PLACES)
        ratios.append(seconds[dataset.name, names[job.executor]] / best)
    return ratios


@pytest.mark.parametrize("seed", [1, 2])
def test_the_choice_is_within_a_fifth_of_the_best_in_95_percent_of_cases(seed: int) -> None:
    async def scenario(a: Archipelago) -> None:
        trial = Trial(a, seed)
        await trial.build()
        ratios = await compare(trial)
        assert sum(ratio <= 1.2 for ratio in ratios) >= 0.95 * len(ratios), sorted(ratios)
        terms = {row["term"]: row for row in await trial.world.jobs["home"].accuracy()}
        assert terms["compute"]["jobs"] == len(ratios) * (len(PLACES) + 1)
        assert terms["start"]["within_factor_2"] > 0.9 and terms["fetch"]["within_factor_2"] > 0.8

    simulate(seed, scenario)
