"""Collects facts about the engine: Java and PySpark for the embedded one, or the Livy of the site."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import os
import pwd
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from island.config import EngineSection
from island.doctor.config_file import password_in
from island.doctor.facts import EngineFacts, EngineFileFacts
from island.engine.jvm import find_java, ignored_java_home
from island.errors import EngineFailed, IslandError
from island.home import account_name
from island.jobs.engines import clients, configured
from island.jobs.engines.files import shared_folder_problem
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


def livy(home: Path, settings: EngineSection, clock: Clock) -> tuple[EngineFacts, OtherClock | None]:
    """Ask a Livy of the site for its version; also return how its clock differs, if its answer tells."""
    name = "" if settings.name == configured.LIVY else settings.name
    section = "[[engine]]" if name else "[livy]"
    hint = f"Check {section} url, and that the server runs: curl -i URL/version"

    def failed(error: str, hint: str) -> EngineFacts:
        return EngineFacts(settings.url, error=error, hint=hint, engine=name)

    try:
        headers = _authorization(home, settings)
        tls = clients.tls(home, settings)
    except IslandError as error:
        return failed(f"Livy was not asked: {error.message}", error.hint), None
    try:
        began, wall = clock.monotonic(), clock.wall()
        status, date, body = _in_time(lambda: _get(settings.url, headers, tls))
        half = (clock.monotonic() - began) / 2
    except (OSError, http.client.HTTPException, ValueError) as error:
        return failed(f"Livy does not answer at {settings.url}: {error}", hint), None
    other = (date - (wall + half), half + _DATE_ERROR_S) if date is not None else None
    if status in {401, 403}:
        found = f"Livy at {settings.url} refuses the user name and password (HTTP status {status})"
        keys = "user and the file of password_file" if name else "livy.user and the file of livy.password_file"
        return failed(found, f"Correct {keys}."), other
    try:
        version = str(json.loads(body)["version"]) if status == 200 else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        version = ""
    if not version:
        found = f"the server at {settings.url} is not a Livy: GET /version answers with status {status} and no version"
        return failed(found, hint), other
    return EngineFacts(settings.url, version[:100], engine=name), other


def files(home: Path, settings: EngineSection) -> EngineFileFacts:
    """Look whether the accounts of a Livy can read what this island gives to its jobs. Raises `OSError`."""
    folder = Path(settings.shared_folder) if settings.shared_folder else home
    problem = shared_folder_problem(folder) if settings.shared_folder else ""
    accounts = livy_accounts(settings.url)
    denied = [] if problem else [each for each in accounts or () if not can_read(folder, each)]
    return EngineFileFacts(settings.name, str(folder), bool(settings.shared_folder), problem, accounts, denied)


def can_read(folder: Path, account: str) -> bool:
    """Whether an account can list a folder, by the modes of it and of the folders in which it is. Raises `OSError`."""
    try:
        entry = pwd.getpwnam(account)
        user, groups = entry.pw_uid, set(os.getgrouplist(account, entry.pw_gid))
    except KeyError:  # a number without a name
        user, groups = int(account) if account.isdigit() else -1, set()

    def may(path: Path, bits: int) -> bool:
        info = path.stat()
        shift = 6 if info.st_uid == user else 3 if info.st_gid in groups else 0
        return (info.st_mode >> shift) & bits == bits

    real = folder.resolve()
    return user == 0 or (may(real, 0o5) and all(may(parent, 0o1) for parent in real.parents))


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


def _authorization(home: Path, settings: EngineSection) -> dict[str, str]:
    """Return the header with which the daemon logs in; raises `IslandError` if the password cannot be read."""
    if settings.kerberos:
        return {"Authorization": clients.negotiate(urlsplit(settings.url).hostname or "")}
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


def _get(url: str, headers: dict[str, str], tls: ssl.SSLContext | None) -> _Answer:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=tls)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
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
