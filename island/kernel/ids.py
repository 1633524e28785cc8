"""Identifiers of islands, datasets and jobs, and their names.

An island *is* its Ed25519 public key; `IslandId` is that key as 64 lower-case hex digits,
which sorts in the same order as the raw key. Names are for display, and two islands may claim the
same one; `NAME.KEYPREFIX` distinguishes them (`protocols/trust-v1.md`).
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import NewType

from island.errors import BadInput

IslandId = NewType("IslandId", str)
"""An Ed25519 public key, 64 lower-case hex digits."""

NetworkId = NewType("NetworkId", str)
"""BLAKE3 of a genesis record, 64 lower-case hex digits."""

KEY_PREFIX_DIGITS = 10
"""Number of hex digits of a key in public job ids and in `NAME.KEYPREFIX` (40 bits)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
_HEX_PREFIX = re.compile(r"[0-9a-f]{4,64}\Z")
_JOB = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.[0-9a-f]{10}\Z")


def island_id(public_key: bytes) -> IslandId:
    """Return the id of the island with this raw Ed25519 public key; raises `BadInput` unless it has 32 bytes."""
    if len(public_key) != 32:
        raise BadInput(f"an island's key has 32 bytes, not {len(public_key)}")
    return IslandId(public_key.hex())


def parse_island_id(text: str) -> IslandId:
    """Return `text` as an island id; raises `BadInput` unless it is 64 lower-case hex digits."""
    if not _HEX64.match(text):
        raise BadInput(f"'{text[:80]}' is not an island's key", hint="A key has 64 hexadecimal digits.")
    return IslandId(text)


def key_bytes(island: IslandId) -> bytes:
    """The raw 32-byte public key of an island."""
    return bytes.fromhex(island)


def key_prefix(island: IslandId) -> str:
    """The first `KEY_PREFIX_DIGITS` hex digits of a key."""
    return island[:KEY_PREFIX_DIGITS]


def check_name(text: str, what: str = "name") -> str:
    """Return `text` if it is a valid name; raises `BadInput` otherwise, with the allowed characters as hint."""
    if not isinstance(text, str) or not _NAME.match(text):
        shown = repr(text if len(str(text)) <= 80 else str(text)[:77] + "...")
        raise BadInput(
            f"{shown} is not a valid {what}",
            hint="Use 1 to 64 letters, digits, '.', '_' and '-', beginning with a letter or a digit.",
        )
    return text


def is_name(text: str) -> bool:
    """Whether `text` is a valid name of an island, a dataset or a source."""
    return bool(_NAME.match(text))


def is_key_prefix(text: str) -> bool:
    """Whether `text` has the form of a key or of a prefix of a key (4 to 64 hex digits)."""
    return bool(_HEX_PREFIX.match(text))


def check_hash(text: str, what: str = "hash") -> str:
    """Return `text` if it is 64 lower-case hex digits; raises `BadInput` otherwise."""
    if not _HEX64.match(text):
        raise BadInput(f"'{text[:80]}' is not a {what}", hint="Expected 64 hexadecimal digits.")
    return text


@dataclass(frozen=True, slots=True, order=True)
class DatasetName:
    """The name of a dataset as users write it: `OWNER/NAME[@SNAPSHOT]`.

    `owner` is an island's name, `NAME.KEYPREFIX` or a key. `snapshot` is a full hash, a
    prefix of at least 4 hex digits, or empty for the newest snapshot.
    """

    owner: str
    name: str
    snapshot: str = ""

    @classmethod
    def parse(cls, text: str) -> DatasetName:
        """Parse `OWNER/NAME[@SNAPSHOT]`; raises `BadInput` with the expected form as hint."""
        head, _, snapshot = text.strip().removeprefix("island://").partition("@")
        owner, slash, name = head.partition("/")
        if not slash or not is_key_prefix(snapshot or "0000"):
            raise BadInput(
                f"'{text[:200]}' does not name a dataset",
                hint="Write OWNER/NAME or OWNER/NAME@SNAPSHOT; `island dataset ls` shows them.",
            )
        return cls(check_owner(owner), check_name(name, "dataset name"), snapshot)

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}" + (f"@{self.snapshot}" if self.snapshot else "")


def check_owner(text: str) -> str:
    """Return `text` if it has the form of an island's name, `NAME.KEYPREFIX` or a key; raises `BadInput` otherwise."""
    if _HEX64.match(text):
        return text
    name, dot, prefix = text.rpartition(".")
    if dot and is_key_prefix(prefix) and _NAME.match(name):
        return text
    return check_name(text, "island name")


def uuid7(unix_seconds: float, entropy: bytes) -> str:
    """Build a UUID version 7 (RFC 9562, 5.7) from a Unix time in seconds and 10 random bytes."""
    if len(entropy) != 10:
        raise BadInput("uuid7 takes 10 bytes of entropy")
    milliseconds = int(unix_seconds * 1000) & (1 << 48) - 1
    value = milliseconds << 80 | int.from_bytes(entropy, "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def job_id(unix_seconds: float, entropy: bytes, home: IslandId) -> str:
    """Build a public job id, `UUIDv7.KEYPREFIX`. The key prefix is that of its home: the island to ask about it."""
    return f"{uuid7(unix_seconds, entropy)}.{key_prefix(home)}"


def is_job_id(text: str) -> bool:
    """Whether `text` is a whole public job id."""
    return bool(_JOB.match(text))
