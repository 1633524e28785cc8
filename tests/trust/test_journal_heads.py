"""Heads of journals at other islands, in virtual time: cuts, restored backups, and hostile offers."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from typing import Any

import pytest

from island.errors import Conflict, PeerRefused, Unreachable
from island.kernel import codec
from island.kernel.stranger_log import PER_ADDRESS
from island.trust import core, journal, store
from island.trust.core import HeldHead
from island.trust.heads import KIND, SIGNATURE, JournalHeads, head_payload
from island.trust.messages import HeadHeld, HeadOffer, JournalHead
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.network import Weather
from tests.sim.stranger import Stranger
from tests.standins.faults import Fault, Gone
from tests.standins.member import logged


class World:
    """An archipelago whose islands keep heads of journals."""

    def __init__(self, archipelago: Archipelago) -> None:
        self.archipelago = archipelago
        self.heads: dict[str, JournalHeads] = {}
        archipelago.services = self._serve

    async def _serve(self, island: SimIsland) -> None:
        assert island.trust is not None and island.peers is not None
        clock, rng = self.archipelago.clock(island), self.archipelago.network.rng
        heads = JournalHeads(island.state, island.trust, island.peers, clock, rng)
        await heads.start(island.tasks)
        self.heads[island.name] = heads

    async def grow(self, count: int) -> list[SimIsland]:
        islands = [await self.archipelago.add(f"i{number}") for number in range(count)]
        # All who were admitted are rows in the journal of the first.
        await self.settled(islands[0])
        return islands

    async def settled(self, island: SimIsland) -> None:
        """Wait until every other island holds the newest head of `island`."""
        tip = island.committed(island.state, journal.tip)

        def everywhere() -> bool:
            others = [each for each in self.archipelago.alive() if each is not island]
            held = [self.held(each, island) for each in others]
            return all(each.head is not None and tip is not None and each.head.seq == tip.seq for each in held)

        await self.archipelago.until(everywhere, within=300)

    @staticmethod
    def held(keeper: SimIsland, of: SimIsland) -> HeldHead:
        heads = keeper.committed(keeper.state, lambda conn: store.held_heads(conn, of.id))
        return heads.get(of.id, HeldHead())

    def problems(self, island: SimIsland) -> list[str]:
        return self.heads[island.name].problems(lambda key: key[:8])


_NUMBERS = itertools.count()


async def act(island: SimIsland, count: int = 1) -> None:
    """Add rows that no other journal has."""

    def write(conn: sqlite3.Connection) -> None:
        for number in itertools.islice(_NUMBERS, count):
            journal.append(conn, at=1.0, who="x@y", act="test", what=str(number), outcome="done", detail={})

    await island.state.write(write)


async def restored(archipelago: Archipelago, island: SimIsland, copy: sqlite3.Connection) -> None:
    """Stop an island, put an older state.db in place, and start it."""
    await archipelago.crash(island)
    archipelago.restore(island, copy)
    await archipelago.start(island)


@pytest.mark.parametrize("acts_afterwards", [0, 1, 50])
def test_a_restored_backup_is_noticed_by_all_until_it_is_acknowledged(acts_afterwards: int) -> None:
    async def scenario(archipelago: Archipelago) -> None:
        world = World(archipelago)
        islands = await world.grow(4)
        a = islands[0]
        copy = archipelago.backup(a)
        await act(a, 20)
        await world.settled(a)
        assert [world.problems(island) for island in islands] == [[], [], [], []]

        await restored(archipelago, a, copy)
        await act(a, acts_afterwards)
        await archipelago.until(lambda: all(world.problems(island) for island in islands), within=300)
        assert "does not contain row" in world.problems(a)[0] and "--acknowledge" in world.problems(a)[0]
        assert all("does not continue row" in world.problems(island)[0] for island in islands[1:])
        answers = await world.heads["i0"].compare()
        assert [each.answer for each in answers] == ["disagrees"] * 3

        assert await world.heads["i0"].acknowledge("administrator", "the disk broke") == 2
        await archipelago.until(lambda: not any(world.problems(island) for island in islands), within=300)
        assert [each.answer for each in await world.heads["i0"].compare()] == ["agrees"] * 3
        with pytest.raises(Conflict):
            await world.heads["i0"].acknowledge("administrator", "again")
        await act(a)
        await world.settled(a)
        assert world.held(islands[1], a).head is not None

    simulate(7, scenario)


def test_the_right_file_put_back_ends_the_alarm() -> None:
    async def scenario(archipelago: Archipelago) -> None:
        world = World(archipelago)
        a, b = await world.grow(2)
        old = archipelago.backup(a)
        await act(a, 5)
        await world.settled(a)
        right = archipelago.backup(a)
        await restored(archipelago, a, old)
        await archipelago.until(lambda: bool(world.problems(b)), within=300)
        await restored(archipelago, a, right)
        await archipelago.until(lambda: not world.problems(b) and not world.problems(a), within=300)

    simulate(8, scenario)


def test_a_journal_that_was_changed_by_others_is_reported_by_its_island() -> None:
    async def scenario(archipelago: Archipelago) -> None:
        world = World(archipelago)
        a, b = await world.grow(2)
        a.state._writer.execute("DELETE FROM journal_seal")
        await act(a)
        await archipelago.until(lambda: bool(world.problems(b)), within=300)
        assert "reports that its journal was changed" in world.problems(b)[0]
        assert "while this daemon ran" in world.problems(a)[0]
        assert await world.heads["i0"].acknowledge("administrator", "it was me, with sqlite3") == 2
        await archipelago.until(lambda: not world.problems(b) and not world.problems(a), within=300)

    simulate(9, scenario)


@pytest.mark.slow
def test_heads_are_kept_through_restarts_loss_and_duplication() -> None:
    async def scenario(archipelago: Archipelago) -> None:
        world = World(archipelago)
        islands = await world.grow(5)
        for island in islands:
            await act(island, 3)
            await archipelago.crash(island)
            await archipelago.restart(island, lose_gossip=True)
        for island in islands:
            await world.settled(island)
        assert not any(world.problems(island) for island in islands)

    simulate(10, scenario, Weather(loss=0.1, duplicate=0.2, delay=(0.01, 0.15)))


def test_a_journal_that_rests_costs_no_messages() -> None:
    async def scenario(archipelago: Archipelago) -> None:
        world = World(archipelago)
        await world.grow(3)
        await asyncio.sleep(300)
        before = len([line for line in archipelago.network.events if f" {KIND} " in line])
        await asyncio.sleep(3600)
        assert len([line for line in archipelago.network.events if f" {KIND} " in line]) == before

    simulate(11, scenario)


# --- hostile -------------------------------------------------------------------------------


def signed(trust: Any, generation: int, seq: int, digest: bytes = b"h" * 32) -> JournalHead:
    signature = trust.sign(SIGNATURE, head_payload(generation, seq, digest))
    return JournalHead(generation=generation, seq=seq, hash=digest, signature=signature)


async def offer(stranger: Stranger, to: SimIsland, offered: HeadOffer | bytes) -> JournalHead | None:
    body = offered if isinstance(offered, bytes) else codec.encode(offered)
    return codec.decode(await stranger.peers.request(to.id, KIND, body), HeadHeld).head


async def pause() -> None:
    """Longer than what one island causes to be stored has to be apart."""
    await asyncio.sleep(2)


def test_a_head_of_another_island_is_not_taken() -> None:
    async def scenario(archipelago: Archipelago) -> None:
        world = World(archipelago)
        a, b = await world.grow(2)
        stranger = await Stranger.admitted(archipelago)
        await archipelago.until(lambda: b.id in stranger.peers.up, within=30)
        await world.settled(a)
        before = world.held(b, a)
        assert before.head is not None
        for forged in (
            HeadOffer(head=before.head),  # of a, truly
            HeadOffer(head=JournalHead(generation=9, seq=9, hash=b"h" * 32, signature=b"s" * 64)),
            b"\xc1",
            b"\x91" * 400,
            codec.encode({"head": {"generation": 0}}),
            bytes(600),
        ):
            with pytest.raises((PeerRefused, Unreachable)):
                await offer(stranger, b, forged)
            await archipelago.until(lambda: b.id in stranger.peers.up, within=700)
        assert world.held(b, a) == before and world.held(b, stranger) == HeldHead()  # type: ignore[arg-type]  # has an id
        assert not world.problems(b)

    simulate(12, scenario)


def test_lower_forked_and_giant_heads_of_a_stranger() -> None:
    async def scenario(archipelago: Archipelago) -> None:
        world = World(archipelago)
        a = await archipelago.add("i0")
        stranger = await Stranger.admitted(archipelago)
        await archipelago.until(lambda: a.id in stranger.peers.up, within=30)
        trust = stranger.trust
        high = signed(trust, 1, 2**53)
        assert await offer(stranger, a, HeadOffer(head=high)) == high
        assert await offer(stranger, a, HeadOffer(head=signed(trust, 2, 1))) == high  # too soon to store again
        await pause()
        assert await offer(stranger, a, HeadOffer(head=signed(trust, 1, 5))) == high
        assert "now ends with row 5" in world.problems(a)[0]
        await pause()
        assert await offer(stranger, a, HeadOffer(head=signed(trust, 1, 2**53, b"x" * 32))) == high
        assert world.held(a, stranger).mismatch == "fork"  # type: ignore[arg-type]  # has an id
        await pause()
        again = signed(trust, 2, 3)
        assert await offer(stranger, a, HeadOffer(head=again)) == again
        assert not world.problems(a)
        for too_much in ({"seq": 2**53 + 1}, {"generation": 2**64 - 1}, {"seq": 0}, {"hash": b"short"}):
            fields = {"generation": 3, "seq": 4, "hash": b"h" * 32, "signature": b"s" * 64, **too_much}
            with pytest.raises((PeerRefused, Unreachable)):
                await offer(stranger, a, codec.encode({"head": fields}))
            await archipelago.until(lambda: a.id in stranger.peers.up, within=700)

    simulate(13, scenario)


def test_heads_that_contradict_each_other_again_and_again_do_not_fill_the_log() -> None:
    async def scenario(archipelago: Archipelago) -> None:
        world = World(archipelago)
        a = await archipelago.add("i0")
        stranger = await Stranger.admitted(archipelago)
        await archipelago.until(lambda: a.id in stranger.peers.up, within=30)
        trust = stranger.trust
        await offer(stranger, a, HeadOffer(head=signed(trust, 1, 9)))
        with logged() as lines:
            for _ in range(10):
                for contradiction in signed(trust, 1, 5), signed(trust, 1, 9, b"x" * 32):
                    await pause()
                    await offer(stranger, a, HeadOffer(head=contradiction))
        assert len(lines.of("journal.mismatch")) == PER_ADDRESS
        assert len(world.problems(a)) == 1

    simulate(15, scenario)


@pytest.mark.parametrize("lie", ["forged", "nonsense", "silence", "giant"])
def test_a_peer_that_lies_about_the_head_it_holds_accuses_nobody(lie: str) -> None:
    async def scenario(archipelago: Archipelago) -> None:
        world = World(archipelago)
        a = await archipelago.add("i0")
        stranger = await Stranger.admitted(archipelago)

        async def answer(_: str, __: bytes) -> bytes:
            forged = JournalHead(generation=1, seq=9, hash=b"h" * 32, signature=b"s" * 64)
            return {
                "forged": codec.encode(HeadHeld(head=forged)),
                "nonsense": b"\xff",
                "silence": codec.encode(HeadHeld()),
                "giant": codec.encode(HeadHeld(head=signed(stranger.trust, 2**53, 2**53))),
            }[lie]

        stranger.peers.on_request(KIND, answer)
        if lie == "silence":
            await archipelago.until(lambda: a.id in stranger.peers.up, within=30)
            assert [found.answer for found in await world.heads["i0"].compare()] == ["agrees"]
        else:  # the session ends as soon as the head is offered
            await archipelago.until(lambda: bool(a.peers and a.peers.misbehaved), within=30)
            assert a.peers is not None and {island for island, _ in a.peers.misbehaved} == {stranger.id}
        assert not world.problems(a)

    simulate(14, scenario)


# --- the decision ---------------------------------------------------------------------------


def head(generation: int, seq: int, mark: bytes = b"h") -> JournalHead:
    return JournalHead(generation=generation, seq=seq, hash=mark * 32, signature=b"s" * 64)


@pytest.mark.parametrize(
    ("given", "since", "mismatch", "taken"),
    [
        (head(1, 10), (0, b""), "", False),
        (head(1, 10, b"x"), (0, b""), "fork", False),
        (head(1, 9), (10, b"h" * 32), "cut", False),
        (head(1, 12), (10, b"h" * 32), "", True),
        (head(1, 12), (10, b"x" * 32), "fork", False),
        (head(1, 12), (10, b""), "fork", False),
        (head(1, 12), (0, b""), "", False),
        (head(1, 12), (11, b"h" * 32), "", False),
        (head(2, 1), (0, b""), "", True),
        (None, (0, b""), "changed", False),
    ],
)
def test_what_is_held_after_an_offer(
    given: JournalHead | None, since: tuple[int, bytes], mismatch: str, taken: bool
) -> None:
    held = HeldHead(head(1, 10))
    after = core.weigh_head(held, HeadOffer(head=given, since=since[0], since_hash=since[1]))
    assert after.mismatch == mismatch
    assert after.head == (given if taken else held.head)
    assert core.weigh_head(after, HeadOffer(head=head(1, 9))).mismatch == "cut" or taken


def test_an_acknowledgement_whose_caller_goes_away_is_complete() -> None:
    async def scenario(archipelago: Archipelago) -> None:
        world = World(archipelago)
        a, b = await world.grow(2)
        copy = archipelago.backup(a)
        await act(a, 5)
        await world.settled(a)
        await restored(archipelago, a, copy)
        heads = world.heads["i0"]
        await archipelago.until(lambda: bool(world.problems(a) and world.problems(b)), within=300)
        Gone(a.state)
        with pytest.raises(asyncio.CancelledError):
            await heads.acknowledge("administrator", "the disk broke")
        assert world.problems(a) == []
        await archipelago.until(lambda: not world.problems(b), within=20)

    simulate(10, scenario)


def test_a_head_that_is_stored_is_known_even_if_its_request_is_cancelled() -> None:
    async def scenario(archipelago: Archipelago) -> None:
        world = World(archipelago)
        a, b = await world.grow(2)
        assert a.trust is not None
        first = a.committed(a.state, lambda conn: journal.hash_at(conn, 1))
        assert first is not None
        cut = JournalHead(generation=1, seq=1, hash=first, signature=a.trust.sign(SIGNATURE, head_payload(1, 1, first)))
        await asyncio.sleep(2)  # heads of one island are stored at most once a second
        Gone(b.state)
        with pytest.raises(asyncio.CancelledError):
            await world.heads["i1"]._offered(a.id, codec.encode(HeadOffer(head=cut)))
        assert world.held(b, a).mismatch == "cut"
        assert "does not continue row" in world.problems(b)[0]

    simulate(11, scenario)


def test_an_offer_that_fails_is_repeated_soon() -> None:
    async def scenario(archipelago: Archipelago) -> None:
        world = World(archipelago)
        a, b = await world.grow(2)
        await act(a)
        fault = Fault(world.heads["i0"], what="_offer")
        await archipelago.crash(b)
        await archipelago.restart(b)  # its new link wakes the loop
        await archipelago.until(lambda: fault.met == 1, within=30)
        tip = a.committed(a.state, journal.tip)
        assert tip is not None
        await archipelago.until(lambda: (head := world.held(b, a).head) is not None and head.seq == tip.seq, within=5)

    simulate(12, scenario)
