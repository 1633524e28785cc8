"""Collects facts about the engine: Java and PySpark for the embedded one, or the Livy of the site."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import queue
import socket
import threading
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from island.config import LivySection
from island.doctor.config_file import password_in
from island.doctor.facts import EngineFacts
from island.engine.jvm import find_java, ignored_java_home
from island.errors import EngineFailed, IslandError
from island.home import account_name
from island.kernel.listening import is_own_address, listening_sockets
from island.kernel.ports import Clock
from island.livy.authorization import authorization, own_livy_login

_TIMEOUT_S = 10.0
"""For the whole answer of Livy, from the look-up of its name to its last byte."""
_ANSWER_LIMIT = 64 * 1024
_DATE_ERROR_S = 1.0
"""The Date header of HTTP has whole seconds."""

OtherClock = tuple[float, float]
"""By how many seconds another clock is ahead, and the maximum error of that."""


def embedded(environ: Mapping[str, str]) -> EngineFacts:
    """Look for PySpark in this environment, and for a Java that it works with."""
    try:
        version = importlib.metadata.version("pyspark")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    try:
        return EngineFacts("", version, java=str(find_java(environ)), ignored=ignored_java_home(environ))
    except EngineFailed as error:
        return EngineFacts("", version, error=error.message, hint=error.hint)


def livy(home: Path, settings: LivySection, clock: Clock) -> tuple[EngineFacts, OtherClock | None]:
    """Ask the Livy of the site for its version; also return how its clock differs, if its answer tells."""
    hint = "Check [livy] url, and that the server runs: curl -i URL/version"
    try:
        headers = _authorization(home, settings)
    except IslandError as error:
        return EngineFacts(settings.url, error=f"Livy was not asked: {error.message}", hint=error.hint), None
    try:
        began, wall = clock.monotonic(), clock.wall()
        status, date, body = _in_time(lambda: _get(settings.url, headers))
        half = (clock.monotonic() - began) / 2
    except (OSError, http.client.HTTPException, ValueError) as error:
        return EngineFacts(settings.url, error=f"Livy does not answer at {settings.url}: {error}", hint=hint), None
    other = (date - (wall + half), half + _DATE_ERROR_S) if date is not None else None
    if status in {401, 403}:
        found = f"Livy at {settings.url} refuses the user name and password (HTTP status {status})"
        return EngineFacts(
            settings.url, error=found, hint="Correct livy.user and the file of livy.password_file."
        ), other
    try:
        version = str(json.loads(body)["version"]) if status == 200 else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        version = ""
    if not version:
        found = f"the server at {settings.url} is not a Livy: GET /version answers with status {status} and no version"
        return EngineFacts(settings.url, error=found, hint=hint), other
    return EngineFacts(settings.url, version[:100]), other


def livy_accounts(url: str) -> list[str] | None:
    """Return the accounts of the programs that listen at the port of a URL; None if it is on another machine.

    Raises `OSError` if its host name cannot be resolved.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    if not any(is_own_address(str(address[0])) for *_, address in found):
        return None
    return sorted({account_name(each.uid) for each in listening_sockets(port)})


def _authorization(home: Path, settings: LivySection) -> dict[str, str]:
    """Return the header with which the daemon logs in; raises `IslandError` if the password cannot be read."""
    password = password_in(home / settings.password_file) if settings.password_file else ""
    return authorization(own_livy_login(settings.user, password))


_Answer = tuple[int, float | None, bytes]
"""Status, Date header in Unix seconds, and the start of the body."""


def _in_time(get: Callable[[], _Answer]) -> _Answer:
    """Run `get` in a thread, because the timeout of a socket is for each byte. Raises `TimeoutError`, and as `get`.

    A thread that is late is left alone; it does not keep the process from ending.
    """
    outcome: queue.SimpleQueue[_Answer | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(get())
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that waits
            outcome.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        found = outcome.get(timeout=_TIMEOUT_S)
    except queue.Empty:
        raise TimeoutError(f"no complete answer within {_TIMEOUT_S:g} seconds") from None
    if isinstance(found, Exception):
        raise found
    return found


def _get(url: str, headers: dict[str, str]) -> _Answer:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", parts.path.rstrip("/") + "/version", headers=headers)
        answer = connection.getresponse()
        return answer.status, _seconds(answer.getheader("Date")), answer.read(_ANSWER_LIMIT)
    finally:
        connection.close()


def _seconds(date: str | None) -> float | None:
    """Return a Date header in Unix seconds; None if there is none, or it is not a date."""
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except (ValueError, OverflowError, TypeError):
        return None
