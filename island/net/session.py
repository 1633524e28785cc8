"""A session with another island after the handshake: frames, keepalive, end. Base of the two session classes.

When a session ends, its tasks are cancelled, and everything that waits for an answer gets an error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar

import structlog

from island.errors import IslandError, PeerMisbehaved, Unreachable
from island.kernel import codec
from island.kernel.ids import IslandId
from island.kernel.ports import Clock
from island.kernel.telemetry import counter
from island.net import frames
from island.net.frame_pace import FramePace
from island.net.frames import Frame, FrameType, Ping
from island.net.handshake import ProvenPeer, refused
from island.net.limits import PeerLimits

log = structlog.get_logger("island")

RECEIVED = counter("peer_received_bytes", "Payload bytes received from other islands, by session class", ("session",))
SENT = counter("peer_sent_bytes", "Payload bytes sent to other islands, by session class", ("session",))

_CLOSE_S = 1.0
_FIRST_PINGS = 4


class _Over(Exception):
    """Ends the task group of a session that is over."""


@dataclass(frozen=True, slots=True)
class Established:
    """What a session of either class begins with: a connection on which both islands have proved their keys."""

    peer: ProvenPeer
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    dialled: bool
    """Whether this island has dialled it."""
    address: str
    clock: Clock
    limits: PeerLimits
    on_end: Callable[[PeerSession, IslandError], None]
    """Called once with the reason when the session has ended."""


class PeerSession:
    """A session; call `run` in a task. `end` may be called from any task or callback of the event loop."""

    name_of_class: ClassVar[str]
    frame_limit: ClassVar[int]
    backlog_limit: ClassVar[int]
    """Maximum size of the waiting output; a peer that sends data without reading beyond it is disconnected."""

    def __init__(self, given: Established) -> None:
        peer, clock, limits = given.peer, given.clock, given.limits
        self.peer, self.dialled, self.address = peer, given.dialled, given.address
        self.island: IslandId = peer.island
        self.since = clock.wall()
        self.rtt: float | None = None
        self.over: IslandError | None = None
        """The reason for which the session ended; None while it is open."""
        self.ended_by_peer = ""
        """The code of the reason for which the other side ended the session; "" if it did not."""
        self.retired = False
        self._reader, self._writer = given.reader, given.writer
        self._clock, self._limits, self._on_end = clock, limits, given.on_end
        self._pace = FramePace(clock, limits)
        self._ending = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._heard = self._progress_at = clock.monotonic()
        self._written = self._flushed = 0
        self._pings: dict[int, float] = {}
        self._ping_count = self._samples = 0
        self._received_bytes = RECEIVED.labels(self.name_of_class)
        self._sent_bytes = SENT.labels(self.name_of_class)

    @property
    def idle_since(self) -> float | None:
        """Since when the session is not used (monotonic seconds) and can be closed; None if it cannot."""
        return None

    async def run(self) -> None:
        """Serve the session until it ends, then wait up to one second for the connection to close."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._start()
                await self._ending.wait()
                raise _Over
        except* _Over:
            pass
        finally:
            self.end(Unreachable("this island stops"))
            await self._wait_closed()

    def end(self, error: IslandError) -> None:
        """End the session because of `error`, which is sent to the other side. Later calls have no effect."""
        if self.over is not None:
            return
        self.over = error
        if not isinstance(error, _Lost):
            self._write(frames.pack_frame(FrameType.GOODBYE, 0, codec.encode(frames.refusal(error))))
        self._writer.close()
        self._ending.set()
        self._fail_all(error)
        self._on_end(self, error)

    def retire(self) -> None:
        """Mark the session as replaced by another one: it ends after `retire_s`, so that answers can still arrive."""
        if not self.retired and self.over is None:
            self.retired = True
            if self._group is not None:
                self._spawn(self._end_retired())

    # --- for the subclasses ----------------------------------------------------------------

    def _start(self) -> None:
        """Start the session's tasks."""
        self._spawn(self._read())
        self._spawn(self._keep_alive())
        if self.retired:
            self._spawn(self._end_retired())

    def _handle(self, frame: Frame) -> None:
        """Handle a frame of this class; raises `PeerMisbehaved`."""
        raise NotImplementedError

    def _fail_all(self, error: IslandError) -> None:
        """Raise an error in everything that waits for this session, because it is over."""
        raise NotImplementedError

    def _is_idle(self) -> bool:
        """Return whether the session has been idle for so long that it should be closed."""
        return False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._group is None or self.over is not None:
            work.close()
            return
        task = self._group.create_task(self._guarded(work))
        # If the task is cancelled before its first step, the coroutine is never awaited, which is a warning.
        task.add_done_callback(lambda _: work.close())

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except IslandError as error:
            self.end(error)
        except Exception:  # an unexpected error ends this session only, not the daemon
            log.exception("peer.unexpected_error", peer=self.peer.name, key=self.island)
            self.end(IslandError("an internal error", code="internal_error"))

    def _write(self, parts: list[bytes]) -> None:
        if not self._writer.is_closing():
            size = sum(map(len, parts))
            self._written += size
            self._sent_bytes.inc(size)
            self._writer.writelines(parts)

    async def _flush(self) -> None:
        try:
            await self._writer.drain()
        except OSError as error:
            raise self._lost(error) from error

    def _waiting(self) -> int:
        """Bytes that wait to be sent."""
        # The transport of a lost connection no longer has a buffer size.
        return 0 if self._writer.is_closing() else self._writer.transport.get_write_buffer_size()

    def _lost(self, cause: Exception | None = None) -> Unreachable:
        return _Lost(f"the session with {self.peer.name} was lost" + (f": {cause}" if cause and str(cause) else ""))

    # --- loops -------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while self.over is None:
                frame = await frames.read_frame(self._reader, self.frame_limit)
                self._heard = self._clock.monotonic()
                self._received_bytes.inc(len(frame.payload))
                if not self._handle_common(frame):
                    self._handle(frame)
                if self._waiting() > self.backlog_limit:
                    raise Unreachable(f"{self.peer.name} sends data but does not read", code="busy")
                await self._pace.after_frame()
        except (asyncio.IncompleteReadError, OSError) as error:
            cause = error if isinstance(error, OSError) else None
            raise self._lost(cause) from error

    def _handle_common(self, frame: Frame) -> bool:
        if frame.type is FrameType.PING:
            ping = codec.decode(frame.payload, Ping)
            if not self.dialled and ping.rtt_us:
                self.rtt = ping.rtt_us / 1e6
            self._write(frames.pack_frame(FrameType.PONG, 0, frame.payload))
        elif frame.type is FrameType.PONG:
            self._on_pong(codec.decode(frame.payload, Ping).nonce)
        elif frame.type is FrameType.GOODBYE:
            reason = refused(frame.payload)
            self.ended_by_peer = reason.code
            raise _Lost(f"{self.peer.name} ended the session: {reason.message}", code=reason.code)
        else:
            return False
        return True

    def _ping(self) -> None:
        self._ping_count += 1
        self._pings[self._ping_count] = self._clock.monotonic()
        while len(self._pings) > 8:
            del self._pings[next(iter(self._pings))]
        rtt_us = min(int((self.rtt or 0) * 1e6), 2**32)
        self._write(frames.pack_frame(FrameType.PING, 0, codec.encode(Ping(nonce=self._ping_count, rtt_us=rtt_us))))

    def _on_pong(self, nonce: int) -> None:
        sent = self._pings.pop(nonce, None)
        if sent is None:
            raise PeerMisbehaved("an answer to a keepalive that was not sent")
        self._samples += 1
        sample, known = self._clock.monotonic() - sent, self.rtt
        if known is None or self._samples <= _FIRST_PINGS:
            # Both sides are busy when a session starts, so the minimum of the first samples is the best estimate.
            self.rtt = sample if known is None else min(known, sample)
        else:
            self.rtt = 0.875 * known + 0.125 * sample
        if self._samples < _FIRST_PINGS:
            self._ping()  # this also sends the estimate to the other side

    async def _keep_alive(self) -> None:
        pinged = None
        while True:
            now = self._clock.monotonic()
            if self.dialled and (pinged is None or now - pinged >= self._limits.ping_s):
                pinged = now
                self._ping()
            self._check_alive(now)
            await asyncio.sleep(min(self._limits.ping_s, self._limits.dead_s / 5))

    def _check_alive(self, now: float) -> None:
        if now - self._heard > self._limits.dead_s:
            raise _Lost(f"{self.peer.name} has been silent for {self._limits.dead_s:g} s")
        waiting = self._waiting()
        if not waiting or self._written - waiting > self._flushed:
            self._progress_at, self._flushed = now, self._written - waiting
        elif now - self._progress_at > self._limits.dead_s:
            raise _Lost(f"{self.peer.name} has not read anything for {self._limits.dead_s:g} s")
        if self._is_idle():
            raise Unreachable("idle", code="idle")

    async def _end_retired(self) -> None:
        await asyncio.sleep(self._limits.retire_s)
        raise Unreachable("another session has replaced this one", code="replaced")

    async def _wait_closed(self) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._writer.wait_closed()
        self._writer.transport.abort()


class _Lost(Unreachable):
    """The connection is lost or was ended by the other side, so no GOODBYE is sent."""
