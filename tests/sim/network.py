"""A simulated network that loses, delays, duplicates and reorders messages, and the `Peers` of each island on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from blake3 import blake3

from island.errors import BadInput, IslandError, NotFound, PeerMisbehaved, PeerRefused, Unreachable
from island.kernel.codec import BULK_LIMIT, CONTROL_LIMIT
from island.kernel.ids import IslandId
from island.kernel.ports import BulkHandler, Link, LinkListener, PushHandler, RequestHandler, SeededRng
from island.net.limits import STREAM_WINDOW, PeerLimits
from island.net.offenders import Offenders
from tests.sim.virtual import EPOCH, SimTasks, VirtualClock

OVERHEAD = 90
"""Bytes of headers of one message on a real session: TCP/IP, TLS and frame."""

SILENCE = 12.0
"""Seconds after which a session over a cut line ends."""


@dataclass
class Weather:
    """The faults of the network: probabilities of loss and duplication, and the range of delays."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay: tuple[float, float] = (0.005, 0.05)
    """Range of the uniformly distributed delay in seconds. A wide range reorders messages."""


@dataclass(frozen=True)
class Shape:
    """The properties of one line: round-trip time in seconds, and bytes per second. A session measures both."""

    rtt: float
    bandwidth: float


class Network:
    """The lines between islands, and the delivery of their messages. All random numbers come from one seed."""

    def __init__(self, seed: int | str, weather: Weather | None = None, *, record: bool = True) -> None:
        self.rng = SeededRng(f"network/{seed}")
        self.weather = weather or Weather()
        self.nodes: dict[IslandId, SimPeers] = {}
        self.events: list[str] = []
        self.sent: dict[IslandId, int] = {}
        self.messages = 0
        self.shapes: dict[frozenset[IslandId], Shape] = {}
        """Lines with a rate and a round-trip time of their own, instead of the weather."""
        self._record = record
        self._neighbours: dict[IslandId, set[IslandId]] | None = None
        self._groups: dict[IslandId, int] = {}

    # --- shape ----------------------------------------------------------------------------------

    def neighbours(self, graph: dict[IslandId, set[IslandId]]) -> None:
        """Restrict sessions to these pairs. By default all pairs have sessions."""
        self._neighbours = graph

    def partition(self, groups: Iterable[Iterable[IslandId]]) -> None:
        """Cut the lines between the groups. Sessions over them end after `SILENCE` seconds."""
        self._groups = {island: number for number, group in enumerate(groups) for island in group}
        self.note("partition")
        for a, b in self._pairs():
            if not self.line(a, b):
                self._later(SILENCE, self._cut_if_dead, a, b)
            else:
                self._dial_soon(a, b)

    def heal(self) -> None:
        """Restore all lines."""
        self._groups = {}
        self.note("heal")
        for a, b in self._pairs():
            self._dial_soon(a, b)

    def line(self, a: IslandId, b: IslandId) -> bool:
        """Whether bytes can pass between two islands."""
        return self._groups.get(a, 0) == self._groups.get(b, 0)

    def join(self, node: SimPeers) -> None:
        """Add an island that has started."""
        self.nodes[node.me] = node
        self.sent.setdefault(node.me, 0)
        self.note(f"start {node.me[:8]}")
        for other in sorted(self.nodes):
            if other != node.me and self._wanted(node.me, other):
                self._dial_soon(node.me, other)

    def take_over(self, node: SimPeers) -> None:
        """Give the sessions of a key to `node`. They end if another running island with the same key has them."""
        current = self.nodes.get(node.me)
        for other in sorted(current.up) if current is not None else ():
            for one, lost in ((node.me, other), (other, node.me)):
                self.nodes[one].lose(lost)
        self.join(node)

    def leave(self, node: SimPeers) -> None:
        """Remove an island whose process has ended. The sessions of the others with it end."""
        self.note(f"stop {node.me[:8]}")
        self.nodes.pop(node.me, None)
        for other in sorted(node.up):
            if other in self.nodes:
                self._later(self._delay(), self.nodes[other].lose, node.me, self.nodes[other].up.get(node.me))
        node.up.clear()

    def break_session(self, a: IslandId, b: IslandId, pause: float = 0.0) -> None:
        """End the session of two islands. They dial again after `pause` seconds."""
        for one, other in ((a, b), (b, a)):
            if one in self.nodes:
                self.nodes[one].lose(other)
        self._dial_soon(a, b, pause)

    def _wanted(self, a: IslandId, b: IslandId) -> bool:
        return self._neighbours is None or b in self._neighbours.get(a, ()) or a in self._neighbours.get(b, ())

    def _pairs(self) -> Iterator[tuple[IslandId, IslandId]]:
        islands = sorted(self.nodes)
        for place, a in enumerate(islands):
            for b in islands[place + 1 :]:
                if self._wanted(a, b):
                    yield a, b

    def _dial_soon(self, a: IslandId, b: IslandId, pause: float = 0.0) -> None:
        self._later(pause + 0.2 + 0.8 * self.rng.random(), self._connect, a, b)

    def _connect(self, a: IslandId, b: IslandId) -> None:
        if a in self.nodes and b in self.nodes and self.line(a, b) and b not in self.nodes[a].up:
            self.nodes[b].lose(a)
            self.note(f"link {a[:8]} {b[:8]}")
            self.nodes[a].make(b, dialled=True)
            self.nodes[b].make(a, dialled=False)

    def _cut_if_dead(self, a: IslandId, b: IslandId) -> None:
        if not self.line(a, b):
            for one, other in ((a, b), (b, a)):
                if one in self.nodes:
                    self.nodes[one].lose(other)

    # --- messages -------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Add a line to the event log, which must be identical for all runs with one seed."""
        if self._record:
            self.events.append(f"{asyncio.get_running_loop().time():.6f} {text}")

    def carry(
        self, source: IslandId, to: IslandId, what: str, body: bytes, deliver: Callable[[SimPeers], None]
    ) -> None:
        """Deliver a message once or twice, or lose it."""
        self.messages += 1
        self.sent[source] = self.sent.get(source, 0) + len(body) + OVERHEAD
        lost = self.rng.random() < self.weather.loss
        copies = 0 if lost else 1 + int(self.rng.random() < self.weather.duplicate)
        if self._record:
            mark = blake3(body).hexdigest(4)
            self.note(f"{source[:8]}>{to[:8]} {what} {len(body)} {mark} x{copies}")
        for _ in range(copies):
            self._later(self._transit(source, to, len(body)), self._arrive, source, to, deliver)

    def _arrive(self, source: IslandId, to: IslandId, deliver: Callable[[SimPeers], None]) -> None:
        node = self.nodes.get(to)
        if node is not None and source in node.up and self.line(source, to):
            deliver(node)

    def _transit(self, source: IslandId, to: IslandId, size: int) -> float:
        shape = self.shapes.get(frozenset((source, to)))
        return self._delay() if shape is None else shape.rtt / 2 + (size + OVERHEAD) / shape.bandwidth

    def _delay(self) -> float:
        low, high = self.weather.delay
        return low + (high - low) * self.rng.random()

    @staticmethod
    def _later(delay: float, function: Callable[..., None], *arguments: object) -> None:
        asyncio.get_running_loop().call_later(delay, function, *arguments)


