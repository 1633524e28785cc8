"""Rate limit for log lines that any host on the network can cause.

Without a limit, an unauthenticated host could fill the disk, or hide an attack among many log lines.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import structlog

log = structlog.get_logger("island")

PER_ADDRESS = 5
"""Maximum number of lines of one event from one address in a window."""
PER_EVENT = 50
"""Maximum number of lines of one event from all addresses in a window."""
WINDOW_S = 60.0


class StrangerLog:
    """Logs the first lines of each event and address, and at the end of a window how many were suppressed.

    A window begins with its first line and lasts `WINDOW_S` seconds. Needs a running event loop.
    """

    def __init__(self) -> None:
        self._written: Counter[tuple[str, str]] = Counter()
        self._events: Counter[str] = Counter()
        self._suppressed: Counter[tuple[str, str]] = Counter()
        self._open = False

    def info(self, event: str, address: str, **values: Any) -> None:
        """Log `event`, caused by `address`, at level info, or count it if the limit is reached."""
        if self._take(event, address):
            log.info(event, address=address, **values)

    def warning(self, event: str, address: str, **values: Any) -> None:
        """The same as `info`, at level warning."""
        if self._take(event, address):
            log.warning(event, address=address, **values)

    def _take(self, event: str, address: str) -> bool:
        if not self._open:
            self._open = True
            asyncio.get_running_loop().call_later(WINDOW_S, self._close)
        key = event, address
        if self._written[key] < PER_ADDRESS and self._events[event] < PER_EVENT:
            self._written[key] += 1
            self._events[event] += 1
            return True
        # Only addresses with a written line get their own count, so that memory is bounded.
        self._suppressed[key if key in self._written else (event, "others")] += 1
        return False

    def _close(self) -> None:
        for (event, address), lines in self._suppressed.items():
            log.info("log.suppressed", of=event, address=address, lines=lines, seconds=round(WINDOW_S))
        self._written.clear()
        self._events.clear()
        self._suppressed.clear()
        self._open = False
