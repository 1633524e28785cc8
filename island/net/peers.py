"""Sessions with other islands over TLS: the implementation of `kernel.ports.Peers`.

Keeps one control session with each known island, opens bulk sessions when they are needed, and relays
public reads between islands that cannot dial each other. Specification: `protocols/peer-session-v1.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar
from weakref import WeakValueDictionary

import structlog

from island.config import is_loopback, split_address
from island.errors import BadInput, ConfigError, IslandError, NotFound, PeerMisbehaved, PeerRefused, Unreachable
from island.kernel import codec
from island.kernel.host_resolver import HostResolver
from island.kernel.ids import IslandId, NetworkId, island_id, key_bytes
from island.kernel.loops import Tasks
from island.kernel.ports import (
    BulkHandler,
    BulkStream,
    Clock,
    Link,
    LinkListener,
    PushHandler,
    RequestHandler,
    Rng,
    Topic,
)
from island.kernel.stranger_log import StrangerLog
from island.kernel.telemetry import gauge
from island.kernel.work import ThreadWorkers
from island.net import relay, tls
from island.net.attempts import SilentAddresses, first_that_works
from island.net.bulk import BandwidthMeter, BulkSession, SessionStream
from island.net.control import ControlSession
from island.net.frames import DialBack, RequestHead, SessionClass
from island.net.handlers import Handlers
from island.net.handshake import Handshake, ProvenPeer, WrongKey
from island.net.key_copies import KEY_IN_USE, KeyCopies
from island.net.limits import PeerLimits
from island.net.listener import Listener, dial, hang_up, own_addresses
from island.net.mesh import Mesh
from island.net.offenders import Offenders
from island.net.session import Established, PeerSession
from island.net.session_room import least_useful
from island.net.turns import take
from island.trust import core
from island.trust.keys import Identity
from island.trust.service import Trust

T = TypeVar("T")
log = structlog.get_logger("island")

LINKS = gauge("peers_linked", "Islands that this island has a session with")

RELAYED = frozenset({"chunks", "gossip.blob", "stream.describe", "stream.read"})
"""Kinds that are relayed by default, because they read only data that every member may read."""

_DIAL_BACK, _ROUTE = "session.dial", "session.route"
_ROUTES, _ROUTE_S, _ROUTE_HEAD_START_S = 32, 2.0, 0.02


class TlsPeers:
    """Sessions of this island with other islands. Register handlers first, then call `start`, and `stop` at the end.

    `addresses()` returns the addresses of the known islands; call `connect_soon` when they change. `hints()` returns
    addresses that nobody has proved, such as those announced on the local network. They are tried last.
    """

    def __init__(
        self,
        identity: Identity,
        trust: Trust,
        clock: Clock,
        rng: Rng,
        *,
        listen: str,
        advertise: list[str],
        addresses: Callable[[], Mapping[IslandId, list[str]]],
        hints: Callable[[], Mapping[IslandId, Sequence[str]]] = dict,
        relayed: Collection[str] = RELAYED,
        limits: PeerLimits | None = None,
        resolver: HostResolver | None = None,
    ) -> None:
        self.me: IslandId = identity.id
        self._trust, self._clock, self._rng = trust, clock, rng
        self._limits = limits or PeerLimits()
        self._advertise, self._known, self._hints = advertise, addresses, hints
        self._instance = rng.bytes(16)
        self._resolver = resolver or HostResolver(ThreadWorkers())
        self._certificate = tls.own_certificate_hash(identity)
        self._dialling = tls.dialler_context()
        self._listener = (
            Listener(listen, tls.listener_context(identity), self._limits, self._accepted, self._resolver)
            if listen
            else None
        )
        self._mesh = Mesh(self, self._limits, clock, rng)
        self._offenders = Offenders(clock, self._limits)
        self._key_copies = KeyCopies(clock)
        self._silent = SilentAddresses(clock)
        self._lines = StrangerLog("key")
        self._control: dict[IslandId, ControlSession] = {}
        self._bulk: dict[IslandId, list[BulkSession]] = {}
        self._all: set[PeerSession] = set()
        self._bulk_making: dict[IslandId, asyncio.Future[BulkSession]] = {}
        self._tickets: dict[bytes, tuple[IslandId, asyncio.Future[BulkSession]]] = {}
        # An island's semaphore exists while it is held or awaited.
        self._relay_turns = WeakValueDictionary[IslandId, asyncio.Semaphore]()
        self._meters: dict[IslandId, BandwidthMeter] = {}
        self._learned: dict[IslandId, list[str]] = {}
        self._island_names: dict[IslandId, str] = {}
        self._linked = set[IslandId]()
        """Islands with which there was a control session since the start, and the one at which this island joins."""
        self._not_there: set[tuple[IslandId, str]] = set()
        self._last_error: dict[IslandId, str] = {}
        self._listeners: list[LinkListener] = []
        self._links_changed = Topic()
        self._tasks: Tasks | None = None
        self._stopped = False
        self._running = 0
        self._own: list[str] = []
        self._handlers = Handlers(self._lines)
        self._handlers.relayed.update(relayed)
        self._handlers.add_request(_DIAL_BACK, self._on_dial_back)
        self._handlers.add_request(_ROUTE, self._on_route)

    # --- kernel.ports.Peers ------------------------------------------------------------------

    def links(self) -> list[Link]:
        """Return the current control sessions, sorted by island."""
        return [self._as_link(self._control[island]) for island in sorted(self._control)]

    def link(self, island: IslandId) -> Link | None:
        """Return the current control session with an island, or None."""
        session = self._control.get(island)
        return self._as_link(session) if session else None

    async def request(self, to: IslandId, kind: str, body: bytes, *, timeout: float = 10.0) -> bytes:
        """Send a request and return its answer; `timeout` is in seconds.

        Without a session, a kind that may be relayed is sent through a third island. Raises `Unreachable`, or
        `PeerRefused` with the error of the other island.
        """
        if (session := self._control.get(to)) is not None:
            return await session.request(RequestHead(kind=kind), body, timeout)
        if kind not in self._handlers.relayed:
            raise self._unreachable(to)
        try:
            async with asyncio.timeout(timeout):
                try:
                    via = await self._route(to)
                except Unreachable as error:
                    raise self._unreachable(to) from error
                return await via.request(self._relayed_head(to, kind), body, timeout)
        except TimeoutError as error:
            raise Unreachable(f"{self.name(to)} did not answer '{kind}' within {timeout:g} s") from error

    def push(self, to: IslandId, kind: str, body: bytes) -> bool:
        """Send a message without an answer; return False if there is no session or its queue is full."""
        session = self._control.get(to)
        return session is not None and session.push(kind, body)

    def blame(self, island: IslandId, error: PeerMisbehaved) -> None:
        """End the sessions with an island because of its answer, and record the violation; nothing without a session.

        Not for answers that were relayed, whose content is not known to be from `island`.
        """
        if (session := self._control.get(island)) is not None:
            session.end(error)

    @contextlib.asynccontextmanager
    async def bulk(self, to: IslandId, kind: str, body: bytes, *, timeout: float = 10.0) -> AsyncIterator[BulkStream]:
        """Open a stream with `to`; `timeout` (seconds) applies to opening it.

        Uses an existing bulk session, dials one, asks the other side to dial one, or relays the stream through a
        third island if `kind` may be relayed. Raises `Unreachable`.
        """
        session, stream = await self._open_stream(to, kind, body, timeout)
        try:
            yield stream
        finally:
            session.release(stream)

    def on_request(self, kind: str, handler: RequestHandler, *, relay: bool = False) -> None:
        """Register the handler of a request kind; `relay` marks a public read, which is relayed for other islands."""
        self._handlers.add_request(kind, handler)
        if relay:
            self._handlers.relayed.add(kind)

    def on_push(self, kind: str, handler: PushHandler) -> None:
        """Register the handler of a push kind."""
        self._handlers.add_push(kind, handler)

    def on_bulk(self, kind: str, handler: BulkHandler, *, relay: bool = False) -> None:
        """Register the handler of a bulk kind; `relay` as for requests."""
        self._handlers.add_bulk(kind, handler)
        if relay:
            self._handlers.relayed.add(kind)

    def on_link(self, listener: LinkListener) -> None:
        """Register a function that is called when a control session is established (True) or lost (False)."""
        self._listeners.append(listener)

    # --- start and stop ------------------------------------------------------------------------

    @property
    def port(self) -> int | None:
        """The peer port; None for an island that only dials out."""
        return self._listener.port if self._listener else None

    @property
    def bound(self) -> tuple[str, int] | None:
        """The network address and the port to which the peer port is bound; None without a peer port."""
        return self._listener.bound if self._listener else None

    def local_addresses(self) -> list[str]:
        """Return the addresses at which others can dial this island; empty if it has no peer port."""
        return list(self._own)

    async def start(self, tasks: Tasks) -> None:
        """Bind the peer port and start dialling; raises `ConfigError` if the port cannot be bound."""
        self._tasks = tasks
        if self._listener is not None:
            await self._listener.start(tasks)
            self._own = self._advertise or await own_addresses(
                self._listener.host, self._listener.port or 0, self._resolver
            )
        tasks.forever("peers.mesh", functools.partial(self._mesh.look, tasks), rng=self._rng)

    async def stop(self) -> None:
        """Close the peer port and end all sessions, within two seconds."""
        self._stopped = True
        if self._listener is not None:
            await self._listener.close()
        for session in list(self._all):
            session.end(Unreachable(f"{self._trust.name} stops", code="stops"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                while self._running:
                    await self._links_changed.after(self._links_changed.version)

    def connect_soon(self) -> None:
        """Dial now, because addresses have changed."""
        self._not_there.clear()
        self._mesh.connect_soon()

    async def join(self, invitation: str) -> IslandId:
        """Redeem an invitation, adopt its network, and wait until linked with the inviter; return the inviter.

        Raises `BadInput` (not an invitation), `Conflict` (this island belongs to another network), `PeerRefused`
        (the inviter refused the invitation), `Unreachable`, or `WrongKey`.
        """
        given = self._trust.parse_invitation(invitation)
        network, inviter = core.network_id(given.genesis), island_id(given.inviter)
        core.check_adoption(self._trust.network, network)
        if inviter == self.me:
            raise BadInput("this island made the invitation itself", hint="Use it at the island that is to join.")
        self._island_names.setdefault(inviter, given.name)
        if self._trust.network is None:
            redeem = functools.partial(self._redeem_at, network, inviter, given.secret)
            await first_that_works(_ways(given.addresses, redeem), given.name)
        self._linked.add(inviter)
        self._learn(inviter, given.addresses)
        if inviter not in self._control:
            await self._link_with(inviter, given.name)
        return inviter

    async def _redeem_at(self, network: NetworkId, inviter: IslandId, secret: bytes, address: str) -> None:
        async with self._connected(address) as (reader, writer, certificate):
            shake = self._handshake(reader, writer)
            chain = await shake.redeem(network, inviter, certificate, secret)
        await self._trust.adopt(network, chain)

    async def _link_with(self, island: IslandId, name: str) -> None:
        self.connect_soon()
        seen = self._links_changed.version
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * self._limits.connect_s + 2):
                while island not in self._control:
                    seen = await self._links_changed.after(seen)
                return
        why = self._last_error.get(island, "none of its addresses answers")
        raise Unreachable(
            f"the invitation was accepted, but there is no session with {name} yet: {why}",
            hint="This island keeps trying; `island peer ls` shows when it is linked.",
        )

    # --- dialling -------------------------------------------------------------------------------

    def targets(self) -> Mapping[IslandId, list[str]]:
        """Return the islands with which to keep a session: known ones with addresses; none before joining a network."""
        if self._trust.network is None or self._stopped:
            return {}
        known, hints = self._known(), self._hints()
        merged: dict[IslandId, list[str]] = {}
        for island in sorted({*known, *self._learned, *hints} - {self.me}):
            proved = list(dict.fromkeys([*known.get(island, []), *self._learned.get(island, [])]))[:8]
            merged[island] = list(dict.fromkeys([*proved, *hints.get(island, ())]))
        return {island: addresses for island, addresses in merged.items() if addresses}

    def name(self, island: IslandId) -> str:
        """Return the name that an island gave itself, or its key prefix."""
        return self._island_names.get(island, island[:10])

    def is_linked(self, island: IslandId) -> bool:
        """Return whether there is a control session with an island."""
        return island in self._control

    def is_preferred(self, island: IslandId) -> bool:
        """Return whether an island is dialled before others, because there was a session or this island joins there."""
        return island in self._linked

    def problems(self) -> list[str]:
        """Describe keys that two programs use, and whether more islands are known than are dialled, for the status."""
        copies = self._key_copies.problems(self.name)
        known = self.targets()
        if len(known) <= self._limits.mesh:
            return copies
        linked, most = sum(island in self._control for island in known), self._limits.mesh
        return [
            *copies,
            f"{linked} of {len(known)} known islands are linked: this island dials at most {most} at a time, and reads"
            " from the others through islands that are linked with them",
        ]

    async def until_unlinked(self, island: IslandId) -> None:
        """Wait until there is no control session with an island."""
        seen = self._links_changed.version
        while island in self._control:
            seen = await self._links_changed.after(seen)

    def paused(self, island: IslandId) -> float:
        """Return for how many seconds an island is not dialled because it violated the protocol."""
        return self._offenders.pause(island)

    async def dial_control(self, island: IslandId, addresses: list[str]) -> None:
        """Establish a control session at the first address that works; raises `IslandError`."""
        there = [each for each in addresses if (island, each) not in self._not_there]
        connect = functools.partial(self._dial, island, "control", b"")
        try:
            await first_that_works(_ways(there, connect), self.name(island))
        except IslandError as error:
            self._last_error[island] = error.message
            raise

    async def _dial(self, island: IslandId, session: SessionClass, ticket: bytes, address: str) -> None:
        """Dial an address; the session then runs in a separate task."""
        assert self._tasks is not None
        made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = self._tasks.spawn("peers.session", self._run_dialled(island, session, ticket, address, made))
        try:
            await made
        except asyncio.CancelledError:
            task.cancel()
            raise
        except WrongKey as error:
            if error.found == self.me:
                self._not_there.add((island, address))
            raise
        except PeerRefused as error:
            if error.code == "self":
                self._not_there.add((island, address))
            raise

    async def _run_dialled(
        self, island: IslandId, session: SessionClass, ticket: bytes, address: str, made: asyncio.Future[None]
    ) -> None:
        try:
            async with self._connected(address) as (reader, writer, certificate):
                peer = await self._handshake(reader, writer).dial(session, island, certificate, ticket=ticket)
                live = self._adopt(peer, reader, writer, dialled=True, address=address)
                if not made.done():
                    made.set_result(None)
                await self._run(live)
        except IslandError as error:
            if isinstance(error, PeerMisbehaved):
                # Anybody can announce an address for this island, so this line is limited.
                self._lines.warning(
                    "peer.misbehaved", island, peer=self.name(island), address=address, error=error.message
                )
            if not made.done():
                made.set_exception(error)
        finally:
            if not made.done():
                made.set_exception(Unreachable(f"dialling {address} was cancelled"))

    @contextlib.asynccontextmanager
    async def _connected(self, address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]]:
        """Open a TLS connection and return it with the hash of the certificate; failures become `Unreachable`."""
        try:
            reader, writer = await dial(address, self._dialling, self._limits, self._resolver)
        except (OSError, TimeoutError, ConfigError, ValueError) as error:  # ValueError: not a valid host name
            self._silent.failed(address)
            raise Unreachable(f"{address} cannot be dialled: {_reason(error)}", hint=_dial_hint(address)) from error
        self._silent.answered(address)
        try:
            yield reader, writer, tls.presented_certificate_hash(writer.get_extra_info("ssl_object"))
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Unreachable(f"{address} closed the connection during the handshake") from error
        finally:
            await hang_up(writer)

    def _handshake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Timed:
        return _Timed(self._shake(reader, writer), self._limits.handshake_s)

    def _shake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Handshake:
        return Handshake(reader, writer, self._trust, self._rng, tuple(self.local_addresses()[:8]), self._instance)

    # --- accepting --------------------------------------------------------------------------------

    async def _accepted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str, proved: Callable[[], None]
    ) -> None:
        peer = await self._shake(reader, writer).listen(self._certificate, self._admit)
        proved()
        if peer.session == "join":
            log.info("peer.joined", peer=peer.name, key=peer.island, address=address)
            return
        await self._run(self._adopt(peer, reader, writer, dialled=False, address=address))

    def _admit(self, peer: ProvenPeer) -> None:
        """Refuse an authenticated peer that is paused or has a wrong ticket, or if this island stops or is busy."""
        self._offenders.check(peer.island)
        if self._stopped:
            raise Unreachable(f"{self._trust.name} stops", code="stops")
        if peer.session == "bulk" and peer.ticket:
            asked = self._tickets.get(peer.ticket)
            if asked is None or asked[0] != peer.island:
                raise PeerMisbehaved(f"{peer.name} sent a ticket that was not issued to it", code="bad_ticket")
        elif peer.session == "bulk" and len(self._bulk.get(peer.island, ())) >= 4:
            raise Unreachable("too many bulk sessions are open", code="busy")
        self._make_room(peer)

    def _make_room(self, peer: ProvenPeer) -> None:
        """End an idle bulk session if there are too many sessions; raises `Unreachable` (`busy`) if none is idle."""
        if peer.session == "join" or (peer.session == "control" and peer.island in self._control):
            return  # it does not last, or replaces the current one
        is_known = peer.island in self._linked or peer.island in self._known()
        reserved = 0 if peer.session == "control" and is_known else self._limits.reserved
        accepted = [each for each in self._all if not each.dialled]
        if len(accepted) < self._limits.sessions - reserved:
            return
        if (useless := least_useful(accepted)) is None:
            self._lines.warning("peer.session_limit_reached", peer.island, peer=peer.name, sessions=len(accepted))
            raise Unreachable(f"{self._trust.name} has too many sessions", hint="Try again later.", code="busy")
        useless.end(Unreachable("another session needs the room of this one, which is idle", code="busy"))

    async def _run(self, session: PeerSession) -> None:
        self._running += 1
        try:
            await session.run()
        finally:
            self._running -= 1
            self._links_changed.touch()

    # --- sessions that start and end ---------------------------------------------------------------

    def _adopt(
        self,
        peer: ProvenPeer,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        dialled: bool,
        address: str,
    ) -> PeerSession:
        if self._stopped:
            raise Unreachable(f"{self._trust.name} stops", code="stops")
        self._island_names[peer.island] = peer.name
        self._key_copies.observe(peer.island, peer.instance)
        self._learn(peer.island, peer.addresses)
        given = Established(peer, reader, writer, dialled, address, self._clock, self._limits, self._ended)
        if peer.session == "control":
            control = ControlSession(given, handlers=self._handlers, answerer=self._answer, lines=self._lines)
            self._all.add(control)
            self._link(control)
            return control
        meter = self._meters.setdefault(peer.island, BandwidthMeter())
        bulk = BulkSession(given, server=self._serve_stream, meter=meter)
        self._all.add(bulk)
        self._bulk.setdefault(peer.island, []).append(bulk)
        _, asked = self._tickets.get(peer.ticket, (None, None)) if not dialled else (None, None)
        if asked is not None and not asked.done():
            asked.set_result(bulk)
        return bulk

    def _link(self, session: ControlSession) -> None:
        current = self._control.get(session.island)
        if current is not None and current.dialled != session.dialled and _same_start(current, session):
            # Both islands have dialled at the same time: both keep the session that the lower key dialled.
            keep, leave = (current, session) if current.dialled == (self.me < session.island) else (session, current)
            self._control[session.island] = keep
            leave.retire()
            return
        if current is not None:
            # The other side has lost the current session, otherwise it would not have dialled again.
            code = "replaced" if _same_start(current, session) else KEY_IN_USE
            current.end(Unreachable("another session has replaced this one", code=code))
        self._control[session.island] = session
        self._linked.add(session.island)
        self._last_error.pop(session.island, None)
        self._lines.info(
            "peer.linked",
            session.island,
            peer=session.peer.name,
            address=session.address,
            dialled=session.dialled,
        )
        self._tell(session.island, True)

    def _ended(self, session: PeerSession, error: IslandError) -> None:
        self._all.discard(session)
        if session.ended_by_peer == KEY_IN_USE:
            # A program that was stopped before the other one started would not be here to receive this.
            self._key_copies.reported_by(session.island)
        if isinstance(error, PeerMisbehaved):
            pause = self._offenders.add(session.island)
            log.warning(
                "peer.misbehaved", peer=session.peer.name, key=session.island, address=session.address,
                session=session.name_of_class, error=error.message, pause_s=round(pause),
            )  # fmt: skip
            for other in [each for each in self._all if each.island == session.island]:
                other.end(Unreachable(error.message, code=error.code))
        if isinstance(session, BulkSession):
            left = [each for each in self._bulk.get(session.island, []) if each is not session]
            self._bulk[session.island] = left
            if not left:
                del self._bulk[session.island]
        elif self._control.get(session.island) is session:
            del self._control[session.island]
            self._last_error[session.island] = error.message
            self._lines.info("peer.lost", session.island, peer=session.peer.name, reason=error.message)
            self._tell(session.island, False)
        self._links_changed.touch()

    def _tell(self, island: IslandId, up: bool) -> None:
        LINKS.set(len(self._control))
        self._links_changed.touch()
        for listener in self._listeners:
            try:
                listener(island, up)
            except Exception:  # a faulty listener must not affect the session or other listeners
                log.exception("peer.listener_failed", peer=self.name(island), key=island)

    def _learn(self, island: IslandId, addresses: Collection[str]) -> None:
        if addresses and self._learned.get(island) != list(addresses):
            self._learned[island] = list(addresses)
            self._mesh.connect_soon()

    # --- requests and streams -------------------------------------------------------------------------

    async def _answer(self, session: ControlSession, head: RequestHead, body: bytes) -> bytes:
        if not head.to or head.to == key_bytes(self.me):
            with relay.blameless(head, self._handlers.relayed):
                return await self._handlers.request(session.island, head.kind, body)
        to = relay.check_relay(head, self._handlers.relayed)
        if (onward := self._control.get(to)) is None:
            raise self._no_route(to)
        async with self._relaying(session.island):
            return await onward.request(relay.onward(head, session.island), body, relay.TIMEOUT_S)

    async def _serve_stream(self, session: BulkSession, head: RequestHead, body: bytes, stream: SessionStream) -> None:
        if not head.to or head.to == key_bytes(self.me):
            with relay.blameless(head, self._handlers.relayed):
                await self._handlers.bulk(session.island, head.kind, body, stream)
            return
        to = relay.check_relay(head, self._handlers.relayed)
        if to not in self._control:
            raise self._no_route(to)
        async with self._relaying(session.island):
            onward = await self._bulk_session(to)
            other = await onward.open(relay.onward(head, session.island), body, relay.TIMEOUT_S)
            try:
                await relay.pump(stream, other, self._limits.stall_s)
            finally:
                onward.release(other)

    @contextlib.asynccontextmanager
    async def _relaying(self, requester: IslandId) -> AsyncIterator[None]:
        """Hold one of the turns of an island for which this one relays; raises `Unreachable` if none gets free."""
        turns = self._relay_turns.get(requester) or asyncio.Semaphore(self._limits.relayed_per_island)
        self._relay_turns[requester] = turns
        await take(turns, relay.TIMEOUT_S, f"requests that {self._trust.name} relays for {self.name(requester)}")
        try:
            yield
        finally:
            turns.release()

    def _no_route(self, to: IslandId) -> NotFound:
        return NotFound(f"no route from {self._trust.name} to {self.name(to)}", code="no_route")

    async def _open_stream(
        self, to: IslandId, kind: str, body: bytes, timeout: float
    ) -> tuple[BulkSession, SessionStream]:
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(timeout):
                session, head = await self._way(to, kind)
        except TimeoutError as error:
            raise Unreachable(f"no bulk session with {self.name(to)} within {timeout:g} s") from error
        return session, await session.open(head, body, max(0.0, began + timeout - self._clock.monotonic()))

    async def _way(self, to: IslandId, kind: str) -> tuple[BulkSession, RequestHead]:
        """Return a bulk session for streams of this kind to `to`, and their head; raises `IslandError`."""

        async def directly() -> tuple[BulkSession, RequestHead]:
            return await self._bulk_session(to), RequestHead(kind=kind)

        async def through_relay() -> tuple[BulkSession, RequestHead]:
            via = await self._route(to)
            return await self._bulk_session(via.island), self._relayed_head(to, kind)

        if to == self.me:
            raise self._unreachable(to)
        if to in self._control or kind not in self._handlers.relayed:
            return await directly()
        # If the relay wins, the direct session is still being made, for later streams.
        ways = {"directly": directly, "through another island": through_relay}
        return await first_that_works(ways, self.name(to), head_start_s=self._limits.head_start_s)

    def _relayed_head(self, to: IslandId, kind: str) -> RequestHead:
        return RequestHead(kind=kind, to=key_bytes(to), origin=key_bytes(self.me), hops=1)

    async def _bulk_session(self, to: IslandId) -> BulkSession:
        """Return a bulk session with `to`: an existing one, a dialled one, or one that the other side dials.

        Raises `Unreachable`.
        """
        if live := [each for each in self._bulk.get(to, []) if not each.retired]:
            return live[-1]
        if (making := self._bulk_making.get(to)) is None:
            assert self._tasks is not None
            making = self._bulk_making[to] = asyncio.get_running_loop().create_future()
            self._tasks.spawn("peers.bulk", self._make_bulk(to, making))
        return await asyncio.shield(making)  # others may wait for it too

    async def _make_bulk(self, to: IslandId, made: asyncio.Future[BulkSession]) -> None:
        try:
            made.set_result(await self._connect_bulk(to))
        except IslandError as error:
            # Not the original error: a `PeerMisbehaved` about an address would be blamed on the island that
            # requested the stream.
            made.set_exception(Unreachable(error.message, hint=error.hint, code=error.code))
        finally:
            del self._bulk_making[to]
            if not made.done():  # not cancelled, because that would cancel the tasks that wait for it
                made.set_exception(Unreachable(f"the attempt to make a bulk session with {self.name(to)} was ended"))
            made.exception()  # perhaps nobody waits for it any more

    async def _connect_bulk(self, to: IslandId) -> BulkSession:
        control = self._control.get(to)

        async def dial(address: str) -> BulkSession:
            await self._dial(to, "bulk", b"", address)
            if not (live := self._bulk.get(to, [])):
                raise self._unreachable(to)
            return live[-1]

        ways = _ways([each for each in self._bulk_addresses(to, control) if each not in self._silent], dial)
        if control is not None:
            ways["dialled by the other side"] = functools.partial(self._ask_dial_back, control)
        if not ways:
            raise self._unreachable(to)
        return await first_that_works(ways, self.name(to), head_start_s=self._limits.head_start_s)

    def _bulk_addresses(self, to: IslandId, control: ControlSession | None) -> list[str]:
        """Return addresses for a bulk session; the address at which the control session was dialled comes first."""
        first = [control.address] if control is not None and control.dialled else []
        return list(dict.fromkeys([*first, *self.targets().get(to, [])]))

    async def _ask_dial_back(self, control: ControlSession) -> BulkSession:
        """Ask the other side to dial a bulk session to this island, and wait for it; raises `Unreachable`."""
        if self.port is None:
            raise Unreachable(f"neither {self._trust.name} nor {control.peer.name} can dial the other", code="no_route")
        ticket = self._rng.bytes(16)
        made: asyncio.Future[BulkSession] = asyncio.get_running_loop().create_future()
        self._tickets[ticket] = (control.island, made)
        try:
            asked, seconds = codec.encode(DialBack(ticket=ticket)), 2 * self._limits.connect_s
            async with asyncio.timeout(seconds):
                await control.request(RequestHead(kind=_DIAL_BACK), asked, seconds)
                return await made
        except (TimeoutError, PeerRefused) as error:
            why = f": {error.message}" if isinstance(error, PeerRefused) else ""
            raise Unreachable(f"{control.peer.name} was asked to dial a bulk session and did not{why}") from error
        finally:
            made.cancel()
            del self._tickets[ticket]

    async def let_dial(self, island: IslandId, timeout: float) -> None:
        """Return if `island` can dial this one: it has dialled an open session, or it dials one when it is asked.

        `timeout` is in seconds. Raises `Unreachable` with the other side's reason.
        """
        if any(each.island == island and not each.dialled and each.over is None for each in self._all):
            return
        if (control := self._control.get(island)) is None:
            raise self._unreachable(island)
        try:
            async with asyncio.timeout(timeout):
                await self._ask_dial_back(control)
        except TimeoutError as error:
            raise Unreachable(f"{self.name(island)} did not dial within {timeout:g} s") from error

    async def _on_dial_back(self, sender: IslandId, body: bytes) -> bytes:
        ticket = codec.decode(body, DialBack).ticket
        addresses = self._bulk_addresses(sender, self._control.get(sender))
        connect = functools.partial(self._dial, sender, "bulk", ticket)
        try:
            await first_that_works(_ways(addresses, connect), self.name(sender), head_start_s=self._limits.head_start_s)
        except PeerMisbehaved as error:
            # Another island answers at an address of the sender, perhaps because the sender moved: not its violation.
            raise Unreachable(error.message, hint=error.hint, code=error.code) from error
        return b""

    async def _route(self, to: IslandId) -> ControlSession:
        """Return a control session with an island that is linked with `to`; asks the nearest islands first.

        Raises `Unreachable` if none of them is.
        """

        async def ask(session: ControlSession) -> ControlSession:
            if await session.request(RequestHead(kind=_ROUTE), key_bytes(to), _ROUTE_S) != b"\x01":
                raise self._no_route(to)
            return session

        nearest = sorted(self._control.values(), key=lambda each: (each.rtt or 1.0, each.island))[:_ROUTES]
        ways = {str(session.island): functools.partial(ask, session) for session in nearest}
        try:
            return await first_that_works(ways, self.name(to), head_start_s=_ROUTE_HEAD_START_S)
        except IslandError as error:
            raise Unreachable(f"no island that is linked with this one has a session with {self.name(to)}") from error

    async def _on_route(self, _sender: IslandId, body: bytes) -> bytes:
        return b"\x01" if body.hex() in self._control else b"\x00"

    def _unreachable(self, to: IslandId) -> Unreachable:
        if to == self.me:
            return Unreachable("an island cannot have a session with itself")
        why = self._last_error.get(to)
        return Unreachable(
            f"there is no session with {self.name(to)}" + (f": {why}" if why else ""),
            hint="This island keeps trying; `island peer ls` shows the state of each island.",
        )

    def _as_link(self, session: ControlSession) -> Link:
        meter = self._meters.get(session.island)
        return Link(
            island=session.island,
            since=session.since,
            dialled=session.dialled,
            address=session.address,
            rtt=session.rtt,
            bandwidth=meter.rate if meter else None,
        )


class _Timed:
    """A dialler's handshake with a timeout, after which it raises `Unreachable`."""

    def __init__(self, shake: Handshake, seconds: float) -> None:
        self._shake, self._seconds = shake, seconds

    async def dial(self, session: SessionClass, expected: IslandId, certificate: bytes, *, ticket: bytes) -> ProvenPeer:
        return await self._within(self._shake.dial(session, expected, certificate, ticket=ticket))

    async def redeem(self, network: NetworkId, expected: IslandId, certificate: bytes, secret: bytes) -> bytes:
        return await self._within(self._shake.redeem(network, expected, certificate, secret))

    async def _within(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._seconds):
                return await work
        except TimeoutError as error:
            raise Unreachable(f"the handshake took longer than {self._seconds:g} s") from error


def _ways(addresses: Collection[str], dial: Callable[[str], Awaitable[T]]) -> dict[str, Callable[[], Awaitable[T]]]:
    return {address: functools.partial(dial, address) for address in addresses}


def _same_start(one: PeerSession, other: PeerSession) -> bool:
    """Return whether two sessions are with the same run of the other island's program."""
    return one.peer.instance == other.peer.instance


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'connection closed'})"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, socket.gaierror):
        return "unknown host name"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


def _dial_hint(address: str) -> str:
    with contextlib.suppress(ConfigError):
        if is_loopback(split_address(address)[0]):
            return "This is a loopback address: the other island must set listen.peer and listen.advertise."
    return "Check that the other island is running and that a firewall does not block its peer port."
