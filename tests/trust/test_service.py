"""An island founds, invites, admits and joins."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import blake3
import pytest

from island.errors import BadInput, Conflict, Full, PeerMisbehaved
from island.kernel import codec
from island.kernel.db import Database
from island.kernel.ids import NetworkId
from island.kernel.ports import SystemClock, SystemRng
from island.trust import core, journal, service
from island.trust.keys import Identity
from island.trust.messages import Genesis
from island.trust.service import Trust
from tests.standins.faults import cancelled_while_committing, full_disk


class Wall(SystemClock):
    """A wall clock that a test sets."""

    now = 1_000_000.0

    def wall(self) -> float:
        return self.now


class Island:
    """Trust over a database of its own, in a folder that survives a restart."""

    def __init__(self, home: Path, name: str, clock: Wall) -> None:
        home.mkdir(exist_ok=True)
        self.home, self.name, self.clock = home, name, clock
        self.identity = Identity.generate(SystemRng())
        self.open()

    def open(self) -> None:
        self.state = Database.open(self.home, "state")
        self.trust = Trust(self.state, self.identity, self.name, "test", self.clock, SystemRng())


@pytest.fixture
def clock() -> Wall:
    return Wall()


@pytest.fixture
async def islands(tmp_path: Path, clock: Wall) -> AsyncIterator[list[Island]]:
    made = [Island(tmp_path / name, name, clock) for name in ("a", "b", "c")]
    for island in made:
        await island.trust.load()
    yield made
    for island in made:
        island.state.close()


async def join(inviter: Island, joiner: Island, word: str) -> None:
    invitation = joiner.trust.parse_invitation(word)
    chain = await inviter.trust.redeem(invitation.secret, joiner.identity.id, joiner.name)
    await joiner.trust.adopt(core.network_id(invitation.genesis), chain)


async def test_the_first_invitation_founds_and_the_chain_grows(islands: list[Island]) -> None:
    a, b, c = islands
    assert a.trust.network is None and a.trust.chain is None
    seen = a.trust.network_known.version
    word = await a.trust.invite(["127.0.0.1:1"])
    assert a.trust.network is not None and a.trust.network_known.version > seen
    assert stat.S_IMODE(a.trust.recovery_path.stat().st_mode) == 0o600
    await join(a, b, word)
    await join(b, c, await b.trust.invite(["127.0.0.1:2"]))
    assert a.trust.network == b.trust.network == c.trust.network
    assert c.trust.chain is not None
    assert a.trust.check_chain(c.trust.chain) == a.trust.check_chain(c.trust.chain) == c.identity.id
    assert core.verify_chain(a.trust.network, c.trust.chain).depth == 2


async def test_who_founds_or_joins_and_goes_away_belongs_to_the_network_all_the_same(islands: list[Island]) -> None:
    a, b, _ = islands
    await cancelled_while_committing(a.state, lambda: a.trust.invite(["127.0.0.1:1"]))
    assert a.trust.network is not None
    word = await a.trust.invite(["127.0.0.1:1"])
    invitation = b.trust.parse_invitation(word)
    chain = await a.trust.redeem(invitation.secret, b.identity.id, b.name)
    await cancelled_while_committing(b.state, lambda: b.trust.adopt(core.network_id(invitation.genesis), chain))
    assert b.trust.network == a.trust.network
    assert await b.trust.invite(["127.0.0.1:2"])


async def test_the_recovery_key_is_the_one_in_the_genesis(islands: list[Island]) -> None:
    a = islands[0]
    invitation = core.parse_invitation(await a.trust.invite(["h:1"]))
    public = bytes.fromhex(Identity.load(a.trust.recovery_path).id)
    genesis = codec.decode(invitation.genesis, Genesis)
    assert genesis.recovery == blake3.blake3(public).digest() and genesis.label == "test"


async def test_two_first_invitations_at_once_found_one_network(islands: list[Island]) -> None:
    words = await asyncio.gather(*(islands[0].trust.invite(["h:1"]) for _ in range(5)))
    assert len({core.parse_invitation(word).genesis for word in words}) == 1


async def test_only_the_hash_of_the_secret_is_on_disk(islands: list[Island]) -> None:
    a = islands[0]
    secret = core.parse_invitation(await a.trust.invite(["h:1"])).secret
    a.state.close()
    for file in a.home.iterdir():
        content = file.read_bytes()
        assert secret not in content and secret.hex().encode() not in content
    a.open()


async def test_redeeming_twice_is_the_same_admission_and_a_second_key_is_refused(islands: list[Island]) -> None:
    a, b, c = islands
    secret = core.parse_invitation(await a.trust.invite(["h:1"])).secret
    first = await a.trust.redeem(secret, b.identity.id, "b")
    assert await a.trust.redeem(secret, b.identity.id, "other-name") == first
    with pytest.raises(BadInput) as caught:
        await a.trust.redeem(secret, c.identity.id, "c")
    assert caught.value.code == "invitation_used_up"


async def test_racing_keys_do_not_share_one_use(islands: list[Island]) -> None:
    a = islands[0]
    secret = core.parse_invitation(await a.trust.invite(["h:1"], uses=3)).secret
    keys = [Identity.generate(SystemRng()).id for _ in range(10)]
    results = await asyncio.gather(*(a.trust.redeem(secret, key, "x") for key in keys), return_exceptions=True)
    assert sum(isinstance(result, bytes) for result in results) == 3
    assert {getattr(r, "code", "") for r in results if not isinstance(r, bytes)} == {"invitation_used_up"}


async def test_expiry_by_the_inviters_clock(islands: list[Island], clock: Wall) -> None:
    a, b, c = islands
    secret = core.parse_invitation(await a.trust.invite(["h:1"], uses=5, valid_s=60)).secret
    first = await a.trust.redeem(secret, b.identity.id, "b")
    clock.now += 61
    with pytest.raises(BadInput) as caught:
        await a.trust.redeem(secret, c.identity.id, "c")
    assert caught.value.code == "invitation_expired"
    assert await a.trust.redeem(secret, b.identity.id, "b") == first
    with pytest.raises(BadInput) as unknown:
        await a.trust.redeem(b"?" * 16, c.identity.id, "c")
    assert unknown.value.code == "invitation_unknown"


async def test_joining_a_second_network_is_refused(islands: list[Island]) -> None:
    a, b, c = islands
    await join(a, b, await a.trust.invite(["h:1"]))
    word = await c.trust.invite(["h:2"])
    with pytest.raises(Conflict, match="another archipelago"):
        await join(c, b, word)
    network = b.trust.network
    await join(a, b, await a.trust.invite(["h:1"]))  # its own again changes nothing
    assert b.trust.network == network


async def test_anothers_admission_is_not_adopted(islands: list[Island]) -> None:
    a, b, c = islands
    invitation = core.parse_invitation(await a.trust.invite(["h:1"]))
    chain = await a.trust.redeem(invitation.secret, b.identity.id, "b")
    with pytest.raises(PeerMisbehaved):
        await c.trust.adopt(core.network_id(invitation.genesis), chain)
    with pytest.raises(PeerMisbehaved):
        await b.trust.adopt(NetworkId("00" * 32), chain)
    assert b.trust.network is None and c.trust.network is None


async def test_all_of_it_survives_a_restart(islands: list[Island]) -> None:
    a, b, _ = islands
    word = await a.trust.invite(["h:1"])
    await join(a, b, word)
    before = (a.trust.network, a.trust.chain)
    a.state.close()
    a.open()
    await a.trust.load()
    assert (a.trust.network, a.trust.chain) == before
    secret = core.parse_invitation(word).secret
    assert await a.trust.redeem(secret, b.identity.id, "b") == b.trust.chain


async def test_a_state_of_another_key_is_refused_at_start(islands: list[Island]) -> None:
    a = islands[0]
    await a.trust.invite(["h:1"])
    other = Trust(a.state, Identity.generate(SystemRng()), "a", "test", a.clock, SystemRng())
    with pytest.raises(Conflict, match="does not belong to the key"):
        await other.load()


@pytest.mark.parametrize("change", [{"uses": 0}, {"uses": 10**9}, {"valid_s": 0}, {"valid_s": 1e12}])
async def test_silly_invitations_are_refused(islands: list[Island], change: dict[str, int]) -> None:
    with pytest.raises(BadInput):
        await islands[0].trust.invite(["h:1"], **change)  # type: ignore[arg-type]  # int for float, by parameter
    with pytest.raises(BadInput, match="has no peer port"):
        await islands[0].trust.invite([])
    assert islands[0].trust.network is None


async def test_it_is_all_in_the_journal_which_is_sealed(islands: list[Island]) -> None:
    a, b, _ = islands
    await join(a, b, await a.trust.invite(["h:1"]))
    rows = await a.state.read(journal.entries)
    assert [row.act for row in rows] == ["peer.found", "peer.invite", "peer.admit"]
    assert b.identity.id in rows[2].what and rows[0].who == "administrator@a"
    for island in (a, b):
        assert await island.state.read(partial(journal.verify_seal, me=island.identity.id)) == []
        assert await island.trust.verify_journal() == (3 if island is a else 1, [])


async def test_rows_are_sealed_in_their_commit_and_those_that_failed_are_not(islands: list[Island]) -> None:
    a = islands[0]
    await a.trust.invite(["h:1"])
    before = await a.state.read(journal.sealed_tip)

    def fails(conn: sqlite3.Connection) -> None:
        add(conn, "never")
        raise BadInput("changed my mind")

    results = await asyncio.gather(
        *(a.state.write(partial(add, what=f"act {n}")) for n in range(5)), a.state.write(fails), return_exceptions=True
    )
    assert [result for result in results if result is not None] == [results[5]]
    assert await a.trust.verify_journal() == (7, [])
    assert await a.state.read(journal.sealed_tip) == await a.state.read(journal.tip) != before


async def test_the_journal_is_verified_in_pages_and_by_one_caller_at_a_time(
    islands: list[Island], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = islands[0]
    await a.trust.invite(["h:1"])
    for _ in range(4):
        await a.trust.invite(["h:1"])
    assert (await a.trust.verify_journal())[1] == []
    pages: list[int] = []
    running = 0
    verify_rows = journal.verify_rows

    def counted(conn: sqlite3.Connection, after: journal.Tip | None, limit: int) -> journal.VerifiedRows:
        nonlocal running
        running += 1
        assert running == 1
        rows = verify_rows(conn, after, limit)
        pages.append(rows.last.seq)
        running -= 1
        return rows

    monkeypatch.setattr(service, "VERIFIED_AT_ONCE", 2)
    monkeypatch.setattr(journal, "verify_rows", counted)
    for _ in range(2):
        results = await asyncio.gather(*(a.trust.verify_journal() for _ in range(4)))
        assert results == [(6, [])] * 4
        assert pages == [2, 4, 6, 6] * 4
        pages.clear()
    await a.state.write(lambda conn: conn.execute("UPDATE journal SET who = 'x' WHERE seq IN (2, 3)").rowcount)
    assert (await a.trust.verify_journal())[1] == [
        f"row {number} was edited: its content does not match its hash" for number in (2, 3)
    ]
    await a.state.write(lambda conn: conn.execute("DELETE FROM journal WHERE seq IN (2, 3, 6)").rowcount)
    problems = (await a.trust.verify_journal())[1]
    assert problems[0] == "rows 2 to 3 are missing" and "rows 6 to 6 are missing at the end" in problems


async def test_a_commit_that_fails_leaves_the_sealer_with_what_is_on_disk(islands: list[Island]) -> None:
    a = islands[0]
    await a.trust.invite(["h:1"])
    sealing = a.state.before_commit
    assert sealing is not None

    def full(conn: sqlite3.Connection) -> None:
        sealing(conn)
        raise full_disk()

    a.state.before_commit = full
    with pytest.raises(Full):
        await a.state.write(partial(add, what="lost"))
    a.state.before_commit = sealing
    await a.state.write(partial(add, what="kept"))
    assert a.trust.sealer.problem == ""
    assert await a.trust.verify_journal() == (3, [])


@pytest.mark.parametrize(
    "tampering",
    [
        ("DELETE FROM journal_seal",),
        ("DELETE FROM journal WHERE seq = 3", "UPDATE journal_head SET (seq, hash) = (SELECT 2, hash FROM journal)"),
        ("DELETE FROM journal", "DELETE FROM journal_head"),
        ("DELETE FROM journal", "DELETE FROM journal_head", "DELETE FROM journal_seal"),
        ("UPDATE journal SET hash = randomblob(32) WHERE seq = 3",),
    ],
)
async def test_a_journal_that_is_changed_under_the_running_daemon_is_sealed_no_further(
    islands: list[Island], tampering: tuple[str, ...]
) -> None:
    a = islands[0]
    await a.trust.invite(["h:1"])
    await a.trust.invite(["h:1"])
    other = sqlite3.connect(a.home / "state.db", isolation_level=None)
    for statement in tampering:
        other.execute(statement)
    other.close()
    await a.state.write(partial(add, what="afterwards"))
    assert "while this daemon ran" in a.trust.sealer.problem
    assert (await a.trust.verify_journal())[1]
    await a.trust.load()  # as the next start does
    assert a.trust.sealer.problem and (await a.trust.verify_journal())[1]


def add(conn: sqlite3.Connection, what: str) -> None:
    journal.append(conn, at=1, who="x@a", act="test", what=what, outcome="done", detail={})
