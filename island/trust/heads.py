"""Heads of journals at other islands: who cuts a journal here would have to cut it there too.

Each island gives the signed head of its journal to the islands that it has a session with,
and they keep the newest. A head gives way only to one whose journal still contains it, so an
island whose journal was cut, or restored from a backup, contradicts what others hold.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from island.errors import Conflict, PeerMisbehaved, PeerRefused, Unreachable
from island.kernel import codec
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.loops import Tasks
from island.kernel.ports import Clock, Peers, Rng, Signal
from island.trust import core, journal, store
from island.trust.core import HeldHead
from island.trust.messages import HeadHeld, HeadOffer, JournalHead
from island.trust.service import Trust
from island.trust.signing import verify

log = structlog.get_logger("island")

KIND = "journal.head"
"""The kind of the request."""

SIGNATURE = "journal-head"
"""The use that a head's signature is for."""

OFFER_EVERY_S = 60.0
"""Seconds between offers to an island while the journal grows."""

ANSWER_S, LAST_OFFER_S = 10.0, 2.0
"""Seconds that an answer may take; and those that the offers at the stop of the daemon may take."""

STORE_EVERY_S = 1.0
"""What one island causes to be stored is at least this many seconds apart."""

Answer = Literal["agrees", "disagrees", "unusable", "silent"]


@dataclass(frozen=True, slots=True)
class HeadAnswer:
    """What one island answered about the journal of this one."""

    island: IslandId
    answer: Answer
    """`unusable`: it sent what this island never signed; `silent`: no answer, or a version that keeps no heads."""


