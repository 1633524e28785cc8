"""Collects facts about the running daemon, and through it about what linked islands see."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from island import __version__, client
from island.client import Api
from island.config import Config, is_loopback, split_address
from island.doctor.facts import DaemonFacts, PeerFacts, PeerView
from island.errors import IslandError, Unauthenticated, Unreachable
from island.home import RUNNING_LIMIT, Endpoint, Home
from island.regular_file import read_regular

_CHECK_SECONDS = 30.0
"""Time in which linked islands look at this one."""


class DaemonStatus(msgspec.Struct):
    """What doctor uses of the answer to `GET /api/v1/island`; a daemon of another version may not have all of it."""

    state: str
    version: str
    problems: list[str] = []
    discovery: str = ""


class PeerRow(msgspec.Struct):
    """What a linked island says about this one: a row of the answer to `POST /api/v1/peers/check`."""

    island: str
    reached: bool | None = None
    reason: str = ""
    clock_ahead_s: float | None = None
    clock_error_s: float | None = None


PeerRows = list[PeerRow] | None
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
        bound = json.loads(read_regular(place.running, RUNNING_LIMIT))
        since = place.running.stat().st_mtime
        port = bound["peer_port"]
        return Running(locked, int(bound["pid"]), str(bound["url"]), None if port is None else int(port), since)
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or another program has written it
        return Running(locked)


def ask(place: Home, found: Running, endpoint: Callable[[], Endpoint]) -> DaemonFacts:
    """Ask the daemon for its status."""
    home = str(place.path)
    if not found.locked:
        return DaemonFacts(False, home=home, stale=found.pid is not None)
    try:
        answer = Api(endpoint(), timeout=client.STATUS_SECONDS).get("/api/v1/island")
        status = msgspec.convert(answer, DaemonStatus)
    except client.NoAnswer as error:
        return DaemonFacts(True, found.pid, home=home, silent=True, error=error.message, hint=error.hint)
    except Unreachable as error:
        hint = "It may still be starting. Otherwise see its log, and restart it."
        return DaemonFacts(True, found.pid, home=home, error=error.message, hint=hint)
    except IslandError as error:
        own = error.code == Unauthenticated.code and _is_of_home(place, endpoint)
        hint = _replaced_token(place, found) if own else ""
        return DaemonFacts(True, found.pid, home=home, error=error.message, hint=hint or error.hint)
    except (msgspec.ValidationError, RecursionError) as error:
        problem = f"its answer is not that of an island: {error}"
        return DaemonFacts(True, found.pid, home=home, error=problem, hint="Restart it, if it is of another version.")
    return DaemonFacts(
        running=True,
        home=home,
        pid=found.pid,
        state=status.state,
        problems=status.problems,
        discovery=status.discovery,
        version=status.version,
        program=__version__,
        configured_later=_changed_since(place.toml, found),
    )


def _is_of_home(place: Home, endpoint: Callable[[], Endpoint]) -> bool:
    """Return whether the token in use is that of the home folder."""
    try:
        return endpoint().token == place.endpoint().token
    except IslandError:
        return False


def _replaced_token(place: Home, found: Running) -> str:
    """Return what to do if a token in the home folder is newer than the daemon, which reads it when it starts."""
    for path in (place.token, place.user_token):
        if _changed_since(path, found):
            return f"{path.name} was changed after the daemon started: restart it."
    return ""


def _changed_since(path: Path, found: Running) -> bool:
    """Return whether a file is newer than the daemon; False if it is missing or not for this account."""
    try:
        return found.since is not None and path.stat().st_mtime > found.since
    except OSError:  # the checks of the configuration and of the secrets say so
        return False


def check_peers(endpoint: Callable[[], Endpoint]) -> PeerRows:
    """Let linked islands look at this one; None if the daemon does not answer in time."""
    try:
        answer = Api(endpoint(), timeout=_CHECK_SECONDS).post("/api/v1/peers/check", {})
        return msgspec.convert(answer, list[PeerRow])
    except (IslandError, msgspec.ValidationError, RecursionError):  # `ask` has reported it
        return None


def peers(settings: Config, rows: PeerRows) -> PeerFacts:
    """Return how this island can be dialled, with the answers of linked islands."""
    listen = settings.listen
    return PeerFacts(
        listen=listen.peer,
        loopback=bool(listen.peer) and is_loopback(split_address(listen.peer)[0]) and not listen.advertise,
        unknown_hosts=[each for each in listen.advertise if not _resolves(each)],
        views=None if rows is None else [PeerView(row.island, row.reached, row.reason) for row in rows],
    )


def other_clocks(rows: PeerRows) -> list[tuple[str, float, float]]:
    """Return the clocks of linked islands: name, how far it is ahead, maximum error, in seconds."""
    return [
        (row.island, row.clock_ahead_s, row.clock_error_s or 0.0) for row in rows or () if row.clock_ahead_s is not None
    ]


def _resolves(address: str) -> bool:
    try:
        socket.getaddrinfo(*split_address(address), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return True
