"""The composition root: creates the services of an island, connects them, and runs them until a stop is requested.

This module makes no decisions. Services are created in the order of the layers, started in one
task group, and stopped in reverse order. An error during the start ends the daemon. A loop that
fails later is retried with backoff, and `/api/v1/island` reports the problem.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import urlsplit

import structlog

import island
from island.catalog.service import Catalog, CatalogDependencies
from island.config import Config, is_loopback, size_in_bytes
from island.discovery.service import Discovery
from island.errors import DiskFailed, Full, IslandError
from island.formats.limits import ReadLimits
from island.gossip.service import Gossip
from island.home import Home
from island.jobs.dependencies import JobsDependencies
from island.jobs.engines import configured
from island.jobs.engines.embedded_engine import EmbeddedEngine
from island.jobs.service import Jobs
from island.kernel import descriptors, loop_lag, telemetry
from island.kernel.db import Database, Kind
from island.kernel.db_file import check_file_version
from island.kernel.host_resolver import HostResolver
from island.kernel.listening import listening_sockets
from island.kernel.loops import LoopFaults, Tasks
from island.kernel.ports import Clock, Rng, SystemClock, SystemRng
from island.kernel.processes import CHILDREN, ProcessPool
from island.kernel.service_manager import ServiceManager
from island.kernel.work import ThreadWorkers, exit_after
from island.livy.http_connections import HttpLimits
from island.membership.service import Membership
from island.net import gateway
from island.net.api import (
    base,
    datasets,
    files,
    journal,
    metrics,
    nearby,
    peer_checks,
    peers,
    servers,
    status,
    streams,
    users,
)
from island.net.api import jobs as jobs_api
from island.net.api.user_port import UserServer, build
from island.net.condition import Condition, Phase, decide, summary
from island.net.limits import PeerLimits
from island.net.measurements import Measurements
from island.net.peer_checks import PeerChecks
from island.net.peers import TlsPeers
from island.private_files import close_umask, create_private, make_private
from island.replicas.service import Replicas, ReplicasDependencies
from island.streams import source as streams_source
from island.streams.service import Streams, StreamsDependencies
from island.trust.heads import JournalHeads
from island.trust.keys import Identity
from island.trust.service import Trust
from island.trust.user_list import UserList
from island.trust.users import TOKEN_FILES, Tokens

log = structlog.get_logger("island")

STOP_SECONDS = 15.0
"""Seconds that each part may take to stop; after that the daemon stops the next part."""

TRY_SECONDS = 5.0
"""Seconds between two attempts to write to a database whose last write failed."""

HUNG_SECONDS = 3.0
"""Seconds after the request to stop for which work on folders of users may continue: their mount may hang."""

EXIT_SECONDS = 18.0
"""Seconds after the request to stop after which the process exits, even if threads or parts hang."""

MIN_MEMORY = 256 * 1024 * 1024
"""Lower bound, in bytes, of the memory limit of a process that reads files.

Such a process uses a third of it before it reads a file.
"""


class _Stopped(Exception):
    """Raised inside the daemon's task group to end it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the daemon with functions that start it and stop it; either may be missing."""

    name: str
    start: Callable[[Tasks], Awaitable[object]] | None = None
    stop: Callable[[], Awaitable[object]] | None = None


