"""Collects facts about the running daemon, and through it about what linked islands see."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from island import __version__
from island.client import Api
from island.config import Config, is_loopback, split_address
from island.doctor.facts import DaemonFacts, PeerFacts, PeerView
from island.errors import IslandError, Unauthenticated, Unreachable
from island.home import Endpoint, Home

_TIMEOUT_S = 30.0

PeerRows = list[dict[str, Any]] | None
"""What linked islands say about this one; None if the daemon could not be asked."""


@dataclass(frozen=True, slots=True)
class Running:
    """What `running.json` says about the daemon; the values are None if it does not exist."""

    locked: bool
    """Whether a daemon holds the lock of the home folder."""
    pid: int | None = None
    url: str | None = None
    peer_port: int | None = None
    since: float | None = None
    """When the daemon was ready, in Unix seconds."""


def running(place: Home) -> Running:
    """Return whether a daemon is running with this home folder."""
    try:
        locked = place.in_use()
    except OSError:  # another account owns the lock; the check of the entries says so
        locked = False
    try:
        bound = json.loads(place.running.read_text("utf-8"))
        since = place.running.stat().st_mtime
        port = bound["peer_port"]
        return Running(locked, int(bound["pid"]), str(bound["url"]), None if port is None else int(port), since)
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or another program has written it
        return Running(locked)


def ask(place: Home, found: Running, endpoint: Callable[[], Endpoint]) -> DaemonFacts:
    """Ask the daemon for its status."""
    if not found.locked:
        return DaemonFacts(False, stale=found.pid is not None)
    try:
        status = Api(endpoint(), timeout=_TIMEOUT_S).get("/api/v1/island")
    except Unreachable as error:
        hint = "It may still be starting. Otherwise see its log, and restart it."
        return DaemonFacts(True, found.pid, error=error.message, hint=hint)
    except IslandError as error:
        hint = _replaced_token(place, found) if error.code == Unauthenticated.code else ""
        return DaemonFacts(True, found.pid, error=error.message, hint=hint or error.hint)
    return DaemonFacts(
        running=True,
        pid=found.pid,
        state=status["state"],
        problems=status["problems"],
        discovery=status["discovery"],
        version=status["version"],
        program=__version__,
        configured_later=found.since is not None and place.toml.stat().st_mtime > found.since,
    )


def _replaced_token(place: Home, found: Running) -> str:
    """Return what to do if a token in the home folder is newer than the daemon, which reads it when it starts."""
    for path in (place.token, place.user_token):
        with contextlib.suppress(OSError):  # it is missing, or not for this account; the check of the secrets says so
            if found.since is not None and path.stat().st_mtime > found.since:
                return f"{path.name} was changed after the daemon started: restart it."
    return ""


def check_peers(endpoint: Callable[[], Endpoint]) -> PeerRows:
    """Let linked islands look at this one; None if the daemon does not answer, or not to this token."""
    try:
        rows: list[dict[str, Any]] = Api(endpoint(), timeout=_TIMEOUT_S).post("/api/v1/peers/check", {})
    except IslandError:  # `ask` has reported it
        return None
    return rows


def peers(settings: Config, rows: PeerRows) -> PeerFacts:
    """Return how this island can be dialled, with the answers of linked islands."""
    listen = settings.listen
    return PeerFacts(
        listen=listen.peer,
        loopback=bool(listen.peer) and is_loopback(split_address(listen.peer)[0]) and not listen.advertise,
        unknown_hosts=[each for each in listen.advertise if not _resolves(each)],
        views=None if rows is None else [PeerView(row["island"], row["reached"], row["reason"]) for row in rows],
    )


def other_clocks(rows: PeerRows) -> list[tuple[str, float, float]]:
    """Return the clocks of linked islands: name, how far it is ahead, maximum error, in seconds."""
    known = [row for row in rows or () if row["clock_ahead_s"] is not None]
    return [(row["island"], row["clock_ahead_s"], row["clock_error_s"]) for row in known]


def _resolves(address: str) -> bool:
    try:
        socket.getaddrinfo(*split_address(address), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return True
