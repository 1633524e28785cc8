"""Files that hold secrets: created once with mode 0600, refused when others may read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from island.errors import ConfigError

SECRET_LIMIT = 16 * 1024
"""The largest secret file that is read, in bytes."""


def write_secret(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Create `path` with mode 0600 and `content`, durable when this returns.

    Raises `ConfigError` if the file exists already (unless `replace`) or cannot be written.
    """
    target = path.with_name(f".{path.name}.new") if replace else path
    try:
        if replace:
            target.unlink(missing_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # A umask may only take bits away; the mode is set whatever it is.
            os.fchmod(descriptor, 0o600)
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
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
    """The content of a secret file of at most `SECRET_LIMIT` bytes.

    Raises `ConfigError` if it is missing, or readable by anyone but its owner.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(
                    f"{path} ({what}) can be read by other accounts of this machine (mode {mode:04o})",
                    hint=f"If nobody has seen it: chmod 600 {path}. Otherwise it has to be replaced.",
                )
            content = file.read(SECRET_LIMIT + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} ({what}) is missing", hint="Restore it from a backup, or make a new island with `island init`."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path} ({what}) cannot be read: {error.strerror}", hint="Check its owner and mode."
        ) from error
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
