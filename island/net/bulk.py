"""Sessions of class bulk: streams of blocks in both directions, each stream with its own flow control."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from island.errors import BadInput, IslandError, PeerMisbehaved, PeerRefused, Unreachable
from island.kernel import codec
from island.kernel.codec import BULK_LIMIT
from island.kernel.ids import IslandId
from island.net import frames
from island.net.control import check_body, ended
from island.net.frames import Frame, FrameType, RequestHead
from island.net.handshake import refused
from island.net.limits import BLOCK_COST, STREAM_WINDOW
from island.net.session import Established, PeerSession
from island.net.turns import SessionTurns, take

StreamHandler = Callable[["BulkSession", RequestHead, bytes, "SessionStream"], Awaitable[None]]
"""Serves a stream that the other side opened, with a handler of this island or by relaying it to another island."""


def cost(block: bytes) -> int:
    """Return the credit that a block uses, in bytes; at least `BLOCK_COST`."""
    return max(len(block), BLOCK_COST)


class SessionStream:
    """One side of a stream. See `kernel.ports.BulkStream`."""

    def __init__(self, session: BulkSession, number: int) -> None:
        self.peer: IslandId = session.island
        self.sent = 0
        self.received = 0
        self._session, self._number = session, number
        self._credit = STREAM_WINDOW
        """Bytes that this side may still send."""
        self._granted = STREAM_WINDOW
        """Bytes that the other side may still send."""
        self._owed = 0
        """Bytes that were received and for which no new credit was sent yet."""
        self._inbox: deque[bytes] = deque()
        self._ended = self._finished = False
        """Whether the other side, and this side, have sent their last block."""
        self._gone: IslandError | None = None
        self._arrived, self._credited = asyncio.Event(), asyncio.Event()

    async def send(self, block: bytes) -> None:
        """Send one block of at most `BULK_LIMIT` bytes; waits for credit.

        Raises `BadInput` for a larger block and after `finish`, and `Unreachable` or `PeerRefused` when the stream
        or session ends.
        """
        if len(block) > BULK_LIMIT:
            raise BadInput(f"a block of {len(block)} bytes is over the limit of {BULK_LIMIT} bytes")
        if self._finished:
            raise BadInput("a block cannot be sent after finish")
        price = cost(block)
        while self._credit < price and self._gone is None:
            self._credited.clear()
            await self._credited.wait()
        if self._gone is not None:
            raise self._gone
        self._credit -= price
        self.sent += len(block)
        await self._session.write_block(self._number, block)

    async def receive(self) -> bytes | None:
        """Return the next block, or None when the other side has finished; raises `Unreachable` or `PeerRefused`."""
        while not self._inbox:
            if self._ended:
                return None
            if self._gone is not None:
                raise self._gone
            self._grant()
            self._arrived.clear()
            await self._arrived.wait()
        block = self._inbox.popleft()
        self._owed += cost(block)
        if self._owed >= STREAM_WINDOW // 4:
            self._grant()
        return block

    @property
    def is_open(self) -> bool:
        """Whether neither side has closed the stream."""
        return self._gone is None

    async def finish(self) -> None:
        """Tell the other side that this side sends no more blocks; receiving remains possible."""
        if not self._finished and self._gone is None:
            self._finished = True
            await self._session.write_control(FrameType.END, self._number)

    def close(self, error: IslandError | None = None) -> None:
        """Close the stream in both directions; `error`, if given, is sent to the other side."""
        if self._gone is None:
            self._session.forget(self._number, error)
        self._fail(Unreachable("the stream is closed", code="closed"))
        self._inbox.clear()

    # --- from the session ---------------------------------------------------------------------

    def on_data(self, block: bytes) -> None:
        """Handle a received block; raises `PeerMisbehaved` if it exceeds the credit."""
        price = cost(block)
        if self._ended:
            raise PeerMisbehaved("a block after the end of its stream", code="out_of_order")
        if price > self._granted:
            raise PeerMisbehaved("a block that exceeds the credit of its stream", code="credit")
        self._granted -= price
        self.received += len(block)
        self._inbox.append(block)
        self._arrived.set()

    def on_credit(self, count: int) -> None:
        """Handle new credit; raises `PeerMisbehaved` if the total exceeds the window."""
        if self._credit + count > STREAM_WINDOW:
            raise PeerMisbehaved("more credit than the window of a stream", code="credit")
        self._credit += count
        self._credited.set()

    def on_end(self) -> None:
        """Handle the end of the other side's blocks."""
        self._ended = True
        self._arrived.set()

    def on_close(self) -> None:
        """Handle an orderly close by the other side; blocks that it sent before can still be read."""
        self._ended = True
        self._fail(Unreachable("the other side has closed the stream", code="closed"))

    def on_error(self, error: IslandError) -> None:
        """Handle an error that ends the stream."""
        self._fail(error)

    def _fail(self, error: IslandError) -> None:
        if self._gone is None:
            self._gone = error
        self._arrived.set()
        self._credited.set()

    def _grant(self) -> None:
        if self._owed and not self._ended and self._gone is None:
            self._granted += self._owed
            self._session.write_credit(self._number, self._owed)
            self._owed = 0


