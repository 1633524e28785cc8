"""An executor that sends false reports to the home of a job: they affect only that job."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from island.daemon import Daemon
from island.jobs.core import STOCK_LANGUAGES
from island.jobs.messages import CommitAnswer, CommitRequest, EmptyAnswer, JobChanged, Offer, StatusRequest
from island.kernel import codec
from island.kernel.ids import IslandId
from tests.islands.sessions import Node
from tests.standins.member import Member, get, logged, member, packed, until, until_async, victim, well


class Liar:
    """Answers a home as an executor, with any answers."""

    def __init__(self) -> None:
        self.offer: bytes = codec.encode(Offer(reservation="x", languages=STOCK_LANGUAGES))
        self.report: Callable[[str, int], bytes] = honest
        self.job = ""
        self.asked = 0

    def serve(self, node: Node) -> None:
        async def offer(_: IslandId, __: bytes) -> bytes:
            return self.offer

        async def commit(_: IslandId, body: bytes) -> bytes:
            self.job = codec.decode(body, CommitRequest).envelope.job
            return codec.encode(CommitAnswer(accepted=True))

        async def status(_: IslandId, body: bytes) -> bytes:
            asked = codec.decode(body, StatusRequest)
            self.asked += 1
            return self.report(asked.job, asked.epoch)

        async def done(_: IslandId, __: bytes) -> bytes:
            return codec.encode(EmptyAnswer())

        node.peers.on_request("job.offer", offer)
        node.peers.on_request("job.commit", commit)
        node.peers.on_request("job.status", status)
        for kind in ("statement", "stop", "release"):
            node.peers.on_request(f"job.{kind}", done)


def honest(job: str, epoch: int, **changes: Any) -> bytes:
    return packed(**{"job": job, "epoch": epoch, "version": 1, "state": "idle", **changes})


async def post(daemon: Daemon, path: str, body: Any) -> Any:
    token = daemon.home.token.read_text("utf-8").strip()
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as client,
        client.post(f"{daemon.server.url}{path}", json=body) as answer,
    ):
        assert answer.status in (200, 201), await answer.text()
        return await answer.json()


@contextlib.asynccontextmanager
async def committed(folder: Path, liar: Liar) -> AsyncIterator[tuple[Daemon, Member, int]]:
    """Open a session of the victim's user that is pinned to the hostile executor."""
    async with victim(folder) as daemon, member(daemon, folder, register=liar.serve) as mallory:
        await mallory.told(("island/self", packed(name="mallory")))
        await until(lambda: daemon.membership.display(mallory.id) == "mallory")
        made = await post(daemon, "/sessions", {"kind": "sql", "queue": "island:mallory"})
        yield daemon, mallory, made["id"]


SLOWEST = {"dataset": "x", "bytes": 2**53, "missing": 2**53, "bandwidth": 1e-300}

OFFERS: dict[str, bytes] = {
    "no end of waiting": packed(reservation="x", languages=["sql"], wait=math.inf),
    "a wait that is no number": packed(reservation="x", languages=["sql"], wait=math.nan),
    "no bandwidth": packed(
        reservation="x",
        languages=["sql"],
        parts=[SLOWEST],
    ),
    "negative sizes": packed(reservation="x", parts=[{"dataset": "x", "bytes": -1, "missing": -1}]),
    "garbage": b"\xc1",
    "nothing": b"",
    "another answer": codec.encode(EmptyAnswer()),
}


@pytest.mark.parametrize("what", OFFERS)
async def test_a_job_is_placed_elsewhere_after_an_invalid_offer(tmp_path: Path, what: str) -> None:
    liar = Liar()
    liar.offer = OFFERS[what]
    with logged():
        async with committed(tmp_path, liar) as (daemon, _, session):
            await until_async(lambda: _is(daemon, session, "error"), 40)
            await get(daemon, f"/api/v1/jobs/{await _job(daemon)}/explain")
            await well(daemon)


async def _job(daemon: Daemon) -> str:
    [row] = await get(daemon, "/api/v1/jobs")
    return str(row["job"])


