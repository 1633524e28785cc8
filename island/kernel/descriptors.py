"""Open files of this process: the limit, and the part of it that each port may use for connections."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import structlog

log = structlog.get_logger("island")

MOST = 65_536
"""The most that is asked for: some systems have an absurd hard limit, or refuse it."""


@dataclass(frozen=True, slots=True)
class Share:
    """Descriptors for connections. What is left is for databases, files, child processes and dialling."""

    user: int
    """Connections at the user port."""
    peer: int
    """Connections at the peer port, those in the handshake included."""


def share(limit: int) -> Share:
    """Divide `limit` open files: at most a quarter for each port, so that neither port can starve the rest."""
    quarter = max(16, limit // 4)
    return Share(user=min(quarter, 2048), peer=min(quarter, 576))


def limit() -> int:
    """How many open files this process may have now, at most `MOST`."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if soft == resource.RLIM_INFINITY else min(soft, MOST)


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard one, or to `MOST`; keeps what there is if that is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        log.warning("daemon.open_files", limit=soft, wanted=wanted, error=str(error))
