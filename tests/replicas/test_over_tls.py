"""Three islands with all of their own services, over real sessions: publish, read, fetch, restart, relay."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.catalog.messages import ResolvedDataset
from island.catalog.service import Catalog, CatalogDependencies
from island.config import parse
from island.errors import NotFound, Unreachable
from island.gossip.service import Gossip
from island.kernel.db import Database
from island.kernel.loops import Tasks
from island.kernel.ports import SystemClock, SystemRng
from island.kernel.work import ThreadWorkers
from island.membership.service import Membership
from island.net.peers import TlsPeers
from island.replicas.fetching import FetchTimeouts
from island.replicas.service import Replicas, ReplicasDependencies
from island.trust.keys import Identity
from island.trust.service import Trust
from tests.islands.reading import PATIENT

T = TypeVar("T")
CLOCK, RNG = SystemClock(), SystemRng()


class Over(Exception):
    """Ends an island's task group."""


class Island:
    """The services of one island below jobs and streams, wired as the daemon does it."""

    def __init__(self, home: Path, name: str, listen: str = "127.0.0.1:0", patience: FetchTimeouts = PATIENT) -> None:
        self.name, self.home = name, home
        home.mkdir(exist_ok=True)
        if not (home / "key").exists():
            Identity.generate(RNG).save(home / "key")
        identity = Identity.load(home / "key")
        self.workers = ThreadWorkers()
        self.state, self.db = Database.open(home, "state"), Database.open(home, "gossip")
        self.chunks = Database.open(home, "chunks")
        self.trust = Trust(self.state, identity, name, "test", CLOCK, RNG)
        self.peers = TlsPeers(
            identity,
            self.trust,
            CLOCK,
            RNG,
            listen=listen,
            advertise=[],
            addresses=lambda: self.membership.addresses(),  # noqa: PLW0108 - made below
        )
        self.gossip = Gossip(self.state, self.db, self.trust, self.peers, CLOCK, RNG)
        self.membership = Membership(self.state, self.db, self.gossip, self.trust, self.peers, CLOCK, RNG)
        self.catalog = Catalog(
            CatalogDependencies(
                state=self.state,
                db=self.db,
                gossip=self.gossip,
                membership=self.membership,
                trust=self.trust,
                clock=CLOCK,
                rng=RNG,
                home=home,
                workers=self.workers,
            )
        )
        self.replicas = Replicas(
            ReplicasDependencies(
                chunks=self.chunks,
                catalog=self.catalog,
                gossip=self.gossip,
                membership=self.membership,
                trust=self.trust,
                peers=self.peers,
                config=parse({"island": {"name": name}, "replicas": {"reserve": "0"}}, "test"),
                clock=CLOCK,
                rng=RNG,
                home=home,
                state=self.state,
                workers=self.workers,
                patience=patience,
            )
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Island]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = Tasks(group)
                await self.trust.load()
                for service in (self.gossip, self.membership, self.catalog, self.peers):
                    await service.start(tasks)
                await self.membership.announce(self.peers.local_addresses())
                await self.replicas.start(tasks)
                try:
                    yield self
                finally:
                    await self.peers.stop()
                    await self.replicas.stop()
                raise Over
        except* Over:
            pass
        finally:
            for database in (self.state, self.db, self.chunks):
                database.close()

    async def resolved(self, name: str) -> ResolvedDataset:
        """A dataset as soon as this island has heard of it."""

        async def look() -> ResolvedDataset | None:
            try:
                return await self.catalog.resolve(name)
            except NotFound:
                return None

        return await self.until(look)

    async def until(self, look: Callable[[], Awaitable[T | None]]) -> T:
        """What `look` finds, as soon as it finds something."""
        async with asyncio.timeout(60):
            while True:
                version = self.gossip.changed.version
                if found := await look():
                    return found
                await self.gossip.changed.after(version, 0.5)


