"""Ports: how the program reaches time, randomness and other islands.

Everything that decides takes these as arguments, so that a whole archipelago can run in
one process, in virtual time, from one seed. This file alone may call the system's clocks
and generators.
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

from island.kernel.ids import IslandId

T = TypeVar("T")


class Clock(Protocol):
    """Time. Wall time is for people and ids; it orders nothing and expires nothing across machines."""

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC; may jump."""

    def monotonic(self) -> float:
        """Seconds since some start; never goes back; stands still while the machine sleeps."""

    def boottime(self) -> float:
        """Seconds since boot, sleep included: what leases run on."""


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
        """`count` random bytes; from the operating system except under test."""

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`, which must not be empty."""

    def shuffle(self, items: MutableSequence[T]) -> None:
        """Shuffle in place."""


class SystemRng:
    """The operating system's generator."""

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
    """What is known of the live control session with one island."""

    island: IslandId
    since: float
    """Wall time at which the session was made."""
    dialled: bool
    """Whether this side dialled."""
    address: str
    """`host:port` of the other side as seen here, or "" if unknown."""
    rtt: float | None
    """Smoothed round trip of keepalives, seconds."""
    bandwidth: float | None
    """Smoothed rate of received bulk data, bytes a second; None before anything was moved."""


class BulkStream(Protocol):
    """One stream of blocks over a bulk session; both directions, credit-limited."""

    peer: IslandId
    sent: int
    """Payload bytes sent so far."""
    received: int
    """Payload bytes received so far."""

    async def send(self, block: bytes) -> None:
        """Send one block (≤ `codec.BULK_LIMIT` bytes); waits while the other side has given no credit.

        Raises `Unreachable` when the session ends.
        """

    async def receive(self) -> bytes | None:
        """The next block, or None at the orderly end of the other side's sending.

        Raises `Unreachable` when the session ends first, `PeerRefused` with the other side's error.
        """

    async def finish(self) -> None:
        """Tell the other side that nothing more will be sent; receiving goes on."""


RequestHandler = Callable[[IslandId, bytes], Awaitable[bytes]]
PushHandler = Callable[[IslandId, bytes], Awaitable[None]]
BulkHandler = Callable[[IslandId, bytes, BulkStream], Awaitable[None]]
LinkListener = Callable[[IslandId, bool], None]


class Peers(Protocol):
    """The other islands, as every concern sees them. Implemented by `net` over TLS and by the simulator.

    A handler that raises an `IslandError` answers the caller with `PeerRefused` of the same
    code and message; `PeerMisbehaved` (bad bytes) also ends the session of that peer.
    """

    me: IslandId

    def links(self) -> list[Link]:
        """The live control sessions, sorted by island."""

    def link(self, island: IslandId) -> Link | None:
        """The live control session with one island, if there is one."""

    async def request(self, to: IslandId, kind: str, body: bytes, *, timeout: float = 10.0) -> bytes:
        """One request and its answer (each ≤ 64 KiB) over the control session with `to`.

        Raises `Unreachable` (no session, lost, or no answer in `timeout` seconds) or `PeerRefused`.
        """

    def push(self, to: IslandId, kind: str, body: bytes) -> bool:
        """Send one message without an answer; False if there is no session or its queue is full."""

    def bulk(
        self, to: IslandId, kind: str, body: bytes, *, timeout: float = 10.0
    ) -> contextlib.AbstractAsyncContextManager[BulkStream]:
        """Open a stream of `kind` on the bulk session with `to`; `body` (≤ 64 KiB) is its request.

        Raises `Unreachable` when none can be made within `timeout` seconds.
        """

    def on_request(self, kind: str, handler: RequestHandler) -> None:
        """Register the handler of a request kind; one each, before the sessions start."""

    def on_push(self, kind: str, handler: PushHandler) -> None:
        """Register the handler of a push kind."""

    def on_bulk(self, kind: str, handler: BulkHandler) -> None:
        """Register the handler of a bulk kind; the stream ends when it returns."""

    def on_link(self, listener: LinkListener) -> None:
        """Be told synchronously of each control session made (True) or lost (False)."""


class Signal:
    """A level-triggered wake-up: `set` from anywhere in the loop, `wait` consumes."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until set (True) or until `timeout` seconds have passed (False), then clear."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Around the work for which `wait` returned: if it fails the signal is set again, for it is not done."""
        try:
            yield
        except BaseException:
            self.set()
            raise


class Topic:
    """Tells any number of waiting tasks that something changed, without missing a change.

    A waiter takes `version` before it looks, and then waits for a later one.
    """

    def __init__(self) -> None:
        self.version = 0
        self._changed = asyncio.Event()

    def touch(self) -> None:
        """Something changed."""
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, version: int, timeout: float | None = None) -> int:
        """Wait until the version is above `version` or the timeout has passed; returns the version."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.version <= version:
                    await self._changed.wait()
        return self.version

    async def versions(self) -> AsyncIterator[int]:
        """Each version from now on, coalesced."""
        seen = self.version
        while True:
            seen = await self.after(seen)
            yield seen
