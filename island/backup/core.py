"""What a valid backup contains. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection

from island.backup.messages import ArchivedFile, BackupManifest
from island.errors import Corrupt

LAST = ("island.toml", "key")
"""The last files of a backup, in this order: without them an incomplete copy is not a home folder.

A restore writes them under other names, until its changes to the databases are on disk.
"""

REQUIRED = ("state.db", "token", "token.user", *LAST)

SECRET_LIMIT = 1024 * 1024
"""Maximum size in bytes of a file that is not a database, a pack or a segment."""

_MARGIN = 1024 * 1024
"""Space in bytes for folders, and for the indices of write-ahead logs."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,3}\Z")
_EXCLUDED = frozenset({"lock", "running.json"})


def is_archivable(name: str) -> bool:
    """Whether a backup may have a file of this name: relative, without `..`, hidden files and unusual characters."""
    return len(name) <= 100 and _NAME.match(name) is not None and name not in _EXCLUDED


def check(manifest: BackupManifest, what: str) -> None:
    """Raise `Corrupt` if the manifest is not that of a complete backup. `what` names the file in the message."""
    if problem := _problem(manifest.files):
        raise damaged(what, problem)


def _problem(files: Collection[ArchivedFile]) -> str:
    names = [file.name for file in files]
    if bad := next((name for name in names if not is_archivable(name)), None):
        return f"it has a file with the name {bad[:100]!r}"
    if len(set(names)) < len(names):
        return "it has two files of one name"
    folders = {name[:at] for name in names for at, letter in enumerate(name) if letter == "/"}
    if both := sorted(folders.intersection(names)):
        return f"{both[0]} is a file and a folder"
    if missing := [name for name in REQUIRED if name not in names]:
        return f"{missing[0]} is missing"
    if tuple(names[-len(LAST) :]) != LAST:
        return f"its last files are not {' and '.join(LAST)}"
    small = (file for file in files if "/" not in file.name and not file.name.endswith(".db"))
    if over := next((file.name for file in small if file.size > SECRET_LIMIT), None):
        return f"{over} is larger than {SECRET_LIMIT} bytes"
    return ""


def total_bytes(manifest: BackupManifest) -> int:
    """The size of all files."""
    return sum(file.size for file in manifest.files)


def bytes_to_restore(manifest: BackupManifest) -> int:
    """The space that a restore needs: a migration of state.db may write every page to its log first."""
    return total_bytes(manifest) + sum(file.size for file in manifest.files if file.name == "state.db") + _MARGIN


def damaged(what: str, problem: str) -> Corrupt:
    """The error for a file that is not a complete, unchanged backup."""
    return Corrupt(f"{what} is not a usable backup: {problem}", hint="Nothing was changed. Use another backup.")
