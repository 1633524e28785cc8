"""The time of a routing decision over many islands and datasets, and the regret of the choices.

Run `python -m tests.bench.bench_routing [DATASETS]` in the checkout (default 100,000, of 1,000 islands). One island has
its real catalog and membership, and a session with each of the others, which are played: they answer requests for
offers at once. The reference is the ranking of all islands instead of at most ten. The regret is measured in virtual
time, as in `tests/scenarios/test_routing.py`: the time at the chosen island over the time at the best one, less 1.
"""

from __future__ import annotations

import asyncio
import logging
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import structlog

from island.catalog.messages import ResolvedDataset
from island.catalog.ports import Inputs
from island.config import parse
from island.jobs import router
from island.jobs.cost_model import CostModel, JobObservation
from island.jobs.dependencies import JobsDependencies
from island.jobs.engines.engines import Engines
from island.jobs.exchange import JobExchange
from island.jobs.home.machine import JobFacts
from island.jobs.home.placement import Placement
from island.jobs.messages import InputRef, JobSpec, Offer, OfferRequest
from island.jobs.router import Candidate, InputTransfer, JobRequirements
from island.kernel.ids import IslandId
from island.kernel.ports import SeededRng, SystemClock
from tests.bench.bench_catalog import fill
from tests.islands.publishing import Island, Islands
from tests.scenarios.test_routing import Trial, compare
from tests.sim.archipelago import Archipelago, simulate

ISLANDS, DECISIONS = 1000, 2000
KEYS = [IslandId(f"{number:064x}") for number in range(ISLANDS)]


class NothingHere:
    """The replicas of an island that has none."""

    async def missing(self, resolved: ResolvedDataset) -> int:
        return resolved.record.size


@dataclass
class AnswersAtOnce:
    """Requests for offers, answered without a network."""

    async def ask(self, to: IslandId, kind: str, request: OfferRequest, answer: type[Offer]) -> Offer:
        return Offer(reservation=to[:16], languages=("pyspark",))


def placement(island: Island) -> Placement:
    """The placement of an island that knows what 2,000 jobs cost."""
    rng = random.Random(2)
    costs = CostModel(
        JobObservation(rng.choice(KEYS), "pyspark", 10 ** rng.randrange(12), rng.random() * 9, rng.random() * 99, 1000)
        for _ in range(2000)
    )
    needs = JobsDependencies(
        state=island.state,
        catalog=island.catalog,
        inputs=cast(Inputs, NothingHere()),
        membership=island.membership,
        trust=island.trust,
        peers=island.peers,
        config=parse({"island": {"name": "alpha"}}, "bench"),
        engines=Engines([]),
        clock=SystemClock(),
        rng=SeededRng("bench"),
        home=island.home,
        workers=island.workers,
    )
    return Placement(needs, cast(JobExchange, AnswersAtOnce()), costs)


def job(number: int) -> JobFacts:
    owner = KEYS[number % ISLANDS]
    ref = InputRef(owner=owner, owner_name="x", name=f"dataset-{number}", snapshot=f"{number:064x}")
    work = JobSpec(kind="session", language="pyspark", inputs=(ref,))
    return JobFacts(id=f"{number:036d}.0123456789", kind="session", user="user", request_hash="0" * 64, work=work)


class Stopwatch:
    """Times in seconds: of the clock, and of all threads of this process on a processor."""

    def __init__(self) -> None:
        self.clock: list[float] = []
        self.processor: list[float] = []

    def __enter__(self) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.clock.append(time.perf_counter() - self._begun[0])
        self.processor.append(time.process_time() - self._begun[1])


def show(name: str, watch: Stopwatch, size: int = 0) -> None:
    """Print the quantiles of times, and the size of a stored decision in bytes."""
    columns = []
    for took in (sorted(watch.clock), sorted(watch.processor)):
        columns += [statistics.median(took), took[int(len(took) * 0.99)]]
    stored = f"{size:>10,} bytes stored" if size else ""
    print(f"{name:<34} {' '.join(f'{seconds * 1e3:8.2f}' for seconds in columns)} ms {stored}")


async def decisions(island: Island, count: int) -> None:
    await island.gossip_db.write(lambda conn: fill(conn, count))
    for key in KEYS:
        island.peers.make(key, dialled=False)
    print(f"{len(island.membership.islands()):,} islands, {count:,} datasets")
    print(f"{'':<34} {'median':>8} {'p99':>8} {'median':>8} {'p99':>8} ms (the first two by the clock, then processor)")
    place, rng, size = placement(island), random.Random(3), 0
    whole, catalog = Stopwatch(), Stopwatch()
    for _ in range(DECISIONS):
        facts = job(rng.randrange(count))
        with whole:
            found = await place.find(facts, 1, {})
        size = len(msgspec.json.encode(found.decision))
        assert found.decision.chosen and len(found.decision.candidates) == router.RANKED
    for _ in range(DECISIONS):
        number = rng.randrange(count)
        with catalog:
            await island.catalog.resolve(f"{KEYS[number % ISLANDS]}/dataset-{number}")
    show("decision, with offers", whole, size)
    show("of it: the input from the catalog", catalog)
    show("reference: all islands ranked", *ranking_all())


def ranking_all() -> tuple[Stopwatch, int]:
    """The times of `router.decide` over all islands, and the size of its decision in bytes."""
    part = InputTransfer("x/y", 10**8, 10**8, 1, "x")
    candidates = [Candidate(island=key, name=key[-4:], rtt=0.02, parts=(part,)) for key in KEYS]
    watch = Stopwatch()
    for _ in range(50):
        with watch:
            decision = router.decide(JobRequirements(home=KEYS[0], language="pyspark"), candidates)
    return watch, len(msgspec.json.encode(decision))


async def regret(a: Archipelago) -> None:
    trial = Trial(a, a.seed)
    await trial.build()
    ratios = sorted(await compare(trial))
    near = sum(ratio <= 1.2 for ratio in ratios) / len(ratios)
    print(
        f"seed {a.seed}: {len(ratios)} choices, mean regret {statistics.mean(ratios) - 1:.3f},"
        f" worst {ratios[-1] - 1:.3f}, within 1.2 x of the best {near:.0%}"
    )
    for row in await trial.world.jobs["home"].accuracy():
        print("  " + ", ".join(f"{key} {shown(value)}" for key, value in row.items() if key != "island"))


def shown(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Islands(Path(folder)).island("alpha") as island:
            await decisions(island, count)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
    for seed in (1, 2, 3):
        simulate(seed, regret)
