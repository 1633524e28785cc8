"""Spreads logs: pushes new batches at once, and compares heads to find batches that pushes missed.

An exchange begins with two hashes. If they differ, the heads are compared page by page. Batches
that this island lacks are pulled in pages. Batches that the peer lacks are pushed if they are
small; otherwise the peer is asked to compare (`gossip.look`) and pulls at its own pace.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence

import structlog

from island.errors import PeerMisbehaved, PeerRefused, Unreachable
from island.gossip import core
from island.gossip.core import Difference, Head
from island.gossip.logs import Logs
from island.gossip.messages import (
    HEADS_A_PAGE,
    PAGE_LIMIT,
    WANTS_A_PAGE,
    Delta,
    DeltaPage,
    Digest,
    Heads,
    Pull,
    PullRange,
)
from island.gossip.own_log import OwnLog
from island.kernel import codec
from island.kernel.ids import IslandId, island_id
from island.kernel.loops import Tasks, backoff
from island.kernel.ports import Clock, Peers, Rng, Signal
from island.kernel.telemetry import counter

log = structlog.get_logger("island")

EXCHANGES = counter("gossip_exchanges", "Comparisons with other islands, by outcome", ("outcome",))
BYTES_OUT = counter("gossip_sent_bytes", "Bytes of gossip sent in pushes and answers to pulls")

INTERVAL = 5.0
"""Average number of seconds between two comparisons with a random linked island."""

PUSH_LIMIT = 32 * 1024
"""Maximum number of bytes that are pushed at once. For more, peers are asked to compare."""

COUNT_EVERY = 12
"""Number of comparisons between two counts of the records for the metrics."""

AT_ONCE = 4
"""Maximum number of concurrent exchanges."""

PAUSE = 0.1
"""Seconds between two exchanges with one island."""

MAX_PAGES = core.MAX_ORIGINS // HEADS_A_PAGE + 3
"""Maximum number of pages of heads in one exchange: enough for `MAX_ORIGINS`."""

OFFERS = 3
"""Maximum number of times that the same batches are offered to a peer. It may refuse them because of a limit."""

IDLE_PAGES = 3
"""Maximum number of consecutive pages without new batches before a pull is given up."""

TIMEOUT = 4.0
"""Timeout of a request in seconds."""


class Spread:
    """Exchanges batches with the linked islands."""

    def __init__(self, logs: Logs, own: OwnLog, peers: Peers, clock: Clock, rng: Rng) -> None:
        self._logs, self._own, self._peers, self._clock, self._rng = logs, own, peers, clock, rng
        self._due: dict[IslandId, None] = {}
        self._busy: set[IslandId] = set()
        self._not_before: dict[IslandId, float] = {}
        """By island: the monotonic time of the next exchange. An island that waits for it is not busy."""
        self._failures: dict[IslandId, int] = {}
        self._offered: dict[IslandId, dict[bytes, tuple[PullRange, Head, int]]] = {}
        """By peer and origin: what the peer lacked and how often it was offered."""
        self._wake = Signal()
        self._rounds = 0
        peers.on_push("gossip.batch", self._on_batch)
        peers.on_push("gossip.look", self._on_look)
        peers.on_request("gossip.digest", self._on_digest)
        peers.on_request("gossip.pull", self._on_pull)
        peers.on_link(self._on_link)

    def start(self, tasks: Tasks) -> None:
        tasks.forever("gossip.exchanges", functools.partial(self._start_exchanges, tasks), rng=self._rng)
        tasks.forever("gossip.anti_entropy", self._anti_entropy, rng=self._rng)
        for link in self._peers.links():
            self.compare_soon(link.island)

    def push(self, deltas: Sequence[Delta], but: IslandId | None = None) -> None:
        """Send new batches to all linked islands except the one they came from (`but`).

        If they exceed `PUSH_LIMIT`, the islands are only asked to compare.
        """
        islands = [link.island for link in self._peers.links() if link.island != but]
        if not islands or not deltas:
            return
        messages = _messages(deltas)
        for island in islands:
            self._send_all(island, messages)

    def compare_soon(self, peer: IslandId) -> None:
        """Schedule a comparison with `peer`."""
        self._due[peer] = None
        self._wake.set()

    def _send_all(self, island: IslandId, messages: Sequence[bytes]) -> None:
        if sum(map(len, messages)) > PUSH_LIMIT:
            self._send(island, "gossip.look", b"")
            return
        for message in messages:
            self._send(island, "gossip.batch", message)

    def _send(self, island: IslandId, kind: str, message: bytes) -> None:
        if self._peers.push(island, kind, message):
            BYTES_OUT.inc(len(message))

    # --- messages of other islands ------------------------------------------------------------

    def _on_link(self, peer: IslandId, up: bool) -> None:
        self._not_before.pop(peer, None)
        self._offered.pop(peer, None)
        if up:
            self._failures.pop(peer, None)
            self.compare_soon(peer)
            self._own.wake.set()
        else:
            self._due.pop(peer, None)
            self._logs.forget(peer)

    async def _on_batch(self, peer: IslandId, body: bytes) -> None:
        taken = await self._logs.take(peer, codec.decode(body, DeltaPage).deltas)
        self.push(taken.fresh, but=peer)
        if taken.gap or taken.doubts:
            self.compare_soon(peer)

    async def _on_look(self, peer: IslandId, _body: bytes) -> None:
        self.compare_soon(peer)

    async def _on_digest(self, peer: IslandId, body: bytes) -> bytes:
        asked = codec.decode(body, Digest)
        answer = self._logs.positions.answer(asked)
        if not (answer.indexed or answer.keyed) and answer.root == asked.root:
            self._own.heard(peer)
        return codec.encode(answer)

    async def _on_pull(self, _peer: IslandId, body: bytes) -> bytes:
        answer = codec.encode(await self._logs.page(codec.decode(body, Pull).wants))
        BYTES_OUT.inc(len(answer))
        return answer

    # --- exchanges ----------------------------------------------------------------------------

    async def _anti_entropy(self) -> None:
        await asyncio.sleep(INTERVAL * (0.75 + 0.5 * self._rng.random()))
        if links := self._peers.links():
            self.compare_soon(self._rng.choice(links).island)
        self._rounds += 1
        if self._rounds % COUNT_EVERY == 1:
            await self._logs.count()

    async def _start_exchanges(self, tasks: Tasks) -> None:
        now, wait = self._clock.monotonic(), None
        for peer in list(self._due):
            left = self._not_before.get(peer, now) - now
            if left > 0:
                wait = left if wait is None else min(wait, left)
            elif peer not in self._busy and len(self._busy) < AT_ONCE:
                del self._due[peer]
                self._busy.add(peer)
                tasks.spawn("gossip.exchange", self._visit(peer))
        await self._wake.wait(wait)

    async def _visit(self, peer: IslandId) -> None:
        pause = PAUSE
        try:
            outcome = await self._exchange(peer)
            self._failures.pop(peer, None)
            EXCHANGES.labels(outcome).inc()
        except (Unreachable, PeerRefused, PeerMisbehaved) as error:
            EXCHANGES.labels("failed").inc()
            failures = self._failures[peer] = self._failures.get(peer, 0) + 1
            log.debug("gossip.exchange_failed", peer=peer, error=error.message)
            if isinstance(error, PeerMisbehaved):
                self._peers.blame(peer, error)
            pause = backoff(failures, self._rng)
            if self._peers.link(peer) is not None and failures < 5:
                self._due[peer] = None
        finally:
            if self._peers.link(peer) is not None:
                self._not_before[peer] = self._clock.monotonic() + pause
            self._busy.discard(peer)
            self._wake.set()

    async def _exchange(self, peer: IslandId) -> str:
        """Compare with `peer` and exchange missing batches; returns the outcome for the metrics."""
        after, outcome = b"", "equal"
        for _ in range(MAX_PAGES):
            asked = self._logs.positions.digest(after)
            answer = codec.decode(await self._ask(peer, "gossip.digest", codec.encode(asked)), Heads)
            if (answer.roster, answer.root) == (asked.roster, asked.root):
                self._offered.pop(peer, None)
                break
            outcome = "differed"
            heads, until = self._logs.positions.read(asked, answer)
            if answer.indexed and not heads:
                continue  # the roster changed during the request
            difference = core.compare_heads(self._logs.positions, heads, after, until)
            await self._pull(peer, [w for w in difference.wants if self._logs.accepts(island_id(w.origin))])
            await self._offer(peer, difference)
            if until is None:
                break
            after = until
        self._own.heard(peer)
        return outcome

    async def _pull(self, peer: IslandId, wants: Sequence[PullRange]) -> None:
        """Pull the wanted ranges page by page, as long as pages bring new batches."""
        todo = {want.origin: want for want in wants}
        doubted: set[bytes] = set()
        idle = 0
        while todo and idle < IDLE_PAGES:
            asked = list(todo.values())[:WANTS_A_PAGE]
            page = codec.decode(await self._ask(peer, "gossip.pull", codec.encode(Pull(wants=tuple(asked)))), DeltaPage)
            taken = await self._logs.take(peer, page.deltas)
            self.push(taken.fresh, but=peer)
            idle = 0 if taken.fresh else idle + 1
            if taken.throttled:
                await asyncio.sleep(1.0)
                continue
            came = {delta.origin for delta in page.deltas}
            brought = {delta.origin for delta in taken.fresh}
            for want in asked:
                # Ask again for a range whose beginning arrived, or that did not fit in the page. Do not ask
                # again for a range that brought nothing new.
                if page.more and (want.origin in brought or want.origin not in came):
                    head = self._logs.positions.get(island_id(want.origin))
                    todo[want.origin] = PullRange(origin=want.origin, epoch=want.epoch, after=max(want.after, head.seq))
                else:
                    del todo[want.origin]
            for doubt in taken.doubts:
                if doubt.origin not in doubted:
                    doubted.add(doubt.origin)
                    todo[doubt.origin] = doubt

    async def _offer(self, peer: IslandId, difference: Difference) -> None:
        """Push the batches that `peer` lacks if they are small; otherwise ask it to compare."""
        offers = difference.offers
        if len(offers) <= WANTS_A_PAGE:
            offers = [offer for offer in offers if self._may_offer(peer, offer)]
        if not offers:
            return
        page = await self._logs.page(offers[:WANTS_A_PAGE])
        if page.more or len(offers) > WANTS_A_PAGE:
            self._send(peer, "gossip.look", b"")
            return
        self._send_all(peer, _messages(page.deltas))

    def _may_offer(self, peer: IslandId, offer: PullRange) -> bool:
        """Whether to offer batches that `peer` lacks. If it did not store them repeatedly, it can still pull them."""
        head = self._logs.positions.get(island_id(offer.origin))
        offered = self._offered.setdefault(peer, {})
        before, at, times = offered.get(offer.origin, (None, None, 0))
        times = times + 1 if (before, at) == (offer, head) else 1
        offered[offer.origin] = (offer, head, times)
        return times <= OFFERS

    async def _ask(self, peer: IslandId, kind: str, body: bytes) -> bytes:
        return await self._peers.request(peer, kind, body, timeout=TIMEOUT)


def _messages(deltas: Sequence[Delta]) -> list[bytes]:
    """Encode deltas as few messages, each within the limit of a control message."""
    messages: list[bytes] = []
    page: list[Delta] = []
    size = 0
    for delta in deltas:
        for part in _parts(delta):
            cost = 120 + len(part.chain) + sum(len(b) + 8 for b in part.batches)
            if part.proof is not None:
                cost += len(part.proof.one) + len(part.proof.other) + 32
            if page and (size + cost > PAGE_LIMIT or len(page) == WANTS_A_PAGE):
                messages.append(codec.encode(DeltaPage(deltas=tuple(page))))
                page, size = [], 0
            page.append(part)
            size += cost
    if page:
        messages.append(codec.encode(DeltaPage(deltas=tuple(page))))
    return messages


def _parts(delta: Delta) -> list[Delta]:
    """Split a delta into parts that each fit in one message."""
    parts: list[Delta] = []
    some: list[bytes] = []
    size = len(delta.chain)
    for batch in delta.batches:
        if some and (size + len(batch) + 8 > PAGE_LIMIT - 200 or len(some) == 1000):
            parts.append(Delta(origin=delta.origin, chain=delta.chain, batches=tuple(some)))
            some, size = [], len(delta.chain)
        some.append(batch)
        size += len(batch) + 8
    if some:
        parts.append(Delta(origin=delta.origin, chain=delta.chain, batches=tuple(some)))
    if delta.proof is not None:
        parts.append(Delta(origin=delta.origin, chain=delta.chain, proof=delta.proof))
    return parts
