"""SQLite under asyncio: one writer thread with group commit, a pool of readers, numbered migrations.

Each of the three databases (`state`, `gossip`, `chunks`) is one file with its own writer,
so that no bulk import of gossip delays the durable accept of a job. A write function gets
a connection inside a transaction; several waiting functions share one commit, each in a
savepoint of its own, so that one failure does not undo the others. `write` returns after
the commit: what it accepted is on disk (`synchronous=FULL` for `state`).
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import structlog

from island.errors import ConfigError, Full, IslandError
from island.kernel.work import ThreadWorkers, Workers
from island.private_files import create_private

log = structlog.get_logger("island")

T = TypeVar("T")
Kind = Literal["state", "gossip", "chunks"]

_SYNCHRONOUS: dict[Kind, str] = {"state": "FULL", "gossip": "NORMAL", "chunks": "NORMAL"}
_GROUP = 256
_MIGRATION = re.compile(r"(\d{4})_\w+\.sql\Z")


class Database:
    """One SQLite file. Open with `Database.open`, close with `close`.

    `workers` has the threads: a lane of one for writing, a lane of `readers` for reading, each
    reader with a connection of its own. `connection` is the class of all connections, for
    simulated disks that fail.
    """

    def __init__(
        self,
        path: Path,
        kind: Kind,
        workers: Workers | None = None,
        *,
        readers: int = 3,
        connection: type[sqlite3.Connection] = sqlite3.Connection,
    ) -> None:
        self.path = path
        self.kind = kind
        self.before_commit: Callable[[sqlite3.Connection], Callable[[], None] | None] | None = None
        """Called with the connection at the end of each transaction; what it returns is called after the commit."""
        self._connection = connection
        _create(path)
        self._writer = _connect(path, kind, connection)
        _migrate(self._writer, path, kind)
        self._closed = False
        workers = workers or ThreadWorkers()
        self._write_lane = workers.lane(f"db-{kind}")
        self._read_lane = workers.lane(f"db-{kind}-read", readers)
        self._jobs: deque[_Job] = deque()
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    @classmethod
    def open(
        cls,
        folder: Path,
        kind: Kind,
        workers: Workers | None = None,
        *,
        connection: type[sqlite3.Connection] = sqlite3.Connection,
    ) -> Database:
        """Open or create `folder/KIND.db`. Raises `ConfigError` for a newer or damaged file."""
        return cls(folder / f"{kind}.db", kind, workers, connection=connection)

    async def write(
        self, function: Callable[[sqlite3.Connection], T], *, then: Callable[[T], object] | None = None
    ) -> T:
        """Run `function(connection)` in a transaction and return its result after the commit.

        The function must be quick, must not keep the connection, and must not commit. It runs in
        the writer's thread before the commit, so it must not change anything that the event loop
        reads: it returns what it has to tell. What it raises is raised here and undoes its own
        changes only. A disk that is full raises `Full`.

        `then(result)` runs in the event loop right after the commit, in the order of commits and
        before the caller goes on, also when the caller has been cancelled: whatever memory must
        have in common with the database is changed there. It does not run after a failure.

        A caller that is cancelled is told so only when the write is committed or has failed, so
        that a lock around the write is held until then.
        """
        if self._closed:
            raise IslandError(f"the database {self.path.name} is closed")
        future: asyncio.Future[T] = self._write_lane.future()
        self._jobs.append(_Job(function, then, future, asyncio.get_running_loop()))
        self._write_lane.post(self._write_turn)
        return await _settled(future)

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function(connection)` on a read-only connection in one consistent snapshot."""
        if self._closed:
            raise IslandError(f"the database {self.path.name} is closed")
        return await self._read_lane.run(self._read, function)

    def close(self) -> None:
        """Finish what was accepted, then close every connection."""
        if self._closed:
            return
        self._closed = True
        self._write_lane.close()
        self._read_lane.close()
        for connection in self._connections:
            connection.close()
        self._writer.close()

    def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = _connect(self.path, self.kind, self._connection)
            connection.execute("PRAGMA query_only=ON")
            self._local.connection = connection
            self._connections.append(connection)
        connection.execute("BEGIN")
        try:
            return function(connection)
        finally:
            connection.execute("ROLLBACK")

    def _write_turn(self) -> Iterator[None]:
        """Run and commit what waits, in one transaction; each `yield` is a place where other code may run."""
        group: list[_Job] = []
        while self._jobs and len(group) < _GROUP:
            group.append(self._jobs.popleft())
        if not group:  # an earlier turn has taken it along
            return
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            outcomes = [job.run(self._writer) for job in group]
            committed = self.before_commit(self._writer) if self.before_commit else None
            yield
            self._writer.execute("COMMIT")
            if committed is not None:
                committed()
        except Exception as error:  # noqa: BLE001 - handed to every waiting caller, none is left hanging
            outcomes = [(None, error)] * len(group)
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        yield
        for job, (result, problem) in zip(group, outcomes, strict=True):
            job.settle(result, problem and _explained(problem, self.path))


