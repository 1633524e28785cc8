"""The gateway compared with a plain aiohttp proxy in front of the same upstream, in the same run.

    python -m tests.bench.bench_gateway [--seconds 3]

Upstream, proxy and gateway are separate processes. The upstream is a Livy whose statements end at
once, so the benchmark measures the gateway and the proxy. Goals (docs/design.md): throughput at
least 80 % of the proxy's; latency added by the gateway at most 2 ms at p50, by one hop at most
4 ms; at least 2,000 durable accepts per second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from island.livy.client import LivyClient
from island.livy.messages import SessionRequest
from island.livy.rest import JSON_HEADERS
from island.trust.users import Principal
from tests.islands.user_port import Site, site
from tests.standins.livy import upstream

OPEN = {"accept_from": ["members"], "foreign_code": "any", "same_user": True}


def proxy(target: str) -> web.Application:
    """The reference: a proxy that forwards every request to the upstream."""

    sessions: list[aiohttp.ClientSession] = []

    async def forward(request: web.Request) -> web.Response:
        body = await request.read()
        async with sessions[0].request(request.method, target + request.path_qs, data=body) as answer:
            return web.Response(body=await answer.read(), status=answer.status, headers=JSON_HEADERS)

    async def opened(_: web.Application) -> AsyncIterator[None]:
        sessions.append(aiohttp.ClientSession())
        yield
        await sessions[0].close()

    app = web.Application()
    app.cleanup_ctx.append(opened)
    app.router.add_route("*", "/{tail:.*}", forward)
    return app


async def serve(role: str, target: str) -> None:
    """Run one process in a role. It prints its URLs as a line of JSON, and serves until its input is closed."""
    async with contextlib.AsyncExitStack() as stack:
        if role in ("upstream", "proxy"):
            runner = web.AppRunner(upstream() if role == "upstream" else proxy(target), access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            urls = {"url": f"http://127.0.0.1:{runner.addresses[0][1]}"}
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            livy = LivyClient(target)
            near = await stack.enter_async_context(site(folder / "near", "near", livy))
            urls = {"url": near.server.url, "token": near.token()}
            if role == "hop":
                far = await stack.enter_async_context(site(folder / "far", "far", LivyClient(target), {"jobs": OPEN}))
                await far.peers.join(await near.trust.invite(near.peers.local_addresses()))
                await linked(near, far)
        sys.stdout.write(json.dumps(urls) + "\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def linked(*sites: Site) -> None:
    """Wait until every island has a session with each other one and knows its name."""
    while not all(len(s.peers.links()) == len(sites) - 1 for s in sites) or not all(
        view.name for s in sites for view in s.membership.views()
    ):
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def process(role: str, target: str = "") -> AsyncIterator[dict[str, str]]:
    """Start a child process in a role. Yields its URLs."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.bench_gateway", "--role", role, "--target", target),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        while not (line := await child.stdout.readline()).startswith(b'{"url"'):
            assert line, f"{role} did not start"
        yield json.loads(line)
    finally:
        child.stdin.close()
        await child.wait()


Call = Callable[[], Awaitable[None]]


async def latency(call: Call, seconds: float) -> float:
    """Median of sequential calls, in milliseconds."""
    took, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.perf_counter()
        await call()
        took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took)


async def throughput(call: Call, seconds: float, clients: int = 16) -> float:
    """Calls per second with `clients` concurrent clients."""
    end, done = time.monotonic() + seconds, 0

    async def client() -> None:
        nonlocal done
        while time.monotonic() < end:
            await call()
            done += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return done / seconds


async def alternated(calls: dict[str, Call], seconds: float) -> dict[str, float]:
    """Median throughput of each over five alternating turns, so that other load on the machine affects all equally."""
    turns: dict[str, list[float]] = {role: [] for role in calls}
    for _ in range(5):
        for role, call in calls.items():
            turns[role].append(await throughput(call, seconds / 3))
    return {role: statistics.median(found) for role, found in turns.items()}


