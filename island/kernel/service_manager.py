"""What the daemon tells the service manager that started it: readiness, state, and that its event loop runs.

This is the protocol of sd_notify(3): datagrams to the socket in NOTIFY_SOCKET. Without this variable nothing is sent.
The event loop itself sends the watchdog's messages, so that the service manager restarts a daemon whose loop hangs.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, MutableMapping

import structlog

from island.kernel.loops import Tasks
from island.kernel.ports import Rng
from island.kernel.terminal import escaped

log = structlog.get_logger("island")

REPORT_SECONDS = 15.0
"""Seconds between two reports of the state if the service manager has no watchdog for this process."""

STATUS_LENGTH = 500
"""Maximum number of characters of a reported state."""


class ServiceManager:
    """The service manager at `address`, which is the path of a socket or, with a leading `@`, an abstract name.

    It expects a message at least every `watchdog` seconds, or none if that is 0. Nothing is sent to an empty address.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self.address, self.watchdog = address, watchdog

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """Return the service manager of this process, and remove its variables from `environment`.

        They are removed because child processes must not send messages in the name of the daemon.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        meant_for = environment.pop("WATCHDOG_PID", "")
        if address and address[0] not in "/@":
            log.warning("service_manager.ignored", address=address, reason="not a path or an abstract name")
            address = ""
        watched = microseconds.isascii() and microseconds.isdigit() and meant_for in {"", str(os.getpid())}
        return cls(address, int(microseconds) / 1_000_000 if watched else 0.0)

    async def start(self, tasks: Tasks, rng: Rng, state: Callable[[], str]) -> None:
        """Report that the daemon is ready, and then regularly its `state`, one line of text.

        If the service manager cannot be reached, this is logged and tried again, and the daemon continues.
        """
        if not self.address:
            return
        first = True

        async def report() -> None:
            nonlocal first
            self._send(*(["READY=1"] if first else []), "WATCHDOG=1", f"STATUS={_one_line(state())}")
            first = False

        # Two messages within the time of the watchdog, so that it tolerates one that is late.
        pause = min(REPORT_SECONDS, self.watchdog / 2) if self.watchdog else REPORT_SECONDS
        tasks.forever("service manager", report, rng=rng, pause=pause, base=pause / 10, cap=pause)

    async def stop(self) -> None:
        """Report that the daemon is stopping; raises `OSError` if the service manager cannot be reached."""
        if self.address:
            self._send("STOPPING=1", "STATUS=stopping")

    def _send(self, *lines: str) -> None:
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)  # a service manager that does not read must not block the loop
            channel.connect(address)
            channel.send("\n".join(lines).encode())


def _one_line(text: str) -> str:
    """Return `text` without line breaks: what follows one would be a message of its own to the service manager."""
    return escaped(text)[:STATUS_LENGTH]
