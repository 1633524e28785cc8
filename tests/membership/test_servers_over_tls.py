"""`island server` and its operations: two islands over real sessions, commands as processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from island.net.api import peers, servers
from island.net.api.user_port import UserServer, build
from island.net.condition import Condition
from island.trust.users import Tokens
from tests.net.test_peers_api import Site


class Listed(Site):
    """A site with the operations on servers."""

    def __init__(self, home: Path, name: str, listen: str = "127.0.0.1:0") -> None:
        super().__init__(home, name, listen)
        routes = [*peers.routes(self.node.peers, self.membership, self.node.trust), *servers.routes(self.membership)]
        self.server = UserServer(build(Tokens.load(home), routes, Condition), "127.0.0.1:0")


async def test_servers_are_listed_everywhere_and_changed_by_their_island(tmp_path: Path) -> None:
    async with (
        Listed(tmp_path / "a", "lapalma").running() as one,
        Listed(tmp_path / "b", "laptop", "").running() as two,
    ):
        await one.membership.set_own_livys({"livy": ("http://127.0.0.1:8990", "Livy of this island")})
        word = await one.node.trust.invite(one.node.peers.local_addresses())
        await two.node.peers.join(word)
        code, out, err = await one.command("server", "add", "hdfs", "hdfs://nn:8020", "--comment", "the namenode")
        assert code == 0, err
        server = out.strip()
        async with asyncio.timeout(60):
            while len(rows := await two.json("server", "ls")) != 2:
                await asyncio.sleep(0.05)
        assert rows == [
            {
                "island": "lapalma",
                "key": one.node.id,
                "id": server,
                "kind": "hdfs",
                "url": "hdfs://nn:8020",
                "comment": "the namenode",
                "mine": False,
            },
            {
                "island": "lapalma",
                "key": one.node.id,
                "id": "livy",
                "kind": "livy",
                "url": "http://127.0.0.1:8990",
                "comment": "Livy of this island",
                "mine": False,
            },
        ]
        for site, arguments, role, words in (
            (two, ("rm", server), "administrator", "has no server with the id"),
            (one, ("rm", "livy"), "administrator", "always listed"),
            (one, ("rm", server), "user", "administrator"),
            (one, ("add", "livi", "http://h"), "administrator", "Did you mean livy?"),
            (one, ("add", "livy", "http://me:secret@h"), "administrator", "user name or password"),
            (one, ("add", "livy", "javascript:alert(1)"), "administrator", "http"),
            (one, ("add", "hdfs", "hdfs://nn:8020"), "administrator", "already"),
        ):
            code, out, err = await site.command("server", *arguments, role=role)
            assert (code, out) == (1, "")
            assert words in err
        code, _, err = await one.command("server", "rm", server)
        assert code == 0, err
        assert [row["id"] for row in await one.json("server", "ls")] == ["livy"]
