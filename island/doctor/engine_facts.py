"""Collects facts about the engine: Java and PySpark for the embedded one, or the Livy of the site."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import socket
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from island.config import LivySection
from island.doctor.facts import EngineFacts
from island.engine.jvm import find_java
from island.errors import EngineFailed, IslandError
from island.home import account_name
from island.kernel.listening import is_own_address, listening_sockets
from island.kernel.ports import Clock
from island.livy.authorization import authorization, own_livy_login
from island.private_files import secret_text

_TIMEOUT_S = 10.0
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
        return EngineFacts("", version, java=str(find_java(environ)))
    except EngineFailed as error:
        return EngineFacts("", version, error=error.message, hint=error.hint)


def livy(home: Path, settings: LivySection, clock: Clock) -> tuple[EngineFacts, OtherClock | None]:
    """Ask the Livy of the site for its version; also return how its clock differs, if its answer tells."""
    hint = "Check [livy] url, and that the server runs: curl -i URL/version"
    try:
        headers = _authorization(home, settings)
        began, wall = clock.monotonic(), clock.wall()
        status, date, body = _get(settings.url, headers)
        half = (clock.monotonic() - began) / 2
    except IslandError as error:
        return EngineFacts(settings.url, error=error.message, hint=error.hint), None
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
    except (ValueError, KeyError, TypeError):
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
    """Return the header with which the daemon logs in; raises `IslandError` and `OSError`."""
    password = secret_text(home / settings.password_file, "a password") if settings.password_file else ""
    return authorization(own_livy_login(settings.user, password))


def _get(url: str, headers: dict[str, str]) -> tuple[int, float | None, bytes]:
    """Return status, Date header in Unix seconds, and the start of the body."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", parts.path.rstrip("/") + "/version", headers=headers)
        answer = connection.getresponse()
        date = answer.getheader("Date")
        return answer.status, parsedate_to_datetime(date).timestamp() if date else None, answer.read(_ANSWER_LIMIT)
    finally:
        connection.close()
