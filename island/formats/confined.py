"""Opens files below a folder to which others may write, and no file outside of it.

Another account may replace a file or folder by a symbolic link at any time, also between a check and
an open. So a file is opened once, component by component and without following links, and is then
read through its descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PosixPath

from island.errors import BadInput, FilesChanged
from island.formats.files import unreadable

_DESCRIPTORS = "/proc/self/fd"
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
# Without O_NONBLOCK, opening a pipe would wait for a writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class OpenedFile(PosixPath):
    """The path of an open file. As text it is the path; whoever opens it gets the open file, also if it was replaced.

    A system without /proc opens it by its path.
    """

    descriptor: int

    def __fspath__(self) -> str:
        """The path by which the system finds the open file."""
        return f"{_DESCRIPTORS}/{self.descriptor}" if os.path.isdir(_DESCRIPTORS) else str(self)


def leads_outside(link: Path, root: Path) -> bool:
    """Whether a symbolic link leads out of the folder `root`, or cannot be followed. False if it leads to nothing."""
    try:
        return not link.resolve(strict=True).is_relative_to(root.resolve())
    except FileNotFoundError:
        return False
    except (OSError, RuntimeError):  # a loop, or a folder that this account cannot enter
        return True


@contextlib.contextmanager
def opened_below(root: Path, relative: str) -> Iterator[OpenedFile]:
    """Open a regular file below the folder `root` for the time of the context.

    Links that lead to a file below `root` are followed. Raises BadInput for other links, for what is
    not a regular file, and for a file that cannot be read; `FilesChanged` if it is no longer there.
    """
    opened = OpenedFile(root / relative)
    opened.descriptor = _descriptor(root, opened)
    try:
        if not stat.S_ISREG(os.fstat(opened.descriptor).st_mode):
            raise BadInput(f"{opened} is not a regular file", hint="Replace it by a regular file.")
        yield opened
    finally:
        os.close(opened.descriptor)


def _descriptor(root: Path, path: Path) -> int:
    try:
        base, real = Path(os.path.realpath(root)), Path(os.path.realpath(str(path)))
        if not real.is_relative_to(base):
            raise BadInput(f"{path} is a symbolic link that leads out of {root}", hint="Copy the file to the folder.")
        return _open(base, real.relative_to(base).parts)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise FilesChanged(f"{path} was removed or replaced while it was read") from error
        raise unreadable(path, error) from error


def _open(base: Path, parts: tuple[str, ...]) -> int:
    folder = os.open(base, _FOLDER & ~os.O_NOFOLLOW)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(parts[-1] if parts else ".", _FILE, dir_fd=folder)
    finally:
        os.close(folder)
