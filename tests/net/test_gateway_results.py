"""Large results through the gateway: whole after one hop, and without a pause for other clients."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from island.livy.client import LivyClient
from tests.islands.user_port import Site, played_livy, site

OPEN = {"accept_from": ["members"], "foreign_code": "any", "same_user": True}
SIZES = {"rows 80 2500": 0.2e6, "rows 880 2500": 2.2e6, "rows 1000 20000": 20e6}
"""Statements, with the sizes in bytes of their results."""


async def linked(first: Site, second: Site) -> None:
    await first.peers.join(await second.trust.invite(second.peers.local_addresses()))
    async with asyncio.timeout(60):
        while not (first.peers.links() and all(view.name for view in first.membership.views())):
            await asyncio.sleep(0.01)


async def test_results_of_all_sizes_are_whole_after_one_hop(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        livy = LivyClient(await enter(played_livy()))
        there = await enter(site(tmp_path / "there", "there", livy, {"jobs": OPEN}))
        home = await enter(site(tmp_path / "home", "home"))
        await linked(home, there)
        client = await enter(
            aiohttp.ClientSession(home.server.url, headers={"Authorization": f"Bearer {home.token()}"})
        )

        async def get(path: str) -> Any:
            async with client.get(path) as answer:
                assert answer.status == 200, await answer.text()
                return json.loads(await answer.read())

        async with client.post("/sessions", json={"kind": "pyspark"}) as answer:
            assert answer.status == 201
        async with asyncio.timeout(120):
            while (await get("/sessions/0/state"))["state"] != "idle":
                await asyncio.sleep(0.01)
            for number, (code, size) in enumerate(SIZES.items()):
                async with client.post("/sessions/0/statements", json={"code": code}) as answer:
                    assert answer.status == 201
                while (found := await get(f"/sessions/0/statements/{number}"))["state"] != "available":
                    await asyncio.sleep(0.01)
                rows = found["output"]["data"]["application/json"]["data"]
                count, length = map(int, code.split()[1:])
                assert len(rows) == count and all(len(text) == length for [text] in rows), code
                assert rows[-1][0].startswith(f"{count - 1:08d}") and len(json.dumps(rows)) > size
        # The list has all of them; the operator's list refers to the large ones.
        whole = (await get("/sessions/0/statements"))["statements"]
        assert [len(each["output"]["data"]["application/json"]["data"]) for each in whole] == [80, 880, 1000]
        listed = await get("/api/v1/jobs/0/statements")
        assert [each["result"] is None for each in listed] == [False, False, False]
        assert all(each["output"] is None for each in listed)
        assert await get("/api/v1/jobs/0/statements/2/result") == whole[2]["output"]
        assert (await get("/api/v1/jobs/0/statements/2"))["output"] == whole[2]["output"]
