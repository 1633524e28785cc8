"""Background loops that continue after errors, and supervised tasks.

`forever` repeats a step. Expected errors (peers, disks, networks) are logged and retried with
capped, jittered backoff. Unexpected errors are logged with a traceback, counted and retried too,
because a bug in one loop must not end the other work of the island. Errors of this island itself
are shown as problems in its status until the step succeeds again.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import structlog

from island.errors import DiskFailed, Full, IslandError
from island.kernel.ports import Rng
from island.kernel.telemetry import counter

log = structlog.get_logger("island")

EXPECTED: tuple[type[Exception], ...] = (IslandError, OSError, TimeoutError, sqlite3.OperationalError)
"""Errors that peers, disks and networks may cause in a loop."""

DISK_FAILED: Final = DiskFailed.code
"""The code of an `IslandError` that was caused by a disk of this island."""

ENDED: Final = object()
"""The return value of a step that ends its loop."""

_LONG_WAIT: Final = 10
"""The longest time for which a step waits before its work, as a multiple of the longest backoff."""

FAULTS = counter("loop_faults", "Unexpected errors in loops and tasks", ("loop",))


def backoff(failures: int, rng: Rng, *, base: float = 0.5, cap: float = 15.0) -> float:
    """Seconds to wait after `failures` consecutive failures: exponential, capped, half of it jitter."""
    ceiling: float = min(cap, base * 2.0 ** min(failures - 1, 30))
    return ceiling * (0.5 + 0.5 * rng.random())


def is_database(error: BaseException) -> bool:
    """Whether a database could not be read or written because of a problem with the disk or memory."""
    if isinstance(error, Full):  # an exceeded quota is also `Full`, but retrying does not help
        return isinstance(error.__cause__, sqlite3.OperationalError)
    if isinstance(error, DiskFailed):
        return True
    if not isinstance(error, sqlite3.Error):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return True  # also the result of a failed read
    # SQLITE_ERROR means a wrong SQL statement: a bug in the program, not a problem with the disk.
    return isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR


def is_transient(error: BaseException) -> bool:
    """Whether an error was caused by this machine's disk or memory, so that a retry may succeed."""
    is_disk = isinstance(error, IslandError) and error.code == DISK_FAILED and error.blame == "island"
    return is_disk or is_database(error) or isinstance(error, OSError)


class LoopFaults:
    """Current errors of loops that are problems of this island, for its status."""

    def __init__(self) -> None:
        self._faults: dict[str, str] = {}

    def met(self, name: str, error: Exception) -> None:
        """Record an error of the loop `name`. A repeated unexpected error is logged with its traceback only once."""
        text = f"{type(error).__name__}: {error}"
        if not isinstance(error, EXPECTED):
            FAULTS.labels(_kind(name)).inc()
            if self._faults.get(name) != text:
                log.error("loop.fault", loop=name, exc_info=error)
        elif not is_transient(error) or isinstance(error, (ConnectionError, TimeoutError)):
            return  # an unreachable peer is not a problem of this island
        self._faults[name] = text

    def over(self, name: str) -> None:
        """Record that the loop `name` works again."""
        self._faults.pop(name, None)

    def problems(self) -> list[str]:
        """The current problems, one sentence for each loop."""
        return [
            f"{name} fails and is retried ({text.splitlines()[0]}). See the log for details;"
            " unless the disk is the cause, please report this as a bug"
            for name, text in sorted(self._faults.items())
        ]


def _kind(name: str) -> str:
    """The name of a loop without its subject, so that metrics have few labels."""
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
    """Run `step` repeatedly, with `pause` seconds between successes and backoff after failures.

    A step that only waits for an event needs no pause. Cancellation ends the loop, and so does
    a step that returns `ENDED`; a loop that has ended is no longer listed in `faults`.
    """
    faults = faults or LoopFaults()
    loop = asyncio.get_running_loop()
    failures, lasted = 0, 0.0
    try:
        while True:
            wait, ended, began = pause, False, loop.time()
            # A step may run for days, so it counts as working again before it returns: when it has run for longer than
            # the one that failed, which may only have waited. If that one ran for days, a long wait is enough.
            works = loop.call_later(min(lasted, _LONG_WAIT * cap) + cap, faults.over, name)
            try:
                ended = await step() is ENDED
            except Exception as error:  # noqa: BLE001 - the loop must continue after any error; `met` logs it
                failures, lasted = failures + 1, loop.time() - began
                wait = backoff(failures, rng, base=base, cap=cap)
                faults.met(name, error)
                if failures & (failures - 1) == 0:  # 1, 2, 4, 8, ...: a server that is down for days fills no log
                    log.warning("loop.retry", loop=name, error=str(error), failures=failures, wait_s=round(wait, 2))
            else:
                if failures > 1:
                    log.info("loop.works_again", loop=name, failures=failures)
                failures, lasted = 0, 0.0
                faults.over(name)
            finally:
                works.cancel()
            if ended:
                return
            # Let other tasks run even if the step returned without waiting.
            await asyncio.sleep(wait)
    finally:
        faults.over(name)  # a loop that has ended is not retried


class Tasks:
    """Background tasks of one service, in a task group that the daemon owns."""

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
        """Start a loop that continues after any error: see the function `forever`."""
        return self.loop(name, forever(step, name=name, rng=rng, pause=pause, base=base, cap=cap, faults=self.faults))

    def loop(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a coroutine that must not raise: an exception would end the daemon."""
        try:
            return self._group.create_task(coroutine, name=name)
        except RuntimeError:  # the daemon is stopping
            coroutine.close()
            raise

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, object]) -> asyncio.Task[None]:
        """Start a task whose failure is logged and affects nothing else."""
        guarded = _guarded(name, coroutine)
        try:
            task = self._group.create_task(guarded, name=name)
        except RuntimeError:  # the daemon is stopping
            guarded.close()
            coroutine.close()
            raise
        # If the task is cancelled before its first step, Python would warn that the coroutine was never awaited.
        task.add_done_callback(lambda _: coroutine.close())
        return task


async def _guarded(name: str, coroutine: Coroutine[Any, Any, object]) -> None:
    try:
        await coroutine
    except EXPECTED as error:
        log.warning("task.failed", task=name, error=str(error))
    except Exception:  # a bug in one task must not end the daemon
        FAULTS.labels(_kind(name)).inc()
        log.exception("task.fault", task=name)
