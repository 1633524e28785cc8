"""Files that only their owner can read: secrets, databases, and everything else in a home folder."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from island.errors import ConfigError
from island.regular_file import open_regular

SECRET_LIMIT = 16 * 1024
"""Maximum size of a secret file, in bytes."""

OTHERS = 0o077
"""Mode bits that give permissions to group and others."""

UMASK = "ISLAND_UMASK"
"""Environment variable with which a daemon passes the umask with which it was started to its child processes."""


CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""Environment variable with the folder of the secrets that a service manager provides to this service alone."""


def secret_path(home: Path, name: str) -> Path:
    """Return the path of a secret: the service manager's credential `island.NAME` if there is one, else `home/NAME`."""
    folder = os.environ.get(CREDENTIALS)
    given = Path(folder) / f"island.{name}" if folder else None
    return given if given is not None and given.exists() else home / name


def close_umask() -> None:
    """Set the umask so that only this account can access files that this process and its children create."""
    os.environ[UMASK] = f"{os.umask(OTHERS):04o}"


def outer_umask() -> int:
    """Return the umask from before `close_umask` in this process or a parent; -1 if it was not called."""
    return int(os.environ.get(UMASK, "-1"), 8)


def create_private(path: Path) -> None:
    """Create `path` if it does not exist, and remove the permissions of other accounts, before it is written.

    Raises `OSError`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & OTHERS:
            os.fchmod(descriptor, mode & ~OTHERS)
    finally:
        os.close(descriptor)


def write_secret(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Create `path` with mode 0600 and `content`; it is synced to disk when this returns.

    Raises `ConfigError` if the file already exists (unless `replace`) or cannot be written.
    """
    target = path.with_name(f".{path.name}.new") if replace else path
    try:
        if replace:
            target.unlink(missing_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            # The umask may have removed bits of the mode given to `open`.
            os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        if replace:
            target.replace(path)
        sync_folder(path.parent)
    except FileExistsError as error:
        raise ConfigError(
            f"{path} already exists and is not overwritten", hint="Move it away first if you want a new one."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}",
            hint="Check the permissions of the folder and the free space on the disk.",
        ) from error


def read_secret(path: Path, what: str) -> bytes:
    """Return the content of a secret file, at most `SECRET_LIMIT` bytes; `what` describes it in messages.

    Raises `ConfigError` if it is missing, too large, or readable by other accounts.
    """
    try:
        return _read(path, what)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} ({what}) is missing", hint="Restore it from a backup, or create a new island with `island init`."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path} ({what}) cannot be read: {error.strerror}", hint="Check its owner and mode."
        ) from error


def secret_text(path: Path, what: str, *, pipe: bool = False) -> str:
    """Return the text of a secret file without surrounding white space; with `pipe`, it may also be a pipe.

    Raises `ConfigError` if it is another kind of file, not UTF-8, too large, or readable by others, and `OSError`.
    """
    try:
        return _read(path, what, pipe=pipe).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not {what}: it is not text", hint="The file must have one line of text."
        ) from error


def make_private(home: Path, state: str, keep: Collection[Path] = ()) -> tuple[int, list[Path]]:
    """Remove the permissions of other accounts from files that an older version created in `home`.

    The folder and its direct entries are checked each time. Subfolders are checked only if the file
    `state` in `home` gives permissions to others; its own mode is changed last, so that an interrupted
    run is repeated. Files in `keep` and symbolic links are not changed. Returns the number of changed
    modes, and the paths whose modes could not be changed.
    """
    mark = home / state
    whole = mark.exists() and bool(mark.stat().st_mode & OTHERS)
    failed: list[Path] = []
    changed = 0
    for path in (*_below(home, whole), home):
        if path not in keep and path != mark:
            changed += _closed(path, failed)
    if whole:
        changed += _closed(mark, failed)
    return changed, failed


def _below(folder: Path, whole: bool) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if whole and entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry.path), whole)
            if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
                yield Path(entry.path)


def _closed(path: Path, failed: list[Path]) -> bool:
    mode = stat.S_IMODE(path.lstat().st_mode)
    if not mode & OTHERS:
        return False
    try:
        path.chmod(mode & ~OTHERS)
    except PermissionError:  # another account owns it
        failed.append(path)
        return False
    return True


def _read(path: Path, what: str, *, pipe: bool = False) -> bytes:
    with path.open("rb") if pipe else _opened(path, what) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & OTHERS and not _is_credential(path):
            raise ConfigError(
                f"{path} ({what}) can be read by other accounts of this machine (mode {mode:04o})",
                hint=f"If no other account has read it, run: chmod 600 {path}. Otherwise replace it.",
            )
        content = file.read(SECRET_LIMIT + 1)
    if len(content) > SECRET_LIMIT:
        raise ConfigError(
            f"{path} is not {what}: it is larger than {SECRET_LIMIT} bytes", hint="Restore it from a backup."
        )
    return content


def _opened(path: Path, what: str) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ConfigError(
            f"{path} ({what}) is not a regular file", hint="Replace it with a file of mode 0600."
        ) from error


def _is_credential(path: Path) -> bool:
    # Only this service can enter their folder. The group's bits are those of an ACL, or of this service's group.
    folder = os.environ.get(CREDENTIALS)
    return bool(folder) and path.parent == Path(folder or "")


def sync_folder(folder: Path) -> None:
    """Sync a folder to disk: files created or renamed in it are there after a crash. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
