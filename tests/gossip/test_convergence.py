"""Property: whatever batches reach whom, in any order and number, the exchange makes all islands the same.

The islands run the daemon's own intake, comparison and paging over the simulated network. What a
stranger signed is given to the intake of single islands while all of them are cut off from each
other, so that only the exchange after the partition can spread it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from island.gossip.core import Head, LogBatch
from island.gossip.messages import Delta
from tests.sim.archipelago import Archipelago, SimIsland, simulate
from tests.sim.network import SILENCE
from tests.sim.stranger import Stranger

Record = tuple[str, str, bytes | None]

SIMULATED = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    # A failing simulation runs until its virtual time is up: to shrink it would take minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


def _log(owner: Stranger, sizes: Sequence[int], salt: bytes = b"", head: Head | None = None) -> list[LogBatch]:
    """Consecutive batches of `owner` after `head`, one of each size; keys repeat, so that values are replaced."""
    head, found = head or Head(), []
    for place, size in enumerate(sizes):
        found.append(owner.batch(head, [(f"test/{n % 3}", salt + bytes([place, n])) for n in range(size)]))
        head = head.after(found[-1])
    return found


def _state(owner: Stranger, log: Sequence[LogBatch]) -> list[Record]:
    """What the records of `owner` are after all of its log."""
    values = {entry.key: entry.value for batch in log for entry in batch.entries}
    return [(owner.id, key, value) for key, value in sorted(values.items())]


async def _apart(world: Archipelago, islands: int, strangers: int) -> tuple[list[SimIsland], list[Stranger]]:
    """Islands that know each other and the strangers' chains, each alone behind a cut line."""
    found = [await world.add(f"island-{number}") for number in range(islands)]
    authors = [await Stranger.admitted(world, f"stranger-{number}") for number in range(strangers)]
    await world.until(lambda: world.converged() and len(found[0].g.origins()) == islands, within=60)
    for author in authors:
        await author.leave()
    world.network.partition([[island.id] for island in found])
    await world.until(lambda: not any(island.peers and island.peers.up for island in found), within=2 * SILENCE)
    return found, authors


async def _deliver(island: SimIsland, source: Stranger, *deltas: Delta) -> None:
    await island.g._logs.take(source.id, deltas)


async def _converge(world: Archipelago) -> None:
    world.network.heal()
    await world.until(world.converged, within=120)


@pytest.mark.slow
@SIMULATED
@given(st.data())
def test_any_order_duplication_and_loss_converges(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=3))
    count = data.draw(st.integers(2, 4))
    batches = [(author, place) for author, log in enumerate(sizes) for place in range(len(log))]
    deliveries = st.tuples(st.integers(0, count - 1), st.sampled_from(batches or [(0, 0)]))
    delivered = data.draw(st.lists(deliveries, max_size=40)) if batches else []

    async def scenario(world: Archipelago) -> None:
        islands, authors = await _apart(world, count, len(sizes))
        logs = [_log(author, log) for author, log in zip(authors, sizes, strict=True)]
        for place, (who, batch) in delivered:
            await _deliver(islands[place], authors[who], authors[who].delta(logs[who][batch]))
        for author, log in zip(authors, logs, strict=True):  # all of it lies at one island at least
            await _deliver(islands[-1], author, author.delta(*log))
        await _converge(world)
        expected = sorted(record for author, log in zip(authors, logs, strict=True) for record in _state(author, log))
        for island in islands:
            assert sorted(island.records("test/")) == expected

    simulate(data.draw(st.integers(0, 2**16)), scenario, record=False)


@pytest.mark.slow
@SIMULATED
@given(st.data())
def test_a_fork_freezes_its_origin_everywhere_and_no_other(data: st.DataObject) -> None:
    shared = data.draw(st.lists(st.integers(1, 3), max_size=3))
    tails = [data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)) for _ in range(2)]
    count = data.draw(st.integers(2, 4))

    async def scenario(world: Archipelago) -> None:
        islands, (liar, honest) = await _apart(world, count, 2)
        common = _log(liar, shared)
        head = Head().after(common[-1]) if common else Head()
        stories = [common + _log(liar, tail, salt, head) for tail, salt in zip(tails, (b"one", b"other"), strict=True)]
        true = _log(honest, [2, 1])
        for place, island in enumerate(islands):
            await _deliver(island, liar, liar.delta(*stories[place % 2]))
        await _deliver(islands[-1], honest, honest.delta(*true))
        await _converge(world)
        await world.until(lambda: all(island.g.head(liar.id).frozen for island in islands), within=120)
        for island in islands:
            assert island.g.head(honest.id) == Head().after(true[0]).after(true[1])
            assert [r for r in island.records("test/") if r[0] == honest.id] == _state(honest, true)
        await world.until(world.converged, within=120)

    simulate(data.draw(st.integers(0, 2**16)), scenario, record=False)
