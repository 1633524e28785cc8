"""A class-data archive (AppCDS) for Spark's JVM, which halves the time in which a session starts.

At each start of Spark, Java finds, parses and verifies about 12,000 classes in 250 jars. An archive
has them in the form that Java uses in memory, and Java maps the file instead. Archives are specific to a
Java and to a set of jars. Java ignores an archive that does not fit, so a session starts in any case.

See "Class Data Sharing" in the Java Virtual Machine Guide of JDK 17.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import structlog

from island.engine import class_training
from island.engine.process import JobProcess, ProcessLog, environment
from island.engine.protocol import ExecuteScript, LogNote, StartChild
from island.errors import EngineFailed

log = structlog.get_logger("island.engine")

KEEP_S: Final = 90 * 86_400
"""Seconds for which an archive that no engine uses is kept."""
MAKE_S: Final = 600.0
_FORMAT: Final = b"1"


def archive_folder(environ: Mapping[str, str], directory: Path) -> Path:
    """The folder for archives: `island` in this account's cache folder, or `cache` in the engine's folder `directory`.

    The cache folder is XDG_CACHE_HOME or ~/.cache. A service account may have none, or may not write to it, or other
    accounts may write to it.
    """
    try:
        given = environ.get("XDG_CACHE_HOME", "")
        folder = (Path(given) if given.startswith("/") else Path.home() / ".cache") / "island"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = _is_private(folder.stat())
    except (OSError, RuntimeError):
        return directory / "cache"
    # An image may have an archive in a file system that is read-only while the engine runs.
    is_usable = os.access(folder, os.W_OK | os.X_OK) or any(folder.glob("classes-*.jsa"))
    return folder if private and is_usable else directory / "cache"


def _is_private(status: os.stat_result) -> bool:
    """Whether no other account than root can change a file, or what is in a folder."""
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022


class ClassArchive:
    """The archive for one Java and one Spark, in a folder that the engines of an account can share.

    The name of the file has its size, because Java crashes if it maps an archive that was cut.
    """

    def __init__(self, folder: Path, java_home: Path, spark_home: Path) -> None:
        self.folder, self.java_home, self.spark_home = folder, java_home, spark_home
        self.stem = f"classes-{_fingerprint(java_home, spark_home)}"

    def find(self) -> Path | None:
        """The path of the archive; None if there is none that is whole and that no other account can replace."""
        for path in self.folder.glob(f"{self.stem}-*.jsa"):
            with contextlib.suppress(OSError):  # another engine has deleted it
                found = path.stat()
                if (
                    _is_private(found)
                    and _is_private(self.folder.stat())
                    and path.stem == f"{self.stem}-{found.st_size}"
                ):
                    return path
        return None

    def java_options(self) -> list[str]:
        """The options with which Java uses the archive; none if there is no archive."""
        path = self.find()
        return [] if path is None else [f"-XX:SharedArchiveFile={path}", "-Xshare:auto", "-Xlog:cds=off"]

    def clean(self) -> None:
        """Record that the archive is in use, and delete archives that were not in use for `KEEP_S`."""
        if (path := self.find()) is not None:
            with contextlib.suppress(OSError):  # the file belongs to root
                os.utime(path)
        for other in self.folder.glob("classes-*.jsa"):
            with contextlib.suppress(OSError):  # another engine deletes it too
                if time.time() - other.stat().st_mtime > KEEP_S:
                    other.unlink()

    async def make(self, environ: Mapping[str, str]) -> bool:
        """Make the archive at the lowest priority, unless another process does. Returns whether it exists now.

        Takes about 40 s of processor time and 160 MB. Raises `EngineFailed` or `OSError`.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(self.folder / f"{self.stem}.lock") as alone:
            if not alone or self.find():
                return self.find() is not None
            scratch = self.folder / f"{self.stem}.new"
            shutil.rmtree(scratch, ignore_errors=True)
            try:
                (scratch / "tmp").mkdir(mode=0o700, parents=True)
                async with asyncio.timeout(MAKE_S):
                    await self._list_classes(scratch, environ)
                    await self._dump(scratch)
                self._keep(scratch / "archive")
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return True

    def _keep(self, made: Path) -> None:
        """Move the archive to its place, once it is on the disk. Files in its place are damaged."""
        with made.open("rb") as file:
            os.fsync(file.fileno())
        for damaged in self.folder.glob(f"{self.stem}-*.jsa"):
            damaged.unlink()
        made.replace(self.folder / f"{self.stem}-{made.stat().st_size}.jsa")

    async def _list_classes(self, scratch: Path, environ: Mapping[str, str]) -> None:
        """Run the training script as a batch, and write the names of the classes that Java loads to `classes`."""
        names, messages = scratch / "loaded", ProcessLog()
        start = StartChild(
            scratch=str(scratch),
            java_home=str(self.java_home),
            java_options=["-Xshare:off", f"-XX:DumpLoadedClassList={names}"],
            memory="512m",
            cores=2,
            conf={},
            views={},
            aliases={},
            py_files=[],
            max_output=0,
            rows=0,
        )
        script = ExecuteScript(class_training.__file__, [str(scratch / "table")])
        env = environment(scratch, str(self.java_home), environ)
        process = await JobProcess.start("island.engine.batch_child", scratch, env, messages, start, script)
        try:
            _lower_priority(process.pid)
            async with asyncio.TaskGroup() as group:
                group.create_task(process.keep_log())
                async for message in process.frames():
                    if isinstance(message, LogNote):
                        messages.note(message.text)
                code = await process.wait()
        finally:
            await asyncio.shield(process.end())
        if code:
            raise EngineFailed(
                f"the training run of Spark exited with code {code}: {' / '.join(messages.lines()[-4:])}"
            )
        # Java is killed at the end of a batch, which can cut the last line.
        whole, _, _ = names.read_bytes().rpartition(b"\n")
        (scratch / "classes").write_bytes(whole + b"\n")

    async def _dump(self, scratch: Path) -> None:
        """Have Java write the archive."""
        process = await asyncio.create_subprocess_exec(
            f"{self.java_home}/bin/java",
            "-Xshare:dump",
            "-XX:+UseSerialGC",
            f"-XX:SharedClassListFile={scratch / 'classes'}",
            f"-XX:SharedArchiveFile={scratch / 'archive'}",
            "-Xlog:disable",
            "-Xlog:all=error:stderr",
            "-cp",
            f"{self.spark_home}/jars/*",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            cwd=scratch,
        )
        try:
            _lower_priority(process.pid)
            _, messages = await process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
        if process.returncode or not (scratch / "archive").exists():
            text = messages.decode("utf-8", "replace").strip()
            raise EngineFailed(f"Java could not write the archive (exit code {process.returncode}): {text[-500:]}")


def _fingerprint(java_home: Path, spark_home: Path) -> str:
    """Identifies what an archive is for: this Java, and these jars with their sizes and times of modification."""
    digest = hashlib.sha256(_FORMAT)
    digest.update(f"{java_home}\0{(java_home / 'release').read_text('utf-8', 'replace')}\0{spark_home}\0".encode())
    for jar in sorted((spark_home / "jars").glob("*.jar")):
        found = jar.stat()
        digest.update(f"{jar.name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def _lower_priority(pid: int) -> None:
    """Let a process and those that it will start run only when a processor is idle."""
    with contextlib.suppress(OSError):  # it has ended
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold a lock file. Yields False if another process holds it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
