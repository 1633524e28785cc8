"""The files that an engine reads for a session or batch: the file of a batch, and inputs."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol, TypeVar, TypeVarTuple

from island.kernel.work import Workers, to_the_end

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_FOLDER_MODE: Final = 0o2750
_FILE_MODE: Final = 0o640


class EngineFiles(Protocol):
    """Where the files of sessions and batches are. Its methods raise `OSError`."""

    async def place(self, name: str, file_name: str, data: bytes) -> str:
        """Write a file for the session or batch `name`, and return its path."""

    async def share(self, name: str, path: str) -> str:
        """Make an input readable for the engine, and return the path at which the engine reads it.

        `path` is a local file or folder, or a JSON list of them; the answer has the same form.
        """

    async def withdraw(self, name: str) -> None:
        """Remove what `place` and `share` made for the session or batch `name`."""


class OwnFiles:
    """For an engine of the account of this daemon: private folders below `folder`, and inputs where they are."""

    def __init__(self, folder: Path, workers: Workers) -> None:
        self._folder, self._workers = folder, workers

    async def place(self, name: str, file_name: str, data: bytes) -> str:
        """Write the file, readable for this account only."""
        path = self._folder / name / Path(file_name).name
        await to_the_end(self._workers.disk(_write_private, path, data))
        return str(path)

    async def share(self, name: str, path: str) -> str:
        """Return `path`."""
        return path

    async def withdraw(self, name: str) -> None:
        """Remove the folder of the session or batch."""
        await to_the_end(self._workers.disk(_remove, self._folder / name))


class SharedFiles:
    """For an engine of another account: folders below `folder`, which the group of `folder` can read.

    An input that every account can read is used where it is; any other is copied.
    """

    def __init__(self, folder: Path, workers: Workers) -> None:
        self._folder, self._workers = folder, workers

    async def place(self, name: str, file_name: str, data: bytes) -> str:
        """Write the file, readable for the group."""
        return await to_the_end(self._run(self._place, name, Path(file_name).name, data))

    async def share(self, name: str, path: str) -> str:
        """Copy what other accounts cannot read."""
        return await to_the_end(self._run(self._share, name, path))

    async def withdraw(self, name: str) -> None:
        """Remove the folder of the session or batch."""
        await to_the_end(self._run(_remove, self._folder / name))

    def _run(self, function: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        # The folder may be on a mount that hangs.
        return self._workers.folder(str(self._folder), function, *args)

    def _place(self, name: str, file_name: str, data: bytes) -> str:
        path = self._made(self._folder / name) / file_name
        path.write_bytes(data)
        self._open(path, _FILE_MODE)
        return str(path)

    def _share(self, name: str, path: str) -> str:
        if path.startswith("["):
            return json.dumps([self._share(name, each) for each in json.loads(path)])
        source = Path(path)
        if readable_for_all(source):
            return path
        inputs = self._made(self._made(self._folder / name) / "inputs")
        place = self._made(inputs / str(len(list(inputs.iterdir()))))
        return str(self._copied(source, place / source.name))

    def _copied(self, source: Path, target: Path) -> Path:
        if source.is_dir():
            self._made(target)
            for each in source.iterdir():
                self._copied(each, target / each.name)
        else:
            shutil.copyfile(source, target)
            self._open(target, _FILE_MODE)
        return target

    def _made(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        self._open(folder, _FOLDER_MODE)
        return folder

    def _open(self, path: Path, mode: int) -> None:
        """Give a file or folder to the group, whatever the umask is. Raises `OSError` if this account may not."""
        group = self._folder.stat().st_gid
        if path.stat().st_gid != group:
            os.chown(path, -1, group)
        path.chmod(mode)


def readable_for_all(path: Path) -> bool:
    """Whether every account of this machine can read a file, or all files of a folder."""
    real = path.resolve()
    entered = all(each.stat().st_mode & stat.S_IXOTH for each in real.parents)
    return entered and all(_read_by_others(each) for each in _all_below(real))


def shared_folder_problem(folder: Path) -> str:
    """Why other accounts cannot read what is written to a shared folder, or may change it; "" if nothing is wrong."""
    try:
        info = folder.stat()
        if not folder.is_dir():
            return f"{folder} is not a folder"
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"this account cannot write to {folder}"
        if info.st_mode & stat.S_IWOTH:
            return f"every account can write to {folder}: chmod o-w {folder}"
        group = _group(info.st_gid)
        if info.st_mode & 0o050 != 0o050:
            return f"the group {group} cannot read {folder}: chmod g+rx {folder}"
        for parent in folder.resolve().parents:
            found = parent.stat()
            enters = found.st_mode & stat.S_IXOTH or (found.st_gid == info.st_gid and found.st_mode & stat.S_IXGRP)
            if not enters:
                return f"the group {group} cannot enter {parent}, in which {folder} is: chmod o+x {parent}"
        if info.st_gid not in {os.getegid(), *os.getgroups()} and os.geteuid() != 0:
            return f"this account is not in the group {group} of {folder}"
    except OSError as error:
        return f"{folder} cannot be used: {error.strerror or error}"
    return ""


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _read_by_others(path: Path) -> bool:
    needed = stat.S_IROTH | stat.S_IXOTH if path.is_dir() else stat.S_IROTH
    return path.stat().st_mode & needed == needed


def _all_below(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir():
        for each in path.iterdir():
            yield from _all_below(each)


def _write_private(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_bytes(data)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
