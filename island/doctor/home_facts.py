"""Collects facts about the home folder: owners, modes and secrets."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from island.doctor.facts import DeniedFile, EntryFacts, HomeFacts, SecretFacts
from island.errors import ConfigError
from island.home import Home, account_name, is_lost_and_found, ownership_hint
from island.private_files import OTHERS
from island.trust.keys import Identity
from island.trust.users import TOKEN_FILES, read_token


def home(place: Home) -> HomeFacts:
    """Return what is known about the home folder itself."""
    path = place.path
    me = account_name(os.geteuid())
    try:
        status = path.stat()
    except PermissionError:  # a folder above it
        return HomeFacts(str(path), True, False, "", me, 0, False, False)
    except OSError:
        return HomeFacts(str(path), False, False, "", me, 0, False, False)
    readable = _allowed(path, os.R_OK | os.X_OK)
    return HomeFacts(
        path=str(path),
        exists=True,
        is_island=readable and place.exists(),
        owner=account_name(status.st_uid),
        account=me,
        mode=stat.S_IMODE(status.st_mode),
        readable=readable,
        writable=_allowed(path, os.W_OK),
        read_only=bool(os.statvfs(path).f_flag & os.ST_RDONLY),
    )


def _allowed(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def denied(folder: Path, paths: Iterable[Path]) -> DeniedFile | None:
    """Return the first of these files of a home folder that exists and that this account may not read."""
    for path in paths:
        if path.exists() and not _allowed(path, os.R_OK):
            owner = account_name(path.stat().st_uid)
            hint = ownership_hint(owner, account_name(folder.stat().st_uid), folder)
            return DeniedFile(path.name, owner, account_name(os.geteuid()), hint)
    return None


def secrets(place: Home) -> list[SecretFacts]:
    """Read the key and the tokens as the daemon does."""
    found = []
    for path in (place.key, place.token, place.user_token):
        try:
            if path == place.key:
                Identity.load(path)
            else:
                read_token(path)
        except ConfigError as error:
            found.append(SecretFacts(path.name, error.message, error.hint))
        else:
            found.append(SecretFacts(path.name))
    return found


def entries(place: Home) -> EntryFacts:
    """Return the direct entries of the home folder that other accounts can access or own, without the secrets."""
    secret = {place.key.name, *TOKEN_FILES.values()}
    owner = place.path.stat().st_uid
    found = [(name, status) for name, status in _entries(place.path) if not is_lost_and_found(place.path / name)]
    return EntryFacts(
        open=[name for name, status in found if stat.S_IMODE(status.st_mode) & OTHERS and name not in secret],
        foreign=[name for name, status in found if status.st_uid != owner],
        home=str(place.path),
        owner=account_name(owner),
    )


def _entries(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # a running daemon creates and deletes files
            status = path.lstat()
            if not stat.S_ISLNK(status.st_mode):
                yield path.name, status


def newest_change(place: Home) -> float:
    """Return when the databases were last changed, in Unix seconds; 0 if there are none."""
    return max((status.st_mtime for name, status in _entries(place.path) if ".db" in name), default=0.0)
