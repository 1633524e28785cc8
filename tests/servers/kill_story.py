"""Real daemons of a home and an executor, and a Livy, that are killed with SIGKILL while clients use the home."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp

from island.cli.demo.demo_island import free_ports, wait_for
from island.livy.messages import SESSION_ENDED, STATEMENT_ENDED
from tests.servers.daemon import ServedIsland
from tests.standins.livy_process import STRANGER, LivyProcess

CLIENTS = 3
PATIENCE_S = 120.0
"""Seconds within which everything ends once nothing is killed any more."""


class KillStory:
    """One home without an engine, one executor with a Livy, and clients who insist."""

    def __init__(self, root: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.home, self.executor = ServedIsland(root, "home", dialled=False), ServedIsland(root, "exec")
        for key, value in (("accept_from", '["members"]'), ("foreign_code", '"any"'), ("same_user", "true")):
            self.executor.configure(key, value)
        self.livy = LivyProcess(root / "livy", free_ports(1)[0])
        with (self.executor.home / "island.toml").open("a") as file:
            file.write(f'[[engine]]\nname = "played"\nurl = "{self.livy.url}"\nmax_sessions = 3\n')
        self.kills: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.jobs: list[int] = []
        self.accepted: dict[int, dict[int, str]] = {}
        """The statements of each session that were accepted: number and code."""
        self._over = False
        self._count = 0

    def start(self) -> None:
        """Start everything, and link the islands."""
        self.livy.start()
        self.executor.start()
        self.home.start()
        self.home.command("peer", "join", stdin=self.executor.command("peer", "invite"))

    def stop(self) -> None:
        """End everything."""
        for each in (self.home, self.executor):
            each.stop()
        self.livy.kill()

    async def run(self, kills: int) -> None:
        """Kill the parts one after the other while clients use the home, then check what is left."""
        token = self.home.home_endpoint().token
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.ClientSession(self.home.url, headers=headers) as self._http, asyncio.TaskGroup() as group:
            clients = [group.create_task(self._client()) for _ in range(CLIENTS)]
            for _ in range(kills):
                await asyncio.sleep(1.5 * self.rng.random())
                name = self.rng.choice(["home", "executor", "livy"])
                self.kills[name] += 1
                part: ServedIsland | LivyProcess = getattr(self, name)
                part.kill()
                await asyncio.to_thread(part.start)
            self._over = True
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.wait(clients)
                await self._ended()
        await asyncio.to_thread(wait_for, "the jobs to be cleared", self._cleared, PATIENCE_S)
        self._check_engine()

    # --- clients ------------------------------------------------------------------------------------

    async def _client(self) -> None:
        while not self._over:
            self._count += 1
            name = f"job{self._count}"
            await (self._batch(name) if self._count % 4 == 0 else self._session(name))

    async def _call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any] | None:
        """Send a request. None without an answer."""
        try:
            async with self._http.request(method, path, json=body, headers=headers) as answer:
                status, found = answer.status, await answer.read()
        except (aiohttp.ClientError, OSError):
            await asyncio.sleep(0.1)
            return None
        return status, json.loads(found)

    async def _insist(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Repeat a request, which may be repeated, until it is answered."""
        while (answer := await self._call(method, path, body, **headers)) is None or answer[0] >= 500:
            pass
        assert answer[0] < 300, (method, path, answer)
        return answer[1]

    async def _session(self, name: str) -> None:
        """Open a session, run statements in it, and close it; sometimes before they have ended."""
        body = {"kind": "pyspark", "name": name}
        number = int((await self._insist("POST", "/sessions", body, **{"Idempotency-Key": name}))["id"])
        self.jobs.append(number)
        self.accepted[number] = {}
        for place in range(self.rng.randrange(4)):
            await asyncio.sleep(0.5 * self.rng.random())
            if not await self._post(number, f"{name}-{place}"):
                break
        if self.rng.random() < 0.8:
            for place in list(self.accepted[number]):
                await self._until(f"/sessions/{number}/statements/{place}", STATEMENT_ENDED)
        await self._insist("POST", f"/api/v1/jobs/{number}/cancel")

    async def _post(self, session: int, code: str) -> bool:
        """Post a statement once. Returns whether it was accepted; not if the session has ended."""
        while True:
            known = (await self._insist("GET", f"/sessions/{session}/statements?size=100"))["statements"]
            arrived = [each for each in known if each["code"] == code]
            if not arrived:
                answer = await self._call("POST", f"/sessions/{session}/statements", {"code": code})
                if answer is None:
                    continue
                if answer[0] != 201:
                    return False
                arrived = [answer[1]]
            self.accepted[session][arrived[0]["id"]] = code
            return True

    async def _batch(self, name: str) -> None:
        answer = None
        while answer is None:
            try:
                headers = {"Idempotency-Key": name}
                async with self._http.post("/api/v1/batches?file=x.py", data=name.encode(), headers=headers) as reply:
                    assert reply.status == 201, await reply.text()
                    answer = await reply.json()
            except (aiohttp.ClientError, OSError):
                await asyncio.sleep(0.1)
        self.jobs.append(int(answer["id"]))
        await self._until(f"/api/v1/jobs/{answer['id']}", SESSION_ENDED | {"success"})

    async def _until(self, path: str, states: frozenset[str]) -> None:
        while (await self._insist("GET", path))["state"] not in states:
            await asyncio.sleep(0.05)

    # --- what must be true --------------------------------------------------------------------------

    async def _ended(self) -> None:
        """Wait for the end of every job, and check what the clients were told."""
        ran = Counter(self.livy.ran())
        for number in self.jobs:
            await self._until(f"/api/v1/jobs/{number}", SESSION_ENDED | {"success"})
            job = await self._insist("GET", f"/api/v1/jobs/{number}")
            assert job["reason"] or job["state"] == "success", job
            self.outcomes[f"{job['kind']} {job['state']}"] += 1
            if number not in self.accepted:
                continue
            statements = await self._insist("GET", f"/api/v1/jobs/{number}/statements")
            for statement in statements:
                self._check_statement(statement, ran)
            assert self.accepted[number].items() <= {each["id"]: each["code"] for each in statements}.items()
        listed = await self._insist("GET", "/api/v1/jobs?limit=1000")
        assert sorted(row["id"] for row in listed) == sorted(self.jobs), "one request, one job"

    def _check_statement(self, statement: dict[str, Any], ran: Counter[str]) -> None:
        assert statement["state"] in STATEMENT_ENDED, statement
        output = statement["output"] or {}
        outcome = output.get("ename") or statement["state"]
        self.outcomes[f"statement {outcome}"] += 1
        if output.get("status") == "ok":
            assert output["data"]["text/plain"] == f"ran {statement['code']}" and ran[statement["code"]] == 1
        elif outcome == "NeverRun":
            assert ran[statement["code"]] == 0, statement
        else:
            assert outcome == "SessionLost", statement

    def _cleared(self) -> bool | None:
        """Whether both islands are done with every job."""
        left = 0
        for island, query in (
            (self.home, "SELECT count(*) FROM job WHERE phase != 'ended' OR released = 0"),
            (self.executor, "SELECT count(*) FROM run WHERE phase != 'cleared'"),
        ):
            with closing(sqlite3.connect(f"file:{island.home / 'state.db'}?mode=ro", uri=True)) as conn:
                left += conn.execute(query).fetchone()[0]
        return None if left else True

    def _check_engine(self) -> None:
        """Check that nothing ran twice, and that Livy has only the session of the other client."""
        ran = Counter(name.rpartition("-")[0] if name.startswith("isl-") else name for name in self.livy.ran())
        assert not (twice := [what for what, count in ran.items() if count > 1]), f"ran twice: {twice}"
        (stranger,) = self._livy("/sessions")["sessions"]
        assert stranger["name"] == STRANGER and stranger["state"] == "idle"
        assert self._livy(f"/sessions/{stranger['id']}/statements")["total_statements"] == 0
        assert all(each["state"] in ("success", "dead") for each in self._livy("/batches")["sessions"])

    def _livy(self, path: str) -> Any:

        with urllib.request.urlopen(self.livy.url + path, timeout=10) as answer:
            return json.load(answer)


def kill_story(root: Path, kills: int, seed: int) -> KillStory:
    """Tell a story with so many kills, and return it with what happened."""
    story = KillStory(root, seed)
    try:
        story.start()
        asyncio.run(story.run(kills))
    finally:
        story.stop()
    return story
