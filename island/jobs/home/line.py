"""The line of jobs that wait at their home until a place is free.

Jobs with the same requirements are equals: only the oldest of them asks for offers, and the next one asks when it
has left the line. Jobs with other requirements do not wait for them.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort

from island.kernel.ports import Rng

PERIOD_S = 2.0
"""Average seconds after which the first job of each kind asks again, without a sign that a place is free."""


class PlaceLine:
    """The waiting jobs, by their requirements, in the order of their public ids, which is that of acceptance."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._jobs: dict[str, list[str]] = {}
        self._requirements: dict[str, str] = {}
        self._called: dict[str, asyncio.Event] = {}

    def __len__(self) -> int:
        return len(self._requirements)

    def ahead(self, job: str, requirements: str) -> int:
        """The number of jobs that a job with these requirements has to wait for."""
        return bisect_left(self._jobs.get(requirements, []), job)

    async def turn(self, job: str, requirements: str) -> None:
        """Join the line, and wait until the job is the first of its kind and a place may be free.

        The job keeps its position until `leave`. One that is the first of its kind again waits for a period.
        """
        joined = job not in self._requirements
        if joined:
            self._requirements[job] = requirements
            insort(self._jobs.setdefault(requirements, []), job)
        called = self._called[job] = asyncio.Event()
        while True:
            is_first = self.ahead(job, requirements) == 0
            try:
                async with asyncio.timeout(PERIOD_S * (0.75 + 0.5 * self._rng.random()) if is_first else None):
                    await called.wait()
            except TimeoutError:
                return
            called.clear()
            if self.ahead(job, requirements) == 0:
                return

    def leave(self, job: str) -> None:
        """Remove a job, which was offered a place or has ended, and let the next one of its kind try."""
        requirements = self._requirements.pop(job, None)
        self._called.pop(job, None)
        if requirements is None:
            return
        equals = self._jobs[requirements]
        equals.remove(job)
        if equals:
            self._call(equals[0])
        else:
            del self._jobs[requirements]

    def call(self) -> None:
        """Let the first job of each kind try, because a place may be free."""
        for equals in self._jobs.values():
            self._call(equals[0])

    def _call(self, job: str) -> None:
        if (called := self._called.get(job)) is not None:
            called.set()
