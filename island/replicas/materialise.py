"""Datasets as paths for `spark.read.parquet`: a file in place, a folder of links, or a copy converted from Avro.

Spark turns folders named `KEY=VALUE` into columns, skips names that begin with `_` or `.`, and
reads every other file in a folder. Therefore a dataset of several files is presented as a flat
folder of symbolic links to the data files of its snapshot, HOME/views/SNAPSHOT. Avro is
converted once per snapshot, to HOME/converted/SNAPSHOT. Both folders are created atomically.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path

from island.catalog.ports import Progress
from island.errors import Unsupported
from island.formats.avro import staging_of, to_parquet_in_steps
from island.formats.limits import ReadLimits
from island.kernel.processes import InPlaceProcesses
from island.kernel.work import Workers
from island.replicas.chunk_files import explained

_PLAIN = re.compile(r"/[^{}\[\]*?\\%:]*/[^._{}\[\]*?\\%:/][^{}\[\]*?\\%:/]*\Z")
"""Absolute paths that readers do not interpret as a glob pattern, an escape or a hidden file."""


class DatasetFolders:
    """The folders HOME/views and HOME/converted."""

    def __init__(self, home: Path, workers: Workers, limits: ReadLimits) -> None:
        self._workers, self._limits = workers, limits
        self._processes = workers.publishing or InPlaceProcesses()
        self._links, self._converted = home / "views", home / "converted"
        self._locks: dict[str, asyncio.Lock] = {}

    async def path(self, snapshot: str, form: str, files: Sequence[Path], progress: Progress) -> str:
        """A path at which Spark can read the rows of `files`, whose format is `form`.

        Raises `Unsupported` for formats other than Parquet and Avro.
        """
        lock = self._locks.setdefault(snapshot, asyncio.Lock())
        async with lock:
            if form == "avro":
                return str(await self._convert(snapshot, files, progress))
            if form != "parquet":
                raise Unsupported(
                    f"sessions cannot read files of the format {form!r}", hint="Publish them as Parquet or Avro."
                )
            if len(files) == 1 and _PLAIN.match(str(files[0])):
                return str(files[0])
            return str(await self._workers.disk(self._link, snapshot, files))

    async def _convert(self, snapshot: str, files: Sequence[Path], progress: Progress) -> Path:
        target = self._converted / snapshot
        if not await self._workers.disk(self.is_converted, snapshot):
            await self._workers.disk(partial(self._converted.mkdir, exist_ok=True))
            try:
                await self._write(files, target, progress)
            finally:  # a process that was killed leaves an unfinished folder
                await self._workers.disk(partial(shutil.rmtree, staging_of(target), ignore_errors=True))
        return target

    async def _write(self, files: Sequence[Path], target: Path, progress: Progress) -> None:
        """Convert Avro to Parquet in a child process: it can take minutes, and other islands' files are not trusted."""
        steps = self._processes.stream(to_parquet_in_steps, list(files), target, self._limits)
        async with aclosing(steps) as reports:
            async for step in reports:
                progress(*step)

    def _link(self, snapshot: str, files: Sequence[Path]) -> Path:
        folder = self._links / snapshot
        wanted = {f"part-{number:06d}.parquet": str(file) for number, file in enumerate(files)}
        if folder.is_dir() and {name: os.readlink(folder / name) for name in os.listdir(folder)} == wanted:
            return folder
        staging = folder.with_name(f".{snapshot}.tmp")
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            for name, target in wanted.items():
                os.symlink(target, staging / name)
            shutil.rmtree(folder, ignore_errors=True)
            staging.rename(folder)
        except OSError as error:
            raise explained(error, folder) from error
        return folder

    def drop(self, snapshot: str) -> None:
        """Delete the folders made for a snapshot."""
        for folder in (self._links / snapshot, self._converted / snapshot):
            shutil.rmtree(folder, ignore_errors=True)

    def snapshots(self) -> set[str]:
        """The snapshots that have a folder of links or a converted copy."""
        roots = [root for root in (self._links, self._converted) if root.is_dir()]
        return {folder.name for root in roots for folder in root.iterdir() if not folder.name.startswith(".")}

    def sweep(self, keep: set[str]) -> None:
        """Delete unfinished folders of an earlier run, and the folders of snapshots that are not in `keep`."""
        for root in (self._links, self._converted):
            for folder in sorted(root.iterdir()) if root.is_dir() else ():
                if folder.name not in keep:
                    shutil.rmtree(folder, ignore_errors=True)

    def converted_bytes(self) -> int:
        """Bytes of all converted copies."""
        return sum(path.stat().st_size for path in self._converted.rglob("*.parquet"))

    def is_converted(self, snapshot: str) -> bool:
        """Whether the converted copy of an Avro snapshot exists."""
        return (self._converted / snapshot).is_dir()
