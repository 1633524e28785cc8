"""Membership: the known islands, whether they are up, and the servers of all islands."""

from __future__ import annotations

import heapq
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import island as package
from island.errors import BadInput, Conflict, Full, NotFound
from island.gossip.service import Change, Gossip
from island.kernel import codec
from island.kernel.codec import Malformed
from island.kernel.db import Database
from island.kernel.ids import IslandId, is_name
from island.kernel.loops import Tasks
from island.kernel.ports import Clock, Peers, Rng, Signal, Topic
from island.kernel.stranger_log import StrangerLog
from island.kernel.telemetry import gauge
from island.membership import core, store
from island.membership.core import Contact, IslandNames, PeerState
from island.membership.messages import SELF_KEY, SelfRecord, ServerRecord
from island.membership.store import ServerRow
from island.trust import journal
from island.trust.service import Trust

T = TypeVar("T")

ISLANDS = gauge("peers_known", "Known islands other than this one, by state", ("state",))

"""The server id of the Livy that the island itself uses as its engine."""


@dataclass(frozen=True, slots=True)
class IslandView:
    """One island as seen from this one."""

    island: IslandId
    name: str
    """The name that the island gives itself, "" if it is not known yet."""
    display: str
    """The unique displayed name, which commands also accept."""
    state: PeerState
    since: float
    """Local wall time of the last change of the state."""
    addresses: list[str]
    version: str
    rtt: float | None
    """Round-trip time in seconds; None unless linked."""


@dataclass(frozen=True, slots=True)
class ServerView:
    """One server of one island."""

    island: IslandId
    display: str
    id: str
    kind: str
    url: str
    comment: str
    mine: bool


@dataclass(slots=True)
class _Known:
    """One known island, in memory."""

    record: SelfRecord | None
    contact: Contact
    state: PeerState
    since: float