class Daemon:
    """The databases, services and ports of one island in this process."""

    def __init__(
        self, home: Home, config: Config, clock: Clock, rng: Rng, service_manager: ServiceManager | None = None
    ) -> None:
        self.home, self.config, self.clock, self.rng = home, config, clock, rng
        self.service_manager = service_manager or ServiceManager()
        self.phase: Phase = "starting"
        self.started = clock.wall()
        self.faults = LoopFaults()
        # Publishing and conversions take long. A separate pool keeps processes free for streams.
        self.publishing = self._pool("publishing", CHILDREN)
        self.streaming = self._pool("streams", streams_source.CHILDREN)
        self._begun: list[Part] = []
        self._opened = contextlib.ExitStack()
        self.workers = ThreadWorkers(self.publishing, self.streaming)
        self._opened.callback(self.workers.close)
        self.host_resolver = HostResolver(self.workers)
        self.state, self.gossip_db, self.chunks = self._open("state"), self._open("gossip"), self._open("chunks")
        identity = Identity.load(home.key)
        files = descriptors.share(descriptors.limit())
        self.trust = Trust(self.state, identity, config.island.name, config.island.archipelago, clock, rng)
        self.peers = TlsPeers(
            identity,
            self.trust,
            clock,
            rng,
            listen=config.listen.peer,
            advertise=list(config.listen.advertise),
            addresses=lambda: self.membership.addresses(),  # noqa: PLW0108 - membership is created after the peers
            hints=lambda: self.discovery.hints(),  # noqa: PLW0108 - so is discovery
            limits=PeerLimits.within(files.peer),
            resolver=self.host_resolver,
        )
        self.peer_checks = PeerChecks(self.peers, clock)
        self.heads = JournalHeads(self.state, self.trust, self.peers, clock, rng)
        self.gossip = Gossip(self.state, self.gossip_db, self.trust, self.peers, clock, rng)
        self.membership = Membership(self.state, self.gossip_db, self.gossip, self.trust, self.peers, clock, rng)
        self.discovery = Discovery(
            config.discovery,
            self.trust,
            known=self.membership.islands,
            bound=lambda: self.peers.bound,
            clock=clock,
            rng=rng,
        )
        limits = ReadLimits(rows=config.decoding.rows, cpu_seconds=float(config.decoding.seconds))
        self.catalog = Catalog(
            CatalogDependencies(
                state=self.state,
                db=self.gossip_db,
                gossip=self.gossip,
                membership=self.membership,
                trust=self.trust,
                clock=clock,
                rng=rng,
                home=home.path,
                workers=self.workers,
                limits=limits,
            )
        )
        self.replicas = Replicas(
            ReplicasDependencies(
                chunks=self.chunks,
                catalog=self.catalog,
                gossip=self.gossip,
                membership=self.membership,
                trust=self.trust,
                peers=self.peers,
                config=config,
                clock=clock,
                rng=rng,
                home=home.path,
                state=self.state,
                workers=self.workers,
                limits=limits,
            )
        )
        self.engine = EmbeddedEngine(home.path, config, rng)
        self.engines = configured.engines(
            config, home.path, self.engine, workers=self.workers, resolver=self.host_resolver, rng=rng
        )
        self.jobs = Jobs(
            JobsDependencies(
                state=self.state,
                catalog=self.catalog,
                inputs=self.replicas,
                membership=self.membership,
                trust=self.trust,
                peers=self.peers,
                config=config,
                engines=self.engines,
                clock=clock,
                rng=rng,
                home=home.path,
                workers=self.workers,
            )
        )
        self.streams = Streams(
            StreamsDependencies(
                state=self.state,
                gossip_db=self.gossip_db,
                catalog=self.catalog,
                membership=self.membership,
                gossip=self.gossip,
                trust=self.trust,
                peers=self.peers,
                config=config,
                clock=clock,
                rng=rng,
                home=home.path,
                workers=self.workers,
                limits=limits,
            )
        )
        self.measurements = Measurements(
            home=home.path,
            condition=self.condition,
            engines=self.engines,
            databases={"state": self.state, "gossip": self.gossip_db, "chunks": self.chunks},
            workers=self.workers,
            jobs=self.jobs,
            streams=self.streams,
        )
        tokens = Tokens.load(home.path, shared=config.users.shared_token, clock=clock)
        self.users = UserList(self.state, tokens, self.trust, clock, rng)
        application = build(tokens, self._routes(), self.condition, config.listen.allowed_hosts)
        self.server = UserServer(application, config.listen.user, HttpLimits(connections=files.user))

    def _open(self, kind: Kind) -> Database:
        database = Database.open(self.home.path, kind, self.workers)
        self._opened.callback(database.close)
        return database

    def _pool(self, name: str, size: int) -> ProcessPool:
        hint = (
            "If you trust the file, increase `memory` or `seconds` under [decoding] in island.toml and restart the"
            " island. Otherwise exclude the file."
        )
        memory = max(MIN_MEMORY, size_in_bytes(self.config.decoding.memory))
        return ProcessPool(name, memory_bytes=memory, hint=hint, size=size)

    def _routes(self) -> list[Any]:
        return [
            *peers.routes(self.peers, self.membership, self.trust),
            *nearby.routes(self.discovery, self.membership, self.trust),
            *peer_checks.routes(self.peer_checks, self.membership.display),
            *users.routes(self.users, self.config, self.clock),
            *servers.routes(self.membership),
            *datasets.routes(self.catalog, self.replicas),
            *files.routes(self.catalog, self.replicas),
            *jobs_api.routes(self.jobs),
            *streams.routes(self.streams),
            *journal.routes(self.trust, self.heads, self.membership.display),
            *gateway.routes(self.jobs),
            *status.routes(self._status, self.condition),
            *metrics.routes(self.measurements.take),
        ]

    def _livys(self) -> dict[str, tuple[str, str]]:
        """Return URL and comment of each Livy that this island lists as its own, by server id."""
        found = {configured.LIVY: (self.config.livy.url or self.server.url, "Livy of this island")}
        for each in self.config.engine:
            found[f"{configured.LIVY}-{each.name}"] = (each.url, f"engine '{each.name}' of this island")
        return found

    def _status(self) -> dict[str, Any]:
        return {
            "island": self.config.island.name,
            "key": self.trust.me,
            "archipelago": self.trust.archipelago,
            "network": self.trust.network,
            "version": island.__version__,
            "started": base.iso(self.started),
            "user_url": self.server.url,
            "peer_address": self.config.listen.peer or None,
            "discovery": self.discovery.summary(),
            "engine": self.config.livy.url or self.engine.url or None,
            "engines": self.engines.rows(),
        }

    def condition(self) -> Condition:
        """Return whether this island serves, and what is wrong with it, for `/readyz` and the status."""
        # No job, session or change is accepted without state.db. The other databases are rebuilt, or are caches.
        fatal = [self.state.problem] if self.state.problem else []
        others = [
            *(each.problem for each in (self.gossip_db, self.chunks) if each.problem),
            *self.replicas.problems(),
            *self.gossip.problems(self.membership.display),
            *self.heads.problems(self.membership.display),
            *self.engines.problems(),
            *([self.engine.problem] if self.engine.problem and not self.engine.installed else []),
            *self.peers.problems(),
            *self.streams.problems(),
            *self.jobs.problems(),
            *self.faults.problems(),
            *telemetry.problems(),
        ]
        return decide(self.phase, fatal, others)

    async def _try_databases(self) -> None:
        """Write to the databases whose last write failed: without other writes, their problem would never be over."""
        for database in (self.state, self.gossip_db, self.chunks):
            if database.problem:
                with contextlib.suppress(Full, DiskFailed):  # `condition` still reports the problem
                    await database.try_disk()

    async def _watch_loop(self, tasks: Tasks) -> None:
        tasks.forever("event_loop.lag", functools.partial(loop_lag.measure, self.clock), rng=self.rng)

    async def _watch_databases(self, tasks: Tasks) -> None:
        tasks.forever("databases", self._try_databases, rng=self.rng, pause=TRY_SECONDS)

    def _parts(self) -> list[Part]:
        """Return the parts in the order in which they are started; they are stopped in reverse order."""
        return [
            Part("publishing", stop=self.publishing.close),
            Part("streaming", stop=self.streaming.close),
            Part("databases", self._watch_databases),
            Part("event loop", self._watch_loop),
            Part("trust", lambda _: self.trust.load()),
            Part("journal heads", self.heads.start),
            Part("gossip", self.gossip.start),
            Part("membership", self.membership.start),
            Part("catalog", self.catalog.start),
            Part("replicas", self.replicas.start, self.replicas.stop),
            Part("peers", self.peers.start, self.peers.stop),
            Part("own addresses", lambda _: self.membership.announce(self.peers.local_addresses())),
            Part("discovery", self.discovery.start, self.discovery.stop),
            # Stopped before the peers, because the last journal head is sent to other islands over their sessions.
            Part("last journal head", stop=self.heads.stop),
            Part("engine", self.engine.start, self.engine.stop),
            Part("engines", self.engines.start, self.engines.stop),
            Part("jobs", self.jobs.start, self.jobs.stop),
            Part("streams", self.streams.start, self.streams.stop),
            Part("users", lambda _: self.users.load()),
            Part("user port", lambda _: self.server.start(), self.server.stop),
            Part("own Livy", lambda _: self.membership.set_own_livys(self._livys())),
            Part("running.json", self._write_running, self._remove_running),
            # The last part: the service manager learns that all others run, and before any other stops.
            Part("service manager", self._report_ready, self.service_manager.stop),
        ]

    @contextlib.asynccontextmanager
    async def tasks(self) -> AsyncIterator[Tasks]:
        """The tasks for `start`. At the end of the block all parts stop, the tasks end, and `close` is called."""
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    yield Tasks(group, self.faults)
                finally:
                    await self.stop()
                raise _Stopped
        except* _Stopped:
            log.info("daemon.stopped", home=str(self.home.path))
        finally:
            self.close()

    async def start(self, tasks: Tasks) -> None:
        """Start every part, which binds both ports. The island is ready when this returns."""
        for part in self._parts():
            self._begun.append(part)  # before its start, so that a part whose start fails is stopped too
            if part.start is not None:
                await part.start(tasks)

    async def _write_running(self, _tasks: Tasks) -> None:
        text = json.dumps({"pid": os.getpid(), "url": self.server.url, "peer_port": self.peers.port})
        partial = self.home.running.with_suffix(".part")
        create_private(partial)
        partial.write_text(text, "utf-8")
        partial.replace(self.home.running)

    async def _remove_running(self) -> None:
        self.home.running.unlink(missing_ok=True)

    async def _report_ready(self, tasks: Tasks) -> None:
        self.phase = "running"
        await self.service_manager.start(tasks, self.rng, lambda: summary(self.condition()))

    async def stop(self) -> None:
        """Stop the parts that were started, in reverse order. A part that fails to stop does not prevent the others."""
        self.phase = "stopping"
        hung = asyncio.get_running_loop().call_later(HUNG_SECONDS, self.workers.abandon)
        while self._begun:
            part = self._begun.pop()
            if part.stop is None:
                continue
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await part.stop()
            except Exception as error:  # a bug in one part must not leave ports and child processes of the others
                log.error("daemon.stop_failed", part=part.name, exc_info=error)
        hung.cancel()
        # The tasks that still run are cancelled next. Some would wait for the end of their work.
        self.workers.abandon()

    def close(self) -> None:
        """Close the databases and end the worker threads. Call it last, when no service writes any more."""
        self._opened.close()


