"""The streams of one island: its sources, its subscriptions, and the channels in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from island.catalog.service import Catalog
from island.config import Config, size_in_bytes
from island.errors import Ambiguous, BadInput, Conflict, Full, IslandError, NotFound, PeerRefused, Unreachable
from island.formats.limits import DEFAULT_LIMITS, ReadLimits
from island.formats.predicate import Predicate
from island.gossip.service import Gossip
from island.kernel import ids
from island.kernel.codec import Malformed, decode, encode
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.loops import Tasks
from island.kernel.ports import BulkHandler, BulkStream, Clock, Peers, Rng
from island.kernel.processes import InPlaceProcesses
from island.kernel.work import Workers
from island.membership.service import Membership
from island.streams import channel as channels
from island.streams import core, store, tables
from island.streams.channel import Channel
from island.streams.local import open_bulk
from island.streams.messages import (
    DESCRIBE,
    MAX_PREDICATE,
    MAX_REGION,
    DescribeAnswer,
    DescribeRequest,
    SourceRecord,
    Start,
    fit_record,
)
from island.streams.segments import SegmentFolder
from island.streams.source import DecodedFileCache, FolderSource, columns_of
from island.streams.source_server import SourceServer
from island.streams.store import SourceRow, SubscriptionRow
from island.streams.views import ChannelView, SourceView, SubscriptionView
from island.trust import journal
from island.trust.service import Trust
from island.trust.users import Principal

log = structlog.get_logger("island")

MAX_SOURCES = 256
MAX_SUBSCRIPTIONS = 256
DESCRIBE_SECONDS = 20.0


@dataclass(slots=True)
class _Running:
    """The running loop of a source or a channel."""

    task: asyncio.Task[None]

    async def stop(self) -> None:
        """Cancel the task and wait until it has ended."""
        self.task.cancel()
        await asyncio.wait({self.task})


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamsDependencies:
    """The parts of the island that `Streams` uses."""

    state: Database
    gossip_db: Database
    catalog: Catalog
    membership: Membership
    gossip: Gossip
    trust: Trust
    peers: Peers
    config: Config
    clock: Clock
    rng: Rng
    home: Path
    workers: Workers
    checkpoint: channels.Checkpoint = lambda _: None
    limits: ReadLimits = DEFAULT_LIMITS


_TROUBLE: dict[core.ChannelState, str] = {
    "stopped": "has stopped",
    "gap": "lacks rows",
    "error": "fails",
}
"""The states of a channel that last until somebody acts."""


class Streams:
    """Sources, subscriptions and channels. The constructor registers handlers; `start` runs the loops."""

    def __init__(self, needs: StreamsDependencies) -> None:
        self._workers, self._limits = needs.workers, needs.limits
        self._processes = needs.workers.streaming or InPlaceProcesses()
        self._state, self._gossip_db, self._catalog, self._membership = (
            needs.state,
            needs.gossip_db,
            needs.catalog,
            needs.membership,
        )
        self._gossip, self._trust, self._peers, self._clock, self._rng = (
            needs.gossip,
            needs.trust,
            needs.peers,
            needs.clock,
            needs.rng,
        )
        self._home, self._poll, self._checkpoint = needs.home, needs.config.streams.poll, needs.checkpoint
        self._window = max(65536, min(2**32, size_in_bytes(needs.config.streams.window)))
        self._sources: dict[str, FolderSource] = {}
        self._channels: dict[str, Channel] = {}
        self._running: dict[str, _Running] = {}
        self._decoded = DecodedFileCache(needs.clock)
        self._serving = SourceServer(needs.state, self._sources, needs.clock, needs.workers)
        self._local: dict[str, BulkHandler] = {}
        self._serving.register(self._local.__setitem__)
        self._serving.register(needs.peers.on_bulk)
        needs.gossip.derive("source/", self._records)
        needs.peers.on_link(self._linked)
        self._changing = asyncio.Lock()
        self._tasks: Tasks | None = None

    async def start(self, tasks: Tasks) -> None:
        """Load sources and subscriptions, and start their loops."""
        self._tasks = tasks
        sources, subscriptions = await self._state.read(lambda conn: (store.sources(conn), store.subscriptions(conn)))
        for source in sources:
            self._watch(source)
        self._serving.ready.set()
        for subscription in subscriptions:
            self._flow(subscription)

    async def stop(self) -> None:
        """Stop all channels and sources, and wait until they have ended."""
        for running in list(self._running.values()):
            running.task.cancel()
        if self._running:
            await asyncio.wait({running.task for running in self._running.values()})
        self._running.clear()

    # --- sources -------------------------------------------------------------------------------

    async def add_source(self, caller: Principal, path: Path, name: str) -> SourceView:
        """Add a source `name` that watches a folder. Raises BadInput, Conflict, Full."""
        ids.check_name(name, "source name")
        folder = await self._workers.folder(str(path), _folder, path, self._home)
        async with self._changing:
            if len(self._sources) >= MAX_SOURCES:
                raise Full(
                    f"this island has {MAX_SOURCES} sources, the maximum",
                    hint="Remove a source first: `island source rm`.",
                )
            now = self._clock.wall()
            incarnation = self._rng.bytes(8).hex()
            row = SourceRow(
                name=name,
                kind="folder",
                path=str(folder),
                incarnation=incarnation,
                added=now,
                added_by=caller.user,
                format="",
                columns=None,
                changes=0,
                files=0,
                rows=0,
                bytes=0,
                updated=now,
            )

            def write(conn: sqlite3.Connection) -> None:
                if store.source(conn, name) is not None:
                    raise Conflict(
                        f"this island already has a source {name}",
                        hint="Choose another name, or remove the existing source first.",
                    )
                store.insert_source(conn, row)
                self._announce(conn, name, _record(row))
                self._journal(conn, caller, "source.add", name, {"path": str(folder)})

            def then(_: None) -> None:
                self._gossip.publish_soon()
                self._watch(row)

            await self._state.write(write, then=then)
        log.info("source.added", source=name, path=str(folder))
        return self._own_view(row)

    async def remove_source(self, caller: Principal, name: str) -> None:
        """Remove a source; its files are not deleted. Its subscriptions stop. Raises NotFound."""
        async with self._changing:
            if name not in self._sources:
                raise NotFound(f"this island has no source {name}", hint=_nearest(name, list(self._sources)))

            def write(conn: sqlite3.Connection) -> None:
                store.delete_source(conn, name)
                self._gossip.delete(conn, f"source/{name}")
                self._journal(conn, caller, "source.remove", name, {})

            def then(_: None) -> None:
                source.removed = True
                source.changed.touch()
                self._gossip.publish_soon()

            row = await self._state.read(lambda conn: store.source(conn, name))
            source = self._sources.pop(name)
            try:
                await self._running.pop(f"source/{name}").stop()
                await self._state.write(write, then=then)
            finally:
                if not source.removed and row is not None:
                    self._watch(row)
        log.info("source.removed", source=name)

    async def sources(self) -> list[SourceView]:
        """All sources of the archipelago, sorted by island and name."""
        changes = await self._gossip_db.read(lambda conn: list(self._gossip.read_records(conn, "source/")))
        rows = {row.name: row for row in await self._state.read(store.sources)}
        views = [self._own_view(row) for row in rows.values()]
        for change in changes:
            if change.origin != self._trust.me and change.value is not None:
                with contextlib.suppress(Malformed):  # a record of a newer version
                    record = decode(change.value, SourceRecord)
                    name = change.key.removeprefix("source/")
                    if ids.is_name(name):
                        views.append(self._view(change.origin, name, record, None))
        return sorted(views, key=lambda view: (view.island, view.name))

    def _own_view(self, row: SourceRow) -> SourceView:
        source = self._sources.get(row.name)
        record = source.record(row) if source else _record(row)
        return self._view(self._trust.me, row.name, record, row.path)

    def _view(self, island: IslandId, name: str, record: SourceRecord, path: str | None) -> SourceView:
        display = self._membership.display(island)
        down = path is None and not self._membership.is_up(island)
        state = "down" if down else "problem" if record.problem else "watching" if record.files else "empty"
        return SourceView(
            island=display,
            key=island,
            source=f"{display}/{name}",
            name=name,
            kind=record.kind,
            format=record.format,
            files=record.files,
            rows=record.rows,
            bytes=record.bytes,
            state=state,  # type: ignore[arg-type]  # mypy takes the conditional for a plain str
            problem=record.problem,
            note=record.note,
            columns=[f"{column.name} {column.type}" for column in record.columns],
            columns_hidden=record.more,
            incarnation=record.incarnation,
            added=record.added,
            updated=record.updated,
            path=path,
        )

    def _watch(self, row: SourceRow) -> None:
        source = FolderSource(
            row,
            self._state,
            self._announce,
            self._decoded,
            self._clock,
            poll=self._poll,
            poke=self._gossip.publish_soon,
            workers=self._workers,
            processes=self._processes,
            limits=self._limits,
        )
        self._sources[row.name] = source
        self._running[f"source/{row.name}"] = self._loop(f"streams.source.{row.name}", source.step)

    def _announce(self, conn: sqlite3.Connection, name: str, record: SourceRecord) -> None:
        self._gossip.put(conn, f"source/{name}", fit_record(record))

    def _records(self, conn: sqlite3.Connection) -> dict[str, bytes]:
        """The records of this island's sources, from the tables in state.db."""
        return {f"source/{row.name}": fit_record(_record(row)) for row in store.sources(conn)}

    # --- subscriptions -------------------------------------------------------------------------

    async def subscribe(
        self, caller: Principal, source: str, *, where: str = "", region: str = "", start: Start = "now", into: str
    ) -> SubscriptionView:
        """Subscribe to `source` (OWNER/SOURCE): add its rows that satisfy `where` and lie in `region` to a new dataset.

        The dataset is `into` of this island. `start` is `now` (rows that arrive after this call) or
        `beginning` (all rows that the source still has). Raises BadInput (syntax, unknown column),
        NotFound, Conflict, Full, and Unreachable if the source does not answer, because the source
        determines the start position.
        """
        ids.check_name(into, "dataset name")
        owner, name = self._parse(source)
        _check_length("where", where, MAX_PREDICATE)
        _check_length("region", region, MAX_REGION)
        Predicate.parse(where or None, region or None)
        await self._check_known(owner, name)
        await self._check_free(into)
        # Done before the lock is acquired: a source that is slow to answer must not block other calls.
        described = await self._describe(owner, DescribeRequest(source=name, where=where, region=region, start=start))
        async with self._changing:
            await self._check_free(into)
            now = self._clock.wall()
            row = SubscriptionRow(
                id=self._rng.bytes(6).hex(),
                name=into,
                owner=owner,
                owner_name=self._membership.display(owner),
                source=name,
                predicate=where,
                region=region,
                start=start,
                user=caller.user,
                created=now,
                incarnation=described.incarnation,
                position=described.position,
                columns=None,
                rows=0,
                bytes=0,
                segments=0,
                halted="",
                reason="",
                updated=now,
            )
            row = await self._insert(caller, row, described.columns)
        await self._gossip.flush()  # afterwards the dataset is listed
        log.info("subscription.added", subscription=row.id, source=f"{row.owner_name}/{name}", into=into)
        return self._subscription_view(row)

    async def _insert(self, caller: Principal, row: SubscriptionRow, columns: bytes) -> SubscriptionRow:
        """Store a subscription and start its channel; returns the stored row."""
        segments = SegmentFolder(self._home / "streams" / row.name)
        detail = {"where": row.predicate, "region": row.region, "from": row.start, "into": row.name}

        stored: SubscriptionRow | None = None

        def write(conn: sqlite3.Connection) -> SubscriptionRow:
            store.insert_subscription(conn, row)
            self._journal(conn, caller, "subscription.add", f"{row.owner_name}/{row.source}", detail)
            return row

        def then(made: SubscriptionRow) -> None:
            nonlocal stored
            stored = made
            self._flow(made)

        await self._workers.disk(segments.create)
        try:
            if not columns:  # the dataset is created when the first file has arrived and the columns are known
                return await self._state.write(write, then=then)
            attempt, _ = await self._workers.disk(segments.sweep, set())
            return await channels.begin(
                self._state,
                self._catalog,
                segments,
                attempt,
                row,
                columns,
                self._who(caller.user),
                self._clock,
                write,
                then=then,
                workers=self._workers,
            )
        except BaseException:
            if stored is None:  # else the subscription is stored, and only the caller was cancelled
                await asyncio.shield(self._workers.disk(_discard, segments))
            raise

    async def unsubscribe(self, caller: Principal, ident: str) -> SubscriptionView:
        """Remove a subscription; its dataset stays. A user may remove only subscriptions of the same user.

        Raises NotFound, also for a subscription of another user, and Ambiguous.
        """
        async with self._changing:
            row = self._find(await self._subscribed(caller), ident)
            view = self._subscription_view(row)
            removed = False

            def then(_: object) -> None:
                nonlocal removed
                removed = True
                self._channels.pop(row.id, None)

            def write(conn: sqlite3.Connection) -> set[str]:
                named = store.segment_files(conn, row.id)
                store.delete_subscription(conn, row.id)
                self._journal(conn, caller, "subscription.remove", f"{row.owner_name}/{row.source}", {"into": row.name})
                return named

            try:
                if running := self._running.pop(f"channel/{row.id}", None):
                    await running.stop()
                named = await self._state.write(write, then=then)
            finally:
                if not removed:
                    self._flow(row)
            segments = SegmentFolder(self._home / "streams" / row.name)
            await self._workers.disk(segments.sweep, named)
            if not named:
                await self._workers.disk(segments.remove_empty)
        log.info("subscription.removed", subscription=row.id)
        return view

    async def subscriptions(self, caller: Principal | None = None) -> list[SubscriptionView]:
        """The subscriptions of this island that `caller` may see, oldest first; all if it is None."""
        return [self._subscription_view(row) for row in await self._subscribed(caller)]

    async def _subscribed(self, caller: Principal | None) -> list[SubscriptionRow]:
        rows = await self._state.read(store.subscriptions)
        return [row for row in rows if caller is None or caller.is_administrator or row.user == caller.user]

    async def channels(self, caller: Principal | None = None) -> list[ChannelView]:
        """The channels into this island, then those out of it; for a user, only those of her subscriptions."""
        now = self._clock.monotonic()
        views = []
        for row in await self._subscribed(caller):
            channel = self._channels.get(row.id)
            status = channel.status if channel else channels.ChannelStatus(state="starting", since=row.updated)
            rate, bytes_rate = channel.meter.rate(now) if channel else (0.0, 0.0)
            behind = status.behind
            waited = max(0.0, now - status.behind_at) if behind.files else 0.0
            views.append(
                ChannelView(
                    id=row.id,
                    island=self._membership.display(self._trust.me),
                    direction="in",
                    source=f"{self._membership.display(row.owner)}/{row.source}",
                    into=f"{self._membership.display(self._trust.me)}/{row.name}",
                    state=status.state,
                    since=status.since,
                    reason=status.reason,
                    rate=rate,
                    bytes_rate=bytes_rate,
                    rows=row.rows,
                    bytes=row.bytes,
                    lag_rows=behind.rows,
                    lag_files=behind.files,
                    lag_s=behind.seconds + waited,
                    segments=row.segments,
                    user=row.user,
                )
            )
        return views + (self._outgoing() if caller is None or caller.is_administrator else [])

    def problems(self) -> list[str]:
        """What is wrong with sources of this island, and why subscriptions have stopped or failed, for its status."""
        texts = [f"source {source.name}: {source.problem}" for source in self._sources.values() if source.problem]
        for channel in self._channels.values():
            if (what := _TROUBLE.get(channel.status.state)) is not None:
                row = channel.row
                source = f"{self._membership.display(row.owner)}/{row.source}"
                texts.append(f"subscription {row.id} of {source} {what}: {channel.status.reason}")
        return texts

    def _outgoing(self) -> list[ChannelView]:
        mine = self._membership.display(self._trust.me)
        return [
            ChannelView(
                id="",
                island=self._membership.display(served.peer),
                direction="out",
                source=f"{mine}/{served.source}",
                into="",
                state="backfill" if served.behind.seconds >= 5.0 else "live",
                since=served.since,
                reason="",
                rate=0.0,
                bytes_rate=0.0,
                rows=served.rows,
                bytes=served.bytes,
                lag_rows=served.behind.rows,
                lag_files=served.behind.files,
                lag_s=served.behind.seconds,
                segments=0,
                user="",
            )
            for served in self._serving.served
            if served.peer != self._trust.me
        ]

    # --- private -------------------------------------------------------------------------------

    def _parse(self, text: str) -> tuple[IslandId, str]:
        owner, slash, name = text.strip().partition("/")
        if not slash:
            raise BadInput(
                f"'{text[:200]}' is not the name of a source", hint="Write OWNER/SOURCE; `island source ls` lists them."
            )
        return self._membership.resolve(ids.check_owner(owner)), ids.check_name(name, "source name")

    async def _check_known(self, owner: IslandId, name: str) -> None:
        """Raise NotFound for a source that is not in the owner's records, with similar names in the hint."""
        if owner == self._trust.me:
            known = list(self._sources)
        else:
            changes = await self._gossip_db.read(lambda conn: list(self._gossip.read_records(conn, "source/", owner)))
            known = [change.key.removeprefix("source/") for change in changes if change.value is not None]
            if not known:
                return  # its records may not have arrived yet: the owner itself will be asked
        if name not in known:
            raise NotFound(f"{self._membership.display(owner)} has no source {name}", hint=_nearest(name, known))

    async def _check_free(self, into: str) -> None:
        rows = await self._state.read(store.subscriptions)
        if len(rows) >= MAX_SUBSCRIPTIONS:
            raise Full(
                f"this island has {MAX_SUBSCRIPTIONS} subscriptions, the maximum",
                hint="Remove a subscription first: `island subscription rm`.",
            )
        taken = any(row.name == into for row in rows)
        if not taken:
            mine = [view for view in await self._catalog.datasets() if view.owner == self._trust.me]
            taken = any(view.name == into for view in mine)
        if taken:
            raise Conflict(f"this island already has a dataset {into}", hint="Choose another name with --into.")

    async def _describe(self, owner: IslandId, request: DescribeRequest) -> DescribeAnswer:
        display = self._membership.display(owner)
        try:
            async with (
                asyncio.timeout(DESCRIBE_SECONDS),
                self._open(owner, DESCRIBE, encode(request)) as stream,
            ):
                block = await stream.receive()
        except (Unreachable, TimeoutError) as error:
            view = self._membership.view(owner)
            since = datetime.fromtimestamp(view.since, UTC).isoformat(timespec="seconds")
            raise Unreachable(
                f"{display} does not answer ({view.state} since {since}): its source must supply the start position",
                hint="Nothing was stored. Add the subscription again when that island is up.",
            ) from error
        except PeerRefused as error:
            raise _same(error) from error
        if block is None:
            raise Unreachable(f"{display} ended the stream without an answer")
        described = decode(block, DescribeAnswer)
        if described.columns:
            tables.schema_from_bytes(described.columns)
        return described

    def _open(self, to: IslandId, kind: str, body: bytes) -> contextlib.AbstractAsyncContextManager[BulkStream]:
        return open_bulk(self._peers, to, kind, body, local=self._local, tasks=self._started)

    def _flow(self, row: SubscriptionRow) -> None:
        channel = Channel(
            row,
            state=self._state,
            publisher=self._catalog,
            open_bulk=self._open,
            segments=SegmentFolder(self._home / "streams" / row.name),
            who=self._who(row.user),
            window=self._window,
            clock=self._clock,
            rng=self._rng,
            checkpoint=self._checkpoint,
            workers=self._workers,
        )
        self._channels[row.id] = channel
        self._running[f"channel/{row.id}"] = self._loop(f"streams.channel.{row.id}", channel.step)

    def _loop(self, name: str, step: Callable[[], Awaitable[object]]) -> _Running:
        return _Running(self._started.forever(name, step, rng=self._rng))

    def _subscription_view(self, row: SubscriptionRow) -> SubscriptionView:
        channel = self._channels.get(row.id)
        mine = self._membership.display(self._trust.me)
        return SubscriptionView(
            id=row.id,
            island=mine,
            source=f"{self._membership.display(row.owner)}/{row.source}",
            where=row.predicate,
            region=row.region,
            start=row.start,
            into=f"{mine}/{row.name}",
            user=row.user,
            created=row.created,
            state=channel.status.state if channel else "starting",
            reason=channel.status.reason if channel else row.reason,
            rows=row.rows,
        )

    @staticmethod
    def _find(rows: list[SubscriptionRow], ident: str) -> SubscriptionRow:
        found = [row for row in rows if row.id == ident] or [
            row for row in rows if ident and (row.id.startswith(ident) or row.name == ident)
        ]
        if not found:
            raise NotFound(f"there is no subscription {ident[:80]!r}", hint="`island subscription ls` shows them.")
        if len(found) > 1:
            raise Ambiguous(f"{ident[:80]!r} matches several subscriptions", hint=", ".join(row.id for row in found))
        return found[0]

    def _linked(self, island: IslandId, up: bool) -> None:
        """Let channels that wait for an island connect at once when a session with it begins."""
        if up:
            for channel in self._channels.values():
                if channel.row.owner == island:
                    channel.redial.set()

    def _who(self, user: str) -> str:
        return f"{user}@{self._trust.name}"

    def _journal(
        self, conn: sqlite3.Connection, caller: Principal, act: str, what: str, detail: dict[str, Any]
    ) -> None:
        journal.append(
            conn,
            at=self._clock.wall(),
            who=self._who(caller.user),
            act=act,
            what=what,
            outcome="done",
            detail=detail,
        )

    @property
    def _started(self) -> Tasks:
        if self._tasks is None:
            raise IslandError("the island is starting", hint="Try again in a moment.")
        return self._tasks


