"""Islands that gossip over an unreliable network converge to the same records."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from island.gossip import own_log_store
from island.gossip.core import Head
from tests.sim.archipelago import Archipelago, names, simulate
from tests.sim.disk import lose_unsynced
from tests.sim.network import Weather
from tests.sim.stranger import Stranger

BAD = Weather(loss=0.3, duplicate=0.2, delay=(0.001, 0.4))
ROOT = Path(__file__).resolve().parents[2]


async def _grow(world: Archipelago, count: int) -> None:
    for name in names(count):
        await world.add(name)
        await asyncio.sleep(0.1)


def _knows_all(world: Archipelago, prefix: str, count: int) -> bool:
    return world.converged() and all(len(island.records(prefix)) == count for island in world.alive())


async def few(world: Archipelago, count: int = 5) -> str:
    """A short scenario, for the comparison of runs."""
    await _grow(world, count)
    for number, island in enumerate(world.islands):
        await island.put(f"test/{number}", b"x" * number)
    await world.until(lambda: _knows_all(world, "test/", count), within=120)
    await world.crash(world.islands[1])
    await world.islands[2].put("test/2", None)
    await asyncio.sleep(20)
    await world.restart(world.islands[1])
    await world.until(lambda: _knows_all(world, "test/", count - 1), within=120)
    return world.fingerprint()


async def thirty(world: Archipelago) -> str:
    await _grow(world, 30)
    for number, island in enumerate(world.islands):
        await island.put(f"test/{number}", b"x" * number)
    await world.until(lambda: _knows_all(world, "test/", 30), within=120)
    assert all(len(island.m.views()) == 30 for island in world.islands)
    return world.fingerprint()


@pytest.mark.slow
def test_thirty_islands_under_loss_duplication_and_reordering() -> None:
    simulate(7, thirty, BAD)


@pytest.mark.slow
def test_two_runs_of_one_seed_are_the_same_to_the_byte_in_any_process() -> None:
    runs = [simulate(11, few, BAD), simulate(11, few, BAD)]
    code = (
        "from tests.scenarios.test_gossip_converges import BAD, few; from tests.sim.archipelago import simulate;"
        "import structlog, logging;"
        "structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL));"
        "print(simulate(11, few, BAD))"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        runs.append(done.stdout.strip())
    assert len(set(runs)) == 1
    assert simulate(12, few, BAD) != runs[0]


@pytest.mark.parametrize("seed", range(5))
def test_other_seeds(seed: int) -> None:
    simulate(seed, few, BAD)


async def _partition(world: Archipelago) -> None:
    await _grow(world, 12)
    await world.until(lambda: _knows_all(world, "island/", 12), within=120)
    left, right = world.islands[:5], world.islands[5:]
    world.network.partition([[i.id for i in left], [i.id for i in right]])
    await asyncio.sleep(30)
    for number, island in enumerate(world.islands):
        await island.put("test/during", b"%d" % number)
    await asyncio.sleep(40)
    for island in left:
        assert {origin for origin, _, _ in island.records("test/")} == {i.id for i in left}
        assert {v.island for v in island.m.views() if v.state == "down"} == {i.id for i in right}
    world.network.heal()
    await world.until(lambda: _knows_all(world, "test/", 12), within=120)
    await asyncio.sleep(5)
    assert {v.state for v in left[0].m.views()} == {"self", "up"}


@pytest.mark.parametrize("weather", [Weather(), BAD], ids=["fair", "bad"])
def test_partition_and_heal(weather: Weather) -> None:
    simulate(21, _partition, weather)


async def _restarts(world: Archipelago) -> None:
    await _grow(world, 12)
    for round_ in range(3):
        gone = world.islands[round_::3]
        for island in gone:
            await island.put("test/last", b"written just before, %d" % round_)
            await world.crash(island)
        for island in world.alive():
            await island.put("test/meanwhile", b"%d" % round_)
        await asyncio.sleep(15)
        for island in gone:
            await world.restart(island, lose_gossip=round_ == 2)
    await world.until(lambda: _knows_all(world, "test/last", 12), within=200)
    await world.until(lambda: _knows_all(world, "test/", 24), within=200)
    for island in world.islands:
        assert island.g.problems() == []
        values = {origin: value for origin, key, value in island.records("test/meanwhile")}
        assert [values[i.id] for i in world.islands] == [b"1" if n % 3 == 2 else b"2" for n in range(12)]


@pytest.mark.parametrize("weather", [Weather(), BAD], ids=["fair", "bad"])
def test_a_third_of_the_islands_restart_three_times_without_gossip_db(weather: Weather) -> None:
    simulate(31, _restarts, weather)


async def _newcomer(world: Archipelago) -> None:
    await _grow(world, 3)
    rich = world.islands[0]
    for number in range(300):
        await rich.put(f"bulk/{number}", bytes([number % 256]) * 2000)
    await world.until(lambda: _knows_all(world, "bulk/", 300), within=900)
    newcomer = await world.add("newcomer")
    took = await world.until(lambda: _knows_all(world, "bulk/", 300), within=900)
    assert newcomer.records("bulk/") == rich.records("bulk/")
    # A push arrives during a pull. Nothing is pulled repeatedly.
    assert world.network.sent[rich.id] < 4 * 300 * 2100 * 3
    assert took < (60 if world.network.weather.loss == 0 else 900)


@pytest.mark.parametrize("weather", [Weather(), BAD], ids=["fair", "bad"])
def test_a_newcomer_pulls_in_pages(weather: Weather) -> None:
    simulate(41, _newcomer, weather)


async def _coalesced(world: Archipelago) -> None:
    await _grow(world, 2)
    one, two = world.islands
    await world.until(world.converged, within=60)
    await asyncio.sleep(5)
    before = one.g.head(one.id).seq
    for number in range(50):
        await one.put("test/often", b"%d" % number)
        await asyncio.sleep(0.5)
    await world.until(lambda: [v for _, _, v in two.records("test/")] == [b"49"], within=60)
    # 25 s of changes: the first is signed at once, then at most one in 10 s.
    assert 3 <= one.g.head(one.id).seq - before <= 4
    await one.put("test/never", b"seen")
    await one.put("test/never", None)
    await one.put("test/fresh", b"1")
    await world.until(lambda: len(two.records("test/")) == 2, within=5)


def test_a_key_is_signed_once_in_ten_seconds() -> None:
    simulate(51, _coalesced)


async def _alone(world: Archipelago) -> None:
    island = await world.add("alone", admitted=False)
    assert island.trust is not None
    await island.trust.invite(["alone:1"])  # founds an archipelago
    await island.put("test/a", b"1")
    await island.g.flush()
    assert [value for _, _, value in island.records("test/")] == [b"1"]
    await asyncio.sleep(1)
    assert island.g.head(island.id).seq == 2  # there is no other island to wait for


def test_a_single_island_signs_without_delay() -> None:
    simulate(52, _alone)


async def _restored_from_backup(world: Archipelago, *, lose_gossip: bool = True) -> None:
    await _grow(world, 4)
    victim = world.islands[1]
    await victim.put("test/old", b"1")
    await world.until(lambda: _knows_all(world, "test/", 1), within=60)
    backup = world.backup(victim)
    await victim.put("test/new", b"2")
    await victim.put("test/old", b"3")
    await world.until(lambda: _knows_all(world, "test/", 2), within=60)
    await asyncio.sleep(12)
    head = victim.g.head(victim.id).seq
    await world.crash(victim)
    world.restore(victim, backup)
    await world.restart(victim, lose_gossip=lose_gossip)
    await victim.put("test/after", b"4")
    await world.until(lambda: _knows_all(world, "test/", 3), within=90)
    assert victim.g.head(victim.id).seq > head
    assert victim.g.problems() == []
    assert {k: v for _, k, v in world.islands[3].records("test/")} == {
        "test/old": b"3",
        "test/new": b"2",
        "test/after": b"4",
    }


@pytest.mark.parametrize("weather", [Weather(), BAD], ids=["fair", "bad"])
def test_island_restored_from_a_backup_gets_its_own_log_before_it_signs(weather: Weather) -> None:
    simulate(61, _restored_from_backup, weather)


def test_a_copy_in_gossip_db_restores_an_older_state_db_without_any_peer() -> None:
    async def scenario(world: Archipelago) -> None:
        await _restored_from_backup(world, lose_gossip=False)

    simulate(62, scenario)


def _without_invitations(conn: sqlite3.Connection) -> None:
    """Delete the invitations, because of which an island that is started expects others."""
    conn.execute("DELETE FROM invitation")


async def _contradicting_copy(world: Archipelago) -> None:
    island = await world.add("alone")
    await island.state.write(_without_invitations)
    await asyncio.sleep(2)
    backup = world.backup(island)
    await island.put("test/a", b"1")
    await asyncio.sleep(1)
    await world.crash(island)
    other = island.gossip_db.path.read_bytes()  # while the island is down, no write is in the log beside it
    world.restore(island, backup)
    world.lose(island, "gossip")
    await world.restart(island)
    for number in range(3):
        await island.put(f"test/b{number}", b"2")
        await asyncio.sleep(1)
    await world.crash(island)
    island.gossip_db.close()
    lose_unsynced(island.gossip_db.path, other)  # the copy of the first story
    island.gossip_db = island.disk.open("gossip", island.workers)
    await world.restart(island)
    await island.put("test/c", b"3")
    await asyncio.sleep(5)
    assert "contradicts" in island.g.problems()[0]
    assert island.g.head(island.id).seq == 2


def test_a_copy_that_contradicts_stops_the_signing() -> None:
    simulate(63, _contradicting_copy)


async def _sparse(world: Archipelago) -> None:
    """Thirty islands in a ring with a few chords: no island is linked with most others."""
    world.network.neighbours({})
    islands = [await world.add(name) for name in names(30)]
    ids = [island.id for island in islands]
    world.network.neighbours({one: {ids[(n + 1) % 30], ids[(n * 7 + 3) % 30]} - {one} for n, one in enumerate(ids)})
    world.network.heal()
    for number, island in enumerate(islands):
        await island.put(f"test/{number}", b"x")
    await world.until(lambda: _knows_all(world, "test/", 30), within=200)


@pytest.mark.slow
@pytest.mark.parametrize("weather", [Weather(), BAD], ids=["fair", "bad"])
def test_thirty_islands_with_few_links_each(weather: Weather) -> None:
    simulate(64, _sparse, weather)


async def _two_of_one_key(world: Archipelago) -> None:
    await _grow(world, 4)
    await world.until(world.converged, within=60)
    victim, stale = world.islands[1], world.islands[3]
    backup = world.backup(victim)
    await world.crash(stale)
    await victim.put("test/first", b"story")
    await world.until(lambda: _knows_all(world, "test/", 1), within=60)
    others = [island for island in world.islands if island is not victim]
    await world.crash(victim)
    world.restore(victim, backup)
    # The only island that it can reach does not have its head either.
    world.network.partition([[victim.id, stale.id], [island.id for island in world.islands if island.up]])
    await world.restart(stale)
    await world.restart(victim, lose_gossip=True)
    await victim.put("test/second", b"story")
    await asyncio.sleep(40)
    world.network.heal()
    await world.until(
        lambda: all(island.g.head(victim.id).frozen for island in world.islands) and world.converged(), within=120
    )
    assert victim.g.problems()
    for island in others:
        story = "test/second" if island is stale else "test/first"
        assert (victim.id, story, b"story") in island.records("test/")  # frozen, and still readable
        await island.put("test/life", b"goes on")
    await world.until(lambda: all(len(i.records("test/life")) == 3 for i in world.islands), within=60)


def test_a_fork_freezes_a_log_at_all_islands() -> None:
    simulate(71, _two_of_one_key)


async def _restored_while_nobody_is_reachable(world: Archipelago) -> None:
    """As `_two_of_one_key`, but `island restore` has recorded that the log may lack its newest part."""
    await _grow(world, 4)
    await world.until(world.converged, within=60)
    victim = world.islands[0]  # the founder: its backup may be older than every other island
    backup = world.backup(victim)
    await victim.put("test/first", b"story")
    await world.until(lambda: _knows_all(world, "test/", 1), within=60)
    await world.crash(victim)
    own_log_store.mark_restored(backup, 1.0)
    world.restore(victim, backup)
    world.network.partition([[victim.id], [island.id for island in world.islands[1:]]])
    await world.restart(victim, lose_gossip=True)
    await victim.put("test/second", b"story")
    await asyncio.sleep(40)
    assert "restored from a backup" in victim.g.problems()[0]
    await world.crash(victim)  # a restart does not make it forget
    await world.restart(victim)
    await asyncio.sleep(40)
    assert "restored from a backup" in victim.g.problems()[0]
    world.network.heal()
    await world.until(lambda: _knows_all(world, "test/", 2) and world.converged(), within=120)
    assert not any(island.g.head(victim.id).frozen for island in world.islands)
    assert victim.g.problems() == []
    await world.crash(victim)
    world.network.partition([[victim.id], [island.id for island in world.islands[1:]]])
    await world.restart(victim)
    await asyncio.sleep(40)
    (problem,) = victim.g.problems()  # as after any start; the comparison has ended the effect of the restore
    assert "has not compared its log with another island" in problem


def test_a_restored_island_signs_nothing_until_another_has_shown_its_log() -> None:
    simulate(72, _restored_while_nobody_is_reachable)


async def _fork(world: Archipelago) -> None:
    await _grow(world, 6)
    await world.until(world.converged, within=60)
    liar = await Stranger.admitted(world)
    start = liar.batch(Head(), [("test/a", b"same")])
    one = liar.batch(Head().after(start), [("test/b", b"one")])
    other = liar.batch(Head().after(start), [("test/b", b"other"), ("test/c", b"other")])
    left, right = world.islands[:3], world.islands[3:]
    world.network.partition([[i.id for i in left] + [liar.id], [i.id for i in right]])
    for _ in range(10):  # some are lost
        await liar.say(left[0], liar.delta(start, one))
    await asyncio.sleep(20)
    world.network.partition([[i.id for i in left], [i.id for i in right] + [liar.id]])
    await asyncio.sleep(20)
    for _ in range(10):
        await liar.say(right[0], liar.delta(start, other))
    await asyncio.sleep(20)
    await liar.leave()
    assert left[1].records("test/b") == [(liar.id, "test/b", b"one")]
    assert right[1].records("test/b") == [(liar.id, "test/b", b"other")]
    world.network.heal()
    await world.until(lambda: all(i.g.head(liar.id).frozen for i in world.islands) and world.converged(), within=60)
    newcomer = await world.add("newcomer")
    await world.until(lambda: newcomer.g.head(liar.id).frozen and world.converged(), within=60)
    assert ("test/a", b"same") in [(k, v) for _, k, v in newcomer.records("test/")]


@pytest.mark.parametrize("weather", [Weather(), BAD], ids=["fair", "bad"])
def test_a_fork_is_proved_and_the_proof_spreads(weather: Weather) -> None:
    simulate(81, _fork, weather)