async def run_island(
    home: Home,
    config: Config,
    *,
    clock: Clock,
    rng: Rng,
    stop: asyncio.Event,
    ready: Callable[[Daemon], None],
    service_manager: ServiceManager,
) -> None:
    """Run one island until `stop` is set; call `ready(daemon)` when both ports are bound.

    Raises `Conflict` if another daemon uses the home folder, and `ConfigError` for an error in
    the home folder, the configuration or the ports.
    """
    with home.locked():
        for kind in get_args(Kind):  # all of them before the first is migrated
            check_file_version(home.path / f"{kind}.db", kind)
        _make_private(home, config)
        daemon = Daemon(home, config, clock, rng, service_manager)
        async with daemon.tasks() as tasks:
            await daemon.start(tasks)
            ready(daemon)
            await stop.wait()


def _make_private(home: Home, config: Config) -> None:
    """Remove permissions of other accounts that an older version left in the home folder.

    Secret files are not changed: the daemon refuses a secret that other accounts could read.
    """
    keep = {home.key, *(home.path / name for name in TOKEN_FILES.values()), home.recovery_key}
    keep |= {home.path / each.password_file for each in configured.site_engines(config) if each.password_file}
    changed, failed = make_private(home.path, "state.db", keep)
    if changed:
        log.warning("home.made_private", modes_changed=changed)
    for path in failed:
        log.warning("home.not_private", path=str(path), reason="another account owns it; its mode was not changed")


