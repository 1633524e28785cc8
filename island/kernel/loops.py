"""Loops that never stop by accident, and tasks that are never lost.

`forever` repeats a step: expected failures are logged and retried with capped, jittered
backoff; anything else is a bug and escalates to the task group, which ends the daemon.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from island.errors import IslandError
from island.kernel.ports import Rng

log = structlog.get_logger("island")

EXPECTED: tuple[type[Exception], ...] = (IslandError, OSError, TimeoutError, sqlite3.OperationalError)
"""What the outside world may do to a loop: peers, disks, networks."""


def backoff(failures: int, rng: Rng, *, base: float = 0.5, cap: float = 15.0) -> float:
    """Seconds to wait after `failures` consecutive failures: exponential, capped, half of it jitter."""
    ceiling: float = min(cap, base * 2.0 ** min(failures - 1, 30))
    return ceiling * (0.5 + 0.5 * rng.random())


async def forever(
    step: Callable[[], Awaitable[object]],
    *,
    name: str,
    rng: Rng,
    pause: float = 0.0,
    base: float = 0.5,
    cap: float = 15.0,
) -> None:
    """Run `step` again and again; `pause` seconds between successes, backoff after expected failures.

    A step that only waits for an event needs no pause. Cancellation ends the loop.
    """
    failures = 0
    while True:
        try:
            await step()
        except EXPECTED as error:
            failures += 1
            wait = backoff(failures, rng, base=base, cap=cap)
            log.warning("loop.retry", loop=name, error=str(error), failures=failures, wait_s=round(wait, 2))
            await asyncio.sleep(wait)
        else:
            failures = 0
            # A step that returns at once must still let the others run.
            await asyncio.sleep(pause)


class Tasks:
    """Background tasks of one service, owned by a task group that the composition root holds."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group

    def loop(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a loop of the service; an exception that escapes from it ends the daemon."""
        return self._group.create_task(coroutine, name=name)

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, object]) -> asyncio.Task[None]:
        """Start a piece of work whose failure concerns only itself; it is logged."""
        task = self._group.create_task(_guarded(name, coroutine), name=name)
        # One that is cancelled before its first step would leave the coroutine unstarted and complained about.
        task.add_done_callback(lambda _: coroutine.close())
        return task


async def _guarded(name: str, coroutine: Coroutine[Any, Any, object]) -> None:
    try:
        await coroutine
    except EXPECTED as error:
        log.warning("task.failed", task=name, error=str(error))
    except Exception:  # a bug in one piece of work must not take the island down; it is logged whole
        log.exception("task.bug", task=name)
