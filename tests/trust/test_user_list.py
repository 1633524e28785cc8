"""Users are added, get new tokens, and are revoked; each change is stored, journaled and in force at once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from island.errors import BadInput, Conflict, Denied, Full, NotFound, Unauthenticated
from island.kernel.db import Database
from island.kernel.ports import SystemRng
from island.trust import journal
from island.trust.keys import Identity
from island.trust.service import Trust
from island.trust.user_list import UserList
from island.trust.users import Principal, Tokens, token_hash
from tests.standins.faults import full_disk
from tests.trust.test_users import DAY, Clocks, accepted

ROOT, ALICE = Principal("administrator", "administrator"), Principal("user", "alice")


class Place:
    """The users of one island, in a folder that survives a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.identity = folder, Clocks(), Identity.generate(SystemRng())

    async def open(self) -> None:
        self.state = Database.open(self.folder, "state")
        trust = Trust(self.state, self.identity, "kiso", "test", self.clock, SystemRng())
        await trust.load()
        self.tokens = Tokens({"administrator": "root"}, self.clock)
        self.users = UserList(self.state, self.tokens, trust, self.clock, SystemRng())
        await self.users.load()

    async def restart(self) -> None:
        self.state.close()
        await self.open()

    async def journal(self) -> list[tuple[str, str, str]]:
        rows = await self.state.read(journal.entries)
        return [(row.who, row.act, row.what) for row in rows]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    await made.open()
    yield made
    made.state.close()


async def test_a_token_is_valid_from_add_to_revoke_and_across_restarts(place: Place) -> None:
    added = await place.users.add(ROOT, "alice", "user")
    assert added.token.startswith("isl_u_") and added.user.token_hash == token_hash(added.token)
    assert place.tokens.principal(added.token) == ALICE
    await place.restart()
    assert place.tokens.principal(added.token) == ALICE
    assert (await place.users.revoke(ROOT, "alice")).state(place.clock.now) == "revoked"
    assert not accepted(place.tokens, added.token)
    await place.restart()
    assert not accepted(place.tokens, added.token)
    await place.users.revoke(ROOT, "alice")  # no effect, and no further row of the journal
    who = "administrator@kiso"
    assert await place.journal() == [(who, "user.add", "alice"), (who, "user.revoke", "alice")]


async def test_only_hashes_are_stored(place: Place) -> None:
    added = await place.users.add(ROOT, "carol", "administrator", valid_s=DAY)
    rotated = await place.users.rotate(ROOT, "carol")
    place.state.close()
    content = b"".join(path.read_bytes() for path in place.folder.iterdir())
    assert b"carol" in content
    for token in (added.token, rotated.token):
        assert token.encode() not in content and token[6:].encode() not in content
    await place.open()


async def test_a_new_token_replaces_the_old_one_at_once(place: Place) -> None:
    first = await place.users.add(ROOT, "alice", "user", valid_s=DAY)
    place.clock.pass_time(DAY / 2)
    second = await place.users.rotate(ROOT, "alice")
    assert not accepted(place.tokens, first.token) and accepted(place.tokens, second.token)
    assert second.user.expires == first.user.expires, "a new token is valid as long as the old one was"
    assert (await place.users.rotate(ROOT, "alice", 0.0)).user.expires is None
    assert (await place.users.rotate(ROOT, "alice", 5 * DAY)).user.expires == place.clock.now + 5 * DAY


async def test_a_revoked_user_comes_back_under_her_name_and_nobody_else_gets_it(place: Place) -> None:
    first = await place.users.add(ROOT, "alice", "user")
    await place.users.revoke(ROOT, "alice")
    with pytest.raises(Conflict, match="revoked"):
        await place.users.add(ROOT, "alice", "user")
    with pytest.raises(BadInput, match="revoked"):
        await place.users.rotate(ROOT, "alice")
    second = await place.users.rotate(ROOT, "alice", 0.0)
    assert accepted(place.tokens, second.token) and not accepted(place.tokens, first.token)
    assert second.user.created == first.user.created


async def test_an_expired_token_needs_a_new_time(place: Place) -> None:
    added = await place.users.add(ROOT, "alice", "user", valid_s=DAY)
    place.clock.pass_time(DAY)
    assert not accepted(place.tokens, added.token)
    with pytest.raises(BadInput, match="has expired"):
        await place.users.rotate(ROOT, "alice")
    assert accepted(place.tokens, (await place.users.rotate(ROOT, "alice", DAY)).token)


async def test_a_user_manages_her_own_token_and_sees_nobody_else(place: Place) -> None:
    for name in ("alice", "bob"):
        await place.users.add(ROOT, name, "user", valid_s=DAY)
    assert [user.name for user in await place.users.visible(ROOT)] == ["alice", "bob"]
    assert [user.name for user in await place.users.visible(ALICE)] == ["alice"]
    assert (await place.users.show(ALICE, "alice")).name == "alice"
    refusals = set()
    for name in ("bob", "nobody"):
        for call in (place.users.show, place.users.rotate, place.users.revoke):
            with pytest.raises(NotFound) as error:
                await call(ALICE, name)
            refusals.add(error.value.message.replace(name, "NAME"))
    assert len(refusals) == 1, "the answer does not say whether there is such a user"
    with pytest.raises(Denied):
        await place.users.rotate(ALICE, "alice", 100 * DAY)
    mine = await place.users.rotate(ALICE, "alice")
    assert mine.user.role == "user" and accepted(place.tokens, mine.token)
    await place.users.revoke(ALICE, "alice")
    assert not accepted(place.tokens, mine.token)


async def test_what_cannot_be_added(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    await place.users.add(ROOT, "alice", "user")
    with pytest.raises(Conflict, match="there is a user alice already"):
        await place.users.add(ROOT, "alice", "user")
    for seconds in (-1.0, 0.5, 1e12, float("nan"), float("inf")):
        with pytest.raises(BadInput, match="3660 days"):
            await place.users.add(ROOT, "bob", "user", seconds)
    with pytest.raises(BadInput, match="reserved"):
        await place.users.add(ROOT, "administrator", "user")
    monkeypatch.setattr("island.trust.user_list.MAX_USERS", 1)
    with pytest.raises(Full):
        await place.users.add(ROOT, "bob", "user")
    assert [act for _, act, _ in await place.journal()] == ["user.add"]


async def test_a_change_that_cannot_be_stored_is_not_in_force(place: Place) -> None:
    added = await place.users.add(ROOT, "alice", "user")

    def full(_: sqlite3.Connection) -> None:
        raise full_disk()

    place.state.before_commit = full
    with pytest.raises(Full):
        await place.users.rotate(ROOT, "alice")
    assert place.tokens.principal(added.token) == ALICE
    with pytest.raises(Unauthenticated):
        place.tokens.principal("")


async def test_the_journal_names_role_and_end_but_no_token(place: Place) -> None:
    added = await place.users.add(ROOT, "carol", "administrator", valid_s=DAY)
    [row] = await place.state.read(journal.entries)
    assert row.detail == {"role": "administrator", "expires": place.clock.now + DAY}
    assert added.token[6:] not in json.dumps(row.detail)
