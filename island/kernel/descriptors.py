"""The limit on open files of this process, and how many of them each port may use for connections."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import structlog

log = structlog.get_logger("island")

MOST = 65_536
"""Upper bound of the requested limit: on some systems the hard limit is very high, or is refused when requested."""


@dataclass(frozen=True, slots=True)
class Share:
    """Numbers of descriptors for connections. The rest is for databases, files, child processes and dialling."""

    user: int
    """Maximum number of connections at the user port."""
    peer: int
    """Maximum number of connections at the peer port, including those in the handshake."""


def share(limit: int) -> Share:
    """Divide `limit` open files: each port gets at most a quarter, so that it cannot use up the descriptors."""
    quarter = max(16, limit // 4)
    return Share(user=min(quarter, 2048), peer=min(quarter, 576))


def limit() -> int:
    """The current soft limit on open files of this process, at most `MOST`."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if soft == resource.RLIM_INFINITY else min(soft, MOST)


def raise_limit() -> None:
    """Raise the soft limit on open files to the hard limit, at most to `MOST`. Logs a warning if that is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        log.warning("daemon.open_files", limit=soft, wanted=wanted, error=str(error))
