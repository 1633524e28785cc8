"""A journal that was cut behind the daemon's back: what one island finds by itself, with nobody to ask."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from island.home import Home
from island.kernel.db import Database
from island.kernel.ports import SystemClock, SystemRng
from island.trust.keys import Identity
from island.trust.service import Trust
from tests.servers.daemon import island_command

HEAD_FITTED = "UPDATE journal_head SET (seq, hash) = (SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1)"


class Site:
    """A home made by `island init`, whose journal is written by `Trust` and changed by somebody with sqlite3."""

    def __init__(self, home: Path) -> None:
        self.home = home

    async def opened(self) -> Trust:
        self.state = Database.open(self.home, "state")
        identity = Identity.load(self.home / "key")
        trust = Trust(self.state, identity, "kiso", "test", SystemClock(), SystemRng())
        await trust.load()
        return trust

    async def act(self, times: int) -> None:
        """Invite `times` times, each a row of the journal, and stop."""
        trust = await self.opened()
        for _ in range(times):
            await trust.invite(["127.0.0.1:1"])
        self.state.close()

    def tamper(self, *statements: str) -> None:
        conn = sqlite3.connect(self.home / "state.db", isolation_level=None)
        for statement in statements:
            conn.execute(statement)
        conn.close()

    def seal(self) -> tuple[object, ...]:
        conn = sqlite3.connect(self.home / "state.db")
        row: tuple[object, ...] = conn.execute("SELECT * FROM journal_seal").fetchone()
        conn.close()
        return row

    def put_seal(self, row: tuple[object, ...]) -> None:
        conn = sqlite3.connect(self.home / "state.db", isolation_level=None)
        conn.execute("INSERT OR REPLACE INTO journal_seal VALUES (?, ?, ?, ?, ?)", row)
        conn.close()

    async def problems(self) -> list[str]:
        """What is wrong with the journal, as the next start of the daemon finds it."""
        trust = await self.opened()
        try:
            return (await trust.verify_journal())[1]
        finally:
            self.state.close()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    assert island_command("init", str(tmp_path / "home"), "--name", "kiso").returncode == 0
    return Site(Home(tmp_path / "home").path)


def _tail_and_seal_deleted(site: Site, old: tuple[object, ...]) -> None:
    site.tamper("DELETE FROM journal WHERE seq > 3", HEAD_FITTED, "DELETE FROM journal_seal")


def _seal_deleted(site: Site, old: tuple[object, ...]) -> None:
    site.tamper("DELETE FROM journal_seal")


def _older_seal(site: Site, old: tuple[object, ...]) -> None:
    site.put_seal(old)


def _emptied(site: Site, old: tuple[object, ...]) -> None:
    site.tamper("DELETE FROM journal", "DELETE FROM journal_head", "DELETE FROM journal_seal")


def _tail_cut_above_an_older_seal(site: Site, old: tuple[object, ...]) -> None:
    site.put_seal(old)
    site.tamper("DELETE FROM journal WHERE seq > 4", HEAD_FITTED)


@pytest.mark.parametrize(
    "cut", [_tail_and_seal_deleted, _seal_deleted, _older_seal, _emptied, _tail_cut_above_an_older_seal]
)
async def test_a_journal_that_was_cut_while_the_daemon_was_down(
    site: Site, cut: Callable[[Site, tuple[object, ...]], None]
) -> None:
    await site.act(2)
    assert await site.problems() == []
    old = site.seal()
    await site.act(3)
    assert await site.problems() == []
    cut(site, old)
    assert await site.problems() != []
    await site.act(2)  # and what is done afterwards does not hide it
    assert await site.problems() != []