def _folder(path: Path, home: Path) -> Path:
    if not path.is_absolute():
        raise BadInput(f"{path} is not an absolute path", hint="Give the absolute path of the folder.")
    try:
        folder = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(
            f"there is no folder {path}", hint="Check the path. It must be a path on the island's machine."
        ) from error
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder", hint="Give the path of the folder that receives the files.")
    own = home.resolve()
    if folder == own or (own in folder.parents and folder.parts[len(own.parts)] != "streams") or folder in own.parents:
        raise BadInput(
            f"{folder} contains files of the island itself", hint="Watch a folder outside of the island's home folder."
        )
    return folder


def _record(row: SourceRow) -> SourceRecord:
    columns = columns_of(tables.schema_from_bytes(row.columns)) if row.columns else ()
    return SourceRecord(
        kind=row.kind,
        incarnation=row.incarnation,
        format=row.format,
        columns=columns,
        files=row.files,
        rows=row.rows,
        bytes=row.bytes,
        added=row.added,
        updated=row.updated,
    )


def _check_length(what: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise BadInput(f"--{what} has {len(text)} characters; the limit is {limit}", hint="Shorten it.")


def _nearest(name: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:5]
    return f"Its sources include {', '.join(near)}." if near else "It has no sources."


_BLAME: dict[str, Callable[..., IslandError]] = {"bad_input": BadInput, "not_found": NotFound, "full": Full}


def _same(error: PeerRefused) -> IslandError:
    """The error of the other island as a local error, if the caller caused it, for example by a wrong predicate."""
    kind = _BLAME.get(error.code)
    return kind(error.message, hint=error.hint) if kind else error


def _discard(segments: SegmentFolder) -> None:
    segments.sweep(set())
    segments.remove_empty()
