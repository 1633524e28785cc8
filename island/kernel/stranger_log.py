"""Rate limit for log lines that any host on the network, or any other island, can cause.

Without a limit, they could fill the disk, or hide an attack among many log lines.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import structlog

log = structlog.get_logger("island")

PER_ADDRESS = 5
"""Maximum number of lines of one event from one address, or island, in a window."""
PER_EVENT = 50
"""Maximum number of lines of one event from all addresses in a window."""
WINDOW_S = 60.0


class LineLimit:
    """Decides in one window which lines are written, and counts the others."""

    def __init__(self) -> None:
        self._written: Counter[tuple[str, str]] = Counter()
        self._events: Counter[str] = Counter()
        self._suppressed: Counter[tuple[str, str]] = Counter()

    def take(self, event: str, source: str) -> bool:
        """Return whether to write a line of `event` that `source` caused."""
        key = event, source
        if self._written[key] < PER_ADDRESS and self._events[event] < PER_EVENT:
            self._written[key] += 1
            self._events[event] += 1
            return True
        # Only sources with a written line get their own count, so that memory is bounded.
        self._suppressed[key if key in self._written else (event, "others")] += 1
        return False

    def restart(self) -> list[tuple[str, str, int]]:
        """Begin a new window; return event, source and number of the lines that were not written in the last one."""
        suppressed = [(event, source, lines) for (event, source), lines in self._suppressed.items()]
        self._written.clear()
        self._events.clear()
        self._suppressed.clear()
        return suppressed


class StrangerLog:
    """Logs the first lines of each event and source, and at the end of a window how many were suppressed.

    `field` names the source in log lines: the address of a host, or the key of an island.
    A window begins with its first line and lasts `WINDOW_S` seconds. Needs a running event loop.
    """

    def __init__(self, field: str = "address") -> None:
        self._field = field
        self._limit = LineLimit()
        self._open = False

    def info(self, event: str, source: str, /, **values: Any) -> None:
        """Log `event`, caused by `source`, at level info, or count it if the limit is reached."""
        if self._take(event, source):
            log.info(event, **{self._field: source}, **values)

    def warning(self, event: str, source: str, /, **values: Any) -> None:
        """The same as `info`, at level warning."""
        if self._take(event, source):
            log.warning(event, **{self._field: source}, **values)

    def error(self, event: str, source: str, /, **values: Any) -> None:
        """The same as `info`, at level error."""
        if self._take(event, source):
            log.error(event, **{self._field: source}, **values)

    def _take(self, event: str, source: str) -> bool:
        if not self._open:
            self._open = True
            asyncio.get_running_loop().call_later(WINDOW_S, self._close)
        return self._limit.take(event, source)

    def _close(self) -> None:
        for event, source, lines in self._limit.restart():
            log.info("log.suppressed", of=event, lines=lines, seconds=round(WINDOW_S), **{self._field: source})
        self._open = False
