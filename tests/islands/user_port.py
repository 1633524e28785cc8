"""A complete island in this process with its user port, for Livy clients, with a Livy server or without one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from aiohttp import web

from island.catalog.service import Catalog, CatalogDependencies
from island.config import parse
from island.gossip.service import Gossip
from island.jobs.dependencies import JobsDependencies
from island.jobs.engines.engines import Engines
from island.jobs.engines.files import OwnFiles
from island.jobs.engines.livy_engine import LivyEngine
from island.jobs.service import Jobs
from island.kernel.db import Database
from island.kernel.loops import Tasks
from island.kernel.ports import SystemClock, SystemRng
from island.kernel.work import ThreadWorkers
from island.livy.client import LivyClient
from island.membership.service import Membership
from island.net import gateway
from island.net.api import jobs as jobs_api
from island.net.api.user_port import UserServer, build
from island.net.condition import Condition
from island.net.peers import TlsPeers
from island.replicas.service import Replicas, ReplicasDependencies
from island.trust.keys import Identity
from island.trust.service import Trust
from island.trust.users import Tokens, create_tokens
from tests.islands.fixed_client import FixedClient
from tests.standins.livy import upstream


class Stop(Exception):
    """Raised to end the tasks of a site."""


class Site:
    """One island: its services with real databases and sockets. Create it with `site`."""

    def __init__(self, home: Path, name: str, livy: LivyClient | None, sections: dict[str, Any]) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.config = config = parse({"island": {"name": name}, **sections}, "test")
        clock, rng = SystemClock(), SystemRng()
        if not (home / "key").exists():
            Identity.generate(rng).save(home / "key")
            create_tokens(home, rng)
        identity = Identity.load(home / "key")
        self.workers = ThreadWorkers()
        self.databases = [Database.open(home, kind, self.workers) for kind in ("state", "gossip", "chunks")]
        state, db, chunks = self.databases
        self.state = state
        self.trust = Trust(state, identity, name, "tests", clock, rng)
        self.peers = TlsPeers(
            identity,
            self.trust,
            clock,
            rng,
            listen="127.0.0.1:0",
            advertise=[],
            addresses=lambda: self.membership.addresses(),  # noqa: PLW0108 - membership is created after the peers
        )
        self.gossip = Gossip(state, db, self.trust, self.peers, clock, rng)
        self.membership = Membership(state, db, self.gossip, self.trust, self.peers, clock, rng)
        self.catalog = Catalog(
            CatalogDependencies(
                state=state,
                db=db,
                gossip=self.gossip,
                membership=self.membership,
                trust=self.trust,
                clock=clock,
                rng=rng,
                home=home,
                workers=self.workers,
            )
        )
        self.replicas = Replicas(
            ReplicasDependencies(
                chunks=chunks,
                catalog=self.catalog,
                gossip=self.gossip,
                membership=self.membership,
                trust=self.trust,
                peers=self.peers,
                config=config,
                clock=clock,
                rng=rng,
                home=home,
                state=state,
                workers=self.workers,
            )
        )
        self.livy = livy
        files = OwnFiles(home / "jobs", self.workers)
        self.engines = Engines([LivyEngine(FixedClient(livy), files, rng=rng)] if livy is not None else [])
        self.jobs = Jobs(
            JobsDependencies(
                state=state,
                catalog=self.catalog,
                inputs=self.replicas,
                membership=self.membership,
                trust=self.trust,
                peers=self.peers,
                config=config,
                engines=self.engines,
                clock=clock,
                rng=rng,
                home=home,
                workers=self.workers,
            )
        )
        routes = [*gateway.routes(self.jobs), *jobs_api.routes(self.jobs)]
        self.server = UserServer(build(Tokens.load(home), routes, Condition), "127.0.0.1:0")

    async def start(self, tasks: Tasks) -> None:
        await self.trust.load()
        await self.gossip.start(tasks)
        await self.membership.start(tasks)
        await self.catalog.start(tasks)
        await self.peers.start(tasks)
        await self.membership.announce(self.peers.local_addresses())
        await self.replicas.start(tasks)
        await self.engines.start(tasks)
        await self.jobs.start(tasks)
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop()
        if self.livy is not None:
            await self.livy.close()
        await self.peers.stop()

    def token(self, role: str = "user") -> str:
        return (self.home / ("token" if role == "administrator" else "token.user")).read_text().strip()

    def url(self, role: str = "user") -> str:
        """The URL with the token in it, for clients that have no other setting for credentials."""
        return self.server.url.replace("http://", f"http://any:{self.token(role)}@")


@asynccontextmanager
async def site(
    home: Path, name: str = "home", livy: LivyClient | None = None, sections: dict[str, Any] | None = None
) -> AsyncIterator[Site]:
    """A running island. It is stopped at the end of the context."""
    made = Site(home, name, livy, sections or {})
    try:
        with contextlib.suppress(*()):
            try:
                async with asyncio.TaskGroup() as group:
                    await made.start(Tasks(group))
                    try:
                        yield made
                    finally:
                        await made.stop()
                    raise Stop
            except* Stop:
                pass
    finally:
        for database in made.databases:
            database.close()


@asynccontextmanager
async def played_livy() -> AsyncIterator[str]:
    """Run a Livy without Spark on a free port. Yields its URL."""
    runner = web.AppRunner(upstream(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextmanager
def livy_in_thread(created: list[dict[str, Any]] | None = None) -> Iterator[str]:
    """Run a Livy without Spark in a thread, for a daemon. Yields its URL; `created` gets the bodies of new sessions."""
    ready, stop, found = Event(), asyncio.Event(), []
    loop = asyncio.new_event_loop()

    @web.middleware
    async def note(request: web.Request, handler: Any) -> web.StreamResponse:
        answer: web.StreamResponse = await handler(request)
        if created is not None and (request.method, request.path, answer.status) == ("POST", "/sessions", 201):
            created.append(await request.json())
        return answer

    async def main() -> None:
        application = upstream()
        application.middlewares.append(note)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        while not ready.wait(0.05):
            assert thread.is_alive(), "the Livy did not start"
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@contextmanager
def site_in_thread(home: Path, url: str, token: str, sections: dict[str, Any]) -> Iterator[str]:
    """Run a site in a thread with its own event loop, for blocking clients. Yields its URL with the user's token."""
    ready, stop, found = Event(), asyncio.Event(), []
    loop = asyncio.new_event_loop()

    async def main() -> None:
        async with site(home, livy=LivyClient(url, token), sections=sections) as made:
            found.append(made.url())
            ready.set()
            await stop.wait()

    thread = Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        while not ready.wait(0.05):
            assert thread.is_alive(), "the site did not start"
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
