"""Islands in one process for the tests of replicas: a network in memory, and a catalog of folders.

The network delivers blocks through bounded queues. Tests can make islands unreachable, break
streams and change bytes in transit.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from island.catalog import manifest
from island.catalog.manifest_reader import ManifestReader
from island.catalog.messages import DatasetRecord, DatasetView, ResolvedDataset
from island.config import parse
from island.errors import FilesChanged, IslandError, NotFound, PeerRefused, Unreachable
from island.formats import footer
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.loops import Tasks
from island.kernel.ports import BulkHandler, BulkStream, Link, SeededRng, SystemClock, Topic
from island.kernel.work import ThreadWorkers
from island.membership.service import IslandView
from island.net.api import files
from island.net.api.user_port import UserServer, build
from island.net.condition import Condition
from island.replicas.fetching import FetchTimeouts
from island.replicas.service import Replicas, ReplicasDependencies
from island.trust.users import Tokens

PATIENT = FetchTimeouts(nothing=60.0, block=60.0, open=60.0)
"""Timeouts that only a hang reaches: a transfer that is repeated on a slow machine would change what is counted."""
IMPATIENT = FetchTimeouts(nothing=1.0, block=60.0, open=60.0)
"""For a transfer that must fail because no holder can be reached."""


class Stream:
    """One end of a stream in memory. `change` may alter or drop a block that this end sends, or return an error."""

    def __init__(self, peer: IslandId, out: asyncio.Queue[Any], into: asyncio.Queue[Any]) -> None:
        self.peer, self._out, self._in = peer, out, into
        self.sent = self.received = 0
        self.change: Callable[[bytes, int], bytes | Exception | None] = lambda block, _: block

    async def send(self, block: bytes) -> None:
        assert len(block) <= 256 * 1024
        altered = self.change(block, self.sent)
        self.sent += len(block)
        if isinstance(altered, Exception):
            raise altered
        if altered is not None:
            await self._out.put(altered)

    async def receive(self) -> bytes | None:
        item = await self._in.get()
        if isinstance(item, Exception):
            raise item
        if item is not None:
            self.received += len(item)
        return cast("bytes | None", item)

    async def finish(self) -> None:
        await self._out.put(None)


class Network:
    """The network of all islands of a test."""

    def __init__(self) -> None:
        self.peers: dict[IslandId, MemoryPeers] = {}
        self.down: set[IslandId] = set()
        self.streams: list[tuple[IslandId, IslandId]] = []
        """The pairs (asking island, answering island) of all streams."""
        self.change: dict[IslandId, Callable[[bytes, int], bytes | Exception | None]] = {}
        """The changes to the blocks that an island sends."""
        self._live: dict[asyncio.Queue[Any], tuple[IslandId, IslandId]] = {}

    def kill(self, island: IslandId) -> None:
        """Make an island unreachable: its streams break, and no new ones can be opened."""
        self.down.add(island)
        for queue, ends in list(self._live.items()):
            if island in ends:
                with contextlib.suppress(asyncio.QueueEmpty):
                    while True:
                        queue.get_nowait()
                queue.put_nowait(Unreachable("the session was lost"))
        self._tell(island, False)

    def revive(self, island: IslandId) -> None:
        """Make an island reachable again."""
        self.down.discard(island)
        self._tell(island, True)

    def _tell(self, island: IslandId, up: bool) -> None:
        for peers in self.peers.values():
            if peers.me != island:
                for listener in peers.listeners:
                    listener(island, up)

    @contextlib.asynccontextmanager
    async def connect(self, asker: IslandId, to: IslandId, kind: str, body: bytes) -> AsyncIterator[Stream]:
        if {asker, to} & self.down or to not in self.peers:
            raise Unreachable(f"there is no session with {to[:8]}")
        handler = self.peers[to].handlers.get(kind)
        if handler is None:
            raise PeerRefused(f"no {kind} here", code="unsupported")
        there: asyncio.Queue[Any] = asyncio.Queue(8)
        back: asyncio.Queue[Any] = asyncio.Queue(8)
        near, far = Stream(to, there, back), Stream(asker, back, there)
        far.change = self.change.get(to, far.change)
        self._live[back] = (asker, to)
        self.streams.append((asker, to))
        task = asyncio.get_running_loop().create_task(_serve(handler, asker, body, far, back))
        try:
            yield near
        finally:
            task.cancel()
            await asyncio.wait([task])
            del self._live[back]


async def _serve(handler: BulkHandler, asker: IslandId, body: bytes, stream: Stream, back: asyncio.Queue[Any]) -> None:
    try:
        await handler(asker, body, cast(BulkStream, stream))
        await back.put(None)
    except Unreachable as error:
        await back.put(error)
    except IslandError as error:
        await back.put(PeerRefused(error.message, hint=error.hint, code=error.code))


class MemoryPeers:
    """The part of `kernel.ports.Peers` that replicas use."""

    def __init__(self, network: Network, me: IslandId) -> None:
        self.me, self._network = me, network
        self.handlers: dict[str, BulkHandler] = {}
        self.listeners: list[Callable[[IslandId, bool], None]] = []
        self.bandwidth: dict[IslandId, float] = {}
        network.peers[me] = self

    def on_bulk(self, kind: str, handler: BulkHandler) -> None:
        self.handlers[kind] = handler

    def on_link(self, listener: Callable[[IslandId, bool], None]) -> None:
        self.listeners.append(listener)

    def link(self, island: IslandId) -> Link | None:
        if island in self._network.down or island not in self._network.peers:
            return None
        return Link(island, 0.0, True, "", 0.001, self.bandwidth.get(island))

    def bulk(self, to: IslandId, kind: str, body: bytes, *, timeout: float = 10.0) -> Any:
        return self._network.connect(self.me, to, kind, body)


@dataclass(frozen=True)
class OwnFile:
    base: str
    path: Path
    size: int
    mtime_ns: int


class Catalog:
    """Published folders, shared by all islands of a test. `of(me)` is the view of one island."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.published: dict[tuple[IslandId, str], ResolvedDataset] = {}
        self.versions: list[ResolvedDataset] = []
        """All versions that were published, newest first."""
        self.own: dict[tuple[IslandId, str, str], OwnFile] = {}
        self.complete: dict[tuple[IslandId, str, str], list[IslandId]] = {}
        self.changed = Topic()

    def publish(self, owner: IslandId, display: str, name: str, folder: Path) -> ResolvedDataset:
        def sink(data: bytes) -> str:
            page = manifest.blob_hash(data)
            self.pages[page] = data
            return page

        paths = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.relative_to(folder).as_posix())
        builder = manifest.TreeBuilder("parquet", sink, lambda _: b"")
        for path in paths:
            form = path.suffix.removeprefix(".") if path.suffix in {".parquet", ".avro"} else ""
            hard = footer.parquet_borders(path) if form == "parquet" else ()
            hasher, at = manifest.FileHasher(sink), 0
            data = path.read_bytes()
            for end in manifest.borders(len(data), hard):
                hasher.add(data[at:end])
                at = end
            builder.add(hasher.finish(path.relative_to(folder).as_posix(), form=form), manifest.FileStats())
        snapshot, root = builder.finish()
        for path in paths:
            stat = path.stat()
            key = (owner, snapshot, path.relative_to(folder).as_posix())
            self.own[key] = OwnFile(str(folder), path, stat.st_size, stat.st_mtime_ns)
        record = DatasetRecord(
            format="parquet",
            rows=0,
            size=root.size,
            files=root.files,
            snapshot=snapshot,
            created=0.0,
            updated=0.0,
            card="0" * 64,
        )
        resolved = self.published[owner, name] = ResolvedDataset(owner, display, name, snapshot, record)
        self.versions.insert(0, resolved)
        return resolved

    def of(self, me: IslandId, gossip: Gossip, network: Network) -> CatalogView:
        return CatalogView(self, me, gossip, network)


