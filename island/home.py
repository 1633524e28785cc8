"""The home folder of an island, with its configuration, secrets and databases.

The daemon, the commands and `island://` find it in the same way: an explicit folder, else
`ISLAND_HOME`, else `~/.island`.
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
from island.errors import ConfigError, Conflict, Unauthenticated, Unreachable
from island.private_files import secret_path, secret_text


@dataclass(frozen=True, slots=True)
class Endpoint:
    """URL of a daemon's user port, and a token for it."""

    url: str
    token: str


@dataclass(frozen=True, slots=True)
class Home:
    """A home folder and the paths of the files in it."""

    path: Path

    @classmethod
    def find(cls, explicit: str | os.PathLike[str] | None = None) -> Home:
        """Return the home folder: `explicit`, else `ISLAND_HOME`, else `~/.island`. It need not exist."""
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
        """File with the administrator's token, or the service manager's credential for it (see `secret_path`)."""
        return secret_path(self.path, "token")

    @property
    def user_token(self) -> Path:
        """File with the user's token, or the service manager's credential for it (see `secret_path`)."""
        return secret_path(self.path, "token.user")

    @property
    def recovery_key(self) -> Path:
        """File with the recovery key of the archipelago that this island founded, until it is moved elsewhere."""
        return self.path / "recovery.key"

    @property
    def running(self) -> Path:
        """File with the daemon's pid and ports, which exists while the daemon is running."""
        return self.path / "running.json"

    def exists(self) -> bool:
        """Return whether this folder is the home folder of an island."""
        return self.toml.exists() or self.key.exists()

    def config(self) -> config.Config:
        """Read and check the configuration; raises `ConfigError`."""
        return config.load(self.toml)

    def url(self) -> str:
        """Return the URL of the user port: of the running daemon, else as configured. Raises `ConfigError`."""
        try:
            bound = json.loads(self.running.read_text("utf-8"))
            return str(bound["url"])
        except (OSError, ValueError, KeyError, TypeError):
            # No daemon is running: use the configured address.
            return f"http://{self.config().listen.user}"

    def endpoint(self) -> Endpoint:
        """Return the URL and a token for commands: the administrator's token if it can be read, else the user's.

        Raises `Unauthenticated` if neither can be read.
        """
        url = self.url()
        for path in (self.token, self.user_token):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                return Endpoint(url, secret_text(path, "a token"))
        raise Unauthenticated(
            f"no token can be read in {self.path}",
            hint="Set ISLAND_TOKEN_FILE or ISLAND_TOKEN, or use the account that owns the home folder.",
        )

    def in_use(self) -> bool:
        """Return whether a daemon runs with this home folder. Raises `OSError` if its lock cannot be opened."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            # Shared, so that two of these questions do not disturb each other.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the home folder during the block; raises `Conflict` if another daemon holds it."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict(
                    f"another daemon is already running with the home folder {self.path}",
                    hint="Stop it first, or use another home folder (--home).",
                ) from error
            yield
        finally:
            os.close(descriptor)


def token_in(file: str, named_by: str) -> str:
    """Return the token in a file that other accounts cannot read; `named_by` is where its path was given.

    Raises `ConfigError` if it cannot be read, or if others could read it.
    """
    try:
        return secret_text(Path(file).expanduser(), "a token")
    except OSError as error:
        raise ConfigError(
            f"the token file {file} cannot be read: {error.strerror}",
            hint=f"Check the path given with {named_by} and the permissions of the file.",
        ) from error


def token_of_environment() -> str:
    """Return `ISLAND_TOKEN`, else the token in the file `ISLAND_TOKEN_FILE`; "" if neither is set.

    Raises `ConfigError` as `token_in` does.
    """
    if token := os.environ.get("ISLAND_TOKEN"):
        return token
    file = os.environ.get("ISLAND_TOKEN_FILE")
    return token_in(file, "ISLAND_TOKEN_FILE") if file else ""


def unreachable(url: str, error: Exception) -> Unreachable:
    """Return the error for a daemon that does not answer at `url`."""
    return Unreachable(
        f"no island answers at {url}: {error}",
        hint="Start it with `island run`, or select another with --home or --url.",
    )
