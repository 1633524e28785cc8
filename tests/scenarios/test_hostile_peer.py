"""An admitted island with modified code is refused and reported, and has no other effect on another island."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
from blake3 import blake3

from island.catalog import dataset_search
from island.catalog.word_index import IndexDocument, WordIndex
from island.daemon import Daemon
from island.errors import PeerRefused, Unreachable
from island.gossip import store as gossip_store
from island.gossip.messages import BatchBody, LogEntry, SignedBatch
from island.kernel import codec
from island.kernel.ids import key_bytes
from tests.standins.member import Member, get, logged, member, packed, resident, until, until_async, victim, well


def pairs(items: list[tuple[str, Any]]) -> bytes:
    """A map in which a key may occur twice."""
    return b"\xde" + struct.pack(">H", len(items)) + b"".join(msgpack.packb(k) + msgpack.packb(v) for k, v in items)


def dataset(**changes: Any) -> dict[str, Any]:
    """The fields of a plausible dataset record."""
    plain = {"format": "parquet", "rows": 1, "size": 1, "files": 1, "created": 1.0, "updated": 1.0}
    return {**plain, "snapshot": "a" * 64, "card": "b" * 64, **changes}


# --- records ----------------------------------------------------------------------------------

TERMINAL = "\x1b[2J\x1b]0;owned\x07\x9b31m[red]\u202eevil\r\n"

RECORDS: dict[str, tuple[str, bytes]] = {
    "a key twice, once of the wrong type": ("dataset/x", pairs([("rows", "x"), *dataset().items()])),
    "an unknown key twice": ("dataset/x", pairs([("zzz", "x"), ("zzz", 1), *dataset().items()])),
    "numbers as large as they may be": ("dataset/x", packed(**dataset(rows=2**62, size=2**62, files=2**62))),
    "numbers that are too large": ("dataset/x", packed(**dataset(rows=2**63))),
    "negative sizes": ("dataset/x", packed(**dataset(size=-1))),
    "times at the ends of the world": ("dataset/x", packed(**dataset(created=1e14, updated=-1e14, time=(-1e14, 1e14)))),
    "times that run backwards": ("dataset/x", packed(**dataset(time=(1e14, -1e14)))),
    "times that are not numbers": ("dataset/x", packed(**dataset(created=math.nan, time=(math.inf, math.nan)))),
    "words for a terminal": ("dataset/x", packed(**dataset(title=TERMINAL, format=TERMINAL, columns=[TERMINAL]))),
    "a coverage of nonsense": ("dataset/x", packed(**dataset(coverage=b"\xff" * 2048))),
    "a snapshot with a line break": ("dataset/x", packed(**dataset(snapshot="a" * 64 + "\n"))),
    "a dataset below another": ("dataset/a/../../b", packed(**dataset())),
    "a dataset of garbage": ("dataset/x", b"\xc1"),
    "a deep one": ("dataset/x", b"\x91" * 3000 + b"\x90"),
    "a replica sixteen times": (
        "replica/" + "a" * 64 + "/x",
        packed(held=[{"snapshot": "a" * 64, "state": "complete", "size": 2**62}] * 16),
    ),
    "a replica of nobody": ("replica/nobody/x", packed(held=[])),
    "a server of JavaScript": ("server/x", packed(kind="other", url="javascript:alert(1)")),
    "a server with a password": ("server/x", packed(kind="livy", url="http://user:pass@host/")),
    "a server for a terminal": ("server/x", packed(kind=TERMINAL, url="http://host/", comment=TERMINAL)),
    "a source out of time": ("source/x", packed(kind="folder", incarnation="0" * 16, added=math.nan, updated=1e300)),
    "a source for a terminal": (
        "source/x",
        packed(kind=TERMINAL, incarnation="0" * 16, rows=2**62, problem=TERMINAL, columns=[[TERMINAL, TERMINAL]]),
    ),
    "an island with a line break": ("island/self", packed(name="victim\n")),
    "an island out of time": ("island/self", packed(name="x", started=math.nan)),
    "an island nowhere": ("island/self", packed(name="x", addresses=["a..b:80", "x" * 250 + ":1", "..:0"])),
    "an admission of garbage": ("admission/" + "a" * 64, b"\xc1"),
    "an unknown kind": ("nonsense/x", b"\xff" * 4096),
}


async def test_listings_and_loops_continue_after_hostile_records(tmp_path: Path) -> None:
    with logged() as logs:
        async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
            for record in RECORDS.values():
                await mallory.told(record)
                await daemon.catalog.index()
                await well(daemon)
            # A search by words reads the index that was built from these records.
            await get(daemon, "/api/v1/datasets/search?words=evil")
            await mallory.told(*((key, None) for key, _ in RECORDS.values()))
            await well(daemon)
    assert {line["origin"] for line in logs.of("gossip.records_ignored")} == {mallory.id}


async def test_a_record_that_decoders_read_differently_does_not_end_the_daemon(tmp_path: Path) -> None:
    with logged() as logs:
        async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
            # If a key occurs twice, both values are checked and the last one is used.
            await mallory.told(RECORDS["a key twice, once of the wrong type"])
            await daemon.catalog.index()
            assert await get(daemon, "/api/v1/datasets") == []
            await mallory.told(("dataset/x", pairs([("rows", 7), *dataset().items()])))
            await daemon.catalog.index()
            [row] = await get(daemon, "/api/v1/datasets")
            assert (row["name"], row["rows"]) == ("x", 1)
    assert [line["origin"] for line in logs.of("gossip.records_ignored")] == [mallory.id]


@pytest.mark.parametrize("name", ["victim\n", "vi\u0441tim", "victim ", "\x1b[2Jvictim", "", "x" * 65])
async def test_a_name_that_looks_like_another_is_replaced_by_the_key_prefix(tmp_path: Path, name: str) -> None:
    async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
        await mallory.told(("island/self", packed(name=name)))
        await mallory.told(("dataset/x", packed(**dataset())))
        await until_async(lambda: _lists(daemon, mallory.id))
        shown = {row["key"]: row["island"] for row in await get(daemon, "/api/v1/peers")}
        assert shown == {daemon.trust.me: "victim", mallory.id: mallory.id[:10]}


async def _lists(daemon: Any, key: str) -> bool:
    return any(row["key"] == key for row in await get(daemon, "/api/v1/datasets"))


async def test_a_name_used_twice_becomes_ambiguous(tmp_path: Path) -> None:
    async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
        await mallory.told(("island/self", packed(name="victim")))
        await until(lambda: daemon.membership.display(mallory.id) == f"victim.{mallory.id[:10]}")
        assert daemon.membership.display(daemon.trust.me) == f"victim.{daemon.trust.me[:10]}"


async def test_invalid_addresses_are_logged_as_unreachable(tmp_path: Path) -> None:
    with logged() as logs:
        async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
            await mallory.told(("island/self", packed(name="x", addresses=["a..b:80", "x" * 250 + ":1"])))
            await until(lambda: daemon.membership.display(mallory.id) == "x")
            await mallory.peers.stop()
            await until(lambda: bool(logs.of("peer.dial_failed")))


async def test_cards_of_maximum_size_are_indexed_in_small_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = {"name": "x" * 4000, "type": "int", "description": "y" * 4000}
    card = packed(snapshot="a" * 64, format="parquet", columns=[column] * 30)
    taken: list[int] = []

    def apply(self: WordIndex, changed: list[IndexDocument], gone: Any) -> None:
        taken.append(sum(len(document.text) for document in changed))
        honest(self, changed, gone)

    honest = WordIndex.apply
    monkeypatch.setattr(WordIndex, "apply", apply)
    monkeypatch.setattr(dataset_search, "INDEX_BYTES", 2**20)
    async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
        name = blake3(card).hexdigest()
        await daemon.gossip_db.write(
            lambda conn: conn.execute("INSERT INTO catalog_card (hash, card) VALUES (?, ?)", (name, card))
        )
        await mallory.told(*((f"dataset/x{number}", packed(**dataset(card=name))) for number in range(40)))
        await daemon.catalog.index()
        assert len(await get(daemon, "/api/v1/datasets/search?words=x39")) == 1
    assert max(taken) <= 2**20 + len(card) and sum(taken) >= 40 * 200_000


# --- gossip -----------------------------------------------------------------------------------


async def test_a_flood_of_forged_batches_is_not_compared_with_all_that_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0

    def overlapping(*arguments: Any) -> list[bytes]:
        nonlocal looked
        looked += 1
        return stored(*arguments)

    stored = gossip_store.overlapping
    monkeypatch.setattr(gossip_store, "overlapping", overlapping)
    with logged() as logs:
        async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
            entries = tuple(LogEntry(key="x/y", value=None, seq=n) for n in range(1, 1000))
            for number in range(20):
                body = codec.encode(
                    BatchBody(
                        origin=key_bytes(daemon.trust.me),
                        epoch=1,
                        first=1,
                        previous=number.to_bytes(32),
                        entries=entries,
                    )
                )
                mallory.send((codec.encode(SignedBatch(body=body, signature=bytes(64))),), daemon.trust.me)
            await until(lambda: bool(logs.of("peer.misbehaved")))
    assert looked == 0 and logs.of("peer.misbehaved")[0]["key"] == mallory.id


async def test_a_fork_freezes_only_the_log_of_its_origin(tmp_path: Path) -> None:
    with logged() as logs:
        async with (
            victim(tmp_path) as daemon,
            member(daemon, tmp_path, "honest") as honest,
            member(daemon, tmp_path) as mallory,
        ):
            before = mallory.head
            await mallory.told(("dataset/x", packed(**dataset())))
            mallory.head = before
            mallory.send(mallory.signed(("dataset/x", packed(**dataset(rows=7)))))
            await until(lambda: daemon.gossip.head(mallory.id).frozen)
            await honest.told(("dataset/y", packed(**dataset())))
            rows = {row["key"]: row["rows"] for row in await get(daemon, "/api/v1/datasets")}
            assert rows == {mallory.id: 1, honest.id: 1}
    assert [line["origin"] for line in logs.of("gossip.fork")] == [mallory.id]


# --- every kind that an island answers to -----------------------------------------------------------

GARBAGE: tuple[bytes, ...] = (
    b"",
    b"\xc1",
    b"\x00" * 32,
    b"\xff" * 65_536,
    b"\x91" * 60_000,
    b"\x80" * 60_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    packed(job=2**63, epoch=-1, source="../x", wants=[], deltas=7, roster=1, ticket=b"", reservation=None),
    b"\xc7\xff\x05" + b"x" * 255,
)


async def test_garbage_of_every_kind_ends_the_session_or_is_refused(tmp_path: Path) -> None:
    with logged() as logs:
        async with victim(tmp_path) as daemon, member(daemon, tmp_path, "honest") as honest:
            handlers = daemon.peers._handlers
            before = resident()
            for kind in handlers._requests:
                for body in GARBAGE:
                    await _hostile(daemon, tmp_path, partial(Member.ask, kind=kind, body=body, timeout=5.0))
            for kind in handlers._bulks:
                for body in GARBAGE:
                    await _hostile(daemon, tmp_path, partial(_bulk, kind=kind, body=body))
            for kind in handlers._pushes:
                for body in GARBAGE:
                    await _hostile(daemon, tmp_path, partial(_push, kind=kind, body=body))
            assert resident() - before < 200 * 2**20
            # Other members are not affected.
            assert daemon.peers.link(honest.id) is not None
            await honest.told(("dataset/y", packed(**dataset())))
            await well(daemon)
    assert {line["peer"] for line in logs.of("peer.misbehaved")} <= {"mallory"}


async def _hostile(daemon: Daemon, folder: Path, attack: Callable[[Member], Awaitable[Any]]) -> None:
    """One attack by a member that has not misbehaved before.

    It has no peer port: the victim would go on to dial hundreds of ports, which later members get.
    """
    shutil.rmtree(folder / "mallory", ignore_errors=True)
    async with member(daemon, folder, listen="") as mallory:
        try:
            await attack(mallory)
        except PeerRefused as refused:
            assert refused.code not in ("internal_error", "bug")
        except Unreachable:
            assert daemon.peers.link(mallory.id) is None


async def _bulk(mallory: Member, kind: str, body: bytes) -> None:
    async with mallory.peers.bulk(mallory.to, kind, body) as stream:
        await stream.finish()
        while await stream.receive() is not None:
            pass


async def _push(mallory: Member, kind: str, body: bytes) -> None:
    assert mallory.peers.push(mallory.to, kind, body)
    with contextlib.suppress(Unreachable):  # the attack has been handled before this is answered
        await mallory.ask("nonsense", b"")


# --- strangers --------------------------------------------------------------------------------------


async def test_strangers_block_members_for_at_most_a_handshake(tmp_path: Path) -> None:
    async with victim(tmp_path) as daemon, member(daemon, tmp_path, "honest") as honest:
        port = daemon.peers.port
        before = len(os.listdir("/proc/self/fd"))
        idle = []
        for number in range(300):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            # Some send nothing, some send HTTP, some start TLS and stop.
            writer.write((b"", b"GET /api/v1/peers HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01")[number % 3])
            idle.append((reader, writer))
        await honest.told(("dataset/x", packed(**dataset())))
        # The number of handshakes per address is limited; other connections are closed at once.
        await until(lambda: len(os.listdir("/proc/self/fd")) - before < 300 + 40)
        for _, writer in idle:
            writer.transport.abort()
        await until_async(lambda: _joins(daemon, tmp_path))
        await well(daemon)


async def _joins(daemon: Daemon, folder: Path) -> bool:
    try:
        async with member(daemon, folder, "late"):
            return True
    except* (Unreachable, PeerRefused):
        shutil.rmtree(folder / "late")
    return False