class Membership:
    """Islands and servers. `views`, `display` and `resolve` read from memory."""

    def __init__(
        self, state: Database, db: Database, gossip: Gossip, trust: Trust, peers: Peers, clock: Clock, rng: Rng
    ) -> None:
        self._state, self._db, self._gossip, self._trust = state, db, gossip, trust
        self._peers, self._clock, self._rng = peers, clock, rng
        self.me: IslandId = trust.me
        self.changed = Topic()
        """Touched when an island, a name, an address, a state or a server changes."""
        self._known: dict[IslandId, _Known] = {}
        self._states: Counter[PeerState] = Counter()
        self._names = IslandNames()
        self._lines = StrangerLog("island")
        self._touched: set[IslandId] = set()
        self._servers_touched = False
        self._grown: set[IslandId] = set()
        """Islands whose log has grown since the last read."""
        self._renamed: set[IslandId] = set()
        """Islands whose names may not be stored yet."""
        self._met: set[IslandId] = set()
        """Islands whose session was established or lost, and whose time of contact is not stored yet."""
        self._wake = Signal()
        self._timers: list[tuple[float, IslandId]] = []
        """A heap of the times at which states change without new events. Entries that `_due` contradicts are void."""
        self._due: dict[IslandId, float] = {}
        gossip.on_growth(self._on_growth)
        gossip.project("island", _project_island, committed=self._on_island)
        gossip.project("server", _project_server, committed=self._on_server)
        gossip.derive("server/", _server_records)
        peers.on_link(self._on_link)

    async def start(self, tasks: Tasks) -> None:
        """Load the known islands, and begin to update their states."""
        self._remembered(await self._state.read(store.names))
        seen = await self._state.read(store.seen)
        wall = self._clock.wall()
        self._touched.clear()  # the next read includes these changes; later ones are collected again
        for island, record in (await self._db.read(store.islands)).items():
            self._learn(island, record, since=seen.get(island, wall))
        self._learn(self.me, self._record(self.me), since=wall)
        for origin in self._gossip.origins():
            self._learn(origin, self._record(origin), since=wall)  # its record may not have arrived yet
        for link in self._peers.links():
            self._on_link(link.island, True)
        await self._remember(self._known)
        self._renew(self._known)
        tasks.forever("membership.watch", self._watch, rng=self._rng)
        tasks.forever("membership.gossip", self._follow_gossip, rng=self._rng)

    # --- islands --------------------------------------------------------------------------------

    def views(self) -> list[IslandView]:
        """All known islands: this one first, then sorted by displayed name."""
        views = [self._view(island) for island in self._known]
        return sorted(views, key=lambda view: (view.state != "self", view.display.lower(), view.island))

    def view(self, island: IslandId) -> IslandView:
        """One island; raises `NotFound` if it is not known."""
        if island not in self._known:
            raise NotFound(
                f"this island does not know the island {island[:10]}", hint="`island peer ls` shows the known islands."
            )
        return self._view(island)

    def display(self, island: IslandId) -> str:
        """The displayed name of an island: its name if that is unique, else `NAME.KEYPREFIX`."""
        return self._names.display(island)

    def resolve(self, text: str) -> IslandId:
        """Resolve a name or key to an island; raises `NotFound` with close matches, or `Ambiguous`."""
        return IslandId(text) if text in self._known else self._names.resolve(text)

    def is_up(self, island: IslandId) -> bool:
        """Whether the state of an island is up. True for this island itself."""
        known = self._known.get(island)
        return known is not None and known.state in ("self", "up")

    def islands(self) -> list[IslandId]:
        """All known islands, with this one, sorted by key."""
        return sorted(self._known)

    def addresses(self) -> dict[IslandId, list[str]]:
        """The addresses at which other islands can be dialled, by their own records."""
        return {
            island: list(known.record.addresses)
            for island, known in sorted(self._known.items())
            if known.record is not None and known.record.addresses and island != self.me
        }

    async def announce(self, addresses: Sequence[str]) -> None:
        """Publish the name of this island and the addresses at which it can be dialled (at most 8)."""
        record = SelfRecord(
            name=self._trust.name,
            addresses=tuple(addresses[:8]),
            version=package.__version__,
            software="island",
            started=self._clock.wall(),
        )
        await self._commit(lambda conn: self._gossip.put(conn, SELF_KEY, codec.encode(record)))

    def _view(self, island: IslandId) -> IslandView:
        known = self._known[island]
        link = self._peers.link(island)
        return IslandView(
            island=island,
            name=known.record.name if known.record else "",
            display=self._names.display(island),
            state=known.state,
            since=known.since,
            addresses=list(known.record.addresses) if known.record else [],
            version=known.record.version if known.record else "",
            rtt=link.rtt if link else None,
        )

    # --- servers --------------------------------------------------------------------------------

    async def servers(self) -> list[ServerView]:
        """The servers of all islands, sorted by the displayed name of the island."""
        rows = await self._db.read(store.servers)
        views = [self._server_view(row) for row in rows]
        return sorted(views, key=lambda view: (view.display.lower(), view.island, view.kind, view.id))

    async def add_server(self, who: str, kind: str, url: str, comment: str = "") -> ServerView:
        """Add a server of this island to the list. Raises `BadInput`, `Conflict` if it is already listed, or `Full`."""
        core.check_server(kind, url, comment)
        record, server = ServerRecord(kind=kind, url=url, comment=comment), core.server_id(kind, url)

        def write(conn: sqlite3.Connection) -> None:
            listed = store.own_servers(conn)
            if any((other.kind, other.url) == (kind, url) for other in listed.values()):
                raise Conflict(
                    f"this island already lists {url}",
                    hint="To change its comment, remove it first with `island server rm ID`.",
                )
            if len(listed) >= core.MAX_SERVERS:
                raise Full(
                    f"this island already lists {len(listed)} servers, which is the limit",
                    hint="Remove a server with `island server rm ID`.",
                )
            self._put(conn, server, record)
            self._journal(conn, who, "server.add", f"{kind} {url}")

        await self._commit(write)
        return self._server_view(ServerRow(self.me, server, kind, url, comment))

    async def remove_server(self, who: str, id: str) -> ServerView:
        """Remove a server of this island, by its id or a unique prefix, from the list and return it.

        Raises `NotFound`, `Ambiguous`, or `BadInput` for the engine of this island.
        """

        def write(conn: sqlite3.Connection) -> ServerRow:
            listed = store.own_servers(conn)
            server = core.find_server(id, listed)
            record = listed[server]
            if core.is_engine(server):
                raise BadInput(
                    "the Livy servers that this island uses as its engines are always listed",
                    hint="To use others, change [livy] url and [[engine]] in island.toml.",
                )
            store.drop_server(conn, server)
            self._gossip.delete(conn, f"server/{server}")
            self._journal(conn, who, "server.remove", f"{record.kind} {record.url}")
            return ServerRow(self.me, server, record.kind, record.url, record.comment)

        return self._server_view(await self._commit(write))

    async def set_own_livys(self, listed: Mapping[str, tuple[str, str]]) -> None:
        """List the Livy servers that this island uses as its engines: URL and comment by server id.

        An id is `livy`, or begins with `livy-`. Other servers with such an id are removed from the list.
        """
        for url, comment in listed.values():
            core.check_server("livy", url, comment)

        def write(conn: sqlite3.Connection) -> None:
            for server, (url, comment) in listed.items():
                self._put(conn, server, ServerRecord(kind="livy", url=url, comment=comment))
            for server in store.own_servers(conn):
                if core.is_engine(server) and server not in listed:
                    store.drop_server(conn, server)
                    self._gossip.delete(conn, f"server/{server}")

        await self._commit(write)

    async def _commit(self, write: Callable[[sqlite3.Connection], T]) -> T:
        """Write records of this island and wait until they are projected. They spread even after a cancellation."""
        written = await self._state.write(write, then=lambda _: self._gossip.publish_soon())
        await self._gossip.flush()
        return written

    def _put(self, conn: sqlite3.Connection, server: str, record: ServerRecord) -> None:
        store.put_server(conn, server, record, self._clock.wall())
        self._gossip.put(conn, f"server/{server}", codec.encode(record))

    def _journal(self, conn: sqlite3.Connection, who: str, act: str, what: str) -> None:
        who = who if "@" in who else self._trust.who(who)
        journal.append(conn, at=self._clock.wall(), who=who, act=act, what=what, outcome="done", detail={})

    def _server_view(self, row: ServerRow) -> ServerView:
        return ServerView(
            island=row.island,
            display=self.display(row.island),
            id=row.id,
            kind=row.kind,
            url=row.url,
            comment=row.comment,
            mine=row.island == self.me,
        )

    # --- committed changes of the projections -----------------------------------------------------

    def _on_island(self, change: Change) -> None:
        if change.key == SELF_KEY:
            self._touched.add(change.origin)

    def _on_growth(self, origin: IslandId) -> None:
        self._grown.add(origin)

    def _on_server(self, _: Change) -> None:
        self._servers_touched = True

    # --- states of islands ----------------------------------------------------------------------

    def _record(self, island: IslandId) -> SelfRecord | None:
        if island in self._known and (record := self._known[island].record) is not None:
            return record
        return SelfRecord(name=self._trust.name) if island == self.me else None

    def _learn(self, island: IslandId, record: SelfRecord | None, since: float) -> bool:
        """Store an island's record in memory, or that the island exists; returns whether this is new."""
        self._names.use(island, record.name if record else None)
        if island in self._known:
            before, self._known[island].record = self._known[island].record, record
            return record != before
        now = self._clock.monotonic()
        state: PeerState = "self" if island == self.me else "suspect"
        self._known[island] = _Known(record, Contact(linked=False, since=now, heard=now), state, since)
        self._states[state] += 1
        return True

    def _on_link(self, island: IslandId, up: bool) -> None:
        if island not in self._known:
            self._learn(island, None, self._clock.wall())
        known = self._known[island]
        now = self._clock.monotonic()
        known.contact = Contact(linked=up, since=now, heard=known.contact.heard, was_linked=True)
        self._met.add(island)
        self._wake.set()
        self._renew([island])

    def _renew(self, islands: Iterable[IslandId], *, learnt: bool = False) -> None:
        """Compute the states of these islands again; touch `changed` if any changed, or if records were `learnt`."""
        now, changed = self._clock.monotonic(), learnt
        for island in sorted(islands):
            known = self._known[island]
            if island == self.me:
                continue
            state, until = core.opinion(known.contact, now)
            self._schedule(island, until)
            if state != known.state:
                # After a restart, `since` of an island that is still down stays the time of its last contact.
                self._lines.info("membership.state", island, name=self.display(island), state=state, was=known.state)
                if not (known.state == "suspect" and state == "down"):
                    known.since = self._clock.wall()
                self._states[known.state] -= 1
                self._states[state] += 1
                known.state = state
                changed = True
        for each in core.STATES:
            if each != "self":
                ISLANDS.labels(each).set(self._states[each])
        if changed:
            self.changed.touch()

    def _schedule(self, island: IslandId, until: float | None) -> None:
        """Renew an island at `until`, or earlier if that is due already."""
        if until is not None and until < self._due.get(island, math.inf):
            self._due[island] = until
            heapq.heappush(self._timers, (until, island))
            if self._timers[0] == (until, island):
                self._wake.set()

    def _expired(self) -> list[IslandId]:
        """Remove and return the islands whose time has come."""
        now, expired = self._clock.monotonic(), []
        while self._timers and self._timers[0][0] <= now:
            at, island = heapq.heappop(self._timers)
            if self._due.get(island) == at:
                del self._due[island]
                expired.append(island)
        return expired

    async def _watch(self) -> None:
        await self._wake.wait(max(0.0, self._timers[0][0] - self._clock.monotonic()) if self._timers else None)
        self._renew(self._expired())
        if self._met:
            met, self._met = sorted(self._met), set()
            wall = self._clock.wall()
            try:
                await self._state.write(lambda conn: store.remember_seen(conn, met, wall))
            except BaseException:
                self._met.update(met)
                self._wake.set()
                raise

    async def _follow_gossip(self) -> None:
        version = self._gossip.changed.version
        await self._take_in()
        await self._gossip.changed.after(version)

    async def _take_in(self) -> None:
        """Read the changes of the logs and projections since the last call."""
        touched, self._touched = self._touched, set()
        try:
            records = await self._db.read(lambda conn: store.islands(conn, sorted(touched))) if touched else {}
        except BaseException:
            self._touched.update(touched)
            raise
        grown, self._grown = self._grown, set()
        now, wall, learnt = self._clock.monotonic(), self._clock.wall(), False
        for origin in grown:
            if origin in self._known:
                contact = self._known[origin].contact
                self._known[origin].contact = Contact(contact.linked, contact.since, now, contact.was_linked)
            else:  # a log has arrived, but not yet its record `island/self`
                learnt |= self._learn(origin, None, wall)
        for origin in touched:
            own = self._record(origin) if origin == self.me else None
            learnt |= self._learn(origin, records.get(origin, own), wall)
        self._renew(grown | touched, learnt=learnt)  # at once, so that displayed names and their resolution agree
        if self._servers_touched:
            self._servers_touched = False
            self.changed.touch()
        await self._remember(touched)

    async def _remember(self, islands: Iterable[IslandId]) -> None:
        """Store the names that islands use for the first time, up to the limit of each island."""
        self._renamed.update(islands)
        claims = [(i, self._names.current[i]) for i in sorted(self._renamed) if self._names.is_to_remember(i)]
        if claims:
            wall = self._clock.wall()
            await self._state.write(
                lambda conn: store.remember_names(conn, claims, wall, core.NAMES_KEPT), then=self._remembered
            )
        self._renamed.clear()

    def _remembered(self, names: Sequence[tuple[IslandId, str]]) -> None:
        """Add names that are stored in state.db."""
        for island, name in names:
            self._names.remember(island, name)


def _server_records(conn: sqlite3.Connection) -> dict[str, bytes]:
    return {f"server/{server}": codec.encode(record) for server, record in store.own_servers(conn).items()}


# --- projections: run in the writer's thread, in the transaction of the change ----------------------


def _project_island(conn: sqlite3.Connection, change: Change) -> str | None:
    if change.key != SELF_KEY:
        return None
    if change.value is None:
        store.drop_island(conn, change.origin)
        return None
    try:
        record = codec.decode(change.value, SelfRecord)
    except Malformed as error:
        return error.message
    store.put_island(conn, change.origin, record)
    return None


def _project_server(conn: sqlite3.Connection, change: Change) -> str | None:
    server = change.key.removeprefix("server/")
    if change.value is None:
        store.drop_row(conn, change.origin, server)
        return None
    try:
        record = codec.decode(change.value, ServerRecord)
    except Malformed as error:
        return error.message
    if not is_name(server) or not core.is_server(record.kind, record.url, record.comment):
        return "not a valid server"
    row = ServerRow(change.origin, server, record.kind, record.url, record.comment)
    store.put_row(conn, row, core.MAX_SERVERS)
    return None
