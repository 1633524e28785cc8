"""A flood of frames: other work runs in between, and what is over the rate waits in the connection."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from island.errors import IslandError
from island.kernel.ids import IslandId
from island.kernel.ports import SystemClock
from island.net import frames
from island.net.frame_pace import FRAMES_PER_TURN, FramePace
from island.net.frames import Frame, FrameType
from island.net.handshake import ProvenPeer
from island.net.limits import PeerLimits
from island.net.session import Established, PeerSession
from tests.sim.virtual import VirtualClock, VirtualLoop

FLOOD = 5000


class _Counted(PeerSession):
    """Counts the frames of each iteration of the event loop."""

    name_of_class, frame_limit, backlog_limit = "control", frames.CONTROL_FRAME, 2**20

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.turns, self.seen, self.done = [0], 0, asyncio.Event()

    def tick(self) -> None:
        """Begin the count of the next iteration."""
        if not self.done.is_set():
            self.turns.append(0)
            asyncio.get_running_loop().call_soon(self.tick)

    def _handle(self, frame: Frame) -> None:
        self.turns[-1] += 1
        self.seen += 1
        if self.seen == FLOOD:
            self.done.set()

    def _fail_all(self, error: IslandError) -> None:
        pass


async def test_other_callbacks_run_between_the_frames_of_a_flood() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours, limit=2**20)
    peer = ProvenPeer(IslandId("ab" * 32), "mallory", "control", (), b"", "", b"")
    limits = PeerLimits(frames_per_s=1e9, frame_burst=10**9)
    clock, address = SystemClock(), ""
    session = _Counted(Established(peer, reader, writer, False, address, clock, limits, on_end=lambda *_: None))
    _, flood = await asyncio.open_connection(sock=theirs)
    flood.write(b"".join(frames.pack_frame(FrameType.PUSH, 0)) * FLOOD)
    running = asyncio.ensure_future(session.run())
    session.tick()
    async with asyncio.timeout(30):
        await session.done.wait()
    assert max(session.turns) <= FRAMES_PER_TURN and session.seen == FLOOD
    flood.close()
    await running


def test_frames_over_the_rate_are_delayed() -> None:
    async def main() -> tuple[float, float]:
        clock = VirtualClock(asyncio.get_running_loop())
        pace = FramePace(clock, PeerLimits(frames_per_s=100.0, frame_burst=500))
        for _ in range(500):
            await pace.after_frame()
        burst = clock.monotonic()
        for _ in range(1000):
            await pace.after_frame()
        return burst, clock.monotonic()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        burst, end = runner.run(main())
    turn = FRAMES_PER_TURN / 100.0
    assert burst == 0.0 and 10.0 - turn <= end <= 10.0 + turn  # virtual seconds


def test_the_burst_comes_back_in_a_pause() -> None:
    async def main() -> float:
        clock = VirtualClock(asyncio.get_running_loop())
        pace = FramePace(clock, PeerLimits(frames_per_s=100.0, frame_burst=500))
        for _ in range(500):
            await pace.after_frame()
        await asyncio.sleep(3600)
        begin = clock.monotonic()
        for _ in range(500):
            await pace.after_frame()
        return clock.monotonic() - begin

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(main()) == 0.0