class JournalHeads:
    """Gives this island's head to others and keeps theirs. `start` after the trust was loaded."""

    def __init__(self, state: Database, trust: Trust, peers: Peers, clock: Clock, rng: Rng) -> None:
        self._state, self._trust, self._peers, self._clock, self._rng = state, trust, peers, clock, rng
        self._held: dict[IslandId, HeldHead] = {}
        self._stored_at: dict[IslandId, float] = {}
        self._agreed: dict[IslandId, tuple[int, int]] = {}
        self._disputes: dict[IslandId, JournalHead] = {}
        self._wake = Signal()
        peers.on_request(KIND, self._offered)
        peers.on_link(self._on_link)

    async def start(self, tasks: Tasks) -> None:
        """Load what is held of others, and begin to give this island's head to them."""
        self._held = await self._state.read(store.held_heads)
        tasks.forever("journal.heads", self._step, rng=self._rng)

    async def stop(self) -> None:
        """Give the last head to every island that does not have it yet."""
        await self._offer(LAST_OFFER_S, everyone=False)

    # --- this island's journal at others --------------------------------------------------------

    async def compare(self) -> list[HeadAnswer]:
        """Ask every island that is linked for the head it holds of this island's journal."""
        return await self._offer(ANSWER_S, everyone=True)

    def problems(self, display: Callable[[IslandId], str]) -> list[str]:
        """What a health report should say about the journals of this island and of others."""
        found = self.own_problems(display)
        if self._trust.sealer.problem:
            found.append(
                f"the journal was changed by somebody else: {self._trust.sealer.problem}. "
                "`island journal --verify` says more; `island journal --acknowledge REASON` accepts it."
            )
        return found + [_said(display(island), held) for island, held in sorted(self._held.items()) if held.mismatch]

    def own_problems(self, display: Callable[[IslandId], str]) -> list[str]:
        """How this island's journal contradicts what others hold, as they last answered."""
        if not self._disputes:
            return []
        names = ", ".join(sorted(display(island) for island in self._disputes))
        row = max(head.seq for head in self._disputes.values())
        return [
            f"rows of the journal are missing or were replaced: row {row}, which this island signed, "
            f"is held by {names} and is not here. If state.db was restored from a backup: "
            "island journal --acknowledge REASON"
        ]

    async def acknowledge(self, who: str, reason: str) -> int:
        """Accept that rows are missing: a row says so, and begins a new generation of heads, which is returned.

        Raises `Conflict` if there is nothing to accept.
        """
        sealer = self._trust.sealer
        if not sealer.problem and not self._disputes:
            raise Conflict("the journal agrees with its seal and with what other islands hold", hint="Nothing to do.")
        generation = max(sealer.generation, *(head.generation for head in self._disputes.values()), 0) + 1
        problems = [sealer.problem[:300]] if sealer.problem else []
        problems += [f"{island} holds row {head.seq}" for island, head in sorted(self._disputes.items())[:20]]

        def write(conn: sqlite3.Connection) -> None:
            journal.append(
                conn,
                at=self._clock.wall(),
                who=self._trust.who(who),
                act=journal.ACKNOWLEDGE,
                what=reason,
                outcome="done",
                detail={"generation": generation, "problems": problems},
            )

        sealer.consent(generation)
        await self._state.write(write)
        self._disputes.clear()  # what still contradicts is found again by the next offers
        log.warning("journal.acknowledged", generation=generation, who=who, reason=reason)
        self._wake.set()
        return generation

    def _on_link(self, island: IslandId, up: bool) -> None:
        if up:
            self._agreed.pop(island, None)
            self._wake.set()

    async def _step(self) -> None:
        await self._wake.wait(OFFER_EVERY_S)
        await self._offer(ANSWER_S, everyone=False)

    async def _offer(self, timeout: float, *, everyone: bool) -> list[HeadAnswer]:
        if self._trust.network is None:
            return []
        mark = await self._state.read(_mark)
        linked = [link.island for link in self._peers.links()]
        due = [island for island in linked if everyone or self._disputed() or self._agreed.get(island) != mark]
        return list(await asyncio.gather(*(self._offer_to(island, timeout) for island in due)))

    def _disputed(self) -> bool:
        return bool(self._disputes or self._trust.sealer.problem)

    async def _offer_to(self, island: IslandId, timeout: float) -> HeadAnswer:
        """Offer the head to one island, twice if it holds one that this island has to link to."""
        held: JournalHead | None = None
        try:
            for _ in range(2):
                offer, mark = await self._make_offer(held)
                answer = await self._peers.request(island, KIND, codec.encode(offer), timeout=timeout)
                held = codec.decode(answer, HeadHeld).head
                if held is None:
                    break
                self._check(self._trust.me, held)
                if offer.head is not None and held.hash == offer.head.hash:
                    self._agreed[island] = mark
                    break
        except (Unreachable, PeerRefused):
            return HeadAnswer(island, "silent")
        except PeerMisbehaved as error:
            log.warning("journal.bad_answer", island=island, error=error.message)
            return HeadAnswer(island, "unusable")
        if held is None or await self._state.read(lambda conn: _contains(conn, held)):
            self._disputes.pop(island, None)
            return HeadAnswer(island, "agrees")
        if island not in self._disputes:
            log.error("journal.contradicted", island=island, row=held.seq)
        self._disputes[island] = held
        return HeadAnswer(island, "disagrees")

    async def _make_offer(self, held: JournalHead | None) -> tuple[HeadOffer, tuple[int, int]]:
        if self._trust.sealer.problem:
            return HeadOffer(), (0, 0)  # this island does not sign what somebody else has written

        def read(conn: sqlite3.Connection) -> tuple[int, journal.Tip | None, bytes | None]:
            since = journal.hash_at(conn, held.seq) if held is not None else None
            return journal.generation(conn), journal.tip(conn), since

        generation, tip, since = await self._state.read(read)
        if tip is None:
            return HeadOffer(), (0, 0)
        signature = self._trust.sign(SIGNATURE, head_payload(generation, tip.seq, tip.hash))
        return HeadOffer(
            head=JournalHead(generation=generation, seq=tip.seq, hash=tip.hash, signature=signature),
            since=held.seq if held is not None else 0,
            since_hash=since or b"",
        ), (generation, tip.seq)

    # --- others' journals here ------------------------------------------------------------------

    async def _offered(self, source: IslandId, body: bytes) -> bytes:
        """Keep the head of another island's journal if it continues the one that is held."""
        offer = codec.decode(body, HeadOffer)
        if offer.head is not None:
            self._check(source, offer.head)
        held = self._held.get(source, HeldHead())
        after = core.weigh_head(held, offer)
        # The end of a mismatch is never put off: an island that agrees does not ask again.
        if after != held and ((held.mismatch and not after.mismatch) or self._may_store(source)):
            held = await self._store(source, offer)
        return codec.encode(HeadHeld(head=held.head))

    async def _store(self, source: IslandId, offer: HeadOffer) -> HeldHead:
        def write(conn: sqlite3.Connection) -> tuple[HeldHead, HeldHead]:
            before = store.held_heads(conn, source).get(source, HeldHead())
            after = core.weigh_head(before, offer)
            if after != before:
                store.put_held_head(conn, source, after, self._clock.wall())
            return before, after

        before, after = await self._state.write(write)
        self._held[source] = after
        if after.mismatch and after.mismatch != before.mismatch:
            log.warning("journal.mismatch", island=source, mismatch=after.mismatch)
        elif before.head and after.head and after.head.generation > before.head.generation:
            log.warning("journal.new_generation", island=source, row=after.head.seq, before=before.head.seq)
        return after

    def _may_store(self, source: IslandId) -> bool:
        now = self._clock.monotonic()
        if now - self._stored_at.get(source, float("-inf")) < STORE_EVERY_S:
            return False
        self._stored_at[source] = now
        return True

    def _check(self, signer: IslandId, head: JournalHead) -> None:
        payload = head_payload(head.generation, head.seq, head.hash)
        network = self._trust.network
        if network is None or not verify(signer, SIGNATURE, network, payload, head.signature):
            raise PeerMisbehaved(f"a journal head that {signer[:10]} did not sign", code="bad_signature")


def head_payload(generation: int, seq: int, digest: bytes) -> bytes:
    """What the signature of a head is over, after the domain and the network."""
    return codec.encode([generation, seq, digest])


def unreached(answers: Sequence[HeadAnswer]) -> list[IslandId]:
    """The islands of which no answer came that could be used."""
    return [each.island for each in answers if each.answer in ("silent", "unusable")]


def _mark(conn: sqlite3.Connection) -> tuple[int, int]:
    return journal.generation(conn), journal.last(conn)


def _contains(conn: sqlite3.Connection, held: JournalHead) -> bool:
    """Whether the journal continues a head that this island once signed."""
    generation = journal.generation(conn)
    if held.generation != generation:
        return held.generation < generation
    return journal.hash_at(conn, held.seq) == held.hash


def _said(name: str, held: HeldHead) -> str:
    if held.mismatch == "changed" or held.head is None:
        return f"{name} reports that its journal was changed by somebody else"
    then = f"the journal of {name} does not continue row {held.head.seq}, which it gave to this island"
    now = f": it now ends with row {held.claimed.seq}" if held.mismatch == "cut" and held.claimed else ""
    return f"{then}{now}. Rows were removed or replaced there, or an old state.db was restored."