class _Job:
    """One write function and the future that waits for its commit."""

    def __init__(
        self,
        function: Callable[[sqlite3.Connection], Any],
        then: Callable[[Any], object] | None,
        future: asyncio.Future[Any],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._function, self._then, self._future, self._loop = function, then, future, loop

    def run(self, connection: sqlite3.Connection) -> tuple[Any, BaseException | None]:
        connection.execute("SAVEPOINT one")
        try:
            result = self._function(connection)
        except BaseException as error:
            if not connection.in_transaction:  # SQLite rolled the whole group back (disk full, I/O error)
                raise
            connection.execute("ROLLBACK TO one")
            connection.execute("RELEASE one")
            return None, error
        connection.execute("RELEASE one")
        return result, None

    def settle(self, result: Any, error: BaseException | None) -> None:
        def deliver() -> None:
            problem = self._follow_up(result) if error is None else error
            if self._future.done():
                return
            if problem is None:
                self._future.set_result(result)
            else:
                self._future.set_exception(problem)
                # The caller may have been cancelled; an unread exception is not a leak.
                self._future.exception()

        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def _follow_up(self, result: Any) -> Exception | None:
        """Run `then`; a bug in it is logged here, because a caller that was cancelled would not hear of it."""
        if self._then is None:
            return None
        try:
            self._then(result)
        except Exception as error:
            log.exception("database.then_failed")
            return error
        return None


async def _settled(future: asyncio.Future[T]) -> T:
    """The outcome of a write; a caller that is cancelled meanwhile is told so once there is one."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result()


def _create(path: Path) -> None:
    """Make the file private before anything is in it; SQLite gives the files beside it the same mode."""
    try:
        create_private(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be opened as a database: {error.strerror}", hint="Check the folder, its owner and the disk."
        ) from error


def _connect(path: Path, kind: Kind, factory: type[sqlite3.Connection]) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0, factory=factory)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={_SYNCHRONOUS[kind]}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA temp_store=MEMORY")
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"{path} cannot be opened as a database: {error}",
            hint="Restore the file from a backup, or check the disk and its permissions.",
        ) from error
    return connection


def migrations(kind: Kind) -> list[tuple[int, str]]:
    """The numbered SQL files of one database, in order."""
    found = []
    for entry in resources.files("island.kernel").joinpath("schema", kind).iterdir():
        if match := _MIGRATION.match(entry.name):
            found.append((int(match[1]), entry.read_text("utf-8")))
    return sorted(found)


def _migrate(connection: sqlite3.Connection, path: Path, kind: Kind) -> None:
    steps = migrations(kind)
    newest = steps[-1][0] if steps else 0
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > newest:
        connection.close()
        raise ConfigError(
            f"{path} was written by a newer version (schema {version}; this version knows up to {newest})",
            hint="Run the newer version again, or restore a backup made by this one.",
        )
    for number, sql in steps:
        if number > version:
            connection.executescript(f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version={number};\nCOMMIT;")


def _explained(error: BaseException, path: Path) -> BaseException:
    if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
        full = Full(f"the disk that holds {path} is full", hint="Free some space; nothing that was accepted is lost.")
        full.__cause__ = error
        return full
    return error