async def _is(daemon: Daemon, session: int, state: str) -> bool:
    return bool((await get(daemon, f"/sessions/{session}"))["state"] == state)


def result(output: str, **changes: Any) -> Callable[[str, int], bytes]:
    told = {"number": 0, "state": "available", "output": output, "progress": 1.0, **changes}
    return lambda job, epoch: honest(job, epoch, statements=[told])


DEEP = '{"status":"ok","data":' + '{"x":' * 5_000 + "1" + "}" * 5_001

REPORTS: dict[str, Callable[[str, int], bytes]] = {
    "about another job": lambda job, epoch: honest("x" * 47, epoch),
    "of another epoch": lambda job, epoch: honest(job, epoch + 1),
    "of an unknown state": lambda job, epoch: honest(job, epoch, state="\x1b[2J"),
    "with a time that is no number": lambda job, epoch: honest(job, epoch, times={"start": math.nan}),
    "with a time before the begin": lambda job, epoch: honest(job, epoch, times={"compute": -1.0}),
    "of an end with a live state": lambda job, epoch: honest(job, epoch, state="idle", ended=True),
    "with a result that is not JSON": result("garbage"),
    "with a result that breaks out": result('{}, "state": "x", "y": {}'),
    "with a result of another shape": result('{"status":"error","evalue":{},"traceback":7}'),
    "with a list for a result": result("[]"),
    "with a deep result": result(DEEP),
    "with an unknown state of a statement": result("", state="exploded"),
    "of garbage": lambda job, epoch: b"\xc1",
    "of nothing": lambda job, epoch: b"",
    "too long": lambda job, epoch: honest(job, epoch, notes=["x"] * 1000),
}


@pytest.mark.parametrize("what", REPORTS)
async def test_an_invalid_report_is_refused(tmp_path: Path, what: str) -> None:
    liar = Liar()
    with logged():
        async with committed(tmp_path, liar) as (daemon, _, session):
            await until_async(lambda: _is(daemon, session, "idle"))
            await post(daemon, f"/sessions/{session}/statements", {"code": "SELECT 1"})
            liar.report = REPORTS[what]
            asked = liar.asked
            daemon.jobs.driver.news(_executor(daemon), liar.job, 1)
            await until(lambda: liar.asked > asked)
            await until(lambda: daemon.jobs.driver.lost_since(liar.job) is not None)
            [statement] = (await get(daemon, f"/sessions/{session}/statements"))["statements"]
            assert statement["state"] in ("waiting", "running") and statement["output"] is None
            await well(daemon)
            # Only that job was affected: a correct report is accepted later.
            output = {"status": "ok", "execution_count": 0, "data": {"text/plain": "1"}}
            liar.report = result(json.dumps(output), progress=math.nan)
            daemon.jobs.driver.news(_executor(daemon), liar.job, 1)
            await until_async(lambda: _has(daemon, session, output))


def _executor(daemon: Daemon) -> IslandId:
    [island] = [view.island for view in daemon.membership.views() if view.name == "mallory"]
    return island


async def _has(daemon: Daemon, session: int, output: Any) -> bool:
    [statement] = (await get(daemon, f"/sessions/{session}/statements"))["statements"]
    return bool(statement["state"] == "available" and statement["output"] == output)


async def test_pushes_about_a_job_are_accepted_from_its_executor_only(tmp_path: Path) -> None:
    liar = Liar()
    async with committed(tmp_path, liar) as (daemon, mallory, session), member(daemon, tmp_path, "eve") as eve:
        await until_async(lambda: _is(daemon, session, "idle"))
        asked = liar.asked
        for _ in range(2000):
            eve.peers.push(eve.to, "job.changed", codec.encode(JobChanged(job=liar.job, epoch=1)))
        await eve.ask("gossip.digest", packed(roster=bytes(32), root=bytes(32)))
        assert liar.asked == asked
        mallory.peers.push(mallory.to, "job.changed", codec.encode(JobChanged(job=liar.job, epoch=1)))
        await until(lambda: liar.asked > asked)
