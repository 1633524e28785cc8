"""An engine in virtual time that can be slow, full, silent or restarted, and that has the sessions of other clients.

A request that was sent is carried out although its sender has crashed or no longer waits, as with a real server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from island.errors import EngineFailed
from island.jobs.engines.port import EngineFull, RemoteJob
from island.kernel.ports import Rng
from tests.sim.jobs import PlayedEngine, PlayedSession

T = TypeVar("T")

CHANGES = frozenset({"create", "post", "cancel", "end"})
"""The requests that change something at the engine."""


class StormyEngine(PlayedEngine):
    """A played engine with faults that a test sets, and a limit that counts the sessions of all clients."""

    def __init__(self, name: str, instance: str, rng: Rng, *, limit: int) -> None:
        super().__init__(instance)
        self.name, self.limit, self._rng = name, limit, rng
        self.slow = 0.0
        """Maximum seconds until a request is carried out."""
        self.failing: frozenset[str] = frozenset()
        """The requests that are not carried out, and fail."""
        self.losing = 0.0
        """The probability that the answer to a request is lost."""
        self.full = False
        """Whether there is no place, although there should be."""
        self.strangers: list[PlayedSession] = []
        self.batches: list[str] = []
        """The name of every batch that was started."""
        self._requests: set[asyncio.Task[Any]] = set()

    def add_stranger(self) -> None:
        """Add a session of another client."""
        number = self._next["session"]
        self._next["session"] += 1
        job = self.jobs["session", number] = PlayedSession(number, f"stranger-{number}", "session", {}, self._now())
        self.strangers.append(job)

    def restart(self, instance: str) -> None:
        """Forget all sessions and batches. Ids begin at 0 again, with those of the strangers, who are faster."""
        self.start_anew(instance)
        self._next = {"session": 0, "batch": 0}
        count, self.strangers = len(self.strangers), []
        for _ in range(count):
            self.add_stranger()

    def mend(self) -> None:
        """End all faults."""
        self.slow, self.failing, self.losing, self.full, self.up = 0.0, frozenset(), 0.0, False, True

    def left_over(self) -> list[str]:
        """The names of our sessions that live, and of our batches that have not ended."""
        ours = [job for job in self.alive() if job not in self.strangers]
        return [job.name for job in ours if self._state(job) not in ("success", "dead", "killed")]

    def check_strangers(self) -> None:
        """Fail if something was done to a session of another client."""
        for each in self.strangers:
            assert self.jobs.get((each.kind, each.id)) is each, f"{each.name} was ended or replaced"
            assert each.ended is None and not each.statements, f"{each.name} was used"

    async def create(self, kind: str, body: Mapping[str, Any]) -> RemoteJob:
        if self.full or len(self.alive()) >= self.limit + len(self.strangers):
            raise EngineFull(f"too many {kind}s")
        return await super().create(kind, body)

    def _remote(self, job: PlayedSession) -> RemoteJob:
        if job.kind == "batch" and job.name not in self.batches:
            self.batches.append(job.name)
        return super()._remote(job)

    async def _call(self, what: str, do: Callable[[], T]) -> T:
        task = asyncio.get_running_loop().create_task(self._carried_out(what, do))
        self._requests.add(task)
        task.add_done_callback(self._over)
        return await asyncio.shield(task)

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._requests.discard(task)
        if not task.cancelled():
            task.exception()  # its sender may no longer wait for it

    async def _carried_out(self, what: str, do: Callable[[], T]) -> T:
        await asyncio.sleep(0.005 + self.slow * self._rng.random())
        if not self.up:
            raise EngineFailed("connection refused", code="engine_unreachable")
        if what in self.failing:
            raise EngineFailed("connection reset by peer")
        try:
            result = do()
        finally:
            self.seen = self.now
        if self.losing and self._rng.random() < self.losing:
            raise EngineFailed("no answer within 10 s")
        await asyncio.sleep(self.slow * self._rng.random())
        return result
