"""Logs over a real writer thread: a commit whose caller is cancelled, origins that cannot be stored, and healing."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from island.errors import DiskFailed
from island.gossip import core, store
from island.gossip.core import Head
from island.gossip.logs import SIGNATURE, IntakeResult, Logs
from island.gossip.messages import Delta, SignedBatch
from island.gossip.projections import Projections
from island.kernel import codec
from island.kernel.db import Database
from island.kernel.ids import IslandId, key_bytes
from island.kernel.ports import SeededRng, SystemClock
from island.trust.core import network_id
from island.trust.keys import Identity
from island.trust.service import Trust
from tests.standins.faults import Fault, cancelled_while_committing


class Origin:
    """An admitted island that only signs."""

    def __init__(self, trust: Trust) -> None:
        self.trust = trust
        self.id: IslandId = trust.me
        self.head = Head()

    def delta(self, *keys: str) -> Delta:
        """The next batch of this origin, with these records."""
        (body,) = core.cut_batches(self.id, self.head, [(key, b"value") for key in keys])
        batch = core.open_batch(codec.encode(SignedBatch(body=body, signature=self.trust.sign(SIGNATURE, body))))
        self.head = self.head.after(batch)
        return Delta(origin=key_bytes(self.id), chain=self.trust.chain or b"", batches=(batch.signed,))


class Site:
    """An island's logs on files, and origins of its network."""

    def __init__(self, folder: Path) -> None:
        self.state, self.db = Database.open(folder, "state"), Database.open(folder, "gossip")
        self.trust = Trust(self.state, Identity.generate(SeededRng(0)), "here", "test", SystemClock(), SeededRng(0))
        self.logs = Logs(self.db, self.trust, Projections(), SystemClock())
        self.neighbour = Identity.generate(SeededRng("neighbour")).id
        self._others: list[Database] = []
        self._folder = folder

    async def origin(self, name: str) -> Origin:
        """An island that this one admitted."""
        (self._folder / name).mkdir()
        state = Database.open(self._folder / name, "state")
        self._others.append(state)
        trust = Trust(state, Identity.generate(SeededRng(name)), name, "test", SystemClock(), SeededRng(name))
        invitation = self.trust.parse_invitation(await self.trust.invite(["here:1"]))
        chain = await self.trust.redeem(invitation.secret, trust.me, name)
        await trust.adopt(network_id(invitation.genesis), chain)
        return Origin(trust)

    async def stored(self) -> dict[IslandId, Head]:
        return await self.db.read(store.heads)

    def close(self) -> None:
        for database in (self.state, self.db, *self._others):
            database.close()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    await made.logs.start()
    yield made
    made.close()


async def test_intake_cancelled_during_commit_leaves_memory_and_disk_equal(site: Site) -> None:
    origin = await site.origin("origin")
    first = origin.delta("test/a")
    await cancelled_while_committing(site.db, lambda: site.logs.take(site.neighbour, [first]))
    assert await site.stored() == {origin.id: origin.head}
    assert site.logs.positions.get(origin.id) == origin.head
    taken = await site.logs.take(site.neighbour, [origin.delta("test/b")])
    assert taken.fresh
    assert await site.stored() == {origin.id: origin.head}


async def test_next_intake_waits_for_the_commit_of_a_cancelled_one(site: Site) -> None:
    origin = await site.origin("origin")
    delta = origin.delta("test/a")
    second: list[asyncio.Task[IntakeResult]] = []

    async def take() -> None:
        # It comes to the lock when the first one, which goes on at once, waits for its commit.
        second.append(asyncio.get_running_loop().create_task(site.logs.take(site.neighbour, [delta])))
        await site.logs.take(site.neighbour, [delta])

    await cancelled_while_committing(site.db, take)
    assert (await second[0]).fresh == []
    assert site.logs.positions.get(origin.id) == origin.head


async def test_head_that_is_newer_in_the_database_is_read_again(site: Site) -> None:
    origin = await site.origin("origin")
    first, second = origin.delta("test/a"), origin.delta("test/b")
    await site.logs.take(site.neighbour, [first])
    beside = Logs(site.db, site.trust, Projections(), SystemClock())
    await beside.start()
    assert (await beside.take(site.neighbour, [second])).fresh  # a commit that the memory of `site` has missed
    third = origin.delta("test/c")
    taken = await site.logs.take(site.neighbour, [Delta(origin=second.origin, batches=second.batches + third.batches)])
    assert taken.gap, "the sender is to be asked again"
    assert not taken.fresh
    assert site.logs.positions.get(origin.id).seq == 2
    assert (await site.logs.take(site.neighbour, [third])).fresh
    assert await site.stored() == {origin.id: origin.head}
    assert site.logs.unstored() == {}


