"""The temporary folder of a backup, beside its target. What a killed process has left is deleted by the next backup."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Make a private folder in `parent`, locked by this process, and delete it after the block. Raises `OSError`."""
    with ExitStack() as held:
        with _turn(parent):  # else another backup could sweep the folder before it is locked
            _sweep(parent)
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix=prefix(), dir=parent)))
            with suppress(OSError):  # a file system without locks, where nothing is swept either
                held.enter_context(_locked(folder))
        yield folder


def prefix() -> str:
    """Start of the names of the folders that are made on this machine until it is started again.

    On a file system that is shared with other machines, a lock of another machine need not be visible here.
    """
    try:
        machine = _BOOT.read_text("ascii").replace("-", "")[:12]
    except OSError:  # not Linux
        machine = platform.node()
    return f".island-backup-{machine}-"


def _sweep(parent: Path) -> None:
    """Delete the folders of this account that no process has locked. They may contain the key of an island."""
    with suppress(OSError):  # the folder cannot be listed
        for path in [each for each in parent.iterdir() if each.name.startswith(prefix())]:
            with suppress(OSError):  # it is in use, just deleted, or no folder
                if path.lstat().st_uid == os.geteuid():
                    with _locked(path):
                        shutil.rmtree(path)


@contextmanager
def _turn(parent: Path) -> Iterator[None]:
    """Keep other backups into this folder waiting during the block, where the file system has locks."""
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder during the block. Raises `BlockingIOError` if another process has locked it, and `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
