"""Tens of islands in one process: the services of the daemon over the simulated network."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from blake3 import blake3

from island.gossip.service import Gossip
from island.kernel.db import Database, Kind
from island.kernel.ids import IslandId
from island.kernel.ports import SeededRng
from island.membership.service import Membership
from island.trust.core import network_id
from island.trust.keys import Identity
from island.trust.service import Trust
from tests.sim import virtual
from tests.sim.disk import SimDisk, last_checkpoint, lose_unsynced
from tests.sim.network import Network, SimPeers, Weather
from tests.sim.virtual import SimTasks, VirtualClock
from tests.sim.work import SimWorkers

T = TypeVar("T")
FAST = Path("/dev/shm")
"""Folder in memory for the files of a simulation, if the system has it. The files are deleted after the simulation."""


@dataclass
class SimIsland:
    """One island: its disk, and its services since the last start. `lives` counts the starts."""

    name: str
    identity: Identity
    disk: SimDisk
    workers: SimWorkers
    state: Database
    gossip_db: Database
    lives: int = 0
    up: bool = False
    """Whether its services are running: from the end of a start to a crash."""
    tasks: SimTasks = field(default_factory=lambda: SimTasks("none"))
    peers: SimPeers | None = None
    trust: Trust | None = None
    gossip: Gossip | None = None
    membership: Membership | None = None

    @property
    def id(self) -> IslandId:
        return self.identity.id

    @property
    def g(self) -> Gossip:
        assert self.gossip is not None
        return self.gossip

    @property
    def m(self) -> Membership:
        assert self.membership is not None
        return self.membership

    async def put(self, key: str, value: bytes | None) -> None:
        """Write a record of this island, or delete it if `value` is None."""
        gossip = self.g
        if value is None:
            await self.state.write(lambda conn: gossip.delete(conn, key))
        else:
            kept = value
            await self.state.write(lambda conn: gossip.put(conn, key, kept))
        gossip.publish_soon()

    def records(self, prefix: str = "") -> list[tuple[str, str, bytes | None]]:
        """The records of all islands that this island has, as (origin, key, value)."""
        return self.committed(
            self.gossip_db, lambda conn: [(c.origin, c.key, c.value) for c in self.g.read_records(conn, prefix)]
        )

    @staticmethod
    def committed(database: Database, look: Callable[[sqlite3.Connection], T]) -> T:
        """The result of `look` for the committed content of a database; virtual time does not advance."""
        with contextlib.closing(sqlite3.connect(database.path)) as conn:
            conn.row_factory = sqlite3.Row
            return look(conn)

    def open(self, workers: SimWorkers) -> None:
        """Open the databases for the next start."""
        self.workers = workers
        self.state, self.gossip_db = self.disk.open("state", workers), self.disk.open("gossip", workers)

    def close(self) -> None:
        """Close the databases."""
        self.state.close()
        self.gossip_db.close()


class Archipelago:
    """The islands of one archipelago on one simulated network, all from one seed."""

    def __init__(self, seed: int, weather: Weather | None = None, *, record: bool = True, folder: Path) -> None:
        self.seed = seed
        self.loop = asyncio.get_running_loop()
        self.network = Network(seed, weather, record=record)
        self.islands: list[SimIsland] = []
        self.services: Callable[[SimIsland], Coroutine[Any, Any, None]] | None = None
        """Builds and starts further services of an island after membership, if set."""
        self._folder = folder
        self._invitation = ""
        self._databases: list[Database] = []

    async def add(
        self, name: str, *, identity: Identity | None = None, announce: bool = True, admitted: bool = True
    ) -> SimIsland:
        """Create an island, have the first island admit it, and start it. It has no network if not `admitted`."""
        identity = identity or Identity.generate(SeededRng(f"{self.seed}/key/{name}/{len(self.islands)}"))
        disk = SimDisk(self._folder / f"{len(self.islands):03d}-{name}")
        workers = self._workers(name, disk, 0)
        island = SimIsland(name, identity, disk, workers, disk.open("state", workers), disk.open("gossip", workers))
        self.islands.append(island)
        if admitted:
            await self._admit(island)
        await self.start(island, announce=announce)
        return island

    async def _admit(self, island: SimIsland) -> None:
        trust = self._trust(island)
        await trust.load()
        if len(self.islands) == 1:
            self._invitation = await trust.invite([f"{island.name}:1"], uses=1000)
            return
        founder = self.islands[0].trust
        if founder is None:
            founder = self._trust(self.islands[0])
            await founder.load()
        invitation = founder.parse_invitation(self._invitation)
        chain = await founder.redeem(invitation.secret, island.id, island.name)
        await trust.adopt(network_id(invitation.genesis), chain)

    def _trust(self, island: SimIsland) -> Trust:
        clock = self.clock(island)
        rng = SeededRng(f"{self.seed}/trust/{island.name}/{island.lives}")
        trust = Trust(island.state, island.identity, island.name, "sim", clock, rng)
        trust.recovery_path = self._folder / f"recovery-{island.name}.key"
        return trust

    def database(self, name: str) -> Database:
        """A state.db for a participant that is not in `islands`. It is closed at the end."""
        disk = SimDisk(self._folder / name)
        self._databases.append(disk.open("state", self._workers(name, disk, 0)))
        return self._databases[-1]

    def _workers(self, name: str, disk: SimDisk, life: int) -> SimWorkers:
        return SimWorkers(SeededRng(f"{self.seed}/work/{name}/{life}"), disk)

    def clock(self, island: SimIsland) -> VirtualClock:
        """The clock of an island. Its wall clock is wrong by up to five minutes, which differ for each island."""
        offset = SeededRng(f"{self.seed}/clock/{island.name}").random() * 600 - 300
        return VirtualClock(self.loop, offset)

    async def start(self, island: SimIsland, *, announce: bool = True) -> None:
        """Start the services of an island on its existing databases."""
        island.lives += 1
        clock, rng = self.clock(island), SeededRng(f"{self.seed}/{island.name}/{island.lives}")
        island.tasks = SimTasks(island.name)
        island.trust = self._trust(island)
        island.peers = SimPeers(self.network, island.id, island.tasks)
        island.gossip = Gossip(island.state, island.gossip_db, island.trust, island.peers, clock, rng)
        island.membership = Membership(
            island.state, island.gossip_db, island.gossip, island.trust, island.peers, clock, rng
        )
        await island.trust.load()
        await island.gossip.start(island.tasks)
        await island.membership.start(island.tasks)
        if self.services is not None:
            await self.services(island)
        if announce:
            await island.membership.announce([f"{island.name}:8991"])
        self.network.take_over(island.peers)
        island.up = True

    async def clone(self, island: SimIsland) -> SimIsland:
        """Start a copy of a running island with the same key and data, as if its machine had been cloned.

        Both run, and the copy takes over the sessions. `Network.take_over` gives them to one of the two.
        """
        name = f"{island.name}-clone"
        disk = SimDisk(self._folder / f"{len(self.islands):03d}-{name}")
        workers = self._workers(name, disk, 0)
        copy = SimIsland(
            name, island.identity, disk, workers, disk.open("state", workers), disk.open("gossip", workers)
        )
        for source, target in ((island.state, copy.state), (island.gossip_db, copy.gossip_db)):
            with (
                contextlib.closing(sqlite3.connect(source.path)) as conn,
                contextlib.closing(sqlite3.connect(target.path)) as other,
            ):
                conn.backup(other)
        self.islands.append(copy)
        await self.start(copy)
        return copy

    async def crash(self, island: SimIsland) -> None:
        """Kill an island. Committed data are kept."""
        assert island.peers is not None
        self.network.leave(island.peers)
        island.up = False
        island.workers.kill()
        await island.tasks.crash()
        island.peers = None
        island.close()
        island.open(self._workers(island.name, island.disk, island.lives))

    async def cut_power(self, island: SimIsland) -> None:
        """Cut the power of an island's machine: gossip.db is reset to its last checkpoint, state.db loses nothing."""
        checkpoint = last_checkpoint(island.gossip_db)
        await self.crash(island)
        island.close()
        lose_unsynced(island.gossip_db.path, checkpoint)
        island.open(self._workers(island.name, island.disk, island.lives))

    async def restart(self, island: SimIsland, *, lose_gossip: bool = False) -> None:
        """Start a crashed island again; with `lose_gossip`, its gossip.db is empty."""
        if lose_gossip:
            self.lose(island, "gossip")
        await self.start(island)

    @staticmethod
    def backup(island: SimIsland) -> sqlite3.Connection:
        """A copy of the current content of the island's state.db."""
        copy = sqlite3.connect(":memory:", isolation_level=None)
        with contextlib.closing(sqlite3.connect(island.state.path)) as conn:
            conn.backup(copy)
        return copy

    @staticmethod
    def restore(island: SimIsland, copy: sqlite3.Connection) -> None:
        """Replace state.db by a copy. The island must be down."""
        island.state.close()
        with contextlib.closing(sqlite3.connect(island.state.path)) as conn:
            copy.backup(conn)
        copy.close()
        island.state = island.disk.open("state", island.workers)

    @staticmethod
    def lose(island: SimIsland, kind: Kind) -> None:
        """Delete a database. The island must be down."""
        database = island.state if kind == "state" else island.gossip_db
        database.close()
        database.path.unlink()
        fresh = island.disk.open(kind, island.workers)
        if kind == "state":
            island.state = fresh
        else:
            island.gossip_db = fresh

    def alive(self) -> list[SimIsland]:
        """The running islands."""
        return [island for island in self.islands if island.up]

    def converged(self) -> bool:
        """Whether every running island has the same logs."""
        self.check()
        return len({island.g.digest() for island in self.alive()}) == 1

    async def until(self, condition: Callable[[], bool], *, within: float, step: float = 0.25) -> float:
        """Advance virtual time until `condition` is true. Returns the virtual seconds; fails after `within` seconds."""
        begun = self.loop.time()
        while not condition():
            assert self.loop.time() - begun < within, f"seed {self.seed}: not true within {within} virtual seconds"
            await asyncio.sleep(step)
            self.check()
        return self.loop.time() - begun

    def check(self) -> None:
        """Fail if a task of any island has ended with an error."""
        for island in self.islands:
            if island.tasks.failure is not None:
                raise AssertionError(f"seed {self.seed}: {island.name} failed") from island.tasks.failure

    def fingerprint(self) -> str:
        """Hash of the event log and of the records of every island."""
        mark = blake3("\n".join(self.network.events).encode())
        for island in self.islands:
            mark.update(repr(island.records()).encode())
        return mark.hexdigest()

    async def close(self) -> None:
        """Stop every island and close its databases."""
        for island in self.islands:
            island.workers.kill()
            await island.tasks.crash()
            island.close()
        for database in self._databases:
            database.close()
        self.check()


def simulate(
    seed: int,
    scenario: Callable[[Archipelago], Coroutine[Any, Any, T]],
    weather: Weather | None = None,
    *,
    record: bool = True,
) -> T:
    """Run `scenario` in virtual time from one seed. A failure shows the seed, with which the run can be repeated."""

    async def main(folder: Path) -> T:
        archipelago = Archipelago(seed, weather, record=record, folder=folder)
        try:
            result = await scenario(archipelago)
        except BaseException as error:
            error.add_note(f"simulation seed {seed}, virtual time {archipelago.loop.time():.3f} s")
            raise
        finally:
            await archipelago.close()
        return result

    with tempfile.TemporaryDirectory(dir=FAST if FAST.is_dir() else None) as folder:
        return virtual.run(main(Path(folder)))


def names(count: int) -> Sequence[str]:
    """Names for `count` islands."""
    return [f"island-{number:03d}" for number in range(count)]
