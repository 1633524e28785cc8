"""Ports: interfaces to time, randomness and other islands.

All code that makes decisions takes these as arguments, so that tests can run a whole archipelago
in one process, in virtual time, from one seed. Only this module may call the system's clocks
and random number generators.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from island.errors import PeerMisbehaved
from island.kernel.ids import IslandId

T = TypeVar("T")


class Clock(Protocol):
    """Time. Use wall time only for display and ids: clocks differ between machines, so it must not order events."""

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC. May jump."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start. Never goes back; may stop while the machine sleeps."""

    def boottime(self) -> float:
        """Seconds since boot, including sleep. Leases use this clock."""


class SystemClock:
    """The clocks of this machine. `monotonic` is the event loop's own clock."""

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Rng(Protocol):
    """Randomness for choices, jitter, nonces and ids."""

    def random(self) -> float:
        """A float in [0, 1)."""

    def bytes(self, count: int) -> bytes:
        """`count` random bytes, from the operating system except in tests."""

    def choice(self, items: Sequence[T]) -> T:
        """A random item of `items`, which must not be empty."""

    def shuffle(self, items: MutableSequence[T]) -> None:
        """Shuffle in place."""


class SystemRng:
    """The random number generator of the operating system."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def random(self) -> float:
        return self._random.random()

    def bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)

    def choice(self, items: Sequence[T]) -> T:
        return self._random.choice(items)

    def shuffle(self, items: MutableSequence[T]) -> None:
        self._random.shuffle(items)


class SeededRng:
    """A reproducible generator, for tests and simulations only."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)

    def random(self) -> float:
        return self._random.random()

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def choice(self, items: Sequence[T]) -> T:
        return self._random.choice(items)

    def shuffle(self, items: MutableSequence[T]) -> None:
        self._random.shuffle(items)


@dataclass(frozen=True, slots=True)
class Link:
    """The live control session with one island."""

    island: IslandId
    since: float
    """Wall time at which the session was established."""
    dialled: bool
    """Whether this side dialled."""
    address: str
    """`host:port` of the other side as this island sees it, or "" if unknown."""
    rtt: float | None
    """Smoothed round-trip time of keepalives, in seconds."""
    bandwidth: float | None
    """Smoothed rate of received bulk data, in bytes per second; None before any data were received."""


class BulkStream(Protocol):
    """A bidirectional stream of blocks on a bulk session, with credit-based flow control."""

    peer: IslandId
    sent: int
    """Payload bytes sent so far."""
    received: int
    """Payload bytes received so far."""

    async def send(self, block: bytes) -> None:
        """Send one block (≤ `codec.BULK_LIMIT` bytes). Waits while there is not enough credit.

        Raises `Unreachable` when the session ends.
        """

    async def receive(self) -> bytes | None:
        """Return the next block, or None when the other side has finished sending.

        Raises `Unreachable` if the session ends before, and `PeerRefused` with the other side's error.
        """

    async def finish(self) -> None:
        """Tell the other side that no more blocks will be sent. Receiving continues."""


RequestHandler = Callable[[IslandId, bytes], Awaitable[bytes]]
PushHandler = Callable[[IslandId, bytes], Awaitable[None]]
BulkHandler = Callable[[IslandId, bytes, BulkStream], Awaitable[None]]
LinkListener = Callable[[IslandId, bool], None]


class Peers(Protocol):
    """Communication with other islands. Implemented by `net` over TLS and by the simulator.

    If a handler raises an `IslandError`, the requesting island gets `PeerRefused` with the same
    code and message. `PeerMisbehaved` (malformed input) also ends the session with that peer.
    """

    me: IslandId

    def links(self) -> list[Link]:
        """The live control sessions, sorted by island."""

    def link(self, island: IslandId) -> Link | None:
        """The live control session with one island, or None."""

    async def request(self, to: IslandId, kind: str, body: bytes, *, timeout: float = 10.0) -> bytes:
        """Send a request over the control session with `to` and return the answer (each ≤ 64 KiB).

        Raises `Unreachable` if there is no session, if it is lost, or if no answer arrives within
        `timeout` seconds; `PeerRefused` with the other side's error.
        """

    def push(self, to: IslandId, kind: str, body: bytes) -> bool:
        """Send a message that has no answer; returns False if there is no session or its queue is full."""

    def bulk(
        self, to: IslandId, kind: str, body: bytes, *, timeout: float = 10.0
    ) -> contextlib.AbstractAsyncContextManager[BulkStream]:
        """Open a stream of `kind` on the bulk session with `to`; `body` (≤ 64 KiB) is its request.

        Raises `Unreachable` if it cannot be opened within `timeout` seconds.
        """

    def blame(self, island: IslandId, error: PeerMisbehaved) -> None:
        """End the sessions with an island whose answer violated the protocol, as if a handler had raised `error`.

        Does nothing without a session. Only for answers of kinds that are not relayed: who sent the content of
        a relayed answer is not known.
        """

    def on_request(self, kind: str, handler: RequestHandler) -> None:
        """Register the only handler of a request kind. Call it before sessions start."""

    def on_push(self, kind: str, handler: PushHandler) -> None:
        """Register the handler of a push kind."""

    def on_bulk(self, kind: str, handler: BulkHandler) -> None:
        """Register the handler of a bulk kind; the stream ends when it returns."""

    def on_link(self, listener: LinkListener) -> None:
        """Call `listener(island, up)` whenever a control session is established (True) or lost (False)."""


class Signal:
    """A level-triggered wake-up for one waiting task: `set` stays in effect until `wait` clears it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the signal is set, clear it and return True; return False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Context manager for the work after `wait`: sets the signal again if the work fails, so that it is retried."""
        try:
            yield
        except BaseException:
            self.set()
            raise


class Topic:
    """Notifies any number of waiting tasks of changes, without missing one.

    A waiting task reads `version` before it reads the state, and then waits for a later version.
    """

    def __init__(self) -> None:
        self.version = 0
        self._changed = asyncio.Event()

    def touch(self) -> None:
        """Notify all waiting tasks of a change."""
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, version: int, timeout: float | None = None) -> int:
        """Wait until the version is greater than `version` or `timeout` seconds have passed; returns the version."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.version <= version:
                    await self._changed.wait()
        return self.version

    async def versions(self) -> AsyncIterator[int]:
        """Yield each version from now on; versions that follow each other quickly are coalesced."""
        version = self.version
        while True:
            version = await self.after(version)
            yield version
