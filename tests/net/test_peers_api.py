"""The operations and commands on islands and the journal, over the services themselves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from island.gossip.service import Gossip
from island.kernel.db import Database
from island.kernel.loops import Tasks
from island.kernel.ports import SystemRng
from island.membership.service import Membership
from island.net.api import journal, peers, status
from island.net.api.user_port import UserServer, build
from island.net.condition import Condition, decide
from island.trust.heads import STORE_EVERY_S, JournalHeads
from island.trust.store import held_heads
from island.trust.users import TOKEN_FILES, Tokens, create_tokens, read_token
from tests.islands.sessions import Node
from tests.servers.daemon import island_command


class Site:
    """One island with its user port."""

    def __init__(self, home: Path, name: str, listen: str = "127.0.0.1:0") -> None:
        self.home, self.node = home, Node(home, name, listen=listen)
        node = self.node
        self.gossip_db = Database.open(home, "gossip")
        gossip = Gossip(node.state, self.gossip_db, node.trust, node.peers, node.clock, node.rng)
        self.gossip = gossip
        self.membership = Membership(node.state, self.gossip_db, gossip, node.trust, node.peers, node.clock, node.rng)
        self.heads = JournalHeads(node.state, node.trust, node.peers, node.clock, node.rng)
        create_tokens(home, SystemRng())
        routes = [
            *peers.routes(node.peers, self.membership, node.trust),
            *journal.routes(node.trust, self.heads, self.membership.display),
        ]
        routes += status.routes(dict, lambda: decide("running", (), self.heads.problems(self.membership.display)))
        self.server = UserServer(build(Tokens.load(home), routes, Condition), "127.0.0.1:0")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Site]:
        class Stop(Exception):
            pass

        try:
            async with self.node.running(), asyncio.TaskGroup() as group:
                tasks = Tasks(group)
                await self.heads.start(tasks)
                await self.gossip.start(tasks)
                await self.membership.start(tasks)
                await self.membership.announce(self.node.peers.local_addresses())
                await self.server.start()
                try:
                    yield self
                finally:
                    await self.server.stop()
                raise Stop
        except* Stop:
            pass
        finally:
            self.gossip_db.close()

    async def command(self, *arguments: str, role: Any = "administrator", stdin: str = "") -> tuple[int, str, str]:
        """Run `island` against this site: exit code, stdout, stderr."""
        token = self.home / TOKEN_FILES[role]
        place = ("--url", self.server.url, "--token-file", str(token))
        done = await asyncio.to_thread(island_command, *arguments, *place, stdin=stdin)
        return done.returncode, done.stdout, done.stderr

    async def json(self, *arguments: str) -> Any:
        code, out, err = await self.command(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)


@contextlib.asynccontextmanager
async def sites(folder: Path) -> AsyncIterator[tuple[Site, Site]]:
    """One that listens, and a laptop that only dials out."""
    async with Site(folder / "a", "lapalma").running() as one, Site(folder / "b", "laptop", "").running() as two:
        yield one, two


async def test_invite_join_list(tmp_path: Path) -> None:
    async with sites(tmp_path) as (one, two):
        code, out, err = await one.command("peer", "invite")
        assert code == 0 and out.endswith("\n") and len(out.split()) == 1 and out.startswith("island1-")
        assert "this machine" in err and "recovery.key" in err
        code, out, err = await two.command("peer", "join", "-", stdin=out)
        assert (code, out) == (0, "") and "lapalma" in err
        async with asyncio.timeout(60):
            while {(row["island"], row["state"]) for row in await one.json("peer", "ls")} != {
                ("lapalma", "self"),
                ("laptop", "up"),
            }:
                await asyncio.sleep(0.05)
        rows = {row["island"]: row for row in await two.json("peer", "ls")}
        assert rows["lapalma"]["dialled"] is True and rows["lapalma"]["address"] == one.node.address
        assert rows["lapalma"]["rtt_ms"] > 0 and rows["lapalma"]["key"] == one.node.id
        assert all(not isinstance(value, (dict, list)) for row in rows.values() for value in row.values())


async def test_what_cannot_be_is_refused_with_what_to_do(tmp_path: Path) -> None:
    async with sites(tmp_path) as (one, two):
        for arguments, words in (
            (("peer", "join", "island1-nonsense"), "new invitation"),
            (("peer", "join", ""), "invitation"),
            (("peer", "invite"), "listen.peer"),  # the laptop cannot be dialled
            (("journal", "--since", "soon"), "2026-11-20"),
        ):
            code, out, err = await two.command(*arguments)
            assert (code, out) == (1, "") and words in err
        for arguments in (("peer", "invite"), ("peer", "join", "island1-x")):
            code, _, err = await one.command(*arguments, role="user")
            assert code == 1 and "administrator" in err
        assert (await one.command("peer", "ls", role="user"))[0] == 0
        assert (await one.command("peer", "invite", "--uses", "0"))[0] == 2


async def test_the_journal_is_read_and_verified(tmp_path: Path) -> None:
    async with sites(tmp_path) as (one, _):
        await one.node.trust.invite(["h:1"])
        rows = await one.json("journal")
        assert [row["act"] for row in rows] == ["peer.found", "peer.invite"]
        assert all(row["island"] == "lapalma" and row["at"].endswith("Z") for row in rows)
        assert len(await one.json("journal", "--contains", "found", "--since", "1h")) == 1
        assert (await one.json("journal", "--verify"))["whole"] is True
        await one.node.state.write(
            lambda conn: conn.execute("UPDATE journal SET who = 'nobody' WHERE seq = 1").rowcount
        )
        code, _, err = await one.command("journal", "--verify")
        assert code == 1 and "row 1 was edited" in err


def saved(state: Database, path: Path) -> None:
    """A backup of state.db."""
    path.unlink(missing_ok=True)
    copy = sqlite3.connect(path)
    state._writer.backup(copy)
    copy.close()


async def test_a_journal_that_is_shorter_than_others_know_is_seen_on_both_sides(tmp_path: Path) -> None:
    async with sites(tmp_path) as (one, two):
        _, word, _ = await one.command("peer", "invite")
        code, _, err = await one.command("journal", "--verify")
        assert code == 0 and "no other island is linked" in err
        saved(one.node.state, tmp_path / "backup.db")
        assert (await two.command("peer", "join", stdin=word))[0] == 0
        async with asyncio.timeout(60):
            while one.node.id not in await two.node.state.read(held_heads):
                await asyncio.sleep(0.05)
        code, _, err = await one.command("journal", "--verify")
        assert code == 0 and "1 of 1 linked islands answered and were compared" in err
        assert (await one.json("journal", "--verify"))["answered"] == 1
        for site in (one, two):
            assert (await site.command("status"))[0] == 0

        backup = sqlite3.connect(tmp_path / "backup.db")
        backup.backup(one.node.state._writer)
        backup.close()
        await one.node.trust.load()  # as the next start does: nothing is wrong with this file itself
        assert await one.node.trust.verify_journal() == (2, [])
        await asyncio.sleep(STORE_EVERY_S)  # what one island causes to be stored is that far apart
        code, _, err = await one.command("journal", "--verify")
        assert code == 1 and "contradicts this journal at laptop" in err and "--acknowledge" in err
        code, out, _ = await one.command("status")
        assert code == 1 and "which this island signed and sent to laptop" in out
        code, out, _ = await two.command("status")
        assert code == 1 and "the journal of lapalma does not continue row" in out

        assert (await one.command("journal", "--acknowledge", "x", role="user"))[0] == 1
        code, _, err = await one.command("journal", "--acknowledge", " ")
        assert code == 2 and "needs a reason" in err
        assert (await one.command("journal", "--acknowledge", "restored the backup of Monday"))[0] == 0
        await asyncio.sleep(STORE_EVERY_S)
        code, _, err = await one.command("journal", "--verify")
        assert code == 0, err
        for site in (one, two):
            code, out, _ = await site.command("status")
            assert code == 0, out
        [row] = await one.json("journal", "--contains", "journal.acknowledge")
        assert row["what"] == "restored the backup of Monday" and "has row 3" in row["detail"]
        code, _, err = await one.command("journal", "--acknowledge", "again")
        assert code == 1 and "agrees" in err


async def test_bodies_and_queries_are_checked(tmp_path: Path) -> None:
    async with sites(tmp_path) as (one, _), aiohttp.ClientSession() as client:
        headers = {"Authorization": f"Bearer {read_token(one.home / 'token')}"}
        for path, body in (
            ("/api/v1/peers/invitations", {"uses": 0}),
            ("/api/v1/peers/invitations", {"uses": "1"}),
            ("/api/v1/peers/invitations", {"valid_s": 1e12}),
            ("/api/v1/peers/invitations", {"unknown": 1}),
            ("/api/v1/peers/join", {}),
            ("/api/v1/peers/join", {"invitation": "x" * 20_000}),
        ):
            async with client.post(one.server.url + path, json=body, headers=headers) as answer:
                assert answer.status == 400, (path, body)
        for query in ("limit=0", "limit=x", "limit=99999999999", "since=%00"):
            async with client.get(f"{one.server.url}/api/v1/journal?{query}", headers=headers) as answer:
                assert answer.status == 400, query


async def test_the_invitation_is_read_from_stdin_or_asked_for(tmp_path: Path) -> None:
    async with sites(tmp_path) as (one, two):
        word = (await one.command("peer", "invite"))[1]
        code, _, err = await two.command("peer", "join", "island1-visible")
        assert code == 1 and "process list" in err
        code, _, err = await two.command("peer", "join", stdin="")
        assert code == 1 and "invitation" in err and "process list" not in err

        # In a terminal: asked for, and what is typed is not shown.
        primary, secondary = pty.openpty()
        token = two.home / TOKEN_FILES["administrator"]
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "island.cli.main",
            "peer", "join", "--url", two.server.url, "--token-file", str(token),
            stdin=secondary, stdout=secondary, stderr=secondary, start_new_session=True,
        )  # fmt: skip
        os.close(secondary)
        shown, asked = b"", False
        while True:
            try:
                part = await asyncio.to_thread(os.read, primary, 4096)
            except OSError:  # the terminal is closed: the command has ended
                break
            if not part:
                break
            shown += part
            if b"Invitation" in shown and not asked:
                asked = True
                os.write(primary, word.encode())
        os.close(primary)
        assert await child.wait() == 0, shown
        assert b"linked with lapalma" in shown and word.strip().encode() not in shown
