"""Finds the files to publish at a path, refuses unsafe ones, and hashes them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from island.catalog import manifest
from island.catalog.manifest import FileEntry, FileHasher, Sink
from island.catalog.ports import Progress
from island.errors import BadInput, Corrupt, FilesChanged
from island.formats import confined, files, footer, hats
from island.formats.limits import ReadLimits
from island.kernel.codec import Malformed

_READ_AHEAD = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file before it is read: its relative path and its attributes in the file system."""

    path: str
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class FileListing:
    """The files to publish at a path. Their paths are relative to `base`. `real` is the path without links."""

    path: Path
    real: Path
    base: Path
    files: tuple[FoundFile, ...]
    is_hats: bool

    @property
    def bytes(self) -> int:
        """The total size of the files."""
        return sum(found.size for found in self.files)


def survey(path: Path, home: Path) -> FileListing:
    """List the files to publish at `path`, a file or folder, sorted by path.

    Raises `BadInput` (the path does not exist or contains `..`, a file is outside of the folder, is a
    secret of this island, or has an invalid name), `Corrupt`, `Unsupported`.
    """
    if not path.is_absolute() or ".." in path.parts:
        raise BadInput(f"{path} is not an absolute path without '..'", hint="Give the absolute path without '..'.")
    try:
        real = path.resolve(strict=True)
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist", hint="Check the path on the island's machine.") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}", hint="Check its permissions.") from error
    home = home.resolve()
    if home == real or home.is_relative_to(real):
        raise BadInput(
            f"{path} contains the home folder of this island, with its key and tokens",
            hint="Publish only the folder with the data.",
        )
    if real.is_dir():
        base, names, is_hats = real, *_folder(real)
    else:
        files.sniff(real)
        base, names, is_hats = real.parent, [real.name], False
    secrets = _secrets(home)
    return FileListing(path, real, base, tuple(_look(base, name, secrets) for name in names), is_hats)


def _folder(folder: Path) -> tuple[list[str], bool]:
    published = files.walk(folder)
    if hats.is_hats(folder):
        return published, True
    form, data = files.data_files(folder, published)
    sidecars = [name for name in published if name.rsplit("/", 1)[-1] in files.PARQUET_SIDECARS]
    return sorted([*data, *(sidecars if form == "parquet" else [])]), False


def _secrets(home: Path) -> set[tuple[int, int]]:
    """(device, inode) of all files directly in the home folder, to recognize keys, tokens and databases by any name."""
    found = set()
    for entry in os.scandir(home) if home.is_dir() else ():
        if entry.is_file():
            status = entry.stat()
            found.add((status.st_dev, status.st_ino))
    return found


def _look(base: Path, name: str, secrets: set[tuple[int, int]]) -> FoundFile:
    full = base / name
    try:
        manifest.check_path(name)
    except Malformed as error:
        raise BadInput(f"a file below {base} cannot be published: {error.message}", hint="Rename it.") from error
    try:
        if full.is_symlink() and confined.leads_outside(full, base):
            raise BadInput(
                f"{full} is a symbolic link to a file outside of {base}",
                hint="Copy the file, or publish the folder that contains it.",
            )
        status = full.stat()
    except OSError as error:
        raise BadInput(f"{full} cannot be read: {error.strerror or error}", hint="Check its permissions.") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"{full} is not a regular file", hint="Publish a regular file, or a folder of regular files.")
    if (status.st_dev, status.st_ino) in secrets:
        raise BadInput(f"{full} is a file of this island's home folder", hint="Publish only the data.")
    return FoundFile(name, status.st_size, status.st_mtime_ns, status.st_ino)


def hash_file(
    base: Path, found: FoundFile, hard: list[int], *, form: str, role: str, rows: int, sink: Sink, progress: Progress
) -> FileEntry:
    """Read a file in bounded memory, hash its chunks, and write the pages of their hashes to `sink`.

    `hard` is the result of `hard_borders`. Raises `FilesChanged` if the file changed since it was
    found, and `Corrupt` if it cannot be read.
    """
    full = base / found.path
    hasher = FileHasher(sink)
    with confined.opened_below(base, found.path) as opened, files.open_binary(opened) as plain:
        done = reported = 0
        for end in manifest.borders(found.size, hard):
            try:
                data = plain.read(end - done)
            except OSError as error:
                raise Corrupt(
                    f"{full} cannot be read at byte {done}: {error.strerror or error}", hint="Check the disk."
                ) from error
            if len(data) != end - done:
                raise _changed(full)
            hasher.add(data)
            done = end
            if done - reported >= _READ_AHEAD or done == found.size:
                progress(done, found.size, found.path)
                reported = done
        status = os.fstat(plain.fileno())
    if not is_same(found, status):
        raise _changed(full)
    return hasher.finish(found.path, form=form, role=role, rows=rows)


def has_hard_borders(found: FoundFile, form: str) -> bool:
    """Whether a file of this format or name may have borders that come from its format."""
    return form == "parquet" or files.format_by_name(found.path) == "parquet"


def hard_borders(full: Path, form: str, limits: ReadLimits) -> list[int]:
    """The borders of column chunks and footer in a Parquet file; empty for a corrupt file that is not data."""
    limits.begin(full)
    try:
        with files.open_binary(full) as plain:
            return footer.parquet_borders(plain)
    except Corrupt:
        if form:
            raise
        return []  # a file beside the data (`form` is empty) may have any content


def is_same(found: FoundFile, status: os.stat_result) -> bool:
    """Whether a file still has the size and modification time with which it was found."""
    return (status.st_size, status.st_mtime_ns) == (found.size, found.mtime_ns)


def _changed(full: Path) -> FilesChanged:
    return FilesChanged(f"{full} changed while it was read", hint="Publish it again when no program writes to it.")
