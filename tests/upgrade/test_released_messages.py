"""Two versions in one archipelago: this version reads what a release wrote, and keeps what a later one may add."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from island.catalog.messages import DatasetRecord, ReplicaRecord
from island.gossip import core
from island.gossip.core import BatchVerdict, Head, LogBatch
from island.gossip.logs import SIGNATURE
from island.kernel import codec
from island.kernel.codec import Message
from island.kernel.ids import NetworkId
from island.membership.messages import SelfRecord, ServerRecord
from island.streams.messages import SourceRecord
from island.trust.core import verify_chain
from island.trust.heads import HeadAnswer, JournalHeads
from island.trust.signing import verify
from tests.sim.archipelago import Archipelago, SimIsland, names, simulate
from tests.upgrade.released_vectors import digests

HERE = Path(__file__).parent
VECTORS = HERE.parents[1] / "protocols" / "vectors"

RECORDS: dict[str, type[Message]] = {
    "dataset": DatasetRecord,
    "island": SelfRecord,
    "replica": ReplicaRecord,
    "server": ServerRecord,
    "source": SourceRecord,
}


@pytest.fixture
def released(tmp_path: Path) -> Iterator[tuple[NetworkId, sqlite3.Connection]]:
    """The network of the fixture, and the gossip.db that the release wrote, with the logs of two islands."""
    with tarfile.open(HERE / "home-0.1.0.tar.gz") as archive:
        for name in ("home/state.db", "home/gossip.db"):
            archive.extract(name, tmp_path, filter="data")
    with closing(sqlite3.connect(tmp_path / "home" / "state.db")) as state:
        (network,) = state.execute("SELECT id FROM network").fetchone()
    with closing(sqlite3.connect(tmp_path / "home" / "gossip.db")) as gossip:
        yield NetworkId(network), gossip


def batches(gossip: sqlite3.Connection, origin: str) -> list[LogBatch]:
    rows = gossip.execute("SELECT signed FROM gossip_batches WHERE origin = ? ORDER BY first", (origin,))
    return [core.open_batch(signed) for (signed,) in rows]


def test_the_logs_of_a_release_are_accepted(released: tuple[NetworkId, sqlite3.Connection]) -> None:
    network, gossip = released
    origins = gossip.execute("SELECT origin, chain FROM gossip_origins").fetchall()
    assert len(origins) == 2
    kinds = set()
    for origin, chain in origins:
        assert verify_chain(network, chain).island == origin
        head = Head()
        for batch in batches(gossip, origin):
            assert core.judge_batch(head, batch) is BatchVerdict.FITS
            assert verify(batch.origin, SIGNATURE, network, batch.body, batch.signature)
            head = head.after(batch)
            for entry in batch.entries:
                kind = entry.key.partition("/")[0]
                kinds.add(kind)
                if entry.value is not None:
                    codec.decode(entry.value, RECORDS[kind])
    assert kinds == set(RECORDS)


def test_records_of_a_later_version_are_understood(released: tuple[NetworkId, sqlite3.Connection]) -> None:
    """A later version may add fields to each record of a release."""
    _, gossip = released
    for key, value in gossip.execute("SELECT key, value FROM gossip_records WHERE value IS NOT NULL").fetchall():
        kind = RECORDS[key.partition("/")[0]]
        plain: dict[str, Any] = msgspec.msgpack.decode(value)
        later = msgspec.msgpack.encode(plain | {"added_later": {"deep": [1, b"x"]}})
        assert codec.decode(later, kind) == codec.decode(value, kind)


def test_the_vectors_of_a_release_stay() -> None:
    """Their cases are checked against the code elsewhere; here, that none was changed or removed."""
    now = digests(VECTORS)
    for file, cases in json.loads((HERE / "vectors-0.1.0.json").read_text("utf-8")).items():
        assert set(cases) <= set(now[file]), file


async def _without_journal_heads(world: Archipelago) -> None:
    heads: dict[str, JournalHeads] = {}

    async def services(island: SimIsland) -> None:
        assert island.trust is not None and island.peers is not None
        if not heads:  # only the first island: the other refuses the request with `unknown_kind`, as 0.1.0 does
            clock, rng = world.clock(island), world.network.rng
            heads[island.name] = JournalHeads(island.state, island.trust, island.peers, clock, rng)
            await heads[island.name].start(island.tasks)

    world.services = services
    new, old = [await world.add(name) for name in names(2)]
    await old.put("test/old", b"1")
    await new.put("test/new", b"2")
    await world.until(lambda: world.converged() and len(new.records("test/")) == 2, within=60)
    assert old.records("test/") == new.records("test/")
    await asyncio.sleep(200)  # several offers
    assert heads[new.name].problems(str) == [] and new.g.problems() == []
    assert await heads[new.name].compare() == [HeadAnswer(old.id, "silent")]


def test_an_island_without_journal_heads_is_a_full_member() -> None:
    simulate(91, _without_journal_heads)