class SimPeers:
    """The `Peers` of one island on the simulated network, created at each start of the island."""

    def __init__(self, network: Network, me: IslandId, tasks: SimTasks) -> None:
        self.me = me
        self.network = network
        self.tasks = tasks
        self.up: dict[IslandId, Link] = {}
        self.misbehaved: list[tuple[IslandId, str]] = []
        self._offenders = Offenders(VirtualClock(asyncio.get_running_loop()), PeerLimits())
        self._requests: dict[str, RequestHandler] = {}
        self._pushes: dict[str, PushHandler] = {}
        self._bulks: dict[str, BulkHandler] = {}
        self._listeners: list[LinkListener] = []
        self._streams: dict[int, SimStream] = {}
        self._waiting: dict[IslandId, list[asyncio.Future[bytes]]] = {}
        self._untaken: dict[IslandId, deque[tuple[str, bytes]]] = {}
        """Pushes of each session that are not handled yet; the first one is being handled."""

    # --- Peers ----------------------------------------------------------------------------------

    def links(self) -> list[Link]:
        return [self._measured(self.up[island]) for island in sorted(self.up)]

    def link(self, island: IslandId) -> Link | None:
        link = self.up.get(island)
        return None if link is None else self._measured(link)

    def _measured(self, link: Link) -> Link:
        if not self.network.shapes:
            return link
        shape = self.network.shapes.get(frozenset((self.me, link.island)))
        return link if shape is None else replace(link, rtt=shape.rtt, bandwidth=shape.bandwidth)

    async def request(self, to: IslandId, kind: str, body: bytes, *, timeout: float = 10.0) -> bytes:
        _check(body)
        if to not in self.up:
            raise Unreachable(f"no session with {to[:10]}")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(to, [])
        waiting.append(answer)

        def deliver(node: SimPeers) -> None:
            node.tasks.spawn(f"request {kind}", node._answer(self.me, kind, body, answer))

        self.network.carry(self.me, to, kind, body, deliver)
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError as error:
            raise Unreachable(f"{to[:10]} did not answer {kind}") from error
        finally:
            waiting.remove(answer)

    def push(self, to: IslandId, kind: str, body: bytes) -> bool:
        _check(body)
        if to not in self.up:
            return False
        self.network.carry(self.me, to, kind, body, lambda node: node._pushed(self.me, kind, body))
        return True

    def blame(self, island: IslandId, error: PeerMisbehaved) -> None:
        if island in self.up:
            self._blame(island, error)

    @contextlib.asynccontextmanager
    async def bulk(self, to: IslandId, kind: str, body: bytes, *, timeout: float = 10.0) -> AsyncIterator[SimStream]:
        other = self.network.nodes.get(to)
        if to not in self.up or other is None or not self.network.line(self.me, to):
            raise Unreachable(f"no session with {to[:10]}")
        here, there = SimStream(to, self.network, self.me), SimStream(self.me, self.network, to)
        here.other, there.other = there, here
        self._streams[id(here)] = here
        other._streams[id(there)] = there
        other.tasks.spawn(f"bulk {kind}", other._serve(self.me, kind, body, there))
        try:
            yield here
        finally:
            here.close(None)
            self._streams.pop(id(here), None)

    def on_request(self, kind: str, handler: RequestHandler) -> None:
        assert kind not in self._requests
        self._requests[kind] = handler

    def on_push(self, kind: str, handler: PushHandler) -> None:
        assert kind not in self._pushes
        self._pushes[kind] = handler

    def on_bulk(self, kind: str, handler: BulkHandler) -> None:
        assert kind not in self._bulks
        self._bulks[kind] = handler

    def on_link(self, listener: LinkListener) -> None:
        self._listeners.append(listener)

    def connect_soon(self) -> None:
        return

    # --- the network's side ---------------------------------------------------------------------

    def make(self, peer: IslandId, *, dialled: bool) -> None:
        """Start a session with `peer`."""
        loop = asyncio.get_running_loop()
        self.up[peer] = Link(peer, EPOCH + loop.time(), dialled, f"{peer[:8]}:1", 0.03, None)
        for listener in self._listeners:
            listener(peer, True)

    def lose(self, peer: IslandId, session: Link | None = None) -> None:
        """End the session with `peer`; if `session` is given, only if it is still this one."""
        if session is not None and self.up.get(peer) is not session:
            return
        if self.up.pop(peer, None) is None:
            return
        self._untaken.pop(peer, deque()).clear()
        for answer in self._waiting.get(peer, []):
            _settle(answer, Unreachable(f"the session with {peer[:10]} ended"))
        for stream in list(self._streams.values()):
            if stream.peer == peer:
                stream.close(Unreachable(f"the session with {peer[:10]} ended"))
        for listener in self._listeners:
            listener(peer, False)

    def _pushed(self, source: IslandId, kind: str, body: bytes) -> None:
        untaken = self._untaken.setdefault(source, deque())
        untaken.append((kind, body))
        if len(untaken) == 1:
            self.tasks.spawn(f"pushes of {source[:8]}", self._take_pushes(source, untaken))

    async def _take_pushes(self, source: IslandId, untaken: deque[tuple[str, bytes]]) -> None:
        """Handle the pushes of one session one after the other, as a real session does."""
        while untaken:
            await self._handle(source, *untaken[0])
            if untaken:  # the session may have ended
                untaken.popleft()

    async def _handle(self, source: IslandId, kind: str, body: bytes) -> None:
        if kind not in self._pushes:  # a push of another version of island
            return
        try:
            await self._pushes[kind](source, body)
        except PeerMisbehaved as error:
            self._blame(source, error)

    async def _answer(self, source: IslandId, kind: str, body: bytes, answer: asyncio.Future[bytes]) -> None:
        try:
            if kind not in self._requests:
                raise _unknown(kind)
            result = await self._requests[kind](source, body)
            if len(result) > CONTROL_LIMIT:
                raise IslandError(f"an answer of {len(result)} bytes to {kind}", code="too_large")
        except IslandError as error:
            if isinstance(error, PeerMisbehaved):
                self._blame(source, error)
            refusal = PeerRefused(error.message, code=error.code)
            self.network.carry(self.me, source, "refused", b"", lambda _: _settle(answer, refusal))
            return
        self.network.carry(self.me, source, f"{kind}.answer", result, lambda _: _settle(answer, result))

    async def _serve(self, source: IslandId, kind: str, body: bytes, stream: SimStream) -> None:
        failure: IslandError | None = None
        try:
            await asyncio.sleep(self.network._delay())
            if kind not in self._bulks:
                raise _unknown(kind)
            await self._bulks[kind](source, body, stream)
        except IslandError as error:
            if isinstance(error, PeerMisbehaved):
                self._blame(source, error)
            failure = PeerRefused(error.message, code=error.code)
        finally:
            self._streams.pop(id(stream), None)
            if stream.other is not None:
                stream.other.end(failure)

    def _blame(self, source: IslandId, error: IslandError) -> None:
        self.misbehaved.append((source, error.message))
        self.network.note(f"misbehaved {source[:8]} at {self.me[:8]}: {error.message}")
        self.network.break_session(self.me, source, self._offenders.add(source))


