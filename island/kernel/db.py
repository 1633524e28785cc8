"""SQLite with asyncio: one writer thread with group commit, a pool of readers, numbered migrations.

Each of the three databases (`state`, `gossip`, `chunks`) is a file with its own writer thread,
so that a bulk import of gossip does not delay the durable accept of a job. A write function gets
a connection inside a transaction. Several waiting functions share one commit, each in its own
savepoint, so that the failure of one does not undo the others. `write` returns after the commit;
in `state` the changes are then on disk (`synchronous=FULL`).
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

from island.errors import ConfigError, DiskFailed, Full, IslandError
from island.kernel.repair import repair_advice
from island.kernel.telemetry import counter
from island.kernel.work import ThreadWorkers, Workers
from island.private_files import create_private

log = structlog.get_logger("island")

WRITE_ERRORS = counter("database_write_errors", "Transactions that the disk did not accept", ("database",))

T = TypeVar("T")
Kind = Literal["state", "gossip", "chunks"]

WriteOutcome = tuple[Any, BaseException | None]
"""The result of a write function, or its exception."""

_SYNCHRONOUS: dict[Kind, str] = {"state": "FULL", "gossip": "NORMAL", "chunks": "NORMAL"}
_GROUP = 256
_MIGRATION = re.compile(r"(\d{4})_\w+\.sql\Z")


class Database:
    """One SQLite file. Open it with `Database.open` and close it with `close`.

    `workers` provides the threads: one for writing and `readers` for reading, each with its own
    connection. `connection` is the class of all connections; tests pass one that simulates a
    failing disk.
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
        """Called with the connection at the end of each transaction. May return a function to call after the commit."""
        self.problem = ""
        """Why the disk did not accept the last write, as a sentence for the status; empty if it did."""
        self._connection = connection
        _create(path)
        self._writer = _open_writer(path, kind, connection)
        self._closed = False
        workers = workers or ThreadWorkers()
        self._write_lane = workers.lane(f"db-{kind}")
        self._read_lane = workers.lane(f"db-{kind}-read", readers)
        self._jobs: deque[_Job] = deque()
        self._failures = WRITE_ERRORS.labels(kind)
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
        """Open or create `folder/KIND.db`. Raises `ConfigError` if the file is newer than this version or damaged."""
        return cls(folder / f"{kind}.db", kind, workers, connection=connection)

    async def write(
        self, function: Callable[[sqlite3.Connection], T], *, then: Callable[[T], object] | None = None
    ) -> T:
        """Run `function(connection)` in a transaction and return its result after the commit.

        The function must be quick, must not keep the connection, and must not commit. It runs in
        the writer's thread before the commit, so it must not change anything that the event loop
        reads; it returns its results instead. If it raises, its own changes are rolled back and
        the exception is raised to the caller. Raises `Full` if the disk is full, and `DiskFailed` if
        the file cannot be read or written. If its code is `outcome_unknown`, the changes are not
        visible now but may be there after a crash.

        `then(result)` runs in the event loop right after the commit, in the order of commits and
        before the caller continues, even if the caller has been cancelled. State in memory that
        must agree with the database is changed there. It does not run after a failure.

        If the caller is cancelled, `CancelledError` is raised only after the write is committed or
        has failed, so that a lock around the write is held until then.
        """
        if self._closed:
            raise IslandError(f"the database {self.path.name} is closed")
        future: asyncio.Future[T] = self._write_lane.future()
        self._jobs.append(_Job(function, then, future, asyncio.get_running_loop()))
        self._write_lane.post(self._write_turn)
        return await _settled(future)

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function(connection)` on a read-only connection in one consistent snapshot.

        Raises the exceptions of the function, and `DiskFailed` if the file cannot be read.
        """
        if self._closed:
            raise IslandError(f"the database {self.path.name} is closed")
        return await self._read_lane.run(self._read, function)

    @property
    def waiting(self) -> int:
        """Number of writes that wait for the writer's thread."""
        return len(self._jobs)

    async def try_disk(self) -> None:
        """Write a transaction that changes nothing, and clear `problem` if the disk accepts it.

        Raises `Full` and `DiskFailed` as `write` does.
        """

        def accepted(_: None) -> None:
            self.problem = ""

        await self.write(_rewrite_version, then=accepted)

    def close(self) -> None:
        """Finish the accepted writes and reads, then close all connections."""
        if self._closed:
            return
        self._closed = True
        self._write_lane.close()
        self._read_lane.close()
        for connection in self._connections:
            connection.close()
        self._writer.close()

    def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._reader()
            connection.execute("BEGIN")
            try:
                return function(connection)
            except StopIteration as error:
                raise _raisable(error)  # noqa: B904 - `_raisable` sets the cause
            finally:
                if connection.in_transaction:  # SQLite may have rolled back after an error
                    connection.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY:
                raise  # `function` tried to write: a bug, not a problem with the disk
            raise explained(error, self.path)  # noqa: B904 - `explained` sets the cause

    def _reader(self) -> sqlite3.Connection:
        """The connection of this reading thread."""
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is not None:
            return found
        connection = _connect(self.path, self.kind, self._connection)
        self._connections.append(connection)
        connection.execute("PRAGMA query_only=ON")
        self._local.connection = connection
        return connection

    def _write_turn(self) -> Iterator[None]:
        """Run and commit the waiting jobs in one transaction. Other code may run at each `yield`."""
        group: list[_Job] = []
        while self._jobs and len(group) < _GROUP:
            group.append(self._jobs.popleft())
        if not group:  # an earlier turn has taken these jobs
            return
        changes = self._writer.total_changes
        try:
            self._roll_back()  # in case the rollback of an earlier turn failed
            self._writer.execute("BEGIN IMMEDIATE")
            outcomes: list[WriteOutcome] = [job.run(self._writer) for job in group]
            committed = self.before_commit(self._writer) if self.before_commit else None
            yield
            self._commit()
            if committed is not None:
                committed()
        except GeneratorExit:  # the turn is abandoned, together with its callers
            raise
        except BaseException as error:  # noqa: BLE001 - raised to every waiting caller
            outcomes = [(None, error)] * len(group)
            try:
                self._roll_back()
            except sqlite3.Error as failure:
                log.warning("database.rollback_failed", database=self.path.name, error=str(failure))
        outcomes = [(result, problem and explained(problem, self.path)) for result, problem in outcomes]
        self._remember([problem for _, problem in outcomes], changed=self._writer.total_changes > changes)
        yield
        for job, (result, problem) in zip(group, outcomes, strict=True):
            job.settle(result, problem)

    def _remember(self, errors: list[BaseException | None], *, changed: bool) -> None:
        """Update `problem` after a turn. A transaction without changes does not prove that the disk works."""
        for error in errors:
            if isinstance(error, (Full, DiskFailed)) and isinstance(error.__cause__, sqlite3.Error):
                self.problem = error.line
                self._failures.inc()
                return
        if changed and None in errors:
            self.problem = ""

    def _commit(self) -> None:
        """Commit. If this fails, the changes are not there after a crash either, or the error says that they may be."""
        try:
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            # A failed sync leaves the complete transaction at the end of the write-ahead log. SQLite ignores it, and
            # the next transaction overwrites it, but a crash before that would bring it to life.
            if primary_code(error) == sqlite3.SQLITE_IOERR and not self._writer.in_transaction:
                self._overwrite_failed_commit()
            raise

    def _overwrite_failed_commit(self) -> None:
        """Commit a transaction that changes nothing but is written to the log. Raises `DiskFailed`."""
        try:
            _rewrite_version(self._writer)
        except sqlite3.Error as error:
            raise DiskFailed(
                f"{self.path} cannot be written: {error}; it is unknown whether the change will be stored",
                hint="Check the disk. Before you repeat the operation, check whether its change is there.",
                code="outcome_unknown",
            ) from error

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")


def _rewrite_version(connection: sqlite3.Connection) -> None:
    """Write to the file without a change of its content."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.execute(f"PRAGMA user_version={version}")


class _Job:
    """One write function and the future of its result."""

    def __init__(
        self,
        function: Callable[[sqlite3.Connection], Any],
        then: Callable[[Any], object] | None,
        future: asyncio.Future[Any],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._function, self._then, self._future, self._loop = function, then, future, loop

    def run(self, connection: sqlite3.Connection) -> WriteOutcome:
        connection.execute("SAVEPOINT job")
        try:
            result = self._function(connection)
        except BaseException as error:
            if not connection.in_transaction:  # SQLite has rolled back the whole group (disk full, I/O error)
                raise
            connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
            return None, error
        connection.execute("RELEASE job")
        return result, None

    def settle(self, result: Any, error: BaseException | None) -> None:
        def deliver() -> None:
            problem = self._follow_up(result) if error is None else error
            if self._future.done():
                return
            if problem is None:
                self._future.set_result(result)
            else:
                self._future.set_exception(_raisable(problem))
                # Mark it as retrieved: the caller may have been cancelled, and asyncio would log it.
                self._future.exception()

        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the loop is closed, so no caller waits
            return

    def _follow_up(self, result: Any) -> Exception | None:
        """Run `then`. Its exceptions are logged, because a cancelled caller would not receive them."""
        if self._then is None:
            return None
        try:
            self._then(result)
        except Exception as error:
            log.exception("database.then_failed")
            return error
        return None


def _raisable(error: BaseException) -> BaseException:
    """Convert `StopIteration`, which a future does not accept as its exception, to `RuntimeError`, as generators do."""
    if not isinstance(error, StopIteration):
        return error
    converted = RuntimeError("a function of a database raised StopIteration")
    converted.__cause__ = error
    return converted


async def _settled(future: asyncio.Future[T]) -> T:
    """Wait for the outcome of a write; a cancellation of the caller is raised after it."""
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
    """Create the file with a private mode while it is empty; SQLite gives `-wal` and `-shm` the same mode."""
    try:
        create_private(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be opened as a database: {error.strerror}",
            hint="Check the folder, its owner and the disk.",
        ) from error


def _connect(path: Path, kind: Kind, factory: type[sqlite3.Connection]) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0, factory=factory)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={_SYNCHRONOUS[kind]}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA temp_store=MEMORY")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _open_writer(path: Path, kind: Kind, factory: type[sqlite3.Connection]) -> sqlite3.Connection:
    """Connect to the file, for writing, and migrate it. Raises `ConfigError`."""
    try:
        connection = _connect(path, kind, factory)
        try:
            migrate(connection, path, kind)
        except BaseException:
            connection.close()
            raise
        return connection
    except sqlite3.DatabaseError as error:
        raise unusable(error, path) from error


def migrations(kind: Kind) -> list[tuple[int, str]]:
    """The numbered SQL files of one database, in order."""
    found = []
    for entry in resources.files("island.kernel").joinpath("schema", kind).iterdir():
        if match := _MIGRATION.match(entry.name):
            found.append((int(match[1]), entry.read_text("utf-8")))
    return sorted(found)


def newest_version(kind: Kind) -> int:
    """The schema version that this program writes."""
    return migrations(kind)[-1][0]


def check_version(connection: sqlite3.Connection, path: Path, kind: Kind) -> int:
    """Return the schema version of an open database; raises `ConfigError` if a newer program has written it."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > newest_version(kind):
        raise written_by_newer(str(path), version, kind)
    return version


def written_by_newer(what: str, version: int, kind: Kind) -> ConfigError:
    """The error for a database, described by `what`, whose schema version is above that of this program."""
    return ConfigError(
        f"{what} was written by a newer version of island (schema {version}; this version supports up to"
        f" {newest_version(kind)})",
        hint="Nothing was changed. Install the newer version again, or restore a backup from before the upgrade.",
    )


def migrate(connection: sqlite3.Connection, path: Path, kind: Kind) -> None:
    """Bring an open database to the newest schema version. Raises `ConfigError` as `check_version` does."""
    version = check_version(connection, path, kind)
    for number, sql in migrations(kind):
        if number > version:
            connection.executescript(f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version={number};\nCOMMIT;")


_DISK_CODES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,  # also the result of a failed read of a page
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)


DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""SQLite's primary result codes for content that is no database; the first also stands for a failed read."""


def explained(error: BaseException, path: Path) -> BaseException:
    """Convert SQLite's error of a full disk to `Full` and of a failing disk to `DiskFailed`; return others as is."""
    code = primary_code(error)
    converted: IslandError
    if code == sqlite3.SQLITE_FULL:
        converted = Full(f"the disk of {path} is full", hint="Free some space. Accepted data are not lost.")
    elif code in _DISK_CODES:
        assert isinstance(error, sqlite3.Error)
        converted = DiskFailed(f"{path} cannot be read or written: {error}", hint=_hint(error, path))
    else:
        return error
    converted.__cause__ = error
    return converted


def primary_code(error: BaseException) -> int | None:
    """SQLite's primary result code of an error; None if the error is not from SQLite."""
    code = getattr(error, "sqlite_errorcode", None) if isinstance(error, sqlite3.Error) else None
    return None if code is None else code & 0xFF


def unusable(error: sqlite3.Error, path: Path) -> ConfigError:
    """The error for a database that cannot be opened, because it is damaged or for another reason."""
    what = "is damaged" if primary_code(error) == sqlite3.SQLITE_NOTADB else "cannot be opened as a database"
    return ConfigError(f"{path} {what}: {error}", hint=_hint(error, path))


def _hint(error: sqlite3.Error, path: Path) -> str:
    if primary_code(error) == sqlite3.SQLITE_NOTADB:
        return repair_advice(path.name)
    if primary_code(error) == sqlite3.SQLITE_BUSY:
        return "Another process has locked it. End that process, for example an open `sqlite3` shell."
    if primary_code(error) == sqlite3.SQLITE_CORRUPT:
        # SQLite returns the same code for a failed read and for damaged content.
        return (
            "Check the disk and the system's log. Restore a backup only if"
            f" `sqlite3 {path} 'PRAGMA quick_check'` reports errors."
        )
    return "Check the disk, its free space, and the permissions of the file and its folder."
