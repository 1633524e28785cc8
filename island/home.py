"""The home folder of an island, with its configuration, secrets and databases.

The daemon, the commands and `island://` find it in the same way: an explicit folder, else
`ISLAND_HOME`, else `~/.island`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from island import config
from island.errors import ConfigError, Conflict, Unauthenticated, Unreachable
from island.private_files import secret_path, secret_text
from island.regular_file import read_regular

RUNNING_LIMIT = 64 * 1024
"""Maximum size of `running.json`, in bytes."""


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

    @property
    def lock(self) -> Path:
        """File that the daemon, or a restore, holds locked while it uses the home folder."""
        return self.path / "lock"

    def exists(self) -> bool:
        """Return whether this folder is the home folder of an island."""
        return self.toml.exists() or self.key.exists()

    def is_free(self, *, but: Path | None = None) -> bool:
        """Return whether a home folder can be made here: nothing exists, or an empty folder. Raises `OSError`.

        The folder that `mkfs` makes at the root of a file system does not count, nor the file `but`.
        """
        if not os.path.lexists(self.path):
            return True
        return self.path.is_dir() and all(each == but or is_lost_and_found(each) for each in self.path.iterdir())

    def config(self) -> config.Config:
        """Read and check the configuration; raises `ConfigError`."""
        return config.load(self.toml)

    def url(self) -> str:
        """Return the URL of the user port: of the running daemon, else as configured. Raises `ConfigError`."""
        try:
            bound = json.loads(read_regular(self.running, RUNNING_LIMIT))
            return str(bound["url"])
        except (OSError, ValueError, KeyError, TypeError):
            # No daemon is running: use the configured address.
            return f"http://{self.config().listen.user}"

    def pid(self) -> int | None:
        """Return the process id that the daemon has written when it was ready; None if none is known."""
        try:
            return int(json.loads(read_regular(self.running, RUNNING_LIMIT))["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

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
            # A FIFO instead of the file would otherwise wait for a writer.
            descriptor = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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

    def check_account(self) -> None:
        """Raise `ConfigError` if this process runs as root and the home folder belongs to another account.

        Root could use it, but would leave files that the owner cannot open, and run the engine as root.
        """
        owner = self.path.stat().st_uid
        if os.geteuid() == 0 and owner != 0:
            name = account_name(owner)
            raise ConfigError(
                f"the home folder {self.path} belongs to {name}, and this command runs as root",
                hint=f"Run: runuser -u {name} -- island run --home {self.path}",
            )

    def _not_opened(self, path: Path, error: OSError) -> ConfigError:
        found = f"{path} cannot be opened: {error.strerror}"
        if error.errno == errno.EROFS:
            hint = "Look for disk errors in the system's log, and mount the disk for writing."
            return ConfigError(found, hint=hint)
        if error.errno != errno.EACCES:
            return ConfigError(found, hint="Check the home folder and its disk with `island doctor`.")
        owner = account_name((path if path.exists() else self.path).stat().st_uid)
        return ConfigError(
            f"{path} cannot be opened by {account_name(os.geteuid())}: it belongs to {owner}",
            hint=ownership_hint(owner, account_name(self.path.stat().st_uid), self.path),
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the home folder during the block.

        Raises `Conflict` if another daemon holds it, and `ConfigError` if its file cannot be opened for writing.
        """
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._not_opened(self.lock, error) from error
        try:
            if not self._take(descriptor):
                raise Conflict(
                    f"another daemon is already running with the home folder {self.path}",
                    hint="Stop it first, or use another home folder (--home).",
                )
            yield
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int) -> bool:
        """Lock the open file; False if another process holds it, or has deleted it since (a restore that failed)."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(descriptor), self.lock.stat())
        except (BlockingIOError, FileNotFoundError):
            return False


def is_lost_and_found(path: Path) -> bool:
    """Return whether this is the folder `lost+found` of a file system, which belongs to root and stays."""
    status = path.lstat()
    return path.name == "lost+found" and stat.S_ISDIR(status.st_mode) and status.st_uid == 0


def account_name(uid: int) -> str:
    """Return the name of an account, or its number if it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def ownership_hint(owner: str, home_owner: str, home: Path) -> str:
    """What to do if a file of `owner`, in a home folder of `home_owner`, cannot be opened by the account in use."""
    if owner == home_owner:
        return f"Run as {owner}: chmod -R u+rwX {home}"
    return f"Run as root: chown -R {home_owner}: {home}"


def token_in(file: str, named_by: str) -> str:
    """Return the token in a file that other accounts cannot read; `named_by` is where its path was given.

    Raises `ConfigError` if it cannot be read, or if others could read it.
    """
    try:
        return secret_text(Path(file).expanduser(), "a token", pipe=True)
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
