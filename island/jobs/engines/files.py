"""The files that an engine reads for a session or batch: the file of a batch, and inputs."""

from __future__ import annotations

from pathlib import Path

from island.kernel.work import Workers, to_the_end


class EngineFiles:
    """Files in folders below `folder`, one for each session or batch, removed when it has ended."""

    def __init__(self, folder: Path, workers: Workers) -> None:
        self._folder, self._workers = folder, workers

    async def place(self, name: str, file_name: str, data: bytes) -> str:
        """Write a file for the session or batch `name`, and return its path."""
        path = self._folder / name / file_name
        await to_the_end(self._workers.disk(_write, path, data))
        return str(path)

    async def share(self, name: str, path: str) -> str:
        """Return the path at which the engine reads the input at `path`."""
        return path

    async def withdraw(self, name: str) -> None:
        """Remove the files of the session or batch `name`."""
        await self._workers.disk(_remove, self._folder / name)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_bytes(data)


def _remove(folder: Path) -> None:
    for entry in folder.glob("*"):
        entry.unlink(missing_ok=True)
    if folder.exists():
        folder.rmdir()
