"""Discovery: announces this island on the local network, and finds other islands there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from island.config import DiscoverySection
from island.discovery import core, multicast
from island.discovery.core import Announcement, Hints, Interface, OwnAnnouncement
from island.discovery.multicast import NoMulticast, Responder
from island.kernel.ids import IslandId, key_prefix
from island.kernel.loops import Tasks
from island.kernel.ports import Clock, Rng, Signal
from island.kernel.stranger_log import StrangerLog
from island.trust.service import Trust

log = structlog.get_logger("island")

LOOK_S = 5.0
"""Seconds between two looks at the interfaces of this machine. There is no portable event for their changes."""

PAUSE_S = 1.0
"""Minimum time in seconds between two evaluations of the announcements, however many arrive."""


@dataclass(frozen=True, slots=True)
class Nearby:
    """What discovery knows and does at one time."""

    state: core.State
    problem: str
    """Why discovery does not work, or does not work on all interfaces; "" if it does."""
    note: str
    """Why this island is not announced; "" if it is."""
    announced: list[str]
    """The `host:port` at which this island is announced."""
    islands: list[Announcement]
    """The other islands that are announced, without proof, sorted by network and key prefix."""


class Discovery:
    """Finds islands on the local network. `hints` and `nearby` read from memory.

    `known()` returns the islands that gossip has made known, and `bound()` the host and port to which the peer
    port is bound, or None. Nothing of what is found is stored on disk or sent to other islands.
    """

    def __init__(
        self,
        config: DiscoverySection,
        trust: Trust,
        known: Callable[[], Iterable[IslandId]],
        bound: Callable[[], tuple[str, int] | None],
        clock: Clock,
        rng: Rng,
    ) -> None:
        self._config, self._trust, self._known, self._bound = config, trust, known, bound
        self._clock, self._rng = clock, rng
        self._responders: dict[Interface, Responder] = {}
        self._failures: list[str] = []
        self._found: list[Announcement] = []
        self._hints = Hints()
        self._wake = Signal()
        self._lines = StrangerLog("key")
        self._loops: list[asyncio.Task[None]] = []

    async def start(self, tasks: Tasks) -> None:
        """Begin to announce and to listen, if the configuration says so. A network without multicast is no error."""
        if self._config.enabled:
            self._loops = [
                tasks.forever("discovery.look", self._step, rng=self._rng, pause=PAUSE_S),
                tasks.forever("discovery.network", self._await_network, rng=self._rng),
            ]

    async def stop(self) -> None:
        """Withdraw the announcements and close the sockets."""
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops)
        await asyncio.gather(*(self._close(interface) for interface in list(self._responders)))

    def hints(self) -> dict[IslandId, tuple[str, ...]]:
        """Return the addresses that are announced for known islands of this archipelago. They are not proved."""
        return self._hints.addresses()

    def nearby(self) -> Nearby:
        """Return the state of discovery, and the islands that are announced on the local network."""
        own = [(each.own.shown, each.announced) for each in self._responders.values() if each.own is not None]
        state: core.State = "failed" if self._failures and not self._responders else "on"
        if not self._config.enabled:
            state = "off"
        return Nearby(
            state=state,
            problem="; ".join(self._failures),
            note=core.silence(self._trust.network, self._bound()) if self._responders and not own else "",
            announced=sorted(shown for shown, announced in own if announced),
            islands=list(self._found),
        )

    def summary(self) -> str:
        """Return the state of discovery in a few words, for the status of this island."""
        now = self.nearby()
        return f"{now.state}: {now.problem}" if now.problem else now.state

    # --- the loop ---------------------------------------------------------------------------------

    async def _step(self) -> None:
        await self._look()
        await self._wake.wait(LOOK_S)

    async def _await_network(self) -> None:
        """Announce this island when it joins or founds an archipelago."""
        await self._trust.network_known.after(self._trust.network_known.version)
        self._wake.set()

    async def _look(self) -> None:
        """Follow the interfaces of this machine, and take in what was heard."""
        chosen, missing = core.choose(multicast.interfaces(), self._config.interfaces)
        failures = [f"this machine has no interface {each} with an IPv4 address" for each in missing]
        if not chosen and not missing:
            failures = ["this machine has no network interface with an IPv4 address other than loopback"]
        failures += await self._follow({interface: self._own(interface) for interface in chosen})
        self._report(failures)
        self._take_in()

    def _own(self, interface: Interface) -> OwnAnnouncement | None:
        return core.own_announcement(interface, self._trust.network, self._trust.me, self._bound())

    async def _follow(self, wanted: dict[Interface, OwnAnnouncement | None]) -> list[str]:
        """Open and close responders, so that there is one on each wanted interface; return what failed."""
        for interface, responder in list(self._responders.items()):
            if interface not in wanted or wanted[interface] != responder.own:
                await self._close(interface)
        failures = []
        for interface, own in wanted.items():
            try:
                await self._open(interface, own)
            except NoMulticast as error:
                failures.append(error.message)
                continue
            if own is not None and not self._responders[interface].announced:
                found = f"another host on {interface.name} contests the name under which this island is announced"
                failures.append(f"{found}; others are heard")
        return failures

    async def _open(self, interface: Interface, own: OwnAnnouncement | None) -> None:
        """Open a responder on this interface, or let it try another name if its last one is contested."""
        label = f"{key_prefix(self._trust.me)}-{self._rng.bytes(4).hex()}"
        if responder := self._responders.get(interface):
            if own is not None and not responder.announced:
                await responder.announce(label)
            return
        responder = Responder(interface, own, label, self._wake.set)
        await responder.open()
        self._responders[interface] = responder
        log.info("discovery.on", interface=interface.name, announced=own.shown if own else "nothing")

    async def _close(self, interface: Interface) -> None:
        await self._responders.pop(interface).close()

    def _report(self, failures: Sequence[str]) -> None:
        """Store the current failures; log each when it begins."""
        for text in failures:
            if text not in self._failures:
                log.warning("discovery.failed", reason=text, hint="tried again every few seconds, logged once")
        self._failures = list(failures)

    def _take_in(self) -> None:
        """Read what is announced now, and adopt the addresses that are announced for known islands."""
        heard = (
            core.read(each, interface.network)
            for interface, responder in self._responders.items()
            for each in responder.heard()
        )
        network, me = self._trust.network, self._trust.me
        self._found = core.gather((each for each in heard if each is not None), network, me)
        suggested = core.suggest(self._found, network, me, self._known())
        for island in self._hints.update(suggested, self._clock.monotonic()):
            self._lines.info("discovery.address", island, addresses=list(suggested[island]))
