"""Which sockets of this machine listen on a TCP port, as the kernel lists them for every account."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTENING = "0A"


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A TCP socket that listens."""

    uid: int
    """Account of the program that made it."""
    inode: int
    """Its number in `/proc/PID/fd`."""


def listening_sockets(port: int) -> Iterator[ListeningSocket]:
    """Yield the sockets that listen on a port, at any address; none where there is no `/proc`, as on macOS."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):  # not Linux, or no IPv6
            for line in Path(table).read_text("ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield ListeningSocket(int(fields[7]), int(fields[9]))


def is_own_address(address: str) -> bool:
    """Return whether an IP address is one of this machine."""
    family = socket.AF_INET6 if ipaddress.ip_address(address.partition("%")[0]).version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:  # EADDRNOTAVAIL, or the machine has no such family
        return False
    return True
