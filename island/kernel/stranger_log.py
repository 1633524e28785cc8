"""Log lines that anybody on the network can cause: a few of each, then a count.

Without a limit a stranger fills the disk, and hides among his own lines what he does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import structlog

log = structlog.get_logger("island")

PER_ADDRESS = 5
"""Lines of one event from one address in a window."""
PER_EVENT = 50
"""Lines of one event from all addresses in a window."""
WINDOW_S = 60.0


class StrangerLog:
    """Writes the first lines of each event and address; at the end of the window, how many more there were.

    A window begins with its first line. Use it inside a running loop, whose clock it uses.
    """

    def __init__(self) -> None:
        self._written: Counter[tuple[str, str]] = Counter()
        self._events: Counter[str] = Counter()
        self._suppressed: Counter[tuple[str, str]] = Counter()
        self._open = False

    def info(self, event: str, address: str, **values: Any) -> None:
        """Log `event`, caused by `address`, at level info; or count it."""
        if self._take(event, address):
            log.info(event, address=address, **values)

    def warning(self, event: str, address: str, **values: Any) -> None:
        """The same at level warning."""
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
        # Only addresses that have a line have a count of their own, so that memory is bounded.
        self._suppressed[key if key in self._written else (event, "others")] += 1
        return False

    def _close(self) -> None:
        for (event, address), lines in self._suppressed.items():
            log.info("log.suppressed", of=event, address=address, lines=lines, seconds=round(WINDOW_S))
        self._written.clear()
        self._events.clear()
        self._suppressed.clear()
        self._open = False