def _check(body: bytes) -> None:
    if len(body) > CONTROL_LIMIT:
        raise BadInput(f"a request of {len(body)} bytes")


def _unknown(kind: str) -> NotFound:
    return NotFound(f"this island does not support '{kind}'", code="unknown_kind")


def _settle(answer: asyncio.Future[bytes], result: bytes | IslandError) -> None:
    if answer.done():
        return
    if isinstance(result, bytes):
        answer.set_result(result)
    else:
        answer.set_exception(result)


@dataclass
class SimStream:
    """One end of a bulk stream; nothing is lost on it, and it ends with the session."""

    peer: IslandId
    network: Network
    me: IslandId
    other: SimStream | None = None
    sent: int = 0
    received: int = 0
    _blocks: list[bytes] = field(default_factory=list)
    _ended: bool = False
    _failure: IslandError | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _taken: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, block: bytes) -> None:
        if len(block) > BULK_LIMIT:
            raise BadInput(f"a block of {len(block)} bytes")
        await asyncio.sleep(self.network._delay())
        assert self.other is not None
        while self._failure is None and self.other._held() + len(block) > STREAM_WINDOW:
            self._taken.clear()
            await self._taken.wait()
        if self._failure is not None:
            raise self._failure
        self.network.sent[self.me] = self.network.sent.get(self.me, 0) + len(block) + OVERHEAD
        self.sent += len(block)
        self.other._blocks.append(block)
        self.other._news.set()

    async def receive(self) -> bytes | None:
        while not self._blocks:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        block = self._blocks.pop(0)
        self.received += len(block)
        if self.other is not None:
            self.other._taken.set()
        return block

    async def finish(self) -> None:
        if self.other is not None:
            self.other.end(None)

    def end(self, failure: IslandError | None) -> None:
        self._ended = True
        self._failure = self._failure or failure
        self._news.set()
        self._taken.set()

    def _held(self) -> int:
        return sum(map(len, self._blocks))

    def close(self, failure: IslandError | None) -> None:
        """Close both ends of the stream."""
        self.end(failure)
        if self.other is not None:
            self.other._failure = self.other._failure or failure or Unreachable("the other side closed the stream")
            self.other._news.set()
            self.other._taken.set()
