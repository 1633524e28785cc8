"""Users' tokens at the user port of a running daemon: at once in force, at once revoked, and the shared token off."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import aiohttp

from island.daemon import Daemon
from island.trust.users import Principal
from tests.islands.user_port import played_livy
from tests.standins.member import victim

ROOT = Principal("administrator", "administrator")


async def ask(
    client: aiohttp.ClientSession, daemon: Daemon, token: str, path: str = "/api/v1/user", body: Any = None
) -> tuple[int, Any]:
    """Status and JSON of a request; a GET without a body."""
    headers = {"Authorization": f"Bearer {token}"}
    method = "GET" if body is None else "POST"
    async with client.request(method, daemon.server.url + path, json=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_a_token_is_refused_at_once_on_a_connection_that_is_open(tmp_path: Path) -> None:
    one = aiohttp.TCPConnector(limit=1)
    async with victim(tmp_path) as daemon, aiohttp.ClientSession(connector=one) as client:
        made = await daemon.users.add(ROOT, "alice", "user")
        assert (await ask(client, daemon, made.token))[1]["name"] == "alice"
        rotated = await daemon.users.rotate(ROOT, "alice")
        assert (await ask(client, daemon, made.token))[0] == 401
        assert (await ask(client, daemon, rotated.token))[0] == 200
        await daemon.users.revoke(ROOT, "alice")
        status, refused = await ask(client, daemon, rotated.token)
        assert status == 401
        assert refused == (await ask(client, daemon, "isl_u_" + "A" * 32))[1], "as for a token that never was"
        assert refused == (await ask(client, daemon, "alice"))[1]
        assert len(one._conns) == 1


async def test_the_user_name_of_http_basic_decides_nothing(tmp_path: Path) -> None:
    async with victim(tmp_path) as daemon, aiohttp.ClientSession() as client:
        token = (await daemon.users.add(ROOT, "alice", "user")).token
        url = f"{daemon.server.url}/api/v1/user"

        async def basic(name: str, password: str) -> tuple[int, Any]:
            code = base64.b64encode(f"{name}:{password}".encode()).decode()
            async with client.get(url, headers={"Authorization": f"Basic {code}"}) as answer:
                return answer.status, await answer.json()

        for name in ("alice", "bob", "administrator", ""):
            assert (await basic(name, token))[1]["name"] == "alice"
        refusals = [await basic(name, "wrong") for name in ("alice", "bob", "administrator", "")]
        assert all(each == refusals[0] and each[0] == 401 for each in refusals)


async def test_the_shared_token_can_be_turned_off(tmp_path: Path) -> None:
    async with victim(tmp_path, {"users": {"shared_token": False}}) as daemon, aiohttp.ClientSession() as client:
        shared, root = (path.read_text().strip() for path in (daemon.home.user_token, daemon.home.token))
        assert (await ask(client, daemon, shared))[0] == 401
        assert (await ask(client, daemon, root))[1]["role"] == "administrator"
        made = await daemon.users.add(ROOT, "alice", "user")
        assert (await ask(client, daemon, made.token))[0] == 200


async def test_the_quota_of_a_user_is_refused_as_livy_refuses(tmp_path: Path) -> None:
    limits = {"max_live_per_user": 1, "max_live_of": {"bob": 2}}
    async with (
        played_livy() as livy,
        victim(tmp_path, {"jobs": limits, "livy": {"url": livy}}) as daemon,
        aiohttp.ClientSession() as client,
    ):
        for name, limit in (("alice", 1), ("bob", 2)):
            token = (await daemon.users.add(ROOT, name, "user")).token
            assert (await ask(client, daemon, token))[1]["max_live"] == limit
            for _ in range(limit):
                assert (await ask(client, daemon, token, "/sessions", {"kind": "sql"}))[0] == 201
            for path, body in (("/sessions", {"kind": "sql"}), ("/api/v1/sessions", {"kind": "sql"})):
                status, refused = await ask(client, daemon, token, path, body)
                said = refused["msg" if path == "/sessions" else "message"]
                assert status == 400 and said.startswith(f"Rejected, Reason: {limit} sessions and batches of {name} ")
                assert path == "/sessions" or "island job ls" in refused["hint"]
