"""Islands with real databases, trust, gossip, membership and catalog, over the simulated network in real time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from island.catalog.service import Catalog, CatalogDependencies
from island.gossip.service import Gossip
from island.kernel.db import Database
from island.kernel.loops import Tasks
from island.kernel.ports import SeededRng, SystemClock
from island.kernel.processes import Processes
from island.kernel.work import ThreadWorkers
from island.membership.service import Membership
from island.trust.core import network_id
from island.trust.keys import Identity
from island.trust.service import Trust
from tests.sim.network import Network, SimPeers, Weather
from tests.sim.virtual import SimTasks


@dataclass
class Island:
    """One running island."""

    name: str
    home: Path
    state: Database
    gossip_db: Database
    trust: Trust
    gossip: Gossip
    membership: Membership
    catalog: Catalog
    peers: SimPeers
    workers: ThreadWorkers


class Islands:
    """Starts islands of one archipelago. Each stops at the end of its context."""

    def __init__(self, folder: Path, processes: Processes | None = None) -> None:
        self.processes = processes
        self.folder = folder
        self.network = Network(1, Weather(delay=(0.0, 0.002)), record=False)
        self.founder: Trust | None = None

    @contextlib.asynccontextmanager
    async def island(self, name: str, *, alone: bool = False) -> AsyncIterator[Island]:
        """A running island. Its home folder is kept for the next one with this name. `alone`: not in an archipelago."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        clock, rng = SystemClock(), SeededRng(name)
        identity = Identity.generate(SeededRng(f"key/{name}"))
        workers = ThreadWorkers(publishing=self.processes)
        state, gossip_db = Database.open(home, "state", workers), Database.open(home, "gossip", workers)
        trust = Trust(state, identity, name, "test", clock, rng)
        await trust.load()
        if not alone and trust.network is None:
            await self._admit(trust)
        sim_tasks = SimTasks(name)
        peers = SimPeers(self.network, trust.me, sim_tasks)
        gossip = Gossip(state, gossip_db, trust, peers, clock, rng)
        membership = Membership(state, gossip_db, gossip, trust, peers, clock, rng)
        catalog = Catalog(
            CatalogDependencies(
                state=state,
                db=gossip_db,
                gossip=gossip,
                membership=membership,
                trust=trust,
                clock=clock,
                rng=rng,
                home=home,
                workers=workers,
            )
        )
        try:
            async with _tasks() as tasks:
                await gossip.start(tasks)
                await membership.start(tasks)
                await catalog.start(tasks)
                await membership.announce([])
                self.network.join(peers)
                yield Island(name, home, state, gossip_db, trust, gossip, membership, catalog, peers, workers)
                self.network.leave(peers)
                await sim_tasks.crash()
        finally:
            state.close()
            gossip_db.close()
            workers.close()

    async def _admit(self, trust: Trust) -> None:
        if self.founder is None:
            trust.recovery_path = self.folder / "recovery.key"
            self.invitation = await trust.invite(["here:1"], uses=100)
            self.founder = trust
            return
        invitation = self.founder.parse_invitation(self.invitation)
        chain = await self.founder.redeem(invitation.secret, trust.me, trust.name)
        await trust.adopt(network_id(invitation.genesis), chain)


@contextlib.asynccontextmanager
async def _tasks() -> AsyncIterator[Tasks]:
    class Over(Exception):
        pass

    try:
        async with asyncio.TaskGroup() as group:
            yield Tasks(group)
            raise Over
    except* Over:
        pass


async def until(island: Island, condition: Callable[[], Awaitable[bool]], *, within: float = 30.0) -> None:
    """Wait until a condition is true. It is checked after each change of the catalog, and every 0.2 s."""
    async with asyncio.timeout(within):
        while True:
            version = island.catalog.changed.version
            if await condition():
                return
            await island.catalog.changed.after(version, timeout=0.2)


def write_table(path: Path, rows: int = 1000, *, ra: float = 187.0, seed: int = 0, **extra: object) -> Path:
    """A Parquet file with ids, positions near (ra, 12) with units and UCDs, and magnitudes."""
    numbers = range(seed, seed + rows)
    degrees = {"unit": "deg"}
    schema = pa.schema(
        [
            pa.field("id", pa.int64()),
            pa.field("ra", pa.float64(), metadata={**degrees, "ucd": "pos.eq.ra;meta.main"}),
            pa.field("dec", pa.float64(), metadata={**degrees, "ucd": "pos.eq.dec;meta.main"}),
            pa.field("mag_g", pa.float32(), metadata={"unit": "mag", "ucd": "phot.mag;em.opt.g"}),
        ]
    )
    table = pa.table(
        {
            "id": list(numbers),
            "ra": [ra + (n % 100) / 100 for n in numbers],
            "dec": [12 + (n % 50) / 50 for n in numbers],
            "mag_g": [15 + (n % 70) / 10 for n in numbers],
        },
        schema=schema,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **extra)
    return path
