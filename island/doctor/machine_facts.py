"""Collects facts about this machine: disk, open files, clock and ports."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import socket
import sys
from pathlib import Path

from island import config
from island.config import Config, split_address
from island.doctor.facts import DiskFacts, PortFacts
from island.home import Home
from island.kernel.descriptors import MOST
from island.kernel.listening import listening_sockets

_UNSYNCHRONIZED_US = 16_000_000
"""The kernel's estimate of the clock's maximum error reaches this value when nothing disciplines the clock."""


def disk(place: Home, settings: Config | None) -> DiskFacts:
    """Return space and inodes of the file system of the home folder."""
    found = os.statvfs(place.path)
    return DiskFacts(
        path=str(place.path),
        free=found.f_bavail * found.f_frsize,
        inodes=found.f_favail if found.f_files else None,
        read_only=bool(found.f_flag & os.ST_RDONLY),
        stored=_size(place.path / "replicas"),
        reserve=config.size_in_bytes(settings.replicas.reserve) if settings else None,
        quota=config.size_in_bytes(settings.replicas.quota) if settings else None,
    )


def _size(folder: Path) -> int:
    """Return the bytes that the files of a folder use on the disk; replicas are sparse."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # the daemon may delete a replica meanwhile
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total


def open_files(pid: int | None) -> int:
    """Return the limit on open files: of the daemon with this pid, else the one to which this process may raise it."""
    with contextlib.suppress(OSError, ValueError, IndexError):  # not Linux, or another account's process
        for line in Path(f"/proc/{pid}/limits").read_text("ascii").splitlines():
            if pid is not None and line.startswith("Max open files"):
                return min(MOST, int(line.split()[3]))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MOST if hard == resource.RLIM_INFINITY else min(MOST, hard)


class _Timex(ctypes.Structure):
    """The first fields of `struct timex` of Linux; the kernel writes more, which `rest` takes."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("maximum_error", ctypes.c_long),
        ("rest", ctypes.c_char * 256),
    )


def clock_synchronized() -> bool | None:
    """Return whether the kernel's clock is disciplined, as `timedatectl` shows it; None if that is not known."""
    if sys.platform != "linux":
        return None
    timex = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        return None
    return bool(timex.maximum_error < _UNSYNCHRONIZED_US)


def port(key: str, address: str, pid: int | None, *, running: bool) -> PortFacts:
    """Check a port: whether the running daemon, with this pid if it is known, answers there, or could bind it."""
    host, number = split_address(address)
    listeners = _listeners(number)
    holder = ", ".join(f"{name} (pid {each})" for each, name in listeners)
    if running:
        if listeners and pid is not None and pid not in dict(listeners):
            return PortFacts(key, address, "taken", holder)
        return PortFacts(key, address, "ours" if _answers(host, number) else "silent")
    try:
        _bind(host, number)
    except socket.gaierror:
        return PortFacts(key, address, "foreign")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return PortFacts(key, address, "taken", holder)
        return PortFacts(key, address, "denied" if error.errno == errno.EACCES else "foreign")
    return PortFacts(key, address, "free")


def _bind(host: str, number: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)


def _answers(host: str, number: int) -> bool:
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        with socket.create_connection((local, number), timeout=3.0):
            return True
    except OSError:
        return False


def _listeners(number: int) -> list[tuple[int, str]]:
    """Return pids and names of the programs that listen on a TCP port, as far as this account may see them."""
    sockets = {f"socket:[{each.inode}]" for each in listening_sockets(number)}
    found = []
    for process in Path("/proc").glob("[0-9]*") if sockets else ():
        with contextlib.suppress(OSError):  # it has ended, or belongs to another account
            if any(os.readlink(each) in sockets for each in (process / "fd").iterdir()):
                found.append((int(process.name), (process / "comm").read_text().strip()))
    return found
