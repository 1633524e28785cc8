"""Islands that know each other: servers, names, and who is up since when."""

from __future__ import annotations

import asyncio

import pytest

from island.errors import Ambiguous, BadInput, Conflict, NotFound
from island.gossip.core import Head
from island.kernel import codec
from island.kernel.ids import IslandId
from island.kernel.ports import SeededRng
from island.kernel.stranger_log import PER_EVENT
from island.membership import core, store
from island.membership.messages import SELF_KEY, SelfRecord, ServerRecord
from island.trust import journal
from island.trust.keys import Identity
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.stranger import Stranger
from tests.standins.faults import Fault, Gone
from tests.standins.member import logged


async def _grow(world: Archipelago, *names: str) -> list[SimIsland]:
    islands = [await world.add(name) for name in names]
    await world.until(
        lambda: world.converged() and all(len(i.m.views()) == len(names) for i in islands) and _all_up(islands),
        within=60,
    )
    return islands


def _all_up(islands: list[SimIsland]) -> bool:
    return all(island.m.is_up(other.id) and other.name in _shown(island) for island in islands for other in islands)


def _shown(island: SimIsland) -> set[str]:
    return {view.name for view in island.m.views()}


def test_servers_are_listed_everywhere_and_changed_by_their_island_only() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _grow(world, "one", "two")
        await one.m.set_own_livys({"livy": ("http://127.0.0.1:8990", "Livy of this island")})
        added = await one.m.add_server("administrator", "hdfs", "hdfs://nn:8020", "the namenode")
        mine = await one.m.servers()
        assert [(s.display, s.kind, s.id, s.mine) for s in mine] == [
            ("one", "hdfs", added.id, True),
            ("one", "livy", "livy", True),
        ]
        await asyncio.sleep(5)
        theirs = await two.m.servers()
        assert [(s.kind, s.url, s.comment, s.mine) for s in theirs] == [
            ("hdfs", "hdfs://nn:8020", "the namenode", False),
            ("livy", "http://127.0.0.1:8990", "Livy of this island", False),
        ]
        with pytest.raises(NotFound):
            await two.m.remove_server("administrator", added.id)
        with pytest.raises(Conflict):
            await one.m.add_server("administrator", "hdfs", "hdfs://nn:8020")
        with pytest.raises(BadInput):
            await one.m.remove_server("administrator", "livy")
        cluster = ("http://cluster.example:8998", "engine 'cluster' of this island")
        await one.m.set_own_livys({"livy": ("http://127.0.0.1:9000", "Livy of this island"), "livy-cluster": cluster})
        assert [(s.id, s.url) for s in await one.m.servers()][1:] == [
            ("livy", "http://127.0.0.1:9000"),
            ("livy-cluster", "http://cluster.example:8998"),
        ]
        with pytest.raises(BadInput):
            await one.m.remove_server("administrator", "livy-cluster")
        await one.m.set_own_livys({"livy": ("http://127.0.0.1:9000", "Livy of this island")})
        await one.m.remove_server("administrator", added.id[:4])
        await asyncio.sleep(25)
        assert [(s.kind, s.url) for s in await two.m.servers()] == [("livy", "http://127.0.0.1:9000")]
        await one.m.set_own_livys({})
        await asyncio.sleep(25)
        assert await two.m.servers() == []
        rows = await one.state.read(journal.entries)
        assert [(r.act, r.what, r.who) for r in rows if r.act.startswith("server")] == [
            ("server.add", "hdfs hdfs://nn:8020", "administrator@one"),
            ("server.remove", "hdfs hdfs://nn:8020", "administrator@one"),
        ]

    simulate(1, scenario)


def test_server_spreads_even_if_caller_is_cancelled() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _grow(world, "one", "two")
        Gone(one.state)
        with pytest.raises(asyncio.CancelledError):
            await one.m.add_server("administrator", "hdfs", "hdfs://nn:8020")
        await asyncio.sleep(5)
        assert [server.url for server in await one.m.servers()] == ["hdfs://nn:8020"]
        assert [server.url for server in await two.m.servers()] == ["hdfs://nn:8020"]

    simulate(8, scenario)


@pytest.mark.parametrize("what", ["state", "gossip_db"])
def test_islands_discovered_during_disk_failure_are_kept(what: str) -> None:
    async def scenario(world: Archipelago) -> None:
        _one, two = await _grow(world, "one", "two")
        method = "write" if what == "state" else "read"
        fault = Fault(getattr(two, what), what=method, times=None)
        three = await world.add("three")
        await asyncio.sleep(20)
        assert fault.met
        fault.mend()
        await world.until(lambda: "three" in _shown(two) and two.m.is_up(three.id), within=60)

    simulate(9, scenario)