async def test_origin_refused_by_the_database_is_reported_and_others_are_stored(site: Site) -> None:
    good, bad = await site.origin("good"), await site.origin("bad")
    trigger = f"CREATE TRIGGER refuse BEFORE INSERT ON gossip_batches WHEN NEW.origin = '{bad.id}'"
    await site.db.write(lambda conn: conn.execute(f"{trigger} BEGIN SELECT RAISE(ABORT, 'no'); END").rowcount)
    delta = bad.delta("test/a")
    taken = await site.logs.take(site.neighbour, [delta, good.delta("test/a")])
    assert [fresh.origin for fresh in taken.fresh] == [key_bytes(good.id)]
    assert await site.stored() == {good.id: good.head}
    assert "gossip.db cannot store its batches (IntegrityError: no)" in site.logs.unstored()[bad.id]
    assert "remove gossip.db" in site.logs.unstored()[bad.id]
    await site.db.write(lambda conn: conn.execute("DROP TRIGGER refuse").rowcount)
    assert (await site.logs.take(site.neighbour, [delta])).fresh
    assert site.logs.unstored() == {}
    assert await site.stored() == {good.id: good.head, bad.id: bad.head}


async def test_disk_failure_is_reported_for_each_origin_until_it_is_stored(site: Site) -> None:
    origin = await site.origin("origin")
    delta = origin.delta("test/a")
    fault = Fault(site.db)
    with pytest.raises(DiskFailed):
        await site.logs.take(site.neighbour, [delta])
    assert fault.met == 1
    assert "disk I/O error" in site.logs.unstored()[origin.id]
    assert (await site.logs.take(site.neighbour, [delta])).fresh
    assert site.logs.unstored() == {}


async def test_batch_repeated_in_a_message_that_could_not_be_stored_is_stored_later(site: Site) -> None:
    origin = await site.origin("origin")
    first = origin.delta("test/a")
    Fault(site.db)
    with pytest.raises(DiskFailed):
        await site.logs.take(site.neighbour, [Delta(first.origin, chain=first.chain, batches=first.batches * 2)])
    assert (await site.logs.take(site.neighbour, [first])).fresh
    assert (await site.logs.take(site.neighbour, [origin.delta("test/b")])).fresh
    assert await site.stored() == {origin.id: origin.head}


async def test_origin_over_its_limit_is_reported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MAX_KEYS", 2)
    origin = await site.origin("origin")
    await site.logs.take(site.neighbour, [origin.delta("test/a", "test/b")])
    head = origin.head
    assert not (await site.logs.take(site.neighbour, [origin.delta("test/c")])).fresh
    assert await site.stored() == {origin.id: head}
    assert "which is the limit" in site.logs.unstored()[origin.id]
    assert not site.logs.accepts(origin.id)


async def test_batches_lost_by_the_database_are_stored_again(site: Site) -> None:
    origin = await site.origin("origin")
    deltas = [origin.delta(f"test/{number}") for number in range(4)]
    await site.logs.take(site.neighbour, deltas[:1])
    kept = (await site.stored())[origin.id]
    await site.logs.take(site.neighbour, deltas[1:3])

    def lose(conn: sqlite3.Connection) -> None:
        conn.execute("DELETE FROM gossip_batches WHERE origin = ? AND first > ?", (origin.id, kept.seq))
        conn.execute("UPDATE gossip_origins SET seq = ?, head = ? WHERE origin = ?", (kept.seq, kept.hash, origin.id))

    await site.db.write(lose)
    assert (await site.logs.take(site.neighbour, deltas[3:])).gap, "the sender is asked for what is missing"
    assert site.logs.positions.get(origin.id) == kept
    taken = await site.logs.take(site.neighbour, deltas[1:])
    assert not taken.gap
    assert await site.stored() == {origin.id: origin.head}
    assert site.logs.positions.get(origin.id) == origin.head
