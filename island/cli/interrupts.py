"""How a command ends at Ctrl-C, SIGTERM and a closed terminal: it first undoes what it began; a second signal ends it.

A command that has nothing to undo needs none of this: its connections close with it, and the daemon sees that.
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
    """A signal that asks the command to end; `number` is the signal's. No `KeyboardInterrupt`, which Typer catches."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Interrupts:
    """The signals of one block of code, see `undoable`."""

    def __init__(self) -> None:
        self._waiting: str | None = None
        self._noted: int | None = None

    @contextmanager
    def held(self, waiting: str) -> Iterator[None]:
        """Let this block finish, for its outcome is needed to undo it; a signal is raised at its end, and
        `waiting` says to a person meanwhile what it waits for."""
        self._waiting = waiting
        try:
            yield
        finally:
            self._waiting = None
        if self._noted is not None:
            raise Interrupted(self._noted)

    def take(self, number: int, _frame: FrameType | None) -> None:
        """The handler of all three signals."""
        for each in SIGNALS:
            if signal.getsignal(each) == self.take:
                signal.signal(each, signal.SIG_DFL)  # the next one ends the process at once
        if self._waiting is None:
            raise Interrupted(number)
        self._noted = number
        base.say(self._waiting)


@contextmanager
def undoable() -> Iterator[Interrupts]:
    """Raise `Interrupted` in this block at the first signal; a second one ends the process at once.

    A signal that is ignored (as SIGHUP under nohup) stays ignored. In another thread than the main one, where
    signals are never handled, this changes nothing.
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