def main(home: Home, config: Config) -> None:
    """Run the daemon of `home` in the foreground until SIGINT or SIGTERM.

    Files that this process creates can be read by its own account only. The sessions of its engine,
    which write files for users, run with the umask with which this process was started.
    """
    close_umask()
    descriptors.raise_limit()
    service_manager = ServiceManager.from_environment(os.environ)
    try:
        import uvloop
    except ImportError:  # not available on this platform: use the event loop of asyncio
        factory = asyncio.new_event_loop
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            runner.run(_until_signal(home, config, service_manager))
        except* IslandError as group:
            raise _first(group) from group


def code_shares_account(livy_url: str) -> bool:
    """Return whether code of sessions is known to run under the account of this process.

    It does in the embedded engine, and usually in a Livy on this machine whose server has this account.
    """
    if not livy_url:
        return True
    parts = urlsplit(livy_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return is_loopback(parts.hostname or "") and any(each.uid == os.geteuid() for each in listening_sockets(port))


async def _until_signal(home: Home, config: Config, service_manager: ServiceManager) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        if not stop.is_set():
            stop.set()
            exit_after(EXIT_SECONDS, give_up)

    def give_up() -> None:
        log.error("daemon.stop_hangs", meaning="the process exits now; what was committed is in the databases")
        telemetry.flush()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)

    def announce(daemon: Daemon) -> None:
        log.info(
            "daemon.ready",
            island=config.island.name,
            key=daemon.trust.me,
            user=daemon.server.url,
            peer=config.listen.peer or "none",
            version=island.__version__,
        )
        if any(code_shares_account(url) for url in configured.engine_urls(config)):
            log.warning(
                "engine.shares_account",
                meaning="code in sessions and batches can read all files that the daemon can read, also its key",
                foreign=config.jobs.same_user and config.jobs.foreign_code != "none" and bool(config.jobs.accept_from),
            )

    await run_island(
        home,
        config,
        clock=SystemClock(),
        rng=SystemRng(),
        stop=stop,
        ready=announce,
        service_manager=service_manager,
    )


def _first(group: BaseExceptionGroup[IslandError]) -> IslandError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, IslandError)
    return error
