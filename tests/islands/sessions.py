"""Islands for tests of peer sessions: real trust and real TLS on loopback, without further services."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.loops import Tasks
from island.kernel.ports import SystemClock, SystemRng
from island.net.limits import PeerLimits
from island.net.peers import TlsPeers
from island.trust.keys import Identity
from island.trust.service import Trust

QUICK = PeerLimits(redial_base_s=0.05, redial_cap_s=0.2, retire_s=0.2, connect_s=20.0, dead_s=3600.0)
"""The default limits, with short redial intervals. Nothing ends because the machine is slow or a peer is silent."""

Register = Callable[["Node"], None]


class _Stop(Exception):
    pass


class Node:
    """One island: trust in its own folder, and peer sessions on a free port."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        listen: str = "127.0.0.1:0",
        limits: PeerLimits = QUICK,
        identity: Identity | None = None,
        register: Register = lambda _: None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.known, self.hints = name, dict[IslandId, list[str]](), dict[IslandId, list[str]]()
        self.identity = identity or Identity.generate(SystemRng())
        self.state = Database.open(folder, "state")
        self.clock, self.rng = SystemClock(), SystemRng()
        self.trust = Trust(self.state, self.identity, name, "test", self.clock, self.rng)
        self.peers = TlsPeers(
            self.identity,
            self.trust,
            self.clock,
            self.rng,
            listen=listen,
            advertise=[],
            addresses=self._addresses,
            hints=lambda: self.hints,
            limits=limits,
        )
        self.id = self.peers.me
        register(self)

    def _addresses(self) -> Mapping[IslandId, list[str]]:
        return self.known

    @property
    def address(self) -> str:
        """The address at which other islands dial this one."""
        return f"127.0.0.1:{self.peers.port}"

    def knows(self, *others: Node) -> None:
        """Set the addresses of other islands, as membership does."""
        for other in others:
            if other.peers.port is not None:
                self.known[other.id] = [other.address]
        self.peers.connect_soon()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Node]:
        """Run the sessions until the end of the context."""
        try:
            async with asyncio.TaskGroup() as group:
                await self.trust.load()
                await self.peers.start(Tasks(group))
                try:
                    yield self
                finally:
                    await self.peers.stop()
                raise _Stop
        except* _Stop:
            pass
        finally:
            self.state.close()

    async def linked(self, *others: Node) -> None:
        """Wait until there is a control session with each of these islands."""
        async with asyncio.timeout(60):
            for other in others:
                while self.peers.link(other.id) is None:
                    await self.peers._links_changed.after(self.peers._links_changed.version, 0.05)

    async def unlinked(self, other: Node) -> None:
        """Wait until there is no control session with an island."""
        async with asyncio.timeout(60):
            await self.peers.until_unlinked(other.id)


async def admit(inviter: Node, *newcomers: Node) -> None:
    """Admit newcomers to the inviter's archipelago, without a session. Founds the archipelago if necessary."""
    await inviter.trust.invite(["127.0.0.1:1"])
    for newcomer in newcomers:
        word = await inviter.trust.invite(["127.0.0.1:1"])
        invitation = newcomer.trust.parse_invitation(word)
        chain = await inviter.trust.redeem(invitation.secret, newcomer.id, newcomer.name)
        assert inviter.trust.network is not None
        await newcomer.trust.adopt(inviter.trust.network, chain)


@contextlib.asynccontextmanager
async def archipelago(
    folder: Path,
    count: int,
    *,
    register: Register = lambda _: None,
    limits: PeerLimits = QUICK,
    mesh: bool = True,
    listen: Callable[[int], str] = lambda _: "127.0.0.1:0",
) -> AsyncIterator[list[Node]]:
    """Run `count` admitted islands. With `mesh` they are all linked with each other, by one session each."""
    nodes = [
        Node(folder / f"i{n}", f"island-{n}", register=register, limits=limits, listen=listen(n)) for n in range(count)
    ]
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.running())
        await admit(nodes[0], *nodes[1:])
        if mesh:
            # One of each two dials. If both did, one of their sessions would be replaced while the test runs.
            for index, node in enumerate(nodes):
                node.knows(*nodes[:index])
            for node in nodes:
                await node.linked(*(other for other in nodes if other is not node))
            for node in nodes:
                node.knows(*(other for other in nodes if other is not node))
        yield nodes
