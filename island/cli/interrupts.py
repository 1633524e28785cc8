"""Handling of SIGINT (Ctrl-C), SIGTERM and SIGHUP: a command first undoes what it started; a second signal kills it.

Commands that have nothing to undo do not use this module: their connections close when they exit, and the
daemon notices that.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from island.cli import base

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Raised when a signal asks the command to end; `number` is the signal number.

    Not a subclass of `KeyboardInterrupt`, because Typer catches that.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Interrupts:
    """State of the signal handlers during one block of code; see `undoable`."""

    def __init__(self) -> None:
        self._waiting: str | None = None
        self._noted: int | None = None

    @contextmanager
    def held(self, waiting: str) -> Iterator[None]:
        """Delay the first signal until this block has finished, because its outcome is needed to undo it.

        `Interrupted` is raised at the end of the block. `waiting` is the message that is printed when the
        signal arrives.
        """
        self._waiting = waiting
        try:
            yield
        finally:
            self._waiting = None
        if self._noted is not None:
            raise Interrupted(self._noted)

    def take(self, number: int, _frame: FrameType | None) -> None:
        """Handle one of `SIGNALS`; after the first one the default handlers are restored."""
        for each in SIGNALS:
            if signal.getsignal(each) == self.take:
                signal.signal(each, signal.SIG_DFL)  # the next signal ends the process at once
        if self._waiting is None:
            raise Interrupted(number)
        self._noted = number
        base.say(self._waiting)


@contextmanager
def undoable() -> Iterator[Interrupts]:
    """Raise `Interrupted` in this block at the first signal; a second signal ends the process at once.

    Signals that are ignored (such as SIGHUP under nohup) stay ignored. Outside the main thread this does
    nothing, because Python handles signals in the main thread only.
    """
    interrupts = Interrupts()
    handled = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {each: signal.getsignal(each) for each in handled if signal.getsignal(each) != signal.SIG_IGN}
    for each in before:
        signal.signal(each, interrupts.take)
    try:
        yield interrupts
    finally:
        for each, handler in before.items():
            if signal.getsignal(each) == interrupts.take:
                signal.signal(each, handler)
