"""Unpacks exception groups: raises one exception of a task group."""

from __future__ import annotations

from typing import NoReturn


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions of a group and of its nested groups."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def raise_first(group: BaseExceptionGroup[BaseException], *, unless: type[BaseException]) -> None:
    """Raise the first exception of a group that is not an instance of `unless`; return if there is none."""
    for error in leaves(group):
        if not isinstance(error, unless):
            _raise(error)


def _raise(error: BaseException) -> NoReturn:
    raise error
