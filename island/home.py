"""An island's home: the folder with its configuration, secrets and databases.

The same rules find it for the daemon, the commands and `island://`: an explicit folder,
then `ISLAND_HOME`, then `~/.island`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from island import config
from island.errors import Conflict, Unauthenticated, Unreachable
from island.private_files import secret_text


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a daemon answers people, and the token to use there."""

    url: str
    token: str


@dataclass(frozen=True, slots=True)
class Home:
    """A home folder and what lies where in it."""

    path: Path

    @classmethod
    def find(cls, explicit: str | os.PathLike[str] | None = None) -> Home:
        """The home that is meant: `explicit`, else `ISLAND_HOME`, else `~/.island`."""
        chosen = explicit or os.environ.get("ISLAND_HOME") or Path.home() / ".island"
        return cls(Path(chosen).expanduser().absolute())

    @property
    def toml(self) -> Path:
        return self.path / "island.toml"

    @property
    def key(self) -> Path:
        return self.path / "key"

    @property
    def token(self) -> Path:
        """The administrator's token."""
        return self.path / "token"

    @property
    def user_token(self) -> Path:
        """The user's token: Livy, datasets, subscriptions of one's own."""
        return self.path / "token.user"

    @property
    def recovery_key(self) -> Path:
        """The recovery key of an archipelago that this island founded, until it is moved away."""
        return self.path / "recovery.key"

    @property
    def running(self) -> Path:
        """Written while the daemon serves: its pid and the ports it has bound."""
        return self.path / "running.json"

    def exists(self) -> bool:
        """Whether this folder is an island's home."""
        return self.toml.exists() or self.key.exists()

    def config(self) -> config.Config:
        """The checked configuration; raises `ConfigError`."""
        return config.load(self.toml)

    def url(self) -> str:
        """The URL of the user port: as bound now, else as configured."""
        try:
            bound = json.loads(self.running.read_text("utf-8"))
            return str(bound["url"])
        except (OSError, ValueError, KeyError, TypeError):
            # No daemon has written it: the configured address is the best answer there is.
            return f"http://{self.config().listen.user}"

    def endpoint(self) -> Endpoint:
        """URL and token for the commands: the administrator's token if it can be read, else the user's."""
        url = self.url()
        for path in (self.token, self.user_token):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                return Endpoint(url, secret_text(path, "a token"))
        raise Unauthenticated(
            f"no token can be read in {self.path}",
            hint="Give one with --token-file or ISLAND_TOKEN, or run as the owner.",
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the home's lock; raises `Conflict` when another daemon has it."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict(
                    f"another daemon already runs on {self.path}",
                    hint="Stop it first, or give this one a home of its own (--home).",
                ) from error
            yield
        finally:
            os.close(descriptor)


def unreachable(url: str, error: Exception) -> Unreachable:
    """The error for a daemon that does not answer at `url`."""
    return Unreachable(
        f"no island answers at {url}: {error}",
        hint="Start it with `island run`, or select another with --home or --url.",
    )