def test_invalid_servers_of_other_islands_are_not_shown() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _grow(world, "one", "two")
        for server, record in {
            "script": ServerRecord(kind="other", url="javascript:alert(1)"),
            "secret": ServerRecord(kind="livy", url="http://a:b@host"),
            "new": ServerRecord(kind="quantum-spark", url="https://host"),
            "good": ServerRecord(kind="livy", url="https://host"),
            "bad/id": ServerRecord(kind="livy", url="https://host"),
        }.items():
            await one.put(f"server/{server}", codec.encode(record))
        await one.put("server/noise", b"\xc1")
        await one.put("island/other", b"\xc1")
        await asyncio.sleep(5)
        assert {s.id for s in await two.m.servers()} == {"good", "new"}

    simulate(2, scenario)


def test_two_islands_with_one_name() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two, three = await _grow(world, "one", "two", "three")
        twin = await world.add("two", identity=Identity.generate(SeededRng("twin")))
        await world.until(lambda: world.converged() and len(one.m.views()) == 4 and _shown(three) != set(), within=60)
        await asyncio.sleep(5)
        with pytest.raises(Ambiguous):
            one.m.resolve("two")
        for island in (two, twin):
            assert one.m.display(island.id) == f"two.{island.id[:10]}"
            assert one.m.resolve(f"two.{island.id[:10]}") == island.id
        # The first one takes another name and restarts: the bare name must not become the twin's.
        await world.crash(two)
        two.name = "renamed"
        await world.restart(two)
        await world.until(lambda: "renamed" in _shown(three), within=60)
        with pytest.raises(Ambiguous, match="was used by another"):
            three.m.resolve("two")
        await world.crash(three)
        await world.restart(three, lose_gossip=True)
        await world.until(lambda: "renamed" in _shown(three), within=60)
        with pytest.raises(Ambiguous, match="was used by another"):
            three.m.resolve("two")

    simulate(3, scenario)


def test_names_remembered_for_one_island_are_bounded() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _grow(world, "one", "two")
        liar = await Stranger.admitted(world, "liar")
        head = Head()
        for name in [*(f"island-{number}" for number in range(core.NAMES_KEPT)), "two", "harmless"]:
            batch = liar.batch(head, [(SELF_KEY, codec.encode(SelfRecord(name=name)))])
            head = head.after(batch)
            await liar.say(one, liar.delta(batch))
            await one.m.changed.after(one.m.changed.version, timeout=5)
            await asyncio.sleep(1)
        rows = await one.state.read(store.names)
        kept = [name for island, name in rows if island == liar.id]
        assert len(kept) == core.NAMES_KEPT
        assert one.m.display(two.id) == "two"  # the liar has used it, but too late to be remembered
        assert one.m.resolve("two") == two.id
        writes = Fault(one.state, times=None)  # a name that is not stored is not tried again with every change
        batch = liar.batch(head, [("test/a", b"1")])
        await liar.say(one, liar.delta(batch))
        await asyncio.sleep(2)
        assert not writes.met
        writes.mend()

    simulate(10, scenario)


def test_states_and_the_times_of_their_changes() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two, three = await _grow(world, "one", "two", "three")
        await asyncio.sleep(30)
        clock = world.clock(one)
        died = clock.wall()
        await world.crash(two)
        await asyncio.sleep(0.5)
        assert one.m.view(two.id).state == "up"  # a redial may yet succeed
        await asyncio.sleep(2)
        assert one.m.view(two.id).state == "suspect"
        assert not one.m.is_up(two.id)
        await asyncio.sleep(14)
        view = one.m.view(two.id)
        assert view.state == "down"
        assert view.since == pytest.approx(died, abs=3)
        assert one.m.view(three.id).state == "up"
        await asyncio.sleep(100)
        # The memory of when it was last seen outlives a restart of the observer.
        await world.crash(one)
        await world.restart(one)
        await asyncio.sleep(20)
        view = one.m.view(two.id)
        assert view.state == "down"
        assert view.since == pytest.approx(died, abs=3)
        await world.restart(two)
        await world.until(lambda: one.m.is_up(two.id), within=5)
        assert one.m.view(two.id).since > died + 100
        assert [v.state for v in one.m.views()] == ["self", "up", "up"]

    simulate(4, scenario)


