"""Authentication of clients: two roles, the tokens in the home folder, and the tokens of users of their own."""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import blake3

from island.errors import BadInput, ConfigError, Unauthenticated
from island.kernel.ports import Clock, Rng, SystemClock
from island.private_files import read_secret, secret_path, write_secret

Role = Literal["administrator", "user"]

TOKEN_FILES: dict[Role, str] = {"administrator": "token", "user": "token.user"}
RESERVED_NAMES: Final = frozenset({"administrator", "invitation", "members", "user"})
"""Names that no user can have: those of the tokens in the home folder, and words of the journal and configuration."""

_ALLOWED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SELECTOR_BYTES = 16
_CLOCK_ERROR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Principal:
    """The role and user name of a request."""

    role: Role
    user: str

    @property
    def is_administrator(self) -> bool:
        """Whether the request may change the island."""
        return self.role == "administrator"


@dataclass(frozen=True, slots=True)
class UserRow:
    """A user with a token of her own, as stored. Times are Unix seconds; `expires` is None for a token without end.

    `token_hash` is None if her token was revoked at `revoked`.
    """

    name: str
    role: Role
    token_hash: bytes | None
    created: float
    issued: float
    expires: float | None
    revoked: float | None

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        """Whether her token is accepted at `now` (Unix seconds)."""
        if self.token_hash is None:
            return "revoked"
        return "active" if self.expires is None or now < self.expires else "expired"


class _Known:
    """The hash of a token that is accepted, and until when."""

    __slots__ = ("_deadline", "_expires", "_issued", "digest", "principal")

    def __init__(self, digest: bytes, principal: Principal, issued: float = 0.0, expires: float | None = None) -> None:
        self.digest, self.principal = digest, principal
        self._issued, self._expires = issued, expires
        self._deadline: float | None = None

    def is_valid(self, clock: Clock) -> bool:
        """Whether the token has not expired by the wall clock, nor by the time since it was first found valid.

        A wall clock that is set back does not prolong it. One that is far before the time of issue is wrong, as on a
        machine that has lost its time, and the token is refused until the clock is corrected.
        """
        if self._expires is None:
            return True
        now = clock.wall()
        if not self._issued - _CLOCK_ERROR_S <= now < self._expires:
            return False
        if self._deadline is None:
            self._deadline = clock.boottime() + self._expires - now
        return clock.boottime() < self._deadline


class Tokens:
    """The tokens that this island accepts. Only their hashes are kept in memory.

    `tokens` are those of the home folder, by role. `put_user` adds those of users.
    """

    def __init__(self, tokens: Mapping[Role, str], clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._known: dict[bytes, _Known] = {}
        self._selectors: dict[str, bytes] = {}
        for role, token in tokens.items():
            self._add(_Known(token_hash(token), Principal(role, role)))

    @classmethod
    def load(cls, home: Path, *, shared: bool = True, clock: Clock | None = None) -> Tokens:
        """Read the tokens of a home folder, or those that the service manager provides (see `secret_path`).

        Without `shared`, the users' shared token is read and checked, but not accepted. Raises `ConfigError` if a
        token is missing, exposed or malformed.
        """
        found = {role: read_token(secret_path(home, name)) for role, name in TOKEN_FILES.items()}
        return cls({role: token for role, token in found.items() if shared or role != "user"}, clock)

    def put_users(self, users: Iterable[UserRow]) -> None:
        """Accept the tokens of these users from now on, and no earlier tokens of theirs."""
        for user in users:
            if (selector := self._selectors.pop(user.name, None)) is not None:
                del self._known[selector]
            if user.token_hash is not None:
                self._selectors[user.name] = self._add(
                    _Known(user.token_hash, Principal(user.role, user.name), user.issued, user.expires)
                )

    def principal(self, token: str) -> Principal:
        """Return the principal of a token.

        Raises the same `Unauthenticated` for a token that is unknown, was revoked or has expired. The time that it
        takes depends on the hash of the token at most, from which no token can be found.
        """
        digest = token_hash(token)
        known = self._known.get(digest[:_SELECTOR_BYTES], _NOBODY)
        if hmac.compare_digest(digest, known.digest) and known is not _NOBODY and known.is_valid(self._clock):
            return known.principal
        raise Unauthenticated(
            "this island does not know the token" if token else "a token is needed",
            hint="It may have been replaced or revoked, or have expired. An administrator can make a new one:"
            " `island user rotate NAME`, or `island user add NAME` for a new user.",
        )

    def _add(self, known: _Known) -> bytes:
        selector = known.digest[:_SELECTOR_BYTES]
        self._known[selector] = known
        return selector


def token_hash(token: str) -> bytes:
    """The hash by which a token is stored and looked up (32 bytes).

    A token has 192 random bits, so that nobody can find it by trying, and a hash that is slow on purpose, as for
    passwords, would only slow down each request.
    """
    return blake3.blake3(token.encode("utf-8", "replace"), derive_key_context="island/1/token").digest()


_NOBODY = _Known(token_hash(""), Principal("user", ""))


def new_token(role: Role, rng: Rng) -> str:
    """A new random token. Its first letters show what it is where it turns up by mistake."""
    return f"isl_{role[0]}_" + base64.urlsafe_b64encode(rng.bytes(24)).decode("ascii")


def check_user_name(name: str) -> str:
    """Return `name` if a user can have it; raises `BadInput`."""
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"'{name[:80]}' is not a valid user name",
            hint="A name has 1 to 64 lower-case letters, digits, '.', '_' and '-', and begins with a letter or digit.",
        )
    if name in RESERVED_NAMES:
        raise BadInput(f"the user name '{name}' is reserved", hint="Choose another name.")
    return name


def read_token(path: Path) -> str:
    """Read the token in a file; raises `ConfigError` if it is missing, exposed or malformed."""
    return parse_token(read_secret(path, "a token"), str(path))


def parse_token(content: bytes, where: str) -> str:
    """Return the token in the content of a file; `where` is its origin for messages. Raises `ConfigError`."""
    content = content.strip()
    if len(content) < 16 or not _ALLOWED.issuperset(content):
        raise ConfigError(
            f"{where} does not contain a token",
            hint="A token is one line of at least 16 letters, digits, '_' and '-'.",
        )
    return content.decode("ascii")


def create_tokens(home: Path, rng: Rng) -> None:
    """Write a new token for each role, mode 0600; raises `ConfigError` if one exists."""
    for role, name in TOKEN_FILES.items():
        write_secret(home / name, new_token(role, rng).encode("ascii") + b"\n")
