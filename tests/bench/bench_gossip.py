"""Time for a change to reach every island, and traffic of idle islands: simulated, with the real codec.

    python -m tests.bench.bench_gossip [--islands 100] [--degree 16] [--changes 20]

Time is virtual: a message takes 5 to 50 ms, and computing takes no time, so the results are lower
bounds for real machines. Islands, trust, signatures, databases and messages are those of the
daemon. The references were measured with real processes and are not run here (docs/design.md).
Time for a change to reach all: serf with 40 agents 1.4–2.0 s, memberlist with 100 members
0.8–1.0 s, chitchat with 100 nodes 2.7–2.9 s. Idle traffic sent by each: serf with 40 agents
55–298 B/s, memberlist with 100 members 163 B/s, chitchat with 100 nodes 3,873 B/s.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sqlite3
import statistics
import time
from dataclasses import dataclass, field

import structlog

from island.gossip.service import Change
from island.kernel.ids import IslandId
from island.kernel.ports import SeededRng
from tests.sim.archipelago import Archipelago, SimIsland, names, simulate
from tests.sim.network import OVERHEAD, Weather

FULL_MESH = 32
"""Maximum number of islands for which each island has sessions with all others."""

KEEPALIVE = 10.0
"""Seconds between the pings of an idle session. Each ping is answered."""


@dataclass
class Figures:
    """The results of one run, in seconds and bytes per second."""

    delays: list[float] = field(default_factory=list)
    lasts: list[float] = field(default_factory=list)
    bytes_a_change: float = 0.0
    idle: float = 0.0
    links: float = 0.0


def graph(islands: list[SimIsland], degree: int) -> dict[IslandId, set[IslandId]]:
    """A connected graph: a ring with random chords, with about `degree` neighbours of each island."""
    rng = SeededRng("graph")
    ids = [island.id for island in islands]
    found: dict[IslandId, set[IslandId]] = {i: set() for i in ids}
    for place, one in enumerate(ids):
        chosen = [ids[(place + 1) % len(ids)], *(rng.choice(ids) for _ in range(degree // 2 - 1))]
        for other in chosen:
            if other != one:
                found[one].add(other)
                found[other].add(one)
    return found


def measure(count: int, degree: int, changes: int, loss: float) -> Figures:
    """Simulate an archipelago: `changes` changes by random islands, then an idle minute."""
    arrived: dict[str, dict[IslandId, float]] = {}
    figures = Figures()

    async def scenario(world: Archipelago) -> None:
        network = world.network
        if count > FULL_MESH:
            network.neighbours({})

        def watch(island: SimIsland) -> None:
            def seen(_conn: sqlite3.Connection, change: Change) -> None:
                arrived.setdefault(change.key, {}).setdefault(island.id, world.loop.time())

            island.g.project("bench", seen)

        for name in names(count):
            watch(await world.add(name, announce=False))
        if count > FULL_MESH:
            network.neighbours(graph(world.islands, degree))
            network.heal()
        await asyncio.sleep(5)
        figures.links = statistics.mean(len(i.peers.up) for i in world.islands if i.peers)
        rng = SeededRng("changes")
        await change(world, rng.choice(world.islands), "bench/warm", arrived)
        before = sum(network.sent.values())
        for number in range(changes):
            key = f"bench/{number}"
            await change(world, rng.choice(world.islands), key, arrived)
            begun = min(arrived[key].values())
            delays = sorted(at - begun for at in arrived[key].values())[1:]
            figures.delays += delays
            figures.lasts.append(delays[-1])
        figures.bytes_a_change = (sum(network.sent.values()) - before) / changes / count
        await asyncio.sleep(10)
        before = sum(network.sent.values())
        await asyncio.sleep(60)
        figures.idle = (sum(network.sent.values()) - before) / 60 / count

    simulate(1, scenario, Weather(loss=loss), record=False)
    return figures


async def change(world: Archipelago, island: SimIsland, key: str, arrived: dict[str, dict[IslandId, float]]) -> None:
    """Make a change of 300 bytes, and wait until every island has it."""
    await island.put(key, bytes(300))
    await world.until(lambda: len(arrived.get(key, {})) == len(world.islands), within=120, step=0.5)


def show(count: int, loss: float, figures: Figures, took: float) -> None:
    """Print one line for each measurement."""
    delays = sorted(figures.delays)
    p50, p99 = (delays[int(len(delays) * part)] for part in (0.5, 0.99))
    keepalive = figures.links * OVERHEAD / KEEPALIVE
    print(f"{count} islands, {figures.links:.0f} sessions each, {loss:.0%} of messages lost ({took:.0f} s to compute)")
    print(f"  change → an island: p50 {p50:.3f} s, p99 {p99:.3f} s (goal 1 s)")
    print(f"  change → the last:  median {statistics.median(figures.lasts):.3f} s, worst {max(figures.lasts):.3f} s")
    print(f"    against serf (40) 1.4 s: {1.4 / max(figures.lasts):.1f} × as fast; memberlist (100) 0.8 s: ", end="")
    print(f"{0.8 / max(figures.lasts):.1f} ×; chitchat (100) 2.7 s: {2.7 / max(figures.lasts):.1f} ×")
    print(f"  sent for a change:  {figures.bytes_a_change:.0f} B an island")
    print(f"  sent while idle:    {figures.idle:.0f} B/s an island, {OVERHEAD} B a message for headers included,")
    print(f"    and {keepalive:.0f} B/s of keepalives (goal 150 together; serf 55, memberlist 163, chitchat 3,873)")


def main() -> None:
    """Run the benchmark without and with loss of messages, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--islands", type=int, default=100)
    parser.add_argument("--degree", type=int, default=16)
    parser.add_argument("--changes", type=int, default=20)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print("virtual time, without time for computing; references are quoted from docs/design.md, not run here")
    for loss in (0.0, 0.3):
        begun = time.perf_counter()
        figures = measure(arguments.islands, arguments.degree, arguments.changes, loss)
        show(arguments.islands, loss, figures, time.perf_counter() - begun)


if __name__ == "__main__":
    main()
