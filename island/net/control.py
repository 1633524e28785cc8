"""Sessions of class control: requests and answers of at most 64 KiB, and pushes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from island.errors import BadInput, IslandError, PeerMisbehaved, PeerRefused, Unreachable
from island.kernel import codec
from island.kernel.codec import CONTROL_LIMIT
from island.kernel.stranger_log import StrangerLog
from island.kernel.telemetry import counter
from island.net import frames
from island.net.frames import Frame, FrameType, RequestHead
from island.net.handlers import Handlers
from island.net.handshake import refused
from island.net.session import Established, PeerSession
from island.net.turns import SessionTurns

DROPPED = counter("peer_pushes_dropped", "Pushes that were dropped because the queue of their handlers was full")

Answerer = Callable[["ControlSession", RequestHead, bytes], Awaitable[bytes]]
"""Answers a request, with a handler of this island or by relaying it to another island."""


class ControlSession(PeerSession):
    """A session of class control.

    Request ids increase on each side, so that repeated ids are detected and late answers are ignored.
    """

    name_of_class = "control"
    frame_limit = frames.CONTROL_FRAME
    backlog_limit = 16 * 1024 * 1024

    def __init__(self, given: Established, *, handlers: Handlers, answerer: Answerer, lines: StrangerLog) -> None:
        super().__init__(given)
        self._handlers, self._answerer, self._lines = handlers, answerer, lines
        self._last_sent = self._last_seen = 0
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._turns = SessionTurns(self._limits)
        self._serving = 0
        self._pushes: deque[tuple[str, bytes]] = deque()
        self._push_bytes = 0
        self._pushed = asyncio.Event()

    async def request(self, head: RequestHead, body: bytes, timeout: float) -> bytes:
        """Send a request and return its answer; `timeout` is in seconds.

        Raises `BadInput` if `body` is too large, `Unreachable`, or `PeerRefused` with the error of the other island.
        """
        check_body(body)
        try:
            async with asyncio.timeout(timeout), self._turns.of(head):
                return await self._ask(head, body)
        except TimeoutError as error:
            raise Unreachable(
                f"{self.peer.name} did not answer '{head.kind}' within {timeout:g} s",
                hint="It may be overloaded; try again.",
            ) from error

    async def _ask(self, head: RequestHead, body: bytes) -> bytes:
        if self.over is not None:
            raise self._lost()
        self._last_sent += 1
        number = self._last_sent
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            self._write(frames.pack_headed(FrameType.REQUEST, number, head, body))
            await self._flush()
            return await answer
        finally:
            del self._pending[number]
            answer.cancel()

    def push(self, kind: str, body: bytes) -> bool:
        """Send a message without an answer; False if the session is over or its queue is full."""
        check_body(body)
        if self.over is not None or self._waiting() > self._limits.write_queue:
            return False
        self._write(frames.pack_headed(FrameType.PUSH, 0, RequestHead(kind=kind), body))
        return True

    def _start(self) -> None:
        super()._start()
        self._spawn(self._take_pushes())

    def _handle(self, frame: Frame) -> None:
        if frame.type is FrameType.REQUEST:
            self._on_request(frame)
        elif frame.type is FrameType.PUSH:
            self._on_push(frame)
        elif frame.type in {FrameType.ANSWER, FrameType.ERROR}:
            self._on_answer(frame)
        else:
            raise PeerMisbehaved(f"a frame {frame.type.name} in a control session", code="out_of_order")

    def _on_request(self, frame: Frame) -> None:
        head, body = frames.split_headed(frame.payload)
        if frame.id <= self._last_seen:
            raise PeerMisbehaved(f"request {frame.id} after {self._last_seen}", code="id_reused")
        self._last_seen = frame.id
        if self._serving >= 2 * self._limits.calls:
            self._error(frame.id, Unreachable("too many concurrent requests", code="busy"))
            return
        self._serving += 1
        self._spawn(self._serve(frame.id, head, body))

    async def _serve(self, number: int, head: RequestHead, body: bytes) -> None:
        try:
            answer = await self._answerer(self, head, body)
        except IslandError as error:
            self._error(number, error)
            if isinstance(error, PeerMisbehaved):
                raise
        else:
            self._write(frames.pack_frame(FrameType.ANSWER, number, answer))
            await self._flush()  # a request counts as being served until its answer is written
        finally:
            self._serving -= 1

    def _error(self, number: int, error: IslandError) -> None:
        self._write(frames.pack_frame(FrameType.ERROR, number, codec.encode(frames.refusal(error))))

    def _on_answer(self, frame: Frame) -> None:
        if frame.id > self._last_sent:
            raise PeerMisbehaved(f"an answer to request {frame.id}, which was not made", code="id_unknown")
        if len(frame.payload) > CONTROL_LIMIT:
            raise PeerMisbehaved(f"an answer of {len(frame.payload)} bytes", code="malformed")
        problem = refused(frame.payload) if frame.type is FrameType.ERROR else None
        answer = self._pending.get(frame.id)
        if answer is None or answer.done():  # the request timed out before
            return
        if problem is not None:
            answer.set_exception(problem)
        else:
            answer.set_result(frame.payload)

    def _on_push(self, frame: Frame) -> None:
        head, body = frames.split_headed(frame.payload)
        size = self._push_bytes + len(body)
        if len(self._pushes) >= self._limits.push_queue or size > self._limits.push_bytes:
            DROPPED.inc()
            return
        self._push_bytes = size
        self._pushes.append((head.kind, body))
        self._pushed.set()

    async def _take_pushes(self) -> None:
        while True:
            await self._pushed.wait()
            self._pushed.clear()
            while self._pushes:
                kind, body = self._pushes.popleft()
                self._push_bytes -= len(body)
                try:
                    await self._handlers.push(self.island, kind, body)
                except PeerMisbehaved:
                    raise
                except IslandError as error:
                    self._lines.warning(
                        "peer.push_failed", self.island, peer=self.peer.name, kind=kind, error=error.message
                    )
                await asyncio.sleep(0)  # many handlers do not wait for anything

    def _fail_all(self, error: IslandError) -> None:
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(ended(self, error))


def check_body(body: bytes) -> None:
    """Raise `BadInput` if a body exceeds the limit of a request."""
    if len(body) > CONTROL_LIMIT:
        raise BadInput(f"a request of {len(body)} bytes is over the limit of {CONTROL_LIMIT} bytes")


def ended(session: PeerSession, error: IslandError) -> Unreachable:
    """Return the error for requests and streams of a session that has ended because of `error`."""
    if isinstance(error, Unreachable) and not isinstance(error, PeerRefused):
        return Unreachable(error.message, hint=error.hint, code=error.code)
    return Unreachable(f"the session with {session.peer.name} has ended: {error.message}")
