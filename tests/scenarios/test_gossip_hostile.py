"""A peer that sends false gossip is reported and loses its session, and has no other effect."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import msgspec
import pytest

from island.gossip import core
from island.gossip.core import Head, LogBatch
from island.gossip.logs import SIGNATURE
from island.gossip.messages import (
    BATCH_LIMIT,
    BatchBody,
    Delta,
    DeltaPage,
    Digest,
    ForkProof,
    HeadOf,
    Heads,
    LogEntry,
    PullRange,
    SignedBatch,
)
from island.gossip.spread import AT_ONCE, TIMEOUT
from island.kernel import codec
from island.kernel.ids import IslandId, key_bytes
from island.kernel.ports import SeededRng
from island.kernel.stranger_log import PER_ADDRESS
from island.membership.messages import SELF_KEY
from island.trust.keys import Identity
from tests.sim.archipelago import Archipelago, names, simulate
from tests.sim.stranger import Stranger
from tests.standins.member import logged


async def _grow(world: Archipelago, count: int) -> Stranger:
    for name in names(count):
        await world.add(name)
    await world.until(lambda: world.converged() and len(world.islands[0].g.origins()) == count, within=60)
    return await Stranger.admitted(world)


def _signed(liar: Stranger, body: bytes) -> bytes:
    return codec.encode(SignedBatch(body=body, signature=liar.trust.sign(SIGNATURE, body)))


def _body(liar: Stranger, entries: tuple[LogEntry, ...], first: int = 1) -> BatchBody:
    return BatchBody(origin=key_bytes(liar.id), epoch=1, first=first, previous=core.ZERO, entries=entries)


def _flip(liar: Stranger) -> bytes:
    batch = liar.batch(Head(), [("test/a", b"1")])
    raw = bytearray(batch.signed)
    raw[-1] ^= 1
    return codec.encode(DeltaPage(deltas=(_replace(liar.delta(batch), batches=(bytes(raw),)),)))


def _replace(delta: Delta, **changes: object) -> Delta:
    return msgspec.structs.replace(delta, **changes)


def _raw(liar: Stranger, signed: bytes) -> bytes:
    return codec.encode(DeltaPage(deltas=(_replace(liar.delta(), batches=(signed,)),)))


def _bad_key(liar: Stranger) -> bytes:
    return _raw(liar, _signed(liar, codec.encode(_body(liar, (LogEntry(key="no slash", value=b"", seq=1),)))))


def _bad_seq(liar: Stranger) -> bytes:
    return _raw(liar, _signed(liar, codec.encode(_body(liar, (LogEntry(key="test/a", value=b"", seq=7),)))))


def _big_value(liar: Stranger) -> bytes:
    return _raw(liar, _signed(liar, codec.encode(_body(liar, (LogEntry(key="test/a", value=bytes(5000), seq=1),)))))


def _big_batch(liar: Stranger) -> bytes:
    entries = tuple(LogEntry(key=f"test/{n}", value=bytes(4000), seq=n) for n in range(1, 8))
    signed = _signed(liar, codec.encode(_body(liar, entries)))
    assert len(signed) > BATCH_LIMIT
    return _raw(liar, signed)


def _other_chain(liar: Stranger) -> bytes:
    assert liar.world.islands[1].trust is not None
    chain = liar.world.islands[1].trust.chain
    batch = liar.batch(Head(), [("test/a", b"1")])
    return codec.encode(DeltaPage(deltas=(_replace(liar.delta(batch), chain=chain),)))


def _outsider(liar: Stranger) -> bytes:
    outsider = Identity.generate(SeededRng("outsider"))
    assert liar.trust.network is not None
    (body,) = core.cut_batches(outsider.id, Head(), [("test/a", b"1")])
    signed = codec.encode(SignedBatch(body=body, signature=outsider.sign(SIGNATURE, liar.trust.network, body)))
    chain = liar.trust.chain or b""
    return codec.encode(DeltaPage(deltas=(Delta(origin=key_bytes(outsider.id), chain=chain, batches=(signed,)),)))


def _other_use(liar: Stranger) -> bytes:
    (body,) = core.cut_batches(liar.id, Head(), [("test/a", b"1")])
    return _raw(liar, codec.encode(SignedBatch(body=body, signature=liar.trust.sign("admission", body))))


def _forged_own(liar: Stranger) -> bytes:
    """A batch in the name of the island to which it is sent."""
    victim = liar.world.islands[0]
    (body,) = core.cut_batches(victim.id, victim.g.head(victim.id), [("test/a", b"1")])
    signed = codec.encode(SignedBatch(body=body, signature=liar.trust.sign(SIGNATURE, body)))
    return codec.encode(DeltaPage(deltas=(Delta(origin=key_bytes(victim.id), batches=(signed,)),)))


def _empty_proof(liar: Stranger) -> bytes:
    batch = liar.batch(Head(), [("test/a", b"1")]).signed
    proof = ForkProof(one=batch, other=batch)
    return codec.encode(DeltaPage(deltas=(_replace(liar.delta(), proof=proof),)))


def _forged_proof(liar: Stranger) -> bytes:
    victim = liar.world.islands[1]
    halves = []
    for value in (b"1", b"2"):
        (body,) = core.cut_batches(victim.id, Head(), [("test/a", value)])
        halves.append(codec.encode(SignedBatch(body=body, signature=liar.trust.sign(SIGNATURE, body))))
    proof = ForkProof(one=halves[0], other=halves[1])
    return codec.encode(DeltaPage(deltas=(Delta(origin=key_bytes(victim.id), proof=proof),)))


def _noise(liar: Stranger) -> bytes:
    return b"\xc1\xff\x00"


def _nested(liar: Stranger) -> bytes:
    return b"\x91" * 5000 + b"\x90"


ATTACKS: list[Callable[[Stranger], bytes]] = [
    _flip,
    _bad_key,
    _bad_seq,
    _big_value,
    _big_batch,
    _other_chain,
    _outsider,
    _other_use,
    _forged_own,
    _empty_proof,
    _forged_proof,
    _noise,
    _nested,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__.strip("_"))
def test_a_false_push_is_reported_and_not_stored(attack: Callable[[Stranger], bytes]) -> None:
    async def scenario(world: Archipelago) -> None:
        liar = await _grow(world, 3)
        before = [island.g.digest() for island in world.islands]
        await liar.say_bytes(world.islands[0], attack(liar))
        await asyncio.sleep(3)
        assert world.islands[0].peers is not None
        assert [who for who, _ in world.islands[0].peers.misbehaved] == [liar.id]
        assert [island.g.digest() for island in world.islands] == before
        # The island continues, and does not report honest islands.
        await world.islands[0].put("test/life", b"goes on")
        await world.until(lambda: all(len(i.records("test/")) == 1 for i in world.islands), within=10)
        assert all(not island.peers.misbehaved for island in world.islands[1:] if island.peers)
        assert all(not island.g.problems() for island in world.islands)
        await liar.leave()

    simulate(1, scenario)


def test_without_a_chain_nothing_is_stored() -> None:
    async def scenario(world: Archipelago) -> None:
        liar = await _grow(world, 2)
        batch = liar.batch(Head(), [("test/a", b"1")])
        await liar.say(world.islands[0], liar.delta(batch, chain=False))
        await asyncio.sleep(5)
        assert liar.id not in world.islands[0].g.origins()
        await liar.say(world.islands[0], liar.delta(batch))
        await world.until(lambda: all(len(i.records("test/")) == 1 for i in world.islands), within=10)
        await liar.leave()

    simulate(2, scenario)


def test_false_heads_cost_only_a_few_requests() -> None:
    async def scenario(world: Archipelago) -> None:
        liar = await _grow(world, 2)
        questions = 0

        async def digest(_peer: object, _body: bytes) -> bytes:
            heads = tuple(HeadOf(origin=n.to_bytes(32), epoch=1, seq=2**50, head=b"12345678") for n in range(1, 801))
            return codec.encode(Heads(roster=bytes(32), root=bytes(32), keyed=heads, more=True))

        async def pull(_peer: object, _body: bytes) -> bytes:
            nonlocal questions
            questions += 1
            return codec.encode(DeltaPage(more=True))

        liar.peers._requests["gossip.digest"] = digest
        liar.peers._requests["gossip.pull"] = pull
        await liar.say_bytes(world.islands[0], b"", "gossip.look")
        await asyncio.sleep(60)
        assert 0 < questions < 100
        await world.islands[1].put("test/life", b"goes on")
        await world.until(lambda: len(world.islands[0].records("test/")) == 1, within=5)
        await liar.leave()

    simulate(3, scenario)


def test_an_origin_over_its_limit_is_refused_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MAX_KEYS", 20)

    async def scenario(world: Archipelago) -> None:
        liar = await _grow(world, 3)
        head = Head()
        for number in range(4):
            batch = liar.batch(head, [(f"test/{number}-{n}", b"1") for n in range(9)])
            await liar.say(world.islands[0], liar.delta(batch))
            head = head.after(batch)
            await asyncio.sleep(2)
        assert all(len(i.records("test/")) == 18 for i in world.islands)
        await world.islands[1].put("good/life", b"goes on")
        await world.until(lambda: all(len(i.records("good/")) == 1 for i in world.islands), within=10)
        await liar.leave()

    simulate(4, scenario)


def _batches(liar: Stranger, count: int) -> list[LogBatch]:
    """Consecutive log batches with four records each."""
    head, batches = Head(), []
    for number in range(count):
        batches.append(liar.batch(head, [(f"test/{number}-{n}", b"1") for n in range(4)]))
        head = head.after(batches[-1])
    return batches


def test_islands_store_the_same_part_of_a_log_over_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MAX_KEYS", 20)

    async def scenario(world: Archipelago) -> None:
        liar = await _grow(world, 2)
        one, two = world.islands
        batches = _batches(liar, 7)
        world.network.partition([[one.id], [two.id], [liar.id]])
        for batch in batches:
            await one.g._logs.take(liar.id, [liar.delta(batch)])
        await two.g._logs.take(liar.id, [liar.delta(*batches)])
        assert one.g.head(liar.id) == two.g.head(liar.id) == Head().after(batches[4])
        assert len(one.records("test/")) == 20 and one.records() == two.records()
        for island in (one, two):
            (problem,) = island.g.problems()
            assert "which is the limit" in problem
        world.network.heal()
        await world.until(world.converged, within=30)
        await liar.leave()

    simulate(11, scenario)


def test_batches_that_a_peer_does_not_store_are_not_pushed_for_ever() -> None:
    async def scenario(world: Archipelago) -> None:
        liar = await _grow(world, 2)
        one, two = world.islands
        two.g._logs._refused.add(liar.id)  # as if the limit of two were lower
        await liar.say(one, liar.delta(*_batches(liar, 1)))
        await asyncio.sleep(60)
        await liar.leave()
        assert one.peers is not None
        original, pushed = one.peers.push, 0

        def tapped(to: IslandId, kind: str, body: bytes) -> bool:
            nonlocal pushed
            pushed += 1
            return original(to, kind, body)

        one.peers.push = tapped  # type: ignore[method-assign]  # counts
        await asyncio.sleep(300)
        assert not pushed
        await one.put("test/life", b"goes on")
        await world.until(lambda: len(two.records("test/life")) == 1, within=10)

    simulate(12, scenario)


def test_signatures_checked_for_one_peer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("island.gossip.logs.VERIFY_RATE", 10.0)
    monkeypatch.setattr("island.gossip.logs.VERIFY_BURST", 10.0)

    async def scenario(world: Archipelago) -> None:
        liar = await _grow(world, 2)
        head, batches = Head(), []
        for number in range(50):
            batch = liar.batch(head, [("test/a", b"%d" % number)])
            head = head.after(batch)
            batches.append(batch)
        await liar.say(world.islands[0], liar.delta(*batches))
        await asyncio.sleep(0.5)
        assert world.islands[0].g.head(liar.id).seq <= 10
        await liar.leave()

    simulate(5, scenario)


def test_unknown_kinds_and_fields_are_relayed_unchanged() -> None:
    async def scenario(world: Archipelago) -> None:
        newer = await _grow(world, 4)
        body = {
            "origin": key_bytes(newer.id),
            "epoch": 1,
            "first": 1,
            "previous": core.ZERO,
            "entries": [["future-kind/x", b"\xc1 not msgpack", 1], ["server/bad", b"\xc1", 2]],
            "novelty": {"of": "version 2"},
        }
        signed = _signed(newer, codec.encode(body))
        delta = Delta(origin=key_bytes(newer.id), chain=newer.trust.chain or b"", batches=(signed,))
        await newer.say(world.islands[0], delta)
        await asyncio.sleep(1)
        await newer.leave()
        await world.until(lambda: all(len(i.records("future-kind/")) == 1 for i in world.islands), within=10)
        for island in world.islands:
            page = await island.g._logs.page([PullRange(origin=key_bytes(newer.id), epoch=1, after=0)])
            assert page.deltas[0].batches == (signed,)
            assert await island.m.servers() == []

    simulate(6, scenario)


@pytest.mark.parametrize("attack", [_flip, _other_chain, _empty_proof, _noise], ids=lambda a: a.__name__.strip("_"))
def test_a_false_answer_ends_the_session(attack: Callable[[Stranger], bytes]) -> None:
    async def scenario(world: Archipelago) -> None:
        liar = await _grow(world, 2)
        victim = world.islands[0]

        async def digest(_peer: object, _body: bytes) -> bytes:
            ahead = HeadOf(origin=key_bytes(liar.id), epoch=1, seq=1, head=b"12345678")
            return codec.encode(Heads(roster=bytes(32), root=bytes(32), keyed=(ahead,)))

        async def pull(_peer: object, _body: bytes) -> bytes:
            return attack(liar)

        liar.peers._requests["gossip.digest"] = digest
        liar.peers._requests["gossip.pull"] = pull
        assert victim.peers is not None
        await world.until(lambda: bool(victim.peers and victim.peers.misbehaved), within=30)
        assert {who for who, _ in victim.peers.misbehaved} == {liar.id}
        assert liar.id not in victim.g.origins()
        await liar.leave()

    simulate(9, scenario)


@pytest.mark.parametrize("kind", ["server", "island"])
def test_malformed_records_of_one_island_are_counted_not_logged_one_by_one(kind: str) -> None:
    async def scenario(world: Archipelago) -> None:
        liar = await _grow(world, 2)
        victim = world.islands[0]
        head = Head()
        deltas: list[Delta] = []
        for part in range(8):
            keys = [SELF_KEY] if kind == "island" else [f"{kind}/{part}-{number}" for number in range(50)]
            batch = liar.batch(head, [(key, b"\xc1") for key in keys])
            head, deltas = head.after(batch), [*deltas, liar.delta(batch)]
        with logged() as lines:
            for delta in deltas:
                await liar.say(victim, delta)
                await asyncio.sleep(1)
        found = lines.of("gossip.records_ignored")
        assert len(found) == 2 * PER_ADDRESS  # at both islands
        assert {(line["origin"], line["records"]) for line in found} == {(liar.id, 1 if kind == "island" else 50)}
        assert not [line for line in lines.lines if line["event"].endswith(("bad_record", "bad_server"))]

    simulate(91, scenario)


def test_silent_peers_do_not_delay_comparisons_with_others() -> None:
    async def scenario(world: Archipelago) -> None:
        silent = [await _grow(world, 2)]
        silent += [await Stranger.admitted(world, f"silent-{number}") for number in range(1, AT_ONCE)]
        one, two = world.islands
        spread = one.g._spread
        original, compared = spread._exchange, [world.loop.time()]

        async def tapped(peer: IslandId) -> str:
            if peer == two.id:
                compared.append(world.loop.time())
            return await original(peer)

        spread._exchange = tapped  # type: ignore[method-assign]  # counts the comparisons
        for _ in range(120):
            for stranger in silent:
                stranger.peers.push(one.id, "gossip.look", b"")
            spread.compare_soon(two.id)
            await asyncio.sleep(1)
        assert max(b - a for a, b in itertools.pairwise(compared)) < 2 * TIMEOUT
        for stranger in silent:
            await stranger.leave()

    simulate(10, scenario)


def test_endless_pages_without_new_batches_end_the_pull() -> None:
    async def scenario(world: Archipelago) -> None:
        liar = await _grow(world, 2)
        batch = liar.batch(Head(), [("test/a", b"1")])
        questions = 0

        async def digest(_peer: object, body: bytes) -> bytes:
            asked = codec.decode(body, Digest)
            start = int.from_bytes(asked.after)
            heads = tuple(
                HeadOf(origin=(start + n).to_bytes(32), epoch=1, seq=9, head=b"12345678") for n in range(1, 801)
            )
            return codec.encode(Heads(roster=bytes(32), root=bytes(32), keyed=heads, more=True))

        async def pull(_peer: object, _body: bytes) -> bytes:
            nonlocal questions
            questions += 1
            return codec.encode(DeltaPage(deltas=(liar.delta(batch),), more=True))

        liar.peers._requests["gossip.digest"] = digest
        liar.peers._requests["gossip.pull"] = pull
        await liar.say_bytes(world.islands[0], b"", "gossip.look")
        await asyncio.sleep(60)
        assert 0 < questions < 1500
        await liar.leave()

    simulate(8, scenario)
