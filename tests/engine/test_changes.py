"""Requests that wait for a change at the engine, without Spark."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from island.engine.rest_api import EngineApi
from island.errors import BadInput
from island.livy.client import LivyClient
from island.livy.messages import SessionRequest
from island.livy.rest import FULL
from tests.engine.test_one_session_fails import engine


async def test_a_change_is_answered_when_it_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        engine(tmp_path, monkeypatch) as service,
        TestServer(EngineApi(service, "token").app()) as server,
        LivyClient(f"http://127.0.0.1:{server.port}", "token") as client,
    ):
        opened = await client.create_session(SessionRequest(kind="pyspark", name="mine"))
        seen, known = opened, -1
        while seen.state != "idle":
            known = await client.changes(known, 30)
            seen = await client.session("mine")
        waiting = asyncio.ensure_future(client.changes(await client.changes(-1, 0), 30))
        statement = await client.post_statement("mine", "flat")
        assert await waiting > known
        state = statement.state
        while state not in ("available", "error"):
            state = (await client.changed_statement("mine", statement.id, state, 30)).state
        ended = await client.statement("mine", statement.id)
        assert ended.state == "available" and ended.output is not None
        assert (await client.changed_statement("mine", statement.id, "waiting", 30)).state == "available"
        for _ in range(3):
            await client.create_session(SessionRequest(kind="pyspark"))
        with pytest.raises(BadInput) as full:
            await client.create_session(SessionRequest(kind="pyspark"))
        assert full.value.code == FULL
