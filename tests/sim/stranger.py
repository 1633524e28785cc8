"""An admitted island without the services of island, which sends what a test tells it to send."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from island.gossip import core
from island.gossip.core import Head, LogBatch
from island.gossip.logs import SIGNATURE
from island.gossip.messages import Delta, DeltaPage, SignedBatch
from island.kernel import codec
from island.kernel.ids import IslandId, key_bytes
from island.kernel.ports import SeededRng
from island.trust.core import network_id
from island.trust.keys import Identity
from island.trust.service import Trust
from tests.sim.archipelago import Archipelago, SimIsland
from tests.sim.network import SimPeers
from tests.sim.virtual import SimTasks, VirtualClock


class Stranger:
    """An island with a key, a chain and sessions, but without services."""

    def __init__(self, world: Archipelago, trust: Trust) -> None:
        self.world, self.trust = world, trust
        self.id: IslandId = trust.me
        self.tasks = SimTasks("stranger")
        self.peers = SimPeers(world.network, self.id, self.tasks)
        for kind in ("gossip.batch", "gossip.look"):
            self.peers.on_push(kind, self._ignore)
        for kind in ("gossip.digest", "gossip.pull"):
            self.peers.on_request(kind, self._silence)

    @classmethod
    async def admitted(cls, world: Archipelago, name: str = "stranger") -> Stranger:
        """Create a stranger that the first island has admitted, and join the network."""
        identity = Identity.generate(SeededRng(f"{world.seed}/{name}"))
        clock, rng = VirtualClock(world.loop), SeededRng(f"{world.seed}/{name}/trust")
        trust = Trust(world.database(name), identity, name, "sim", clock, rng)
        founder: SimIsland = world.islands[0]
        assert founder.trust is not None
        word = await founder.trust.invite(["here:1"])
        invitation = founder.trust.parse_invitation(word)
        chain = await founder.trust.redeem(invitation.secret, identity.id, name)
        await trust.adopt(network_id(invitation.genesis), chain)
        stranger = cls(world, trust)
        world.network.join(stranger.peers)
        return stranger

    def batch(self, head: Head, changes: Sequence[tuple[str, bytes | None]]) -> LogBatch:
        """A correctly signed log batch after `head`."""
        (body,) = core.cut_batches(self.id, head, changes)
        return core.open_batch(codec.encode(SignedBatch(body=body, signature=self.trust.sign(SIGNATURE, body))))

    def delta(self, *batches: LogBatch, chain: bool = True) -> Delta:
        """A delta of log batches."""
        mine = self.trust.chain or b""
        return Delta(
            origin=key_bytes(self.id), chain=mine if chain else b"", batches=tuple(batch.signed for batch in batches)
        )

    async def say(self, to: SimIsland, *deltas: Delta) -> None:
        """Wait for a session with an island, and push deltas to it."""
        await self.say_bytes(to, codec.encode(DeltaPage(deltas=deltas)))

    async def say_bytes(self, to: SimIsland, body: bytes, kind: str = "gossip.batch") -> None:
        """Wait for a session with an island, and push any bytes to it."""
        await self.world.until(lambda: self.peers.link(to.id) is not None, within=60)
        assert self.peers.push(to.id, kind, body)

    async def leave(self) -> None:
        """Leave the network."""
        self.world.network.leave(self.peers)
        await self.tasks.crash()

    @staticmethod
    async def _ignore(_peer: IslandId, _body: bytes) -> None:
        return

    async def _silence(self, _peer: IslandId, _body: bytes) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        return await answer
