"""The log of a job as a growing text. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_ISLAND = "\nisland: "
"""Livy's logs have headings like this one; it begins the lines that the island wrote."""


def split_log(log: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lines of the engine and those of the island, without the headings of the streams."""
    lines = list(log)
    cut = lines.index(_ISLAND) if _ISLAND in lines else len(lines)
    engine = [line for line in lines[:cut] if line.strip() not in ("stdout:", "stderr:")]
    return engine, lines[cut + 1 :]


def new_lines(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """The lines of `now` that are not in `before`, of which the oldest may have been dropped since.

    Both are windows of one log: the new one begins with an end of the old one.
    """
    for start in range(len(before) + 1):
        kept = before[start:]
        if list(now[: len(kept)]) == list(kept):
            return list(now[len(kept) :])
    return list(now)
