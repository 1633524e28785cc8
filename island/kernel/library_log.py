"""Writes log messages of asyncio, aiohttp and zeroconf to the log of the program, with a limit.

They use `logging` and would otherwise appear on stderr with tracebacks of many lines. Without a limit,
a condition that repeats, such as a process without free file descriptors, could fill the disk.
"""

from __future__ import annotations

import logging
from typing import Final

import structlog

from island.kernel.stranger_log import WINDOW_S, LineLimit

LIBRARIES: Final = ("asyncio", "aiohttp", "zeroconf")

_KEY = 100
"""Characters of the first line of a message by which equal messages are recognised."""

log = structlog.get_logger("island")


class LibraryLog(logging.Handler):
    """Logs messages as the event `library.log`.

    Messages come from any thread, also without an event loop, so the number of suppressed messages is logged
    with the first message of the next window.
    """

    def __init__(self) -> None:
        super().__init__()
        self._limit = LineLimit()
        self._began = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Log a message, or count it. `logging` calls this under the lock of the handler."""
        if not 0 <= record.created - self._began < WINDOW_S:
            self._began = record.created
            for source, message, lines in self._limit.restart():
                log.info("log.suppressed", of="library.log", logger=source, message=message, lines=lines)
        message = record.getMessage()
        if self._limit.take(record.name, message.partition("\n")[0][:_KEY]):
            log.log(record.levelno, "library.log", logger=record.name, message=message, exc_info=record.exc_info)


def install() -> None:
    """Write the messages of `LIBRARIES` to the log only. Replaces the handlers of an earlier call."""
    uninstall()
    handler = LibraryLog()
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False


def uninstall() -> None:
    """Undo `install`."""
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        for handler in [each for each in logger.handlers if isinstance(each, LibraryLog)]:
            logger.removeHandler(handler)
            logger.propagate = True
