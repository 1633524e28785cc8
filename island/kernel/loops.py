"""Loops that never stop by accident, and tasks that are never lost.

`forever` repeats a step whatever it meets: what the outside world does is logged and retried
with capped, jittered backoff. So is what nobody foresaw, after it was logged whole: a fault in
one loop must not end the other work of the island. Both are counted, and what is wrong with
this island itself is a problem in its status until the step succeeds again. Only errors before
the island is ready end the daemon.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import structlog

from island.errors import Full, IslandError
from island.kernel.ports import Rng
from island.kernel.telemetry import counter

log = structlog.get_logger("island")

EXPECTED: tuple[type[Exception], ...] = (IslandError, OSError, TimeoutError, sqlite3.OperationalError)
"""What the outside world may do to a loop: peers, disks, networks."""

DISK_FAILED: Final = "disk_failed"
"""The code of an `IslandError` that tells of a disk of this island."""

ENDED: Final = object()
"""What a step returns that has nothing more to do, ever."""

FAULTS = counter("loop_faults", "Errors in loops and tasks that nobody foresaw", ("loop",))


def backoff(failures: int, rng: Rng, *, base: float = 0.5, cap: float = 15.0) -> float:
    """Seconds to wait after `failures` consecutive failures: exponential, capped, half of it jitter."""
    ceiling: float = min(cap, base * 2.0 ** min(failures - 1, 30))
    return ceiling * (0.5 + 0.5 * rng.random())


def is_database(error: BaseException) -> bool:
    """Whether an error says that a database could not be read or written, for want of disk or memory."""
    if isinstance(error, Full):  # a quota that is reached is also `Full`, and stays so
        return isinstance(error.__cause__, sqlite3.OperationalError)
    # SQLITE_ERROR is a wrong statement: a fault of the program, not of the disk.
    wrong = sqlite3.SQLITE_ERROR
    return isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorcode", None) != wrong


def is_transient(error: BaseException) -> bool:
    """Whether an error is of this machine's disk or memory, so that the same may succeed later."""
    told = isinstance(error, IslandError) and error.code == DISK_FAILED
    return told or is_database(error) or isinstance(error, OSError)


class LoopFaults:
    """What loops have met that is this island's own fault, and have not got over yet. For its status."""

    def __init__(self) -> None:
        self._faults: dict[str, str] = {}

    def met(self, name: str, error: Exception) -> None:
        """The loop `name` failed with an error; one that nobody foresaw is logged whole, once until it is over."""
        text = f"{type(error).__name__}: {error}"
        if not isinstance(error, EXPECTED):
            FAULTS.labels(_kind(name)).inc()
            if self._faults.get(name) != text:
                log.error("loop.fault", loop=name, exc_info=error)
        elif not is_transient(error) or isinstance(error, (ConnectionError, TimeoutError)):
            return  # a peer that cannot be reached is no problem of this island
        self._faults[name] = text

    def over(self, name: str) -> None:
        """The loop `name` works again."""
        self._faults.pop(name, None)

    def problems(self) -> list[str]:
        """What is wrong, each in words."""
        return [
            f"{name} fails and is tried again ({text.splitlines()[0]}). The log says more; if the disk is in order,"
            " please report it"
            for name, text in sorted(self._faults.items())
        ]


def _kind(name: str) -> str:
    """The name of a loop without what it is about, so that metrics have few labels."""
    return ".".join(name.partition(" ")[0].split(".")[:2])


async def forever(
    step: Callable[[], Awaitable[object]],
    *,
    name: str,
    rng: Rng,
    pause: float = 0.0,
    base: float = 0.5,
    cap: float = 15.0,
    faults: LoopFaults | None = None,
) -> None:
    """Run `step` again and again; `pause` seconds between successes, backoff after failures.

    A step that only waits for an event needs no pause. Cancellation ends the loop, and so does
    a step that returns `ENDED`.
    """
    faults = faults or LoopFaults()
    failures = 0
    while True:
        wait, ended = pause, False
        # A step may be meant to last for days: one that has not failed for a while works again.
        works = asyncio.get_running_loop().call_later(cap, faults.over, name)
        try:
            ended = await step() is ENDED
        except Exception as error:  # noqa: BLE001 - the loop must go on, whatever it is; `met` tells of it
            failures += 1
            wait = backoff(failures, rng, base=base, cap=cap)
            faults.met(name, error)
            log.warning("loop.retry", loop=name, error=str(error), failures=failures, wait_s=round(wait, 2))
        else:
            failures = 0
            faults.over(name)
        finally:
            works.cancel()
        if ended:
            return
        # A step that returns at once must still let the others run.
        await asyncio.sleep(wait)


class Tasks:
    """Background tasks of one service, owned by a task group that the composition root holds."""

    def __init__(self, group: asyncio.TaskGroup, faults: LoopFaults | None = None) -> None:
        self._group = group
        self.faults = faults or LoopFaults()

    def forever(
        self,
        name: str,
        step: Callable[[], Awaitable[object]],
        *,
        rng: Rng,
        pause: float = 0.0,
        base: float = 0.5,
        cap: float = 15.0,
    ) -> asyncio.Task[None]:
        """Start a loop of the service, which goes on after any error: see the function `forever`."""
        return self.loop(name, forever(step, name=name, rng=rng, pause=pause, base=base, cap=cap, faults=self.faults))

    def loop(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a coroutine from which no exception may escape: one that does ends the daemon."""
        try:
            return self._group.create_task(coroutine, name=name)
        except RuntimeError:  # the daemon is stopping
            coroutine.close()
            raise

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, object]) -> asyncio.Task[None]:
        """Start a piece of work whose failure concerns only itself; it is logged."""
        guarded = _guarded(name, coroutine)
        try:
            task = self._group.create_task(guarded, name=name)
        except RuntimeError:  # the daemon is stopping
            guarded.close()
            coroutine.close()
            raise
        # One that is cancelled before its first step would leave the coroutine unstarted and complained about.
        task.add_done_callback(lambda _: coroutine.close())
        return task


async def _guarded(name: str, coroutine: Coroutine[Any, Any, object]) -> None:
    try:
        await coroutine
    except EXPECTED as error:
        log.warning("task.failed", task=name, error=str(error))
    except Exception:  # a bug in one piece of work must not take the island down; it is logged whole
        FAULTS.labels(_kind(name)).inc()
        log.exception("task.bug", task=name)