class Subject:
    """A server to measure, with an idle session that has a finished statement."""

    def __init__(self, http: aiohttp.ClientSession, urls: dict[str, str]) -> None:
        self._http, self._url = http, urls["url"]
        self._headers = {"Authorization": f"Bearer {urls['token']}"} if "token" in urls else {}
        self.session = 0

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body)
        async with self._http.request(method, self._url + path, data=data, headers=self._headers) as answer:
            found = json.loads(await answer.read())
            assert answer.status < 300, (path, found)
            return found

    async def open(self, **more: Any) -> None:
        self.session = (await self.call("POST", "/sessions", {"kind": "pyspark", **more}))["id"]
        while (view := await self.call("GET", f"/sessions/{self.session}"))["state"] != "idle":
            assert view["state"] in ("starting", "busy"), view
            await asyncio.sleep(0.01)
        await self.run()

    async def run(self) -> None:
        """Run a statement from its post to its result."""
        path = f"/sessions/{self.session}/statements"
        view = await self.call("POST", path, {"code": "1+1"})
        while view["state"] != "available":
            view = await self.call("GET", f"{path}/{view['id']}")

    async def get_session(self) -> None:
        await self.call("GET", f"/sessions/{self.session}")

    async def get_statement(self) -> None:
        await self.call("GET", f"/sessions/{self.session}/statements/0")


async def accepts(seconds: float) -> tuple[float, float]:
    """Accepted sessions per second: with 256 callers of the service, and with 64 clients over HTTP."""
    unlimited = {"jobs": {"max_live_per_user": 10**9}}  # one user opens them all
    with tempfile.TemporaryDirectory() as folder:
        async with site(Path(folder) / "home", sections=unlimited) as home, aiohttp.ClientSession() as http:
            home.jobs.driver.drive = lambda row, statements=(): None  # type: ignore[method-assign]  # only accepting is measured
            who = Principal("user", "user")
            request = SessionRequest(kind="sql", conf={"spark.sql.shuffle.partitions": "4"})

            async def accept() -> None:
                await home.jobs.open_session(who, request)

            subject = Subject(http, {"url": home.server.url, "token": home.token()})

            async def post() -> None:
                await subject.call("POST", "/sessions", {"kind": "sql"})

            return await throughput(accept, seconds, 256), await throughput(post, seconds, 64)


async def main(seconds: float) -> None:
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        livy = await stack.enter_async_context(process("upstream"))
        subjects = {}
        for role in ("proxy", "gateway", "hop"):
            urls = await stack.enter_async_context(process(role, livy["url"]))
            subjects[role] = Subject(http, urls)
            await subjects[role].open(**({"queue": "island:far"} if role == "hop" else {}))
        for name in ("get_session", "get_statement"):
            rates = await alternated({role: getattr(subjects[role], name) for role in ("gateway", "proxy")}, seconds)
            times = {r: await latency(getattr(s, name), seconds) for r, s in subjects.items()}
            print(
                f"{name}: gateway {rates['gateway']:.0f}/s, proxy {rates['proxy']:.0f}/s,"
                f" ratio {rates['gateway'] / rates['proxy']:.2f} (goal 0.80)"
            )
            print(
                f"{name}: p50 gateway {times['gateway']:.2f} ms, job one hop away {times['hop']:.2f} ms,"
                f" proxy {times['proxy']:.2f} ms, ratio {times['gateway'] / times['proxy']:.2f},"
                f" added {times['gateway'] - times['proxy']:+.2f} ms (goal 2)"
            )
        times = {r: await latency(s.run, seconds) for r, s in subjects.items()}
        print(
            f"statement, post to stored result: p50 gateway {times['gateway']:.2f} ms, one hop {times['hop']:.2f} ms,"
            f" proxy {times['proxy']:.2f} ms; gateway adds {times['gateway'] - times['proxy']:+.2f} ms,"
            f" the hop {times['hop'] - times['gateway']:+.2f} ms (goal 4)"
        )
    service, through_http = await accepts(seconds)
    print(f"durable accepts: {service:.0f}/s in the service, {through_http:.0f}/s through HTTP (goal 2000)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--role", default="")
    parser.add_argument("--target", default="")
    given = parser.parse_args()
    asyncio.run(serve(given.role, given.target) if given.role else main(given.seconds))
