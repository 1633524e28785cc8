"""Limits the frames of one session: how many are handled before other work runs, and how many per second."""

from __future__ import annotations

import asyncio

from island.kernel.ports import Clock
from island.net.limits import PeerLimits

FRAMES_PER_TURN = 32
"""Frames after which other callbacks of the event loop run."""
TURN_S = 0.005
"""Seconds after which they run, if the frames take longer."""


class FramePace:
    """Delays the reader of a session. Frames that are not read wait in the connection; none is dropped."""

    def __init__(self, clock: Clock, limits: PeerLimits) -> None:
        self._clock, self._rate, self._burst = clock, limits.frames_per_s, limits.frame_burst
        self._allowed = float(limits.frame_burst)
        """Frames that may be read without a delay; negative if too many were read."""
        self._refilled = self._began = clock.monotonic()
        self._frames = 0

    async def after_frame(self) -> None:
        """Count a frame, and wait if its turn is over. Reading from a full buffer alone does not yield."""
        now = self._clock.monotonic()
        self._frames += 1
        self._allowed -= 1
        if self._frames < FRAMES_PER_TURN and now - self._began < TURN_S:
            return
        self._allowed = min(float(self._burst), self._allowed + (now - self._refilled) * self._rate)
        self._refilled = now
        await asyncio.sleep(max(0.0, -self._allowed / self._rate))
        self._frames, self._began = 0, self._clock.monotonic()
