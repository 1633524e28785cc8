"""The time of an event loop, which a test moves on: a long limit ends at once, and no pause of the machine ends it."""

from __future__ import annotations

import asyncio
from typing import Any


class LoopTime:
    """The time of the running event loop, which has only this test."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._real, self._ahead = loop.time, 0.0
        loop.time = self._time  # type: ignore[method-assign]  # timers of the loop are due by this time

    def _time(self) -> float:
        return self._real() + self._ahead

    def advance(self, seconds: float) -> None:
        """Move the time on."""
        self._ahead += seconds

    async def pass_until_done(self, *awaited: asyncio.Future[Any]) -> None:
        """Let a second pass in each turn of the loop until all of these are done."""
        while not all(each.done() for each in awaited):
            self.advance(1)
            await asyncio.sleep(0.001)
