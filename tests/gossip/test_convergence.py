"""Property: whatever reaches whom, in any order and number, comparing afterwards makes all the same."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from island.gossip import core
from island.gossip.core import Batch, Head, Positions, Verdict
from island.gossip.messages import SignedBody, Want
from island.kernel import codec
from island.kernel.ids import IslandId, island_id

ORIGINS = [IslandId(digit * 64) for digit in "abc"]


def _log(origin: IslandId, sizes: list[int], salt: bytes = b"", head: Head | None = None) -> list[Batch]:
    head, found = head or Head(), []
    for place, size in enumerate(sizes):
        changes = [(f"k/{n % 3}", salt + bytes([place, n])) for n in range(size)]
        (body,) = core.cut(origin, head, changes)
        found.append(core.open_batch(codec.encode(SignedBody(body=body, signature=bytes(64)))))
        head = head.after(found[-1])
    return found


@dataclass
class Node:
    """An island as far as the core goes: heads and stored batches."""

    positions: Positions = field(default_factory=Positions)
    stored: dict[IslandId, list[Batch]] = field(default_factory=dict)

    def take(self, batch: Batch) -> None:
        head = self.positions.get(batch.origin)
        verdict = core.judge(head, batch)
        if verdict is Verdict.FITS:
            self.stored.setdefault(batch.origin, []).append(batch)
            self.positions.set(batch.origin, head.after(batch))
        elif verdict is Verdict.PAST and any(core.contradict(b, batch) for b in self.stored[batch.origin]):
            self.positions.freeze(batch.origin)

    def page(self, want: Want) -> list[Batch]:
        return [b for b in self.stored.get(island_id(want.origin), []) if b.last > want.after]

    def state(self, origin: IslandId) -> dict[str, bytes | None]:
        return {e.key: e.value for batch in self.stored.get(origin, []) for e in batch.entries}


def _exchange(one: Node, other: Node) -> None:
    """What `Spread._exchange` does, without a network."""
    asked = one.positions.digest()
    heads, until = one.positions.read(asked, other.positions.answer(asked))
    difference = core.compare(one.positions, heads, b"", until)
    if asked.root == other.positions.digest().root:
        return
    for want in difference.wants:
        origin = island_id(want.origin)
        if other.positions.get(origin).frozen:
            one.positions.freeze(origin)  # the proof came
        for batch in other.page(want):
            if core.judge(one.positions.get(origin), batch) is Verdict.BREAKS:
                head = one.positions.get(origin)
                for rival in other.page(Want(origin=want.origin, epoch=1, after=max(0, head.seq - 1))):
                    one.take(rival)
            one.take(batch)
    for offer in difference.offers:
        origin = island_id(offer.origin)
        if one.positions.get(origin).frozen:
            other.positions.freeze(origin)
        for batch in one.page(offer):
            other.take(batch)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_order_duplication_and_loss_converges(data: st.DataObject) -> None:
    logs = {o: _log(o, data.draw(st.lists(st.integers(1, 4), max_size=6))) for o in ORIGINS}
    everything = [batch for log in logs.values() for batch in log]
    nodes = [Node() for _ in range(data.draw(st.integers(2, 5)))]
    if everything:
        deliveries = st.tuples(st.integers(0, len(nodes) - 1), st.sampled_from(everything))
        for place, batch in data.draw(st.lists(deliveries, max_size=60)):
            nodes[place].take(batch)
    for log in logs.values():  # the owner at least has its own
        for batch in log:
            nodes[0].take(batch)
    for _ in range(2):
        for one, other in zip(nodes, nodes[1:] + nodes[:1], strict=True):
            _exchange(one, other)
    assert len({node.positions.digest().root for node in nodes}) == 1
    for origin, log in logs.items():
        for node in nodes:
            assert [b.signed for b in node.stored.get(origin, [])] == [b.signed for b in log]
            assert node.state(origin) == nodes[0].state(origin)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_fork_freezes_its_origin_everywhere_and_no_other(data: st.DataObject) -> None:
    liar, honest = ORIGINS[0], ORIGINS[1]
    common = _log(liar, data.draw(st.lists(st.integers(1, 3), max_size=3)))
    head = Head().after(common[-1]) if common else Head()
    stories = [
        common + _log(liar, data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)), salt, head)
        for salt in (b"one", b"other")
    ]
    true = _log(honest, [2, 1])
    nodes = [Node() for _ in range(data.draw(st.integers(2, 5)))]
    for place, node in enumerate(nodes):
        for batch in stories[place % 2]:
            node.take(batch)
    for batch in true:
        nodes[-1].take(batch)
    for _ in range(3):
        for one, other in zip(nodes, nodes[1:] + nodes[:1], strict=True):
            _exchange(one, other)
    assert all(node.positions.get(liar).frozen for node in nodes)
    assert all(node.positions.get(honest) == Head().after(true[0]).after(true[1]) for node in nodes)
    assert len({node.positions.digest().root for node in nodes}) == 1
