"""The service over the simulated network: own records, projections, blobs; and over real threads and files."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from blake3 import blake3

from island.errors import BadInput, Full, Unreachable
from island.gossip import core, own_log_store
from island.gossip.messages import SignedBatch
from island.gossip.service import Change, Gossip
from island.kernel import codec
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.ports import SeededRng, SystemClock
from island.trust.core import network_id
from island.trust.keys import Identity
from island.trust.service import Trust
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.network import Network, SimPeers, Weather
from tests.sim.virtual import SimTasks
from tests.standins.faults import Fault, failed_read, failed_write


def test_put_delete_and_replace_in_one_transaction(tmp_path: Path) -> None:
    db = Database.open(tmp_path, "state")
    conn = db._writer
    own_log_store.put(conn, "a/1", b"1")
    own_log_store.put(conn, "a/2", b"2")
    own_log_store.put(conn, "b/1", b"3")
    own_log_store.put(conn, "a/2", None)
    assert own_log_store.state(conn, "a/") == {"a/1": (b"1", 0)}
    own_log_store.replace(conn, "a/", {"a/3": b"4"})
    assert own_log_store.state(conn) == {"a/3": (b"4", 0), "b/1": (b"3", 0)}
    changes = [change for change, _, _ in own_log_store.pending(conn)]
    assert changes == sorted(set(changes))
    db.close()


def test_unsigned_record_is_deleted_without_a_tombstone(tmp_path: Path) -> None:
    db = Database.open(tmp_path, "state")
    conn = db._writer
    own_log_store.put(conn, "a/1", None)
    assert own_log_store.pending(conn) == []
    own_log_store.put(conn, "a/1", b"1")
    own_log_store.put(conn, "a/1", None)
    own_log_store.prune(conn, 100)
    assert own_log_store.pending(conn) == []
    db.close()


def test_records_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = Database.open(tmp_path, "state")
    monkeypatch.setattr(own_log_store, "MAX_KEYS", 3)
    for number in range(3):
        own_log_store.put(db._writer, f"a/{number}", b"")
    with pytest.raises(Full):
        own_log_store.put(db._writer, "a/9", b"")
    with pytest.raises(BadInput):
        own_log_store.put(db._writer, "nokind", b"")
    db.close()


def test_tombstones_count_and_the_hint_does_not_suggest_withdrawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = Database.open(tmp_path, "state")
    conn, me = db._writer, Identity.generate(SeededRng(1)).id
    monkeypatch.setattr(own_log_store, "MAX_KEYS", 3)
    names = [f"a/{number}" for number in range(3)]
    for value in (b"value", None):
        for name in names:
            own_log_store.put(conn, name, value)
        for body in core.cut_batches(me, own_log_store.head(conn), [(name, value) for name in names]):
            own_log_store.append(conn, [core.open_batch(codec.encode(SignedBatch(body=body, signature=bytes(64))))])
    assert own_log_store.state(conn) == {}
    with pytest.raises(Full) as full:
        own_log_store.put(conn, "a/9", b"")
    assert "Withdrawn records count too" in (full.value.hint or "")
    assert "`island init`" in (full.value.hint or "")
    own_log_store.put(conn, "a/1", b"again")
    db.close()


async def _pair(world: Archipelago) -> tuple[SimIsland, SimIsland]:
    one, two = await world.add("one"), await world.add("two")
    await world.until(lambda: world.converged() and len(one.g.origins()) == 2, within=60)
    return one, two


def test_deletions_reach_other_islands() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _pair(world)
        await one.put("test/a", b"1")
        await one.put("test/b", b"2")
        await world.until(lambda: len(two.records("test/")) == 2, within=10)
        await one.put("test/a", None)
        await one.g.flush()
        assert [key for _, key, _ in one.records("test/")] == ["test/b"]
        await world.until(lambda: [key for _, key, _ in two.records("test/")] == ["test/b"], within=30)

    simulate(1, scenario)


def test_batch_that_could_not_be_copied_is_pushed_later() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _pair(world)
        await asyncio.sleep(10)
        fault = Fault(one.g._logs, what="add_own")
        one.g._spread.compare_soon = lambda peer: None  # type: ignore[method-assign]  # only pushes bring changes
        two.g._spread.compare_soon = lambda peer: None  # type: ignore[method-assign]  # the same
        await one.put("test/a", b"1")
        await world.until(lambda: len(two.records("test/")) == 1, within=10)
        assert fault.met == 1

    simulate(13, scenario)


def test_many_own_changes_are_announced_and_pulled_not_pushed() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _pair(world)
        await asyncio.sleep(10)
        assert one.peers is not None
        original, pushed = one.peers.push, dict[str, int]()

        def tapped(to: IslandId, kind: str, body: bytes) -> bool:
            pushed[kind] = pushed.get(kind, 0) + len(body)
            return original(to, kind, body)

        one.peers.push = tapped  # type: ignore[method-assign]  # measures what is pushed

        def write(conn: sqlite3.Connection) -> None:
            for number in range(200):
                one.g.put(conn, f"test/{number}", bytes(1000))

        await one.state.write(write)
        one.g.publish_soon()
        await world.until(lambda: len(two.records("test/")) == 200, within=5)
        assert pushed == {"gossip.look": 0}

    simulate(11, scenario)


def test_projection_has_own_records_at_once_and_is_rebuilt_for_a_new_version() -> None:
    seen: list[Change] = []

    async def scenario(world: Archipelago) -> None:
        one, two = await _pair(world)
        await world.crash(one)
        gossip_db = one.gossip_db

        def fresh(version: str) -> Gossip:
            tasks = SimTasks("probe")
            assert one.trust is not None
            peers = SimPeers(world.network, one.id, tasks)
            gossip = Gossip(one.state, gossip_db, one.trust, peers, world.clock(one), SeededRng(1))
            gossip.project("test", lambda _conn, change: seen.append(change), version=version)
            return gossip

        gossip = fresh("1")
        one.tasks = SimTasks("probe")
        await gossip.start(one.tasks)
        await one.state.write(lambda conn: gossip.put(conn, "test/a", b"1"))
        await gossip.flush()
        assert [(c.origin, c.key, c.value, c.seq) for c in seen] == [(one.id, "test/a", b"1", 0)]
        await one.tasks.crash()
        seen.clear()
        gossip = fresh("1")
        await gossip.start(one.tasks)
        assert seen == []
        await one.tasks.crash()
        gossip = fresh("2")
        await gossip.start(one.tasks)
        assert [(c.key, c.value) for c in seen] == [("test/a", b"1")]
        assert two.records("test/") == []

    simulate(2, scenario)


def test_failing_projection_does_not_stop_the_log() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _pair(world)

        def broken(conn: sqlite3.Connection, change: Change) -> None:
            conn.execute("DELETE FROM gossip_records")
            raise ValueError("a bug")

        two.g.project("test", broken)
        await one.put("test/a", b"1")
        await world.until(lambda: len(two.records("test/")) == 1, within=10)
        assert len(two.records("island/")) == 2

    simulate(3, scenario)


def test_projection_is_applied_again_after_a_disk_error() -> None:
    errors: list[Exception] = [failed_read(), failed_write()]
    seen: list[str] = []

    def apply(_: sqlite3.Connection, change: Change) -> None:
        if errors:
            raise errors.pop()
        seen.append(change.key)

    async def scenario(world: Archipelago) -> None:
        one, two = await _pair(world)
        two.g.project("test", apply)
        await one.put("test/a", b"1")
        await world.until(lambda: len(two.records("test/")) == 1, within=60)
        assert (errors, seen) == ([], ["test/a"])

    simulate(3, scenario)


@pytest.mark.parametrize("what", ["read", "write"])
def test_loops_continue_after_disk_failures(what: str) -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _pair(world)
        await two.put("test/c", b"1")  # to be signed while nothing can be
        faults = [Fault(db, what=what, times=None) for db in (two.state, two.gossip_db)]
        await one.put("test/a", b"1")
        await asyncio.sleep(60)
        assert any(fault.met for fault in faults)
        assert any(problem.startswith("gossip.") for problem in two.tasks.faults.problems())
        for fault in faults:
            fault.mend()
        await two.put("test/b", b"2")
        await world.until(lambda: world.converged() and len(one.records("test/")) == 3, within=60)
        assert one.records() == two.records()
        await world.until(lambda: not two.tasks.faults.problems() and not two.g.problems(), within=60)

    simulate(9, scenario)


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("disk I/O error"), sqlite3.IntegrityError("no"), ValueError("odd")], ids=repr
)
def test_anti_entropy_continues_after_an_error(error: Exception) -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _pair(world)
        two.tasks.faults.foreseen = (Exception,)
        fault = Fault(two.g._logs, error, what="count")
        await world.until(lambda: bool(fault.met), within=120)
        assert [problem.split()[0] for problem in two.tasks.faults.problems()] == ["gossip.anti_entropy"]
        world.network.weather.loss = 1.0  # what is pushed now is lost: only comparing can bring it
        await one.put("test/a", b"1")
        await asyncio.sleep(1)
        world.network.weather.loss = 0.0
        await world.until(lambda: len(two.records("test/")) == 1 and not two.tasks.faults.problems(), within=60)

    simulate(10, scenario)


def test_origin_that_cannot_be_stored_is_a_problem_until_it_is_stored() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _pair(world)
        refuse = f"CREATE TRIGGER refuse BEFORE INSERT ON gossip_batches WHEN NEW.origin = '{one.id}'"
        await two.gossip_db.write(lambda conn: conn.execute(f"{refuse} BEGIN SELECT RAISE(ABORT, 'no'); END").rowcount)
        await one.put("test/a", b"1")
        await world.until(lambda: bool(two.g.problems(two.m.display)), within=30)
        (problem,) = two.g.problems(two.m.display)
        assert problem.startswith("changes from one cannot be stored: gossip.db cannot store its batches")
        assert one.g.problems() == []
        await two.gossip_db.write(lambda conn: conn.execute("DROP TRIGGER refuse").rowcount)
        await world.until(lambda: world.converged() and not two.g.problems(), within=30)
        assert [key for _, key, _ in two.records("test/")] == ["test/a"]

    simulate(8, scenario)


def test_derived_records_are_restored_at_start() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _pair(world)
        await one.put("kept/stale", b"0")
        await world.until(lambda: len(two.records("kept/")) == 1, within=10)
        await world.crash(one)

        original = Gossip.start

        async def start(self: Gossip, tasks: SimTasks) -> None:
            self.derive("kept/", lambda _: {"kept/a": b"1"})
            await original(self, tasks)

        Gossip.start = start  # type: ignore[method-assign, assignment]  # the owner registers before the start
        try:
            await world.restart(one)
        finally:
            Gossip.start = original  # type: ignore[method-assign]  # as it was
        await world.until(lambda: [k for _, k, _ in two.records("kept/")] == ["kept/a"], within=30)

    simulate(4, scenario)


def test_blobs_are_fetched_from_their_owner_or_another_holder() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _pair(world)
        three = await world.add("three")
        await world.until(lambda: world.converged() and len(one.g.origins()) == 3, within=60)
        data = bytes(range(256)) * 1024
        name = await one.state.write(lambda conn: one.g.blobs.put(conn, data))
        assert name == blake3(data).hexdigest()
        assert await two.g.blobs.get(name, [one.id]) == data
        await world.crash(one)
        await asyncio.sleep(1)
        # The owner is gone; three does not know that two has read it.
        results = await asyncio.gather(*(three.g.blobs.get(name, [one.id]) for _ in range(5)))
        assert results == [data] * 5
        with pytest.raises(Unreachable, match="could not be fetched from any of"):
            await three.g.blobs.get("00" * 32, [one.id])
        with pytest.raises(BadInput):
            await three.g.blobs.get("short")

    simulate(5, scenario)


def test_blob_with_a_wrong_hash_is_refused_and_another_holder_is_asked() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _pair(world)
        three = await world.add("three")
        await world.until(lambda: world.converged() and len(one.g.origins()) == 3, within=60)
        name = await one.state.write(lambda conn: one.g.blobs.put(conn, b"true"))
        await two.gossip_db.write(
            lambda conn: conn.execute("INSERT INTO gossip_blobs (hash, data) VALUES (?, ?)", (name, b"false")).rowcount
        )
        assert await three.g.blobs.get(name, [two.id, one.id]) == b"true"

    simulate(6, scenario)


def test_blob_uses_are_counted(tmp_path: Path) -> None:
    db = Database.open(tmp_path, "state")
    conn = db._writer
    name = own_log_store.put_blob(conn, b"x")
    assert own_log_store.put_blob(conn, b"x") == name
    own_log_store.drop_blob(conn, name)
    assert own_log_store.blob(conn, name) == b"x"
    own_log_store.drop_blob(conn, name)
    assert own_log_store.blob(conn, name) is None
    with pytest.raises(BadInput):
        own_log_store.put_blob(conn, bytes(256 * 1024 + 1))
    db.close()


async def test_gossip_with_real_threads_files_and_time(tmp_path: Path) -> None:
    """Three islands on writer threads and files, three concurrent writers each."""
    network = Network(1, Weather(delay=(0.0, 0.002)), record=False)
    services: list[tuple[Identity, Trust, Gossip, SimPeers, SimTasks, Database, Database]] = []
    word = ""
    for number in range(3):
        home = tmp_path / str(number)
        home.mkdir()
        identity, tasks = Identity.generate(SeededRng(number)), SimTasks(str(number))
        state, db = Database.open(home, "state"), Database.open(home, "gossip")
        trust = Trust(state, identity, f"i{number}", "real", SystemClock(), SeededRng(number))
        if number == 0:
            word = await trust.invite(["here:1"], uses=5)
        else:
            founder = services[0][1]
            invitation = founder.parse_invitation(word)
            chain = await founder.redeem(invitation.secret, identity.id, trust.name)
            await trust.adopt(network_id(invitation.genesis), chain)
        peers = SimPeers(network, identity.id, tasks)
        gossip = Gossip(state, db, trust, peers, SystemClock(), SeededRng(number))
        await gossip.start(tasks)
        services.append((identity, trust, gossip, peers, tasks, state, db))
    for _, _, _, peers, *_ in services:
        network.join(peers)

    async def write(number: int, writer: int) -> None:
        _, _, gossip, _, _, state, _ = services[number]
        for n in range(20):
            await state.write(lambda conn, n=n: gossip.put(conn, f"test/{writer}-{n}", b"v"))  # type: ignore[misc]
            gossip.publish_soon()

    await asyncio.gather(*(write(number, writer) for number in range(3) for writer in range(3)))
    async with asyncio.timeout(30):
        for _, _, gossip, *_ in services:
            while True:
                version = gossip.changed.version
                if all(gossip.head(i.id).seq == 60 for i, *_ in services):
                    break
                await gossip.changed.after(version)
    assert len({gossip.digest() for _, _, gossip, *_ in services}) == 1
    for _, _, gossip, _, tasks, state, db in services:
        assert len(await db.read(lambda conn, g=gossip: list(g.read_records(conn, "test/")))) == 180  # type: ignore[misc]
        await tasks.crash()
        assert tasks.failure is None
        state.close()
        db.close()


def test_signing_at_the_limit_of_the_log_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MAX_LOG_BYTES", 120_000)

    async def scenario(world: Archipelago) -> None:
        one, two = await _pair(world)
        for number in range(40):
            await one.put(f"test/{number}", bytes(4000))
            await asyncio.sleep(0.2)
        await asyncio.sleep(30)
        assert 0 < len(two.records("test/")) < 40
        assert len(one.records("test/")) == 40  # known here, and waits
        (problem,) = one.g.problems()
        assert "maximum size" in problem
        assert "`island init`" in problem
        assert two.g.problems() == one.tasks.faults.problems() == []
        await world.crash(one)
        await world.restart(one)
        assert one.g.problems() == [problem]

    simulate(7, scenario)
