"""Trust of one island: its network, invitations and admissions, and the verification of chains."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog

from island.errors import BadInput, Conflict, PeerMisbehaved
from island.kernel import codec
from island.kernel.db import Database
from island.kernel.ids import IslandId, NetworkId, check_name, key_bytes
from island.kernel.ports import Clock, Rng, Topic
from island.private_files import write_secret
from island.trust import core, journal, store
from island.trust.journal import Tip, VerifiedRows
from island.trust.keys import NO_NETWORK, Identity
from island.trust.messages import Invitation
from island.trust.sealing import Sealer, seal_problems

log = structlog.get_logger("island")

MAX_USES, MAX_VALID_S = 1000, 366 * 86400.0
_CACHED_CHAINS = 4096
VERIFIED_AT_ONCE = 500
"""Maximum number of rows of the journal that are verified in one read."""


class Trust:
    """The identity of this island and its membership of an archipelago. Call `load` before use."""

    def __init__(self, state: Database, identity: Identity, name: str, label: str, clock: Clock, rng: Rng) -> None:
        self.identity = identity
        self.me: IslandId = identity.id
        self.name = check_name(name, "island name")
        self.label = label
        self.network: NetworkId | None = None
        self.chain: bytes | None = None
        self.network_known = Topic()
        """Touched when this island joins or founds a network."""
        self.recovery_path: Path = state.path.parent / "recovery.key"
        """The file for the recovery key of a network that this island founds."""
        self.sealer = Sealer(identity, lambda: self.network or NO_NETWORK)
        self._state, self._clock, self._rng = state, clock, rng
        self._founding, self._verifying = asyncio.Lock(), asyncio.Lock()
        self._believed: dict[bytes, IslandId] = {}

    async def load(self) -> None:
        """Load the network and the chain from state.db, and begin to seal the journal."""
        if stored := await self._state.read(store.read_network):
            self._belong(*stored)
        self._state.before_commit = self.sealer.before_commit
        await self._state.write(self.sealer.start)

    @property
    def archipelago(self) -> str | None:
        """The label of this island's network, None before it belongs to one."""
        return core.label_of(core.decode_chain(self.chain)) if self.chain else None

    def who(self, user: str) -> str:
        """Return `user@island`, the form used in the journal and at other islands."""
        return f"{user}@{self.name}"

    def sign(self, kind: str, payload: bytes) -> bytes:
        """Sign `payload` for this island's network; raises `Conflict` before it belongs to one."""
        return self.identity.sign(kind, self._need_network(), payload)

    def check_chain(self, chain: bytes) -> IslandId:
        """Return the island that an encoded chain admits to this network; raises `PeerMisbehaved` if it is invalid."""
        if self.network is None:
            raise PeerMisbehaved(
                "a chain was received, but this island does not belong to an archipelago", code="no_network"
            )
        if (known := self._believed.get(chain)) is not None:
            return known
        island = core.verify_chain(self.network, chain).island
        if len(self._believed) >= _CACHED_CHAINS:
            self._believed.clear()
        self._believed[chain] = island
        return island

    def parse_invitation(self, text: str) -> Invitation:
        """Parse an invitation; raises `BadInput` with the reason if it is not valid."""
        return core.parse_invitation(text)

    # --- the journal -------------------------------------------------------------------------

    async def journal(
        self, since: str = "", contains: str = "", limit: int = 1000, *, who: str = ""
    ) -> list[journal.JournalEntry]:
        """The newest `limit` matching rows, oldest first. `since` is as in `journal.parse_since`; raises `BadInput`.

        `who` (`user@island`) selects the rows about what somebody did; "" means everybody.
        """
        start = journal.parse_since(since, self._clock.wall()) if since else None
        return await self._state.read(lambda conn: journal.entries(conn, start, contains, limit, who=who))

    async def verify_journal(self) -> tuple[int, list[str]]:
        """Return (number of the newest row, problems that this island can detect without other islands).

        Rows are read in pages, so that other readers of state.db get their turn, and by one caller at a time.
        """

        def check(conn: sqlite3.Connection, after: Tip | None) -> VerifiedRows:
            rows = journal.verify_rows(conn, after, VERIFIED_AT_ONCE)
            if not rows.more:  # the head and the seal are compared with the last row in one transaction
                rows.problems.extend(journal.verify_head(conn, rows.last) + seal_problems(conn, self.me))
            return rows

        async with self._verifying:
            rows = await self._state.read(partial(check, after=None))
            problems = rows.problems
            while rows.more:
                rows = await self._state.read(partial(check, after=rows.last))
                problems += rows.problems
        return rows.last.seq, problems or ([self.sealer.problem] if self.sealer.problem else [])

    # --- the inviter's side -----------------------------------------------------------------

    async def invite(
        self, addresses: Sequence[str], *, uses: int = 1, valid_s: float = 86400, who: str = "administrator"
    ) -> str:
        """Create an invitation and return it as a string; founds a network first if this island belongs to none.

        `addresses` are the `host:port` at which the new island can dial this one. Raises `BadInput` for
        values out of range, and `Denied` if this island may not invite.
        """
        if not addresses:
            raise BadInput(
                "this island has no peer port, so an invitation could not be redeemed",
                hint="Set listen.peer in island.toml, or create the invitation at another island of the archipelago.",
            )
        if not (1 <= uses <= MAX_USES and 1 <= valid_s <= MAX_VALID_S):
            raise BadInput(
                f"an invitation has 1 to {MAX_USES} uses and is valid for 1 second to 366 days",
                hint="Use --uses and --hours within these limits.",
            )
        if self.network is None:
            await self._found(who)
        now, secret = self._clock.wall(), self._rng.bytes(16)
        expires = int(now + valid_s)

        def issue(conn: sqlite3.Connection) -> None:
            store.add_invitation(conn, core.secret_hash(secret), now, expires, uses)
            journal.append(
                conn,
                at=now,
                who=self.who(who),
                act="peer.invite",
                what=core.secret_hash(secret).hex()[:10],
                outcome="done",
                detail={"uses": uses, "expires": expires, "addresses": list(addresses)},
            )

        chain = core.decode_chain(self._need_chain())
        core.admit_key(chain, self.identity, _UNUSED_KEY, "nobody")  # raises now if admissions will be denied later
        await self._state.write(issue)
        return core.format_invitation(
            Invitation(
                genesis=chain.genesis,
                inviter=key_bytes(self.me),
                name=self.name,
                addresses=tuple(addresses[:8]),
                secret=secret,
                expires=expires,
            )
        )

    async def redeem(self, secret: bytes, key: IslandId, name: str) -> bytes:
        """Admit `key`, which presents the secret of an invitation of this island, and return its encoded chain.

        Runs in one transaction. A key that was admitted before gets the same chain again. Raises
        `BadInput` if the invitation is unknown, expired or used up.
        """
        check_name(name, "island name")
        mine = core.decode_chain(self._need_chain())
        digest = core.secret_hash(secret)

        def admit(conn: sqlite3.Connection) -> bytes:
            now = self._clock.wall()
            earlier = store.admission(conn, key)
            if (
                core.judge_redemption(store.issued(conn, digest), earlier is not None, now) == "again"
                and earlier is not None
            ):
                return earlier
            chain = codec.encode(core.admit_key(mine, self.identity, key, name))
            store.add_admission(conn, key, name, digest, chain, now)
            journal.append(
                conn,
                at=now,
                who=self.who("invitation"),
                act="peer.admit",
                what=f"{name} {key}",
                outcome="admitted",
                detail={"invitation": digest.hex()[:10]},
            )
            return chain

        return await self._state.write(admit)

    async def has_admitted(self) -> bool:
        """Whether this island has admitted another one."""
        return await self._state.read(store.has_admissions)

    async def has_invited(self) -> bool:
        """Whether this island has issued an invitation that is stored, expired or not."""
        return await self._state.read(store.has_invitations)

    async def _found(self, who: str) -> None:
        async with self._founding:
            if self.network is not None:
                return
            recovery = Identity.generate(self._rng)
            genesis = core.found_network(self.label, self._rng.bytes(32), self.me, key_bytes(recovery.id))
            network, chain = core.network_id(genesis), codec.encode(core.founder_chain(genesis, self.me))
            # Write the key before the network exists. If this is interrupted, the key in the file is not used
            # by any network, so that the next attempt may replace it.
            write_secret(self.recovery_path, recovery.pem(), replace=True)
            await self._join(network, chain, who, "peer.found")
            log.info("trust.founded", network=network, label=self.label, recovery=str(self.recovery_path))

    # --- the joiner's side -------------------------------------------------------------------

    async def adopt(self, network: NetworkId, chain: bytes, who: str = "administrator") -> None:
        """Join `network` with `chain`. Does nothing if this island already belongs to it.

        Raises `Conflict` if it belongs to another network, `PeerMisbehaved` if the chain does not admit it.
        """
        core.check_adoption(self.network, network)
        holder = core.verify_chain(network, chain)
        if holder.island != self.me:
            raise PeerMisbehaved("the inviter sent an admission of another key", code="bad_chain")
        async with self._founding:
            core.check_adoption(self.network, network)
            if self.network is None:
                await self._join(network, chain, who, "peer.join")

    async def _join(self, network: NetworkId, chain: bytes, who: str, act: str) -> None:
        await self._state.write(
            lambda conn: self._enter(conn, network, chain, who, act), then=lambda _: self._belong(network, chain)
        )

    def _enter(self, conn: sqlite3.Connection, network: NetworkId, chain: bytes, who: str, act: str) -> None:
        now = self._clock.wall()
        store.write_network(conn, network, chain, now)
        journal.append(conn, at=now, who=self.who(who), act=act, what=network, outcome="done", detail={})

    def _belong(self, network: NetworkId, chain: bytes) -> None:
        if core.verify_chain(network, chain).island != self.me:
            raise Conflict(
                "state.db does not belong to the key in HOME/key",
                hint="Restore both files from the same backup.",
            )
        self.network, self.chain = network, chain
        self.network_known.touch()

    # --- checks ------------------------------------------------------------------------------

    def _need_network(self) -> NetworkId:
        if self.network is None:
            raise Conflict(
                "this island does not belong to an archipelago yet",
                hint="Run `island peer invite` to found one, or `island peer join` to join one.",
            )
        return self.network

    def _need_chain(self) -> bytes:
        self._need_network()
        assert self.chain is not None
        return self.chain


_UNUSED_KEY = IslandId("11" * 32)
