"""Files that only their owner may read: secrets, databases, and all else in an island's home."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from island.errors import ConfigError

SECRET_LIMIT = 16 * 1024
"""The largest secret file that is read, in bytes."""

OTHERS = 0o077
"""The bits of a mode that let other accounts in."""

UMASK = "ISLAND_UMASK"
"""The variable in which a daemon tells the processes below it the umask with which it was started."""


def close_umask() -> None:
    """From now on what this process and its children create is for this account alone."""
    os.environ[UMASK] = f"{os.umask(OTHERS):04o}"


def outer_umask() -> int:
    """The umask from before `close_umask`, here or in the process that started this one; -1 to change nothing."""
    return int(os.environ.get(UMASK, "-1"), 8)


def create_private(path: Path) -> None:
    """Make sure that `path` exists, and that only its owner may read it, before anything is written to it.

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
    """Create `path` with mode 0600 and `content`, durable when this returns.

    Raises `ConfigError` if the file exists already (unless `replace`) or cannot be written.
    """
    target = path.with_name(f".{path.name}.new") if replace else path
    try:
        if replace:
            target.unlink(missing_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            # A umask may only take bits away; the mode is set whatever it is.
            os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        if replace:
            target.replace(path)
        _sync_folder(path.parent)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already", hint="Nothing was changed; it is never overwritten.") from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}", hint="Check the folder and the disk."
        ) from error


def read_secret(path: Path, what: str) -> bytes:
    """The content of a secret file of a home, at most `SECRET_LIMIT` bytes.

    Raises `ConfigError` if it is missing, or readable by anyone but its owner.
    """
    try:
        return _read(path, what)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} ({what}) is missing", hint="Restore it from a backup, or make a new island with `island init`."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path} ({what}) cannot be read: {error.strerror}", hint="Check its owner and mode."
        ) from error


def secret_text(path: Path, what: str) -> str:
    """The text of a secret file, stripped. Raises `ConfigError` when others can read it, and `OSError`."""
    try:
        return _read(path, what).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not {what}: it is not text", hint="It has to be one line of text.") from error


def make_private(home: Path, state: str, keep: Collection[Path] = ()) -> tuple[int, list[Path]]:
    """Take the rights of other accounts from what a version that did not care about modes left in `home`.

    The folder and what lies in it directly are looked at each time. All below is, too, if the
    file `state` in it has such rights; it loses them last, so that an interrupted run is
    repeated. Files in `keep` are left alone, as are symbolic links. Returns how many modes
    were changed, and what could not be.
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
    except PermissionError:  # it belongs to another account
        failed.append(path)
        return False
    return True


def _read(path: Path, what: str) -> bytes:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & OTHERS:
            raise ConfigError(
                f"{path} ({what}) can be read by other accounts of this machine (mode {mode:04o})",
                hint=f"If nobody has seen it: chmod 600 {path}. Otherwise it has to be replaced.",
            )
        content = file.read(SECRET_LIMIT + 1)
    if len(content) > SECRET_LIMIT:
        raise ConfigError(
            f"{path} is not {what}: it has more than {SECRET_LIMIT} bytes", hint="Restore it from a backup."
        )
    return content


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
