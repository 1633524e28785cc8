"""Deletes what is left of ended jobs when the times in `[jobs]` of island.toml are over."""

from __future__ import annotations

import structlog

from island.config import JobsSection
from island.jobs.home import store
from island.kernel.db import Database
from island.kernel.loops import Tasks
from island.kernel.ports import Clock, Rng

log = structlog.get_logger("island")

DAY_S = 86_400.0
PAUSE_S = 3_600.0
"""Seconds between two searches for jobs whose time is over."""


class Retention:
    """The search for ended jobs whose time is over. Each transaction is short, so that new jobs need not wait."""

    def __init__(self, state: Database, config: JobsSection, clock: Clock, rng: Rng) -> None:
        self._state, self._config, self._clock, self._rng = state, config, clock, rng

    def start(self, tasks: Tasks) -> None:
        """Search at once and then every hour."""
        tasks.forever("jobs.retention", self.apply, rng=self._rng, pause=PAUSE_S)

    async def apply(self) -> None:
        """Delete everything whose time is over."""
        now = self._clock.wall()
        limits = store.KeptSince(
            state=now - self._config.keep_state * DAY_S,
            results=now - self._config.keep_results * DAY_S,
            closed=now - self._config.keep_closed * DAY_S,
        )
        forgotten = trimmed = 0
        while any(done := await self._state.write(lambda conn: store.expire(conn, limits))):
            forgotten, trimmed = forgotten + done[0], trimmed + done[1]
        if forgotten or trimmed:
            log.info("jobs.expired", forgotten=forgotten, trimmed=trimmed)