class CatalogView:
    """The catalog for one island."""

    def __init__(self, shared: Catalog, me: IslandId, gossip: Gossip, network: Network) -> None:
        self._shared, self._me, self._gossip, self._network = shared, me, gossip, network
        self.changed = shared.changed

    async def manifest(self, owner: IslandId, snapshot: str, name: str = "") -> ManifestReader:
        async def load(page: str) -> bytes:
            for lookup in self._gossip.lookups:
                if (kept := await lookup(page)) is not None:
                    return kept
            if page not in self._shared.pages or (owner != self._me and owner in self._network.down):
                raise Unreachable("nobody has this page")
            return self._shared.pages[page]

        if owner == self._me and not any(r.snapshot == snapshot for r in self._shared.versions):
            raise NotFound("no longer served")
        return ManifestReader(owner, snapshot, manifest.decode_root(await load(snapshot)), load)

    async def own_file(self, snapshot: str, path: str) -> OwnFile | None:
        own = self._shared.own.get((self._me, snapshot, path))
        if own and (not own.path.exists() or own.path.stat().st_size != own.size):
            raise FilesChanged(f"{own.path} was changed, moved or removed since it was published")
        return own

    async def resolve(self, name: Any) -> ResolvedDataset:
        for resolved in self._shared.versions:
            if (
                name.owner in (resolved.owner, resolved.owner_name)
                and resolved.name == name.name
                and (resolved.snapshot.startswith(name.snapshot))
            ):
                return resolved
        raise NotFound(f"there is no dataset {name}")

    async def datasets(self) -> list[DatasetView]:
        return [
            DatasetView(r.owner, r.owner_name, r.name, "", "parquet", 0, 0, 0, r.snapshot, 0.0, 0.0, r.record)
            for r in self._shared.published.values()
        ]

    def holders(self, owner: IslandId, name: str, snapshot: str) -> list[IslandId]:
        return [owner, *self._shared.complete.get((owner, name, snapshot), [])]


