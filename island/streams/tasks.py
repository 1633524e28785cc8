"""How streams run what blocks, and which error counts among those of tasks that end together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, Protocol, TypeVar

T = TypeVar("T")


class Run(Protocol):
    """Runs a blocking function: in a thread, or in place where time is virtual."""

    def __call__(self, function: Callable[..., T], /, *args: Any) -> Awaitable[T]:
        """What `function(*args)` returns or raises."""


def in_thread(function: Callable[..., T], /, *args: Any) -> Awaitable[T]:
    """In a thread; a caller that is cancelled does not stop what has begun."""
    return asyncio.to_thread(function, *args)


async def in_place(function: Callable[..., T], /, *args: Any) -> T:
    """Here and now: for simulations, where threads would break reproducibility."""
    return function(*args)


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions of a group, nested groups opened."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def raise_first(group: BaseExceptionGroup[BaseException], *, unless: type[BaseException]) -> None:
    """Raise the first exception of a group that is not an `unless`, alone; return if there is none."""
    for error in leaves(group):
        if not isinstance(error, unless):
            _raise(error)


def _raise(error: BaseException) -> NoReturn:
    raise error
