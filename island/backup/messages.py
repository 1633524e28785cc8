"""The manifest of a backup. See `protocols/backup-v1.md`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

FORMAT = 1
"""The version of the format that this program writes, and the newest that it reads."""

MAX_FILES = 100_000

AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\x00]*\Z", max_length=4096)]
Hex64 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", max_length=64)]


class ArchivedFile(msgspec.Struct, frozen=True):
    """One file of a home folder in a backup. `name` is its path below the home folder."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    size: Annotated[int, Meta(ge=0, le=2**53)]
    sha256: Hex64
    modified_ns: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    """When it was modified, in nanoseconds since 1970. Published files are recognized by this time."""


class BackupManifest(msgspec.Struct, frozen=True):
    """What a backup contains, and of which island."""

    format: Annotated[int, Meta(ge=1, le=2**31)]
    island: Annotated[str, Meta(min_length=1, max_length=64)]
    key: Hex64
    """The public key of the island."""
    version: Annotated[str, Meta(max_length=64)]
    """The version of the program that made the backup."""
    made: Annotated[str, Meta(max_length=40)]
    """When the backup was begun: ISO 8601 in UTC, by the clock of the island's machine."""
    home: AbsolutePath
    """The absolute path of the home folder."""
    real_home: AbsolutePath
    """The same without symbolic links."""
    streams: bool
    """Whether the rows that subscriptions have received are included."""
    files: Annotated[tuple[ArchivedFile, ...], Meta(max_length=MAX_FILES)]
    """All files, in their order in the archive."""