class BandwidthMeter:
    """Measures the rate of received bytes (bytes/s, smoothed), without the pauses between transfers."""

    _GAP_S, _SPAN_S, _LEAST = 0.25, 0.05, 256 * 1024

    def __init__(self) -> None:
        self.rate: float | None = None
        self._start: float | None = None
        self._last = 0.0
        self._bytes = 0

    def add(self, size: int, now: float) -> None:
        """Count `size` bytes that were received at `now` (monotonic seconds)."""
        if self._start is None or now - self._last > self._GAP_S:
            # The first block starts the measurement and is not counted: how long its transfer took is unknown.
            self._start, self._bytes = now, 0
        else:
            self._bytes += size
        self._last = now
        span = now - self._start
        if self._bytes >= self._LEAST and span >= self._SPAN_S:
            sample = self._bytes / span
            self.rate = sample if self.rate is None else 0.7 * self.rate + 0.3 * sample
            self._start, self._bytes = now, 0


class BulkSession(PeerSession):
    """A session of class bulk. Streams of the dialler have odd ids, those of the listener even ids; ids increase."""

    name_of_class = "bulk"
    frame_limit = frames.BULK_FRAME
    backlog_limit = 64 * 1024 * 1024

    def __init__(self, given: Established, *, server: StreamHandler, meter: BandwidthMeter) -> None:
        super().__init__(given)
        self._server, self._meter = server, meter
        self._streams: dict[int, SessionStream] = {}
        self._last_opened = -1 if self.dialled else 0
        self._last_seen = 0 if self.dialled else -1
        self._turns = SessionTurns(self._limits)
        self._taken: dict[SessionStream, asyncio.Semaphore] = {}
        self._serving = 0
        self._busy_at = self._clock.monotonic()

    async def open(self, head: RequestHead, body: bytes, timeout: float) -> SessionStream:
        """Open a stream, for which the caller must call `release` at the end; waits `timeout` seconds for a turn.

        Raises `BadInput` if `body` is too large, and `Unreachable` if the session has ended or no turn is free.
        """
        check_body(body)
        turns = self._turns.of(head)
        await take(turns, timeout, f"streams with {self.peer.name}")
        if self.over is not None:
            turns.release()
            raise ended(self, self.over)
        self._last_opened += 2
        stream = self._streams[self._last_opened] = SessionStream(self, self._last_opened)
        self._taken[stream] = turns
        self._write(frames.pack_headed(FrameType.OPEN, self._last_opened, head, body))
        return stream

    def release(self, stream: SessionStream) -> None:
        """Close a stream that this side opened."""
        stream.close()
        self._taken.pop(stream).release()

    async def write_block(self, number: int, block: bytes) -> None:
        """Send a block; the caller has checked the credit."""
        self._write(frames.pack_frame(FrameType.DATA, number, block))
        await self._flush()

    async def write_control(self, kind: FrameType, number: int) -> None:
        """Send a frame without payload about a stream."""
        self._write(frames.pack_frame(kind, number))
        await self._flush()

    def write_credit(self, number: int, count: int) -> None:
        """Allow the other side to send `count` more bytes."""
        self._write(frames.pack_frame(FrameType.CREDIT, number, count.to_bytes(4, "big")))

    def forget(self, number: int, error: IslandError | None) -> None:
        """Remove a stream and tell the other side, unless that has closed it already."""
        if self._streams.pop(number, None) is None:
            return
        self._busy_at = self._clock.monotonic()
        if error is None:
            self._write(frames.pack_frame(FrameType.CLOSE, number))
        else:
            self._write(frames.pack_frame(FrameType.ERROR, number, codec.encode(frames.refusal(error))))

    def _handle(self, frame: Frame) -> None:
        if frame.type is FrameType.OPEN:
            self._on_open(frame)
            return
        if frame.type not in {FrameType.DATA, FrameType.CREDIT, FrameType.END, FrameType.CLOSE, FrameType.ERROR}:
            raise PeerMisbehaved(f"a frame {frame.type.name} in a bulk session", code="out_of_order")
        mine = frame.id % 2 == self._last_opened % 2
        if frame.id > (self._last_opened if mine else self._last_seen) or frame.id == 0:
            raise PeerMisbehaved(f"a frame of stream {frame.id}, which was not opened", code="id_unknown")
        if (stream := self._streams.get(frame.id)) is not None:  # None if this side has closed it
            self._on_stream(stream, frame)

    def _on_stream(self, stream: SessionStream, frame: Frame) -> None:
        if frame.type is FrameType.DATA:
            stream.on_data(frame.payload)
            self._meter.add(len(frame.payload), self._clock.monotonic())
        elif frame.type is FrameType.CREDIT:
            if len(frame.payload) != 4:
                raise PeerMisbehaved("a malformed CREDIT frame", code="malformed")
            stream.on_credit(int.from_bytes(frame.payload, "big"))
        elif frame.type is FrameType.END:
            stream.on_end()
        else:
            problem: PeerRefused | None = refused(frame.payload) if frame.type is FrameType.ERROR else None
            del self._streams[frame.id]
            self._busy_at = self._clock.monotonic()
            if problem is not None:
                stream.on_error(problem)
            else:
                stream.on_close()

    def _on_open(self, frame: Frame) -> None:
        head, body = frames.split_headed(frame.payload)
        if frame.id % 2 == self._last_opened % 2 or frame.id <= self._last_seen:
            raise PeerMisbehaved(f"stream {frame.id} after {self._last_seen}", code="id_reused")
        self._last_seen = frame.id
        stream = self._streams[frame.id] = SessionStream(self, frame.id)
        if self._serving >= 2 * self._limits.calls:
            stream.close(Unreachable("too many concurrent streams", code="busy"))
            return
        self._serving += 1
        self._spawn(self._serve(head, body, stream))

    async def _serve(self, head: RequestHead, body: bytes, stream: SessionStream) -> None:
        try:
            await self._server(self, head, body, stream)
        except IslandError as error:
            stream.close(error)
            if isinstance(error, PeerMisbehaved):
                raise
        finally:
            self._serving -= 1
            stream.close()

    def _fail_all(self, error: IslandError) -> None:
        for stream in self._streams.values():
            stream.on_error(ended(self, error))
        self._streams.clear()

    @property
    def idle_since(self) -> float | None:
        """Since when the session has no streams (monotonic seconds); None if it has some."""
        return None if self._streams else self._busy_at

    def _is_idle(self) -> bool:
        # The dialler knows first whether it needs the session again. One that keeps it without streams is cut off.
        patience = self._limits.idle_s * (1 if self.dialled else 2)
        return not self._streams and self._clock.monotonic() - self._busy_at > patience