def test_an_island_that_is_not_linked_is_up_while_its_log_grows() -> None:
    async def scenario(world: Archipelago) -> None:
        one, middle, two = [await world.add(name) for name in ("one", "middle", "two")]
        world.network.neighbours({middle.id: {one.id, two.id}})
        world.network.break_session(one.id, two.id)
        await world.until(lambda: world.converged() and len(one.m.views()) == 3, within=60)
        await asyncio.sleep(20)
        if one.peers is not None and one.peers.link(two.id) is not None:
            one.peers.lose(two.id)
            assert two.peers is not None
            two.peers.lose(one.id)
        await asyncio.sleep(20)
        assert one.m.view(two.id).state == "down"
        await two.put("test/alive", b"1")
        await asyncio.sleep(2)
        assert one.m.view(two.id).state == "up"

    simulate(5, scenario)


def test_new_address_after_a_restart_is_published() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _grow(world, "one", "two")
        assert one.m.addresses() == {two.id: ["two:8991"]}
        version = one.m.changed.version
        await two.m.announce(["new:1", "[2001:db8::1]:2"])
        await one.m.changed.after(version, timeout=30)
        await asyncio.sleep(1)
        assert one.m.addresses() == {two.id: ["new:1", "[2001:db8::1]:2"]}
        assert two.m.view(two.id).addresses == ["new:1", "[2001:db8::1]:2"]

    simulate(6, scenario)


def test_states_of_many_islands_do_not_fill_the_log() -> None:
    async def scenario(world: Archipelago) -> None:
        (one,) = await _grow(world, "one")
        with logged() as lines:
            for number in range(2 * PER_EVENT):
                one.m._learn(IslandId(f"{number:064x}"), None, since=0.0)
                one.m._on_link(IslandId(f"{number:064x}"), True)
            assert all(view.state in ("up", "self") for view in one.m.views())
            assert len(lines.of("membership.state")) == PER_EVENT

    simulate(14, scenario)


def test_new_entries_of_one_island_renew_only_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _grow(world, "one", "two")
        for number in range(100):
            one.m._learn(IslandId(f"{number:064x}"), None, since=0.0)
        await asyncio.sleep(30)
        renewed, opinion = [], core.opinion

        def counted(contact: core.Contact, now: float) -> tuple[core.PeerState, float | None]:
            renewed.append(contact)
            return opinion(contact, now)

        monkeypatch.setattr(core, "opinion", counted)
        await two.put("test/a", b"1")
        await world.until(lambda: len(one.records("test/")) == 1, within=10)
        await asyncio.sleep(1)
        assert 1 <= len(renewed) < 10

    simulate(11, scenario)


def test_server_can_change_when_its_island_lists_the_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MAX_SERVERS", 3)

    async def scenario(world: Archipelago) -> None:
        one, two = await _grow(world, "one", "two")
        await one.m.set_own_livys({"livy": ("http://127.0.0.1:8990", "Livy of this island")})
        for number in range(2):
            await one.m.add_server("administrator", "hdfs", f"hdfs://nn{number}:8020")
        await asyncio.sleep(12)
        await one.m.set_own_livys({"livy": ("http://127.0.0.1:9000", "Livy of this island")})
        await one.put("server/more", codec.encode(ServerRecord(kind="livy", url="http://host")))
        await asyncio.sleep(12)
        for island in (one, two):
            servers = {server.id: server.url for server in await island.m.servers()}
            assert len(servers) == 3 and servers["livy"] == "http://127.0.0.1:9000"

    simulate(13, scenario)


def test_change_of_a_record_touches_changed() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _grow(world, "one", "two")
        await asyncio.sleep(30)
        version = one.m.changed.version
        await two.m.announce(["new:1"])
        await world.until(lambda: one.m.addresses() == {two.id: ["new:1"]}, within=30)
        assert one.m.changed.version > version

    simulate(12, scenario)


def test_malformed_self_record_changes_nothing() -> None:
    async def scenario(world: Archipelago) -> None:
        one, two = await _grow(world, "one", "two")
        await one.put("island/self", b"\xc1")
        await asyncio.sleep(30)
        assert two.m.view(one.id).name == "one"
        await one.put("island/self", codec.encode(SelfRecord(name="uno")))
        await asyncio.sleep(30)
        assert two.m.view(one.id).name == "uno"

    simulate(7, scenario)
