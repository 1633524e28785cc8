"""`/readyz` and `island status` report the same condition, in every state of the daemon."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from island import daemon as daemon_module
from island.cli.demo.demo_island import ISLAND
from island.daemon import Daemon, Part
from island.errors import Full
from island.jobs.engines import embedded_engine
from island.kernel.db import Database
from island.kernel.ports import SystemClock, SystemRng
from island.net.condition import Phase, State, decide
from tests.standins.faults import full_disk
from tests.standins.member import home, until


@pytest.mark.parametrize(
    ("phase", "fatal", "others", "state", "serves"),
    [
        ("starting", [], ["engine"], "starting", False),
        ("running", [], [], "ready", True),
        ("running", [], ["engine"], "degraded", True),
        ("running", ["disk"], ["engine"], "unavailable", False),
        ("stopping", ["disk"], [], "stopping", False),
    ],
)
def test_the_state(phase: Phase, fatal: list[str], others: list[str], state: State, serves: bool) -> None:
    found = decide(phase, fatal, others)
    assert (found.state, found.serves, found.problems) == (state, serves, (*fatal, *others))


class Asked(Daemon):
    """A daemon that is asked for its condition while it starts and while it stops."""

    def __init__(self, folder: Path, changes: dict[str, dict[str, Any]]) -> None:
        super().__init__(*home(folder, "here", changes), SystemClock(), SystemRng())
        self.states: list[str] = []

    def _parts(self) -> list[Part]:
        """Ask after the user port was bound, and before it is closed."""
        return [
            replace(part, start=lambda _: self.ask(), stop=self.ask) if part.name == "running.json" else part
            for part in super()._parts()
        ]

    async def get(self, path: str, token: str = "") -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with aiohttp.ClientSession(headers=headers) as client, client.get(self.server.url + path) as answer:
            return answer.status, await answer.json()

    async def metric(self, line: str) -> bool:
        """Whether the metrics have this line."""
        headers = {"Authorization": f"Bearer {self.home.user_token.read_text().strip()}"}
        url = f"{self.server.url}/metrics"
        async with aiohttp.ClientSession(headers=headers) as client, client.get(url) as answer:
            return line in (await answer.text()).splitlines()

    async def ask(self) -> str:
        """Compare the two answers, and return the state."""
        code, ready = await self.get("/readyz")
        _, status = await self.get("/api/v1/island", self.home.user_token.read_text().strip())
        assert list(ready) == ["status"]  # no details without a token
        assert ready["status"] == status["state"]
        assert (code == 200) == (status["state"] in {"ready", "degraded"})
        assert bool(status["problems"]) or status["state"] not in {"degraded", "unavailable"}
        self.states.append(status["state"])
        return str(status["state"])

    async def command(self) -> tuple[int, str]:
        """The exit code and the output of `island status`."""
        child = await asyncio.create_subprocess_exec(
            *ISLAND,
            "--url",
            self.server.url,
            "--token-file",
            str(self.home.token),
            "status",
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await child.communicate()
        return child.returncode or 0, out.decode()


async def fill(database: Database) -> None:
    def full(_: Any) -> None:
        raise full_disk()

    with pytest.raises(Full):
        await database.write(full)


async def test_status_and_readyz_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "TRY_SECONDS", 3600.0)
    daemon = Asked(tmp_path / "here", {"livy": {"embedded": True}})  # with the embedded engine
    async with daemon.tasks() as tasks:
        await daemon.start(tasks)
        await until(lambda: daemon.engine.running)
        assert await daemon.ask() == "ready"
        assert await daemon.metric('island_condition{state="ready"} 1.0')
        assert await daemon.metric('island_engine_running{engine="embedded"} 1.0')
        code, out = await daemon.command()
        assert code == 0 and "state         ready\n" in out

        with monkeypatch.context() as patch:
            # What is started in place of the engine never becomes ready, so the state does not change meanwhile.
            patch.setattr(embedded_engine, "module_command", lambda *_: ["cat"])
            engine = daemon.engine._process
            assert engine is not None
            engine.kill()
            await until(lambda: bool(daemon.engine.problem) and daemon.engine._process is not engine)
            assert await daemon.ask() == "degraded"
        cat = daemon.engine._process
        assert cat is not None
        cat.kill()
        await until(lambda: daemon.engine.running)
        assert await daemon.ask() == "ready"

        await fill(daemon.gossip_db)
        assert await daemon.ask() == "degraded"
        assert await daemon.metric('island_condition{state="degraded"} 1.0')
        await fill(daemon.state)
        assert await daemon.ask() == "unavailable"
        assert await daemon.metric('island_condition{state="unavailable"} 1.0')
        code, out = await daemon.command()
        assert code == 1 and "state         unavailable\n" in out and "state.db is full" in out
        await daemon._try_databases()
        assert await daemon.ask() == "ready"
    assert daemon.states[0] == "starting" and daemon.states[-1] == "stopping"
