"""Exchanges signed journal heads with other islands, to detect that rows of a journal were removed.

Each island sends the signed head of its journal to the islands that it is linked with, and they
store the newest. A stored head is replaced only by the head of a journal that still contains it, or
by one of a higher generation. An island whose journal was cut, or restored from a backup, therefore
contradicts the stored head until its administrator acknowledges that rows are missing.
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
from island.kernel.stranger_log import StrangerLog
from island.trust import core, journal, store
from island.trust.core import HeldHead
from island.trust.messages import HeadHeld, HeadOffer, JournalHead
from island.trust.service import Trust
from island.trust.signing import verify

log = structlog.get_logger("island")

KIND = "journal.head"
"""The kind of the request that offers a head."""

SIGNATURE = "journal-head"
"""The kind of a head's signature."""

OFFER_EVERY_S = 60.0
"""Seconds between two offers while the journal grows."""

ANSWER_S, LAST_OFFER_S = 10.0, 2.0
"""Timeouts of an offer in seconds: while the daemon runs, and when it stops."""

STORE_EVERY_S = 1.0
"""Minimum number of seconds between two heads of one island that are stored."""

HeadVerdict = Literal["agrees", "disagrees", "unusable", "silent"]


@dataclass(frozen=True, slots=True)
class HeadAnswer:
    """The answer of one island about this island's journal."""

    island: IslandId
    answer: HeadVerdict
    """`unusable`: it sent a malformed answer, or a head that this island did not sign. `silent`: it did not answer,
    or its version does not support journal heads."""


class JournalHeads:
    """Offers this island's journal head to other islands and stores theirs. Call `start` after `Trust.load`."""

    def __init__(self, state: Database, trust: Trust, peers: Peers, clock: Clock, rng: Rng) -> None:
        self._state, self._trust, self._peers, self._clock, self._rng = state, trust, peers, clock, rng
        self._held: dict[IslandId, HeldHead] = {}
        self._stored_at: dict[IslandId, float] = {}
        self._agreed: dict[IslandId, tuple[int, int]] = {}
        self._disputes: dict[IslandId, JournalHead] = {}
        self._wake = Signal()
        self._lines = StrangerLog("island")
        peers.on_request(KIND, self._offered)
        peers.on_link(self._on_link)

    async def start(self, tasks: Tasks) -> None:
        """Load the stored heads of other islands, and begin to offer this island's head."""
        self._held = await self._state.read(store.held_heads)
        tasks.forever("journal.heads", self._step, rng=self._rng)

    async def stop(self) -> None:
        """Offer the last head to the linked islands that do not have it yet."""
        await self._offer(LAST_OFFER_S, everyone=False)

    # --- this island's journal at other islands -------------------------------------------------

    async def compare(self) -> list[HeadAnswer]:
        """Compare this island's journal with the heads that all linked islands have stored."""
        return await self._offer(ANSWER_S, everyone=True)

    def problems(self, display: Callable[[IslandId], str]) -> list[str]:
        """Problems of the journals of this island and of others, for health reports."""
        found = self.own_problems(display)
        if self._trust.sealer.problem:
            found.append(
                f"the journal was changed by another program: {self._trust.sealer.problem}. "
                "`island journal --verify` shows details; `island journal --acknowledge REASON` accepts the change."
            )
        return found + [_problem(display(island), held) for island, held in sorted(self._held.items()) if held.mismatch]

    def own_problems(self, display: Callable[[IslandId], str]) -> list[str]:
        """How this island's journal contradicts heads at other islands, by their last answers."""
        if not self._disputes:
            return []
        names = ", ".join(sorted(display(island) for island in self._disputes))
        row = max(head.seq for head in self._disputes.values())
        return [
            f"rows of the journal are missing or were replaced: the journal does not contain row {row}, "
            f"which this island signed and sent to {names}. If another machine uses a copy of this island's key, "
            "stop it. If state.db was restored from a backup, run: island journal --acknowledge REASON"
        ]

    async def acknowledge(self, who: str, reason: str) -> int:
        """Accept that rows are missing: add a row that begins a new generation of heads, and return the generation.

        Raises `Conflict` if there is no contradiction.
        """
        sealer = self._trust.sealer
        if not sealer.problem and not self._disputes:
            raise Conflict(
                "the journal agrees with its seal and with its heads at other islands", hint="Nothing to acknowledge."
            )
        generation = max(sealer.generation, *(head.generation for head in self._disputes.values()), 0) + 1
        problems = [sealer.problem[:300]] if sealer.problem else []
        problems += [f"{island} has row {head.seq}" for island, head in sorted(self._disputes.items())[:20]]

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

        def committed(_: None) -> None:
            self._disputes.clear()  # the next offers find contradictions that remain
            log.warning("journal.acknowledged", generation=generation, who=who, reason=reason)
            self._wake.set()

        sealer.consent(generation)
        await self._state.write(write, then=committed)
        return generation

    def _on_link(self, island: IslandId, up: bool) -> None:
        if up:
            self._agreed.pop(island, None)
            self._wake.set()

    async def _step(self) -> None:
        await self._wake.wait(OFFER_EVERY_S)
        with self._wake.kept():
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
        """Offer the head to one island, and again with the row of the head that the island answers with."""
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
            self._peers.blame(island, error)
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
            return HeadOffer(), (0, 0)  # this island does not sign rows that another program wrote

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

    # --- journals of other islands --------------------------------------------------------------

    async def _offered(self, source: IslandId, body: bytes) -> bytes:
        """Store the head of another island's journal if it continues the stored one; answer with the stored head."""
        offer = codec.decode(body, HeadOffer)
        if offer.head is not None:
            self._check(source, offer.head)
        held = self._held.get(source, HeldHead())
        after = core.weigh_head(held, offer)
        # Store the end of a mismatch at once: an island that agrees does not offer its head again.
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

        def committed(stored: tuple[HeldHead, HeldHead]) -> None:
            before, after = stored
            self._held[source] = after
            if after.mismatch and after.mismatch != before.mismatch:
                self._lines.warning("journal.mismatch", source, mismatch=after.mismatch)
            elif before.head and after.head and after.head.generation > before.head.generation:
                self._lines.warning("journal.new_generation", source, row=after.head.seq, before=before.head.seq)

        _, after = await self._state.write(write, then=committed)
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
            raise PeerMisbehaved(f"a journal head without a valid signature of {signer[:10]}", code="bad_signature")


def head_payload(generation: int, seq: int, digest: bytes) -> bytes:
    """The signed payload of a head."""
    return codec.encode([generation, seq, digest])


def unreached(answers: Sequence[HeadAnswer]) -> list[IslandId]:
    """The islands without a usable answer."""
    return [each.island for each in answers if each.answer in ("silent", "unusable")]


def _mark(conn: sqlite3.Connection) -> tuple[int, int]:
    return journal.generation(conn), journal.last(conn)


def _contains(conn: sqlite3.Connection, held: JournalHead) -> bool:
    """Whether the journal contains the row of a head that this island signed, or has a newer generation."""
    generation = journal.generation(conn)
    if held.generation != generation:
        return held.generation < generation
    return journal.hash_at(conn, held.seq) == held.hash


def _problem(name: str, held: HeldHead) -> str:
    if held.mismatch == "changed" or held.head is None:
        return f"{name} reports that its journal was changed by another program"
    contradiction = f"the journal of {name} does not continue row {held.head.seq}, which it sent to this island"
    end = f": it now ends with row {held.claimed.seq}" if held.mismatch == "cut" and held.claimed else ""
    return f"{contradiction}{end}. Rows were removed or replaced there, or an old state.db was restored."
