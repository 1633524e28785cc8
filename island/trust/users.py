"""Authentication of clients: two roles, each with a token in its own file."""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import blake3

from island.errors import ConfigError, Unauthenticated
from island.kernel.ports import Rng
from island.private_files import read_secret, secret_path, write_secret

Role = Literal["administrator", "user"]

TOKEN_FILES: dict[Role, str] = {"administrator": "token", "user": "token.user"}
_ALLOWED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


@dataclass(frozen=True, slots=True)
class Principal:
    """The role and user name of a request."""

    role: Role
    user: str

    @property
    def is_administrator(self) -> bool:
        """Whether the request may change the island."""
        return self.role == "administrator"


class Tokens:
    """The tokens that this island accepts. Only their hashes are kept in memory."""

    def __init__(self, tokens: dict[Role, str]) -> None:
        self._known = [(_digest(token), Principal(role, role)) for role, token in tokens.items()]

    @classmethod
    def load(cls, home: Path) -> Tokens:
        """Read the tokens of a home folder, or those that the service manager provides (see `secret_path`).

        Raises `ConfigError` if one is missing, exposed or malformed.
        """
        return cls({role: read_token(secret_path(home, name)) for role, name in TOKEN_FILES.items()})

    def principal(self, token: str) -> Principal:
        """Return the principal of a token, in constant time; raises `Unauthenticated` if it is unknown or empty."""
        given, found = _digest(token), None
        for digest, principal in self._known:
            if hmac.compare_digest(given, digest):
                found = principal
        if found is None:
            raise Unauthenticated(
                "this island does not know the token" if token else "a token is needed",
                hint="Use the token in HOME/token (administrator) or HOME/token.user (user).",
            )
        return found


def read_token(path: Path) -> str:
    """Read the token in a file; raises `ConfigError` if it is missing, exposed or malformed."""
    content = read_secret(path, "a token").strip()
    if len(content) < 16 or not _ALLOWED.issuperset(content):
        raise ConfigError(
            f"{path} does not contain a token",
            hint="A token is one line of at least 16 letters, digits, '_' and '-'.",
        )
    return content.decode("ascii")


def create_tokens(home: Path, rng: Rng) -> None:
    """Write a new token for each role, mode 0600; raises `ConfigError` if one exists."""
    for role, name in TOKEN_FILES.items():
        token = f"isl_{role[0]}_" + base64.urlsafe_b64encode(rng.bytes(24)).decode("ascii")
        write_secret(home / name, token.encode("ascii") + b"\n")


def _digest(token: str) -> bytes:
    return blake3.blake3(token.encode("utf-8", "replace")).digest()
