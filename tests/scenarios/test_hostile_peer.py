"""What an admitted island with modified code can do to another: be refused, be named, and nothing else."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.scenarios.hostile import get, logged, member, packed, until, until_async, victim, well


def pairs(items: list[tuple[str, Any]]) -> bytes:
    """A map that may have a key twice."""
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


async def test_no_record_stops_a_listing_or_a_loop(tmp_path: Path) -> None:
    with logged() as logs:
        async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
            for record in RECORDS.values():
                await mallory.told(record)
                await daemon.catalog.index()
                await well(daemon)
            # Words are searched in what the index made of them.
            await get(daemon, "/api/v1/datasets/search?words=evil")
            await mallory.told(*((key, None) for key, _ in RECORDS.values()))
            await well(daemon)
    assert {line["origin"] for line in logs.of("catalog.bad_record")} == {mallory.id}


async def test_a_record_that_decoders_read_differently_does_not_end_the_daemon(tmp_path: Path) -> None:
    async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
        await mallory.told(RECORDS["a key twice, once of the wrong type"])
        [row] = await get(daemon, "/api/v1/datasets")
        assert (row["name"], row["rows"]) == ("x", 1)


@pytest.mark.parametrize("name", ["victim\n", "vi\u0441tim", "victim ", "\x1b[2Jvictim", "", "x" * 65])
async def test_a_name_that_would_look_like_another_is_none(tmp_path: Path, name: str) -> None:
    async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
        await mallory.told(("island/self", packed(name=name)))
        await mallory.told(("dataset/x", packed(**dataset())))
        await until_async(lambda: _lists(daemon, mallory.id))
        shown = {row["key"]: row["island"] for row in await get(daemon, "/api/v1/peers")}
        assert shown == {daemon.trust.me: "victim", mallory.id: mallory.id[:10]}


async def _lists(daemon: Any, key: str) -> bool:
    return any(row["key"] == key for row in await get(daemon, "/api/v1/datasets"))


async def test_who_takes_anothers_name_makes_it_ambiguous_and_no_more(tmp_path: Path) -> None:
    async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
        await mallory.told(("island/self", packed(name="victim")))
        await until(lambda: daemon.membership.display(mallory.id) == f"victim.{mallory.id[:10]}")
        assert daemon.membership.display(daemon.trust.me) == f"victim.{daemon.trust.me[:10]}"


async def test_addresses_that_nothing_can_have_are_said_to_be_unreachable(tmp_path: Path) -> None:
    with logged() as logs:
        async with victim(tmp_path) as daemon, member(daemon, tmp_path) as mallory:
            await mallory.told(("island/self", packed(name="x", addresses=["a..b:80", "x" * 250 + ":1"])))
            await until(lambda: daemon.membership.display(mallory.id) == "x")
            await mallory.peers.stop()
            await until(lambda: bool(logs.of("peer.dial_failed")))
