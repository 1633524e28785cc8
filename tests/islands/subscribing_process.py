"""A process for tests that kill it: the streams service and the services that it uses, over real sessions.

`python -m tests.islands.subscribing_process HOME NAME PORT --watch FOLDER` runs the side of the source,
`... --where EXPR` that of the subscriber. Prints `ready` when it is running.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import signal
import sys
from pathlib import Path

from island.catalog.service import Catalog, CatalogDependencies
from island.config import Config, IslandSection, StreamsSection
from island.errors import IslandError
from island.gossip.service import Gossip
from island.kernel import telemetry
from island.kernel.db import Database
from island.kernel.loops import Tasks
from island.kernel.ports import SystemClock, SystemRng
from island.kernel.processes import CHILDREN, ProcessPool
from island.kernel.work import ThreadWorkers
from island.membership.service import Membership
from island.net.peers import TlsPeers
from island.streams.service import Streams, StreamsDependencies
from island.trust.keys import Identity
from island.trust.service import Trust
from island.trust.users import Principal

ADMIN = Principal("administrator", "administrator")
SOURCE = "alerts"


async def live(options: argparse.Namespace) -> None:
    """Run until the process is killed."""
    home: Path = options.home
    home.mkdir(exist_ok=True)
    clock, rng = SystemClock(), SystemRng()
    if not (home / "key").exists():
        Identity.generate(rng).save(home / "key")
    identity = Identity.load(home / "key")
    pool = ProcessPool("streams", memory_bytes=2**30, hint="", size=CHILDREN)
    workers = ThreadWorkers(publishing=pool, streaming=pool)
    state, gossip_db = Database.open(home, "state"), Database.open(home, "gossip")
    config = Config(island=IslandSection(name=options.name), streams=StreamsSection(poll=0.05, window="64KiB"))
    trust = Trust(state, identity, options.name, "test", clock, rng)
    peers = TlsPeers(
        identity, trust, clock, rng,
        listen=f"127.0.0.1:{options.port}", advertise=[], addresses=lambda: membership.addresses(),  # noqa: PLW0108
    )  # fmt: skip
    gossip = Gossip(state, gossip_db, trust, peers, clock, rng)
    membership = Membership(state, gossip_db, gossip, trust, peers, clock, rng)
    catalog = Catalog(
        CatalogDependencies(
            state=state,
            db=gossip_db,
            gossip=gossip,
            membership=membership,
            trust=trust,
            clock=clock,
            rng=rng,
            home=home,
            workers=workers,
        )
    )
    streams = Streams(
        StreamsDependencies(
            state=state,
            gossip_db=gossip_db,
            catalog=catalog,
            membership=membership,
            gossip=gossip,
            trust=trust,
            peers=peers,
            config=config,
            clock=clock,
            rng=rng,
            home=home,
            workers=workers,
        )
    )
    async with asyncio.TaskGroup() as group:
        tasks = Tasks(group)
        await trust.load()
        for service in (gossip, membership, catalog, peers, streams):
            await service.start(tasks)
        await membership.announce(peers.local_addresses())
        if options.watch:
            await offer(options, trust, peers, streams)
        else:
            await subscribe(options, trust, peers, streams)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


async def offer(options: argparse.Namespace, trust: Trust, peers: TlsPeers, streams: Streams) -> None:
    """At the first start, add the source, found the archipelago and write the invitation."""
    invitation = options.home.parent / "invitation"
    if not invitation.exists():
        await streams.add_source(ADMIN, options.watch, SOURCE)
        text = await trust.invite(peers.local_addresses(), uses=10)
        (options.home.parent / "invitation.part").write_text(text)
        (options.home.parent / "invitation.part").rename(invitation)


async def subscribe(options: argparse.Namespace, trust: Trust, peers: TlsPeers, streams: Streams) -> None:
    """At the first start, join the archipelago and subscribe."""
    if trust.network is None:
        await peers.join((options.home.parent / "invitation").read_text())
    while not await streams.subscriptions():
        try:
            await streams.subscribe(ADMIN, f"source/{SOURCE}", where=options.where, start="beginning", into="mine")
        except IslandError:  # the source is not known yet
            await asyncio.sleep(0.1)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("name")
    parser.add_argument("port", type=int)
    parser.add_argument("--watch", type=Path)
    parser.add_argument("--where", default="")
    if sys.platform == "linux":  # ends this process when the test itself is killed
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    telemetry.configure("info")
    asyncio.run(live(parser.parse_args()))


if __name__ == "__main__":
    main()
