"""Attempts to reach another island in several ways: which are made, when, and what is said if none succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from island.errors import IslandError, Unreachable
from island.kernel.ports import Clock

T = TypeVar("T")

_SILENT_S, _SILENT_CAP_S = 10.0, 300.0
_REMEMBERED = 1000


async def first_that_works(
    ways: Mapping[str, Callable[[], Awaitable[T]]], what: str, *, head_start_s: float | None = None
) -> T:
    """Try ways in their order and return the result of the first that succeeds; the others are cancelled.

    The next way is tried when those before have failed, or after `head_start_s`. The keys of `ways` (addresses, for
    example) and `what` (the name of the island) are used in messages. Raises `IslandError` with the reasons if no way
    succeeds.
    """
    problems: dict[str, IslandError] = {}

    async def attempt(way: str) -> tuple[T] | Exception:
        try:
            return (await ways[way](),)
        except Exception as error:  # noqa: BLE001 - if the task raised it, a cancellation of the group could be lost
            if isinstance(error, IslandError):
                problems[way] = error
            return error

    untried, running = list(ways), set[asyncio.Task[tuple[T] | Exception]]()
    found: tuple[T] | Exception | None = None
    async with asyncio.TaskGroup() as group:
        while found is None and (untried or running):
            if untried:
                running.add(group.create_task(attempt(untried.pop(0))))
            patience = head_start_s if untried else None
            done, running = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            found = next((task.result() for task in done if not isinstance(task.result(), IslandError)), None)
        for task in running:
            task.cancel()
    if isinstance(found, Exception):
        raise found
    if found is not None:
        return found[0]
    raise _summary(problems, what)


def _summary(problems: Mapping[str, IslandError], what: str) -> IslandError:
    if not problems:
        return Unreachable(
            f"{what} has no address that can be dialled",
            hint="It may be configured to dial out only; then it connects by itself.",
        )
    reasons = "; ".join(f"{way}: {error.message}" for way, error in problems.items())
    # The error of an island that answered is more specific than those of addresses that do not answer.
    errors = list(problems.values())
    best = next((error for error in errors if not isinstance(error, Unreachable)), errors[0])
    if len(errors) == 1 or not isinstance(best, Unreachable):
        return best
    return Unreachable(f"{what} does not answer ({reasons})", hint=best.hint)


class SilentAddresses:
    """Addresses at which nothing answered. They are silent for 10 s after a failure, doubling up to 5 minutes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: dict[str, tuple[int, float]] = {}

    def failed(self, address: str) -> None:
        """Record that nothing answered at an address."""
        count, _ = self._failures.pop(address, (0, 0.0))
        self._failures[address] = count + 1, self._clock.monotonic()
        while len(self._failures) > _REMEMBERED:
            del self._failures[next(iter(self._failures))]

    def answered(self, address: str) -> None:
        """Record that an address could be dialled."""
        self._failures.pop(address, None)

    def __contains__(self, address: str) -> bool:
        count, at = self._failures.get(address, (0, 0.0))
        pause: float = min(_SILENT_CAP_S, _SILENT_S * 2.0 ** min(count - 1, 20))
        return count > 0 and self._clock.monotonic() < at + pause