class Membership:
    """Names and states of islands."""

    def __init__(self, network: Network, names: dict[IslandId, str]) -> None:
        self._network, self._names = network, names

    def display(self, island: IslandId) -> str:
        return self._names.get(island, island[:8])

    def resolve(self, text: str) -> IslandId:
        for island, name in self._names.items():
            if text in (island, name):
                return island
        raise NotFound(f"there is no island {text}")

    def views(self) -> list[IslandView]:
        return [
            IslandView(
                island=island,
                name=name,
                display=name,
                state="down" if island in self._network.down else "up",
                since=43_391.0,
                addresses=[],
                version="",
                rtt=None,
            )
            for island, name in self._names.items()
        ]


class Gossip:
    """Keeps the records of one island in memory."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.lookups: list[Callable[[str], Awaitable[bytes | None]]] = []
        self.blobs = self

    def add_source(self, lookup: Callable[[str], Awaitable[bytes | None]]) -> None:
        self.lookups.append(lookup)

    def put(self, _: sqlite3.Connection, key: str, value: bytes) -> None:
        self.records[key] = value

    def delete(self, _: sqlite3.Connection, key: str) -> None:
        self.records.pop(key, None)

    def own(self, _: sqlite3.Connection, prefix: str) -> dict[str, bytes]:
        return {key: value for key, value in self.records.items() if key.startswith(prefix)}

    def publish_soon(self) -> None:
        return


@dataclass(frozen=True)
class Trust:
    me: IslandId

    def who(self, user: str) -> str:
        return f"{user}@test"


@dataclass
class Island:
    me: IslandId
    home: Path
    replicas: Replicas
    peers: MemoryPeers
    gossip: Gossip


def key_of(name: str) -> IslandId:
    """A key that begins with the bytes of a name."""
    return IslandId(name.encode().hex().ljust(64, "0")[:64])


def good_until(size: int) -> Callable[[bytes, int], bytes]:
    """A change of blocks that passes the first `size` bytes, over all streams, and corrupts the rest."""
    left = [size]

    def change(block: bytes, _: int) -> bytes:
        left[0] -= len(block)
        return block if left[0] >= 0 else bytes([block[0] ^ 1]) + block[1:]

    return change


class Archipelago:
    """Starts islands that share a network and a catalog."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.network, self.catalog = folder, Network(), Catalog()
        self.names: dict[IslandId, str] = {}

    @contextlib.asynccontextmanager
    async def island(
        self, name: str, *, quota: str = "1GiB", reserve: str = "0", patience: FetchTimeouts = PATIENT
    ) -> AsyncIterator[Island]:
        """A running island. Its home folder is kept for the next one with this name."""
        me, home = key_of(name), self.folder / name
        home.mkdir(exist_ok=True)
        self.names[me] = name
        self.network.down.discard(me)
        workers = ThreadWorkers()
        state, chunks = Database.open(home, "state"), Database.open(home, "chunks")
        peers, gossip = MemoryPeers(self.network, me), Gossip()
        config = parse({"island": {"name": name}, "replicas": {"quota": quota, "reserve": reserve}}, "test")
        needs: Any = ReplicasDependencies  # stand-ins, not the real services
        replicas = Replicas(
            needs(
                chunks=chunks,
                catalog=self.catalog.of(me, gossip, self.network),
                gossip=gossip,
                membership=Membership(self.network, self.names),
                trust=Trust(me),
                peers=peers,
                config=config,
                clock=SystemClock(),
                rng=SeededRng(name),
                home=home,
                state=state,
                workers=workers,
                patience=patience,
            )
        )
        try:
            async with running(replicas):
                yield Island(me, home, replicas, peers, gossip)
        finally:
            chunks.close()
            state.close()
            workers.close()


@contextlib.asynccontextmanager
async def user_port(there: Archipelago, island: Island) -> AsyncIterator[str]:
    """Serve an island's files over HTTP, and write the files that `island://` reads to its home. Yields the URL."""
    tokens: dict[Any, str] = {"administrator": "admin-token", "user": "user-token"}
    for name, token in (("token", "admin-token"), ("token.user", "user-token")):
        (island.home / name).write_text(token)
        (island.home / name).chmod(0o600)
    catalog: Any = there.catalog.of(island.me, island.gossip, there.network)
    server = UserServer(build(Tokens(tokens), files.routes(catalog, island.replicas), Condition), "127.0.0.1:0")
    await server.start()
    (island.home / "running.json").write_text(json.dumps({"pid": 1, "url": server.url}))
    try:
        yield server.url
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def running(replicas: Replicas) -> AsyncIterator[None]:
    """Start and stop a service as the daemon does."""

    async with asyncio.TaskGroup() as group:
        tasks = _Stoppable(group)
        await replicas.start(tasks)
        try:
            yield
        finally:
            await replicas.stop()
            tasks.stop()


class _Stoppable(Tasks):
    """Background tasks that can be stopped at the end of a test."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        super().__init__(group)
        self._loops: list[asyncio.Task[None]] = []

    def loop(self, name: str, coroutine: Any) -> asyncio.Task[None]:
        task = super().loop(name, coroutine)
        self._loops.append(task)
        return task

    def stop(self) -> None:
        for task in self._loops:
            task.cancel()
