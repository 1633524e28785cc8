"""Who speaks to an island: two roles, each with a token in a file of its own."""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import blake3

from island.errors import ConfigError, Unauthenticated
from island.kernel.ports import Rng
from island.private_files import read_secret, write_secret

Role = Literal["administrator", "user"]

TOKEN_FILES: dict[Role, str] = {"administrator": "token", "user": "token.user"}
_ALLOWED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request."""

    role: Role
    user: str

    @property
    def is_administrator(self) -> bool:
        """Whether this one may change the island."""
        return self.role == "administrator"


class Tokens:
    """The tokens that this island knows; only their hashes are kept in memory."""

    def __init__(self, tokens: dict[Role, str]) -> None:
        self._known = [(_digest(token), Principal(role, role)) for role, token in tokens.items()]

    @classmethod
    def load(cls, home: Path) -> Tokens:
        """The tokens of a home; raises `ConfigError` if one is missing, exposed or malformed."""
        return cls({role: read_token(home / name) for role, name in TOKEN_FILES.items()})

    def principal(self, token: str) -> Principal:
        """Whose token this is; raises `Unauthenticated`. Takes the same time whatever the token."""
        given, found = _digest(token), None
        for digest, principal in self._known:
            if hmac.compare_digest(given, digest):
                found = principal
        if found is None:
            raise Unauthenticated(
                "this island does not know the token" if token else "a token is needed",
                hint="Use the one in HOME/token (administrator) or HOME/token.user.",
            )
        return found


def read_token(path: Path) -> str:
    """The token in a file; raises `ConfigError` if it is missing, exposed or malformed."""
    content = read_secret(path, "a token").strip()
    if len(content) < 16 or not _ALLOWED.issuperset(content):
        raise ConfigError(
            f"{path} does not hold a token", hint="A token is one line of at least 16 letters, digits, '_' and '-'."
        )
    return content.decode("ascii")


def create_tokens(home: Path, rng: Rng) -> None:
    """Write a new token for each role, mode 0600; raises `ConfigError` if one exists."""
    for role, name in TOKEN_FILES.items():
        token = f"isl_{role[0]}_" + base64.urlsafe_b64encode(rng.bytes(24)).decode("ascii")
        write_secret(home / name, token.encode("ascii") + b"\n")


def _digest(token: str) -> bytes:
    return blake3.blake3(token.encode("utf-8", "replace")).digest()