def table(rows: int, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table({"id": np.arange(rows), **{f"c{i}": random.random(rows) for i in range(6)}})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for seed in range(3):
        pq.write_table(table(30_000, seed), folder / f"part{seed}.parquet")
    return folder


async def join(inviter: Island, other: Island) -> None:
    invitation = await inviter.trust.invite(inviter.peers.local_addresses())
    await other.peers.join(invitation)


async def test_a_dataset_is_read_fetched_and_served_on_over_tls(tmp_path: Path, data: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        owner_stack = await stack.enter_async_context(contextlib.AsyncExitStack())
        owner = await owner_stack.enter_async_context(Island(tmp_path / "owner", "owner").running())
        second = await stack.enter_async_context(Island(tmp_path / "second", "second").running())
        third = await stack.enter_async_context(Island(tmp_path / "third", "third").running())
        await join(owner, second)
        await join(owner, third)
        view = await owner.catalog.publish("administrator@owner", data, "galaxies")
        whole = (data / "part1.parquet").read_bytes()

        resolved = await second.resolved("owner/galaxies")
        assert await second.replicas.read(resolved, "part1.parquet", 1000, 90_000) == whole[1000:90_000]
        status = await second.replicas.status(resolved)
        assert 0 < status.bytes_moved < view.bytes
        assert status.bytes_moved == await owner.replicas.sent(resolved)

        told: list[tuple[int, int]] = []
        await second.replicas.fetch(resolved, lambda done, total, _: told.append((done, total)))
        status = await second.replicas.status(resolved)
        assert (status.bytes, status.bytes_local, status.bytes_moved) == (view.bytes,) * 3
        assert await owner.replicas.sent(resolved) == view.bytes
        assert told == sorted(told)
        assert told[-1] == (view.bytes, view.bytes)

        # The third hears of the replica, and reads from it when the owner is gone.
        at_third = await third.resolved("owner/galaxies")

        async def heard() -> bool:
            return second.trust.me in third.catalog.holders(resolved.owner, resolved.name, resolved.snapshot)

        await third.until(heard)
        await owner_stack.aclose()
        assert await third.replicas.read(at_third, "part1.parquet", 0, len(whole)) == whole
        assert await second.replicas.sent(resolved) == len(whole)
        assert (await third.replicas.status(at_third)).bytes_moved == len(whole)


async def test_an_input_for_spark_is_a_path_that_reads_the_same(tmp_path: Path, data: Path) -> None:
    async with (
        Island(tmp_path / "owner", "owner").running() as owner,
        Island(tmp_path / "second", "second").running() as second,
    ):
        await join(owner, second)
        await owner.catalog.publish("administrator@owner", data, "galaxies")
        resolved = await second.resolved("owner/galaxies")
        assert await second.replicas.missing(resolved) == resolved.record.size
        local = await second.replicas.materialise(resolved)
        assert await second.replicas.missing(resolved) == 0
        assert (local.view, local.moved) == ("owner__galaxies", resolved.record.size)
        expected = pa.concat_tables([table(30_000, seed) for seed in range(3)])
        assert pq.read_table(local.path).equals(expected)
        own = await owner.replicas.materialise(await owner.resolved("owner/galaxies"))
        assert pq.read_table(own.path).equals(expected)
        assert own.moved == 0


async def test_when_the_only_holder_is_gone_the_error_says_so(tmp_path: Path, data: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        owner_stack = await stack.enter_async_context(contextlib.AsyncExitStack())
        owner = await owner_stack.enter_async_context(Island(tmp_path / "owner", "owner").running())
        hasty = Island(tmp_path / "second", "second", patience=replace(PATIENT, nothing=3.0))
        second = await stack.enter_async_context(hasty.running())
        await join(owner, second)
        await owner.catalog.publish("administrator@owner", data, "galaxies")
        resolved = await second.resolved("owner/galaxies")
        await second.replicas.read(resolved, "part0.parquet", 0, 10)
        await owner_stack.aclose()
        with pytest.raises(Unreachable, match=r"held only by owner \((suspect|down) since .* UTC\)"):
            await second.replicas.read(resolved, "part0.parquet", 0, resolved.record.size)
        assert len(await second.replicas.read(resolved, "part0.parquet", 0, 10)) == 10


async def test_two_islands_that_cannot_be_dialled_read_from_one_another_through_a_third(
    tmp_path: Path, data: Path
) -> None:
    async with (
        Island(tmp_path / "middle", "middle").running() as middle,
        Island(tmp_path / "owner", "owner", listen="").running() as owner,
        Island(tmp_path / "laptop", "laptop", listen="").running() as laptop,
    ):
        await join(middle, owner)
        await join(middle, laptop)
        await owner.catalog.publish("administrator@owner", data, "galaxies")
        resolved = await laptop.resolved("owner/galaxies")
        whole = (data / "part2.parquet").read_bytes()
        assert await laptop.replicas.read(resolved, "part2.parquet", 0, len(whole)) == whole
        assert await owner.replicas.sent(resolved) == len(whole)
        assert await middle.replicas.sent(resolved) == 0
