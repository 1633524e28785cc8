"""Writes log lines in a thread, so that a log that cannot be written never stops the program.

A pipe that nobody reads blocks the writing thread only, and a full disk raises in it only. Lines that could not be
written, or for which the queue had no space, are counted and reported in the log when it can be written again.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import threading
from collections.abc import Callable
from typing import Any, Final, TextIO

QUEUE_CHARACTERS: Final = 256 * 1024
"""Limit of the lines that wait to be written. They are lost if the process is killed."""

RETRY_S: Final = 10.0
"""Seconds after which the program tries again to report lost lines, if it has no other line to write."""

END_S: Final = 2.0
"""Maximum number of seconds that the end of the program waits for the last lines."""


class LogWriter:
    """A queue of log lines, and the daemon thread that writes them to `stream`, in order.

    `report(lines, reason)` returns the line that reports lost lines; `count` adds to their metric.
    The methods with the names of log levels make this a logger of structlog.
    """

    def __init__(
        self, stream: TextIO | None, report: Callable[[int, str], str], count: Callable[[int], object]
    ) -> None:
        # Python has no stream if the descriptor was closed when the program started.
        self._stream, self._report, self._count = stream, report, count
        self._handle = _handle(stream)
        self._torn = False
        """Whether the last write ended within a line."""
        # Reentrant, because a finalizer may log while this thread is in `put`.
        self._changed = threading.Condition(threading.RLock())
        self._lines: list[str] = []
        self._characters = 0
        self._writing = self._closed = False
        self._lost, self._reason = 0, ""
        threading.Thread(target=self._work, name="log", daemon=True).start()

    def put(self, line: str) -> None:
        """Add a line, or count it as lost if the queue is full. Never raises, and never waits for the stream."""
        with self._changed:
            if self._lines and self._characters + len(line) > QUEUE_CHARACTERS:
                self._lose(1, "its reader or its disk does not accept more lines")
                return
            self._lines.append(line)
            self._characters += len(line)
            self._changed.notify_all()

    msg = debug = info = warning = error = critical = exception = put

    @property
    def problem(self) -> str:
        """Why lines were lost that are not reported in the log yet, or empty."""
        with self._changed:
            if not self._lost:
                return ""
            return (
                f"the log of this island cannot be written: {self._reason} (lost lines: {self._lost})."
                " Check the disk or the program that receives the log"
            )

    def flush(self, seconds: float = END_S) -> bool:
        """Wait until all lines are written or have failed, at most `seconds`. Returns whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._writing, seconds)

    def close(self, seconds: float = END_S) -> None:
        """Flush, then end the thread. Lines that are added later are written by nobody."""
        self.flush(seconds)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _lose(self, lines: int, reason: str) -> None:
        self._lost, self._reason = self._lost + lines, reason
        self._count(lines)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closed, RETRY_S if self._lost else None)
                if self._closed and not self._lines:
                    return
                lines, self._lines, self._characters = self._lines, [], 0
                # The lines that did not fit into the queue come after those in it.
                lost, self._writing = self._lost, True
                if lost:
                    lines.append(self._report(lost, self._reason))
            # All lines at once: after each system call, this thread may have to wait for the interpreter.
            data = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
            written, reason = self._write(data)
            with self._changed:
                self._writing = False
                if reason:
                    left = len(lines) - data[:written].count(b"\n") - bool(lost)
                    self._lose(max(left, 0), reason)
                else:
                    self._lost -= lost
                self._changed.notify_all()

    def _write(self, data: bytes) -> tuple[int, str]:
        """Write bytes. Returns how many were written, and the reason if not all."""
        if self._handle is None:
            return self._write_text(data)
        written = 0
        try:
            if self._torn:
                _write_some(self._handle, b"\n")
                self._torn = False
            while written < len(data):
                written += _write_some(self._handle, data[written:])
        except OSError as error:
            if written:
                self._torn = data[written - 1] != ord("\n")
            return written, error.strerror or str(error)
        return written, ""

    def _write_text(self, data: bytes) -> tuple[int, str]:
        if self._stream is None:
            return 0, "the standard error of the program is closed"
        try:
            self._stream.write(data.decode("utf-8"))
            self._stream.flush()
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            return 0, str(error)
        return len(data), ""


def _handle(stream: Any) -> int | None:
    """The descriptor of a stream, or None for a stream in memory.

    The thread writes to the descriptor, because a thread that is blocked in a method of the stream holds its lock,
    for which the interpreter waits at its end.
    """
    with contextlib.suppress(OSError, AttributeError, io.UnsupportedOperation):
        return int(stream.fileno())
    return None


def _write_some(handle: int, data: bytes) -> int:
    """Write bytes to a descriptor and return their number. Waits if the descriptor is non-blocking and not ready."""
    while True:
        try:
            return os.write(handle, data)
        except BlockingIOError:
            ready = select.poll()
            ready.register(handle, select.POLLOUT)
            ready.poll()
