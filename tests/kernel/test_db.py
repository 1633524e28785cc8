"""One writer, many readers: group commit, isolation of failures, migrations, closing."""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from island.errors import ConfigError, DiskFailed, Full, IslandError
from island.kernel import db as module
from island.kernel.db import Database
from island.kernel.loops import is_transient
from tests.standins.faults import cancelled_while_committing, failed_read, failed_write, full_disk, unreadable


def make(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY) STRICT")


def add(number: int) -> Callable[[sqlite3.Connection], int]:
    def insert(conn: sqlite3.Connection) -> int:
        conn.execute("INSERT INTO t VALUES (?)", (number,))
        return number

    return insert


def every(conn: sqlite3.Connection) -> list[int]:
    return [row[0] for row in conn.execute("SELECT n FROM t ORDER BY n")]


async def test_a_failing_write_undoes_itself_only(tmp_path: Path) -> None:
    database = Database.open(tmp_path, "state")
    try:
        await database.write(make)
        outcomes = await asyncio.gather(*(database.write(add(n % 50)) for n in range(60)), return_exceptions=True)
        assert sum(isinstance(o, sqlite3.IntegrityError) for o in outcomes) == 10
        assert await database.read(every) == list(range(50))
    finally:
        database.close()


async def test_what_was_written_is_there_after_closing(tmp_path: Path) -> None:
    database = Database.open(tmp_path, "state")
    await database.write(make)
    await asyncio.gather(*(database.write(add(n)) for n in range(500)))
    database.close()
    database.close()
    with pytest.raises(IslandError):
        await database.write(add(1000))
    again = Database.open(tmp_path, "state")
    assert len(await again.read(every)) == 500
    again.close()


async def test_a_reader_cannot_write(tmp_path: Path) -> None:
    database = Database.open(tmp_path, "state")
    try:
        await database.write(make)
        with pytest.raises(sqlite3.OperationalError):
            await database.read(add(1))
        assert await database.read(every) == []
    finally:
        database.close()


async def test_a_cancelled_writer_does_not_harm_the_others(tmp_path: Path) -> None:
    database = Database.open(tmp_path, "state")
    try:
        await database.write(make)
        first = asyncio.get_running_loop().create_task(database.write(add(1)))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await database.write(add(2))
        assert await database.read(every) == [1, 2]
    finally:
        database.close()


async def test_what_follows_a_commit_happens_for_a_caller_that_was_cancelled_too(tmp_path: Path) -> None:
    database = Database.open(tmp_path, "state")
    memory: list[int] = []
    try:
        await database.write(make)
        await cancelled_while_committing(database, lambda: database.write(add(1), then=memory.append))
        await asyncio.gather(*(database.write(add(n), then=memory.append) for n in (3, 2, 4)))
        assert memory == [1, 3, 2, 4]
        assert await database.read(every) == [1, 2, 3, 4]
    finally:
        database.close()


async def test_a_cancelled_caller_keeps_its_lock_until_the_commit(tmp_path: Path) -> None:
    database = Database.open(tmp_path, "state")
    lock = asyncio.Lock()
    held: list[bool] = []

    async def work() -> None:
        async with lock:
            await database.write(add(1), then=lambda _: held.append(lock.locked()))

    try:
        await database.write(make)
        await cancelled_while_committing(database, work)
        assert held == [True]
    finally:
        database.close()


async def test_what_follows_a_commit_does_not_follow_a_failure(tmp_path: Path) -> None:
    database = Database.open(tmp_path, "state")
    memory: list[int] = []
    try:
        await database.write(make)
        await database.write(add(1), then=memory.append)
        with pytest.raises(sqlite3.IntegrityError):
            await database.write(add(1), then=memory.append)
        assert memory == [1]
    finally:
        database.close()


async def test_a_fault_in_what_follows_is_the_callers_and_undoes_nothing(tmp_path: Path) -> None:
    database = Database.open(tmp_path, "state")

    def broken(_: int) -> None:
        raise KeyError("bug")

    try:
        await database.write(make)
        with pytest.raises(KeyError):
            await database.write(add(1), then=broken)
        await database.write(add(2))
        assert await database.read(every) == [1, 2]
    finally:
        database.close()


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    conn = sqlite3.connect(tmp_path / "state.db")
    conn.execute("PRAGMA user_version=9999")
    conn.close()
    with pytest.raises(ConfigError, match="newer version"):
        Database.open(tmp_path, "state")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(ConfigError, match=r"is damaged.*\n.*restore a backup"):
        Database.open(tmp_path, "state")


@pytest.mark.parametrize(("statement", "error"), [("PRAGMA journal_mode=WAL", failed_read()), ("BEGIN", full_disk())])
def test_an_error_of_the_disk_at_the_start_does_not_advise_a_restore(
    tmp_path: Path, statement: str, error: sqlite3.DatabaseError
) -> None:
    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql.startswith(statement):
                raise error
            return super().execute(sql, *args)

        def executescript(self, sql: str) -> sqlite3.Cursor:
            return self.execute(sql)

    with pytest.raises(ConfigError, match="cannot be opened") as failure:
        Database.open(tmp_path, "state", connection=Connection)
    assert failure.value.hint.startswith("Check the disk")
    assert ("Restore a backup only if `sqlite3" in failure.value.hint) is (
        error.sqlite_errorcode == sqlite3.SQLITE_CORRUPT
    )


@pytest.mark.parametrize("kind", ["state", "gossip", "chunks"])
def test_migrations_are_numbered_once_and_leave_strict_tables(tmp_path: Path, kind: module.Kind) -> None:
    numbers = [number for number, _ in module.migrations(kind)]
    assert numbers == sorted(set(numbers))
    database = Database(tmp_path / "x.db", kind)
    database.close()
    conn = sqlite3.connect(tmp_path / "x.db")
    loose = [
        row[1]
        for row in conn.execute("PRAGMA table_list")
        if row[2] == "table" and not row[5] and not row[1].startswith("sqlite_")
    ]
    conn.close()
    assert loose == []


@contextlib.asynccontextmanager
async def reopened(folder: Path, rows: int) -> AsyncIterator[Database]:
    """A database with rows that are in the file itself, not in its write-ahead log or in a cache."""
    database = Database.open(folder, "state")
    await database.write(make)
    await database.write(lambda conn: [add(n)(conn) for n in range(rows)])
    database.close()
    database = Database.open(folder, "state")
    try:
        yield database
    finally:
        database.close()


async def test_a_page_that_cannot_be_read_is_a_failure_of_the_disk(tmp_path: Path) -> None:
    async with reopened(tmp_path, 5000) as database:
        assert await database.read(lambda conn: conn.execute("SELECT n FROM t").fetchone()[0]) == 0
        with unreadable(database.path), pytest.raises(DiskFailed, match="quick_check") as failure:
            await asyncio.gather(*(database.read(every) for _ in range(8)))
        assert isinstance(failure.value.__cause__, sqlite3.DatabaseError)
        assert is_transient(failure.value)
        assert len(await database.read(every)) == 5000


async def test_a_reader_that_cannot_connect_is_a_failure_of_the_disk(tmp_path: Path) -> None:
    async with reopened(tmp_path, 10) as database:
        head = database.path.read_bytes()[:100]
        with database.path.open("r+b") as file:
            file.write(bytes(100))
        with pytest.raises(DiskFailed) as failure:
            await database.read(every)
        assert is_transient(failure.value)
        with database.path.open("r+b") as file:
            file.write(head)
        assert await database.read(every) == list(range(10))


@pytest.mark.parametrize(
    ("error", "kind"), [(failed_read(), DiskFailed), (failed_write(), DiskFailed), (full_disk(), Full)], ids=repr
)
async def test_an_error_of_the_disk_in_a_write_is_explained_and_transient(
    tmp_path: Path, error: sqlite3.DatabaseError, kind: type[IslandError]
) -> None:
    def fails(_: sqlite3.Connection) -> None:
        raise error

    database = Database.open(tmp_path, "state")
    try:
        with pytest.raises(kind) as failure:
            await database.write(fails)
        assert failure.value.__cause__ is error
        assert failure.value.hint
        assert is_transient(failure.value)
    finally:
        database.close()


async def test_a_database_that_another_process_has_locked_is_explained_and_transient(tmp_path: Path) -> None:
    database = Database.open(tmp_path, "state")
    database._writer.execute("PRAGMA busy_timeout=0")
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    try:
        await database.write(make)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DiskFailed, match="database is locked") as found:
            await database.write(add(1))
        assert is_transient(found.value) and "Another process" in found.value.hint
        other.execute("ROLLBACK")
        await database.write(add(1))
        assert await database.read(every) == [1]
    finally:
        other.close()
        database.close()


async def test_a_function_that_raises_stop_iteration_fails_and_its_caller_continues(tmp_path: Path) -> None:
    def exhausted(_: object) -> int:
        return next(iter(()))

    database = Database.open(tmp_path, "state")
    try:
        async with asyncio.timeout(30):
            with pytest.raises(RuntimeError, match="StopIteration"):
                await database.write(exhausted)
            with pytest.raises(RuntimeError, match="StopIteration"):
                await database.write(lambda _: 1, then=exhausted)
            with pytest.raises(RuntimeError, match="StopIteration"):
                await database.read(exhausted)
    finally:
        database.close()


async def test_the_callers_of_a_commit_that_cannot_be_undone_are_told(tmp_path: Path) -> None:
    failing: list[str] = []

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql in failing:
                failing.remove(sql)
                raise failed_write()
            return super().execute(sql, *args)

    database = Database.open(tmp_path, "state", connection=Connection)
    try:
        await database.write(make)
        failing += ["COMMIT", "ROLLBACK"]
        async with asyncio.timeout(30):
            outcomes = await asyncio.gather(*(database.write(add(n)) for n in range(3)), return_exceptions=True)
        assert any(isinstance(outcome, DiskFailed) for outcome in outcomes)
        assert failing == []
        written = [outcome for outcome in outcomes if isinstance(outcome, int)]
        await database.write(add(9))
        assert await database.read(every) == [*written, 9]
    finally:
        database.close()


async def test_a_full_disk_is_a_problem_until_a_write_changes_something(tmp_path: Path) -> None:
    database = Database.open(tmp_path, "state")

    def full(_: sqlite3.Connection) -> None:
        raise full_disk()

    def over_quota(_: sqlite3.Connection) -> None:
        raise Full("the quota is used up")

    try:
        await database.write(make)
        with pytest.raises(Full):
            await database.write(over_quota)
        assert database.problem == ""
        with pytest.raises(Full):
            await database.write(full)
        assert "state.db is full" in database.problem
        await database.write(every)  # commits nothing to the disk
        assert "state.db is full" in database.problem
        await database.write(add(1))
        assert database.problem == ""
        with pytest.raises(Full):
            await database.write(full)
        size = (tmp_path / "state.db-wal").stat().st_size
        await database.try_disk()
        assert database.problem == "" and (tmp_path / "state.db-wal").stat().st_size > size
    finally:
        database.close()


class UnsyncedConnection(sqlite3.Connection):
    """A connection whose commits can fail as after a failed sync: with all frames written to the write-ahead log."""

    frames = b""
    """What the next COMMIT leaves at the end of the log before it fails; empty: it succeeds."""
    fails: tuple[str, ...] = ()
    """The beginnings of other statements that fail."""

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        failing = bool(self.fails) and sql.startswith(self.fails)
        if sql == "COMMIT" and self.frames:
            super().execute("ROLLBACK")
            with Path(self.path).open("ab") as wal:
                wal.write(self.frames)
            UnsyncedConnection.frames = b""
            failing = True
        if failing:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return super().execute(sql, *args)

    @property
    def path(self) -> str:
        """The path of the write-ahead log."""
        return f"{super().execute('PRAGMA database_list').fetchone()[2]}-wal"


def copied(folder: Path, to: Path) -> Path:
    """Copy the files of a database as a crash of the process leaves them."""
    to.mkdir()
    for name in ("state.db", "state.db-wal"):
        shutil.copy(folder / name, to)
    return to


def frames_of(folder: Path, statement: str) -> bytes:
    """Run a statement in a database that nobody else uses, and return what its commit appends to the log."""
    size = (folder / "state.db-wal").stat().st_size
    conn = sqlite3.connect(folder / "state.db", isolation_level=None)
    conn.execute(statement)
    appended = (folder / "state.db-wal").read_bytes()[size:]
    conn.close()
    return appended


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> type[UnsyncedConnection]:
    monkeypatch.setattr(UnsyncedConnection, "frames", b"")
    monkeypatch.setattr(UnsyncedConnection, "fails", ())
    return UnsyncedConnection


async def test_a_write_whose_sync_failed_is_not_there_after_a_crash(
    tmp_path: Path, unsynced: type[UnsyncedConnection]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    database = Database.open(home, "state", connection=unsynced)
    try:
        await database.write(make)
        await database.write(add(1))
        unsynced.frames = frames_of(copied(home, tmp_path / "other"), "INSERT INTO t VALUES (7)")
        assert unsynced.frames
        with pytest.raises(DiskFailed) as failure:
            await database.write(add(7))
        assert failure.value.code == "disk_failed"
        again = Database.open(copied(home, tmp_path / "crashed"), "state")
        assert await again.read(every) == [1]
        again.close()
        await database.write(add(2))
        assert await database.read(every) == [1, 2]
    finally:
        database.close()


async def test_a_write_that_may_be_stored_is_not_called_a_failure(
    tmp_path: Path, unsynced: type[UnsyncedConnection]
) -> None:
    database = Database.open(tmp_path, "state", connection=unsynced)
    try:
        await database.write(make)
        unsynced.frames, unsynced.fails = b"any", ("PRAGMA user_version",)
        with pytest.raises(DiskFailed, match="unknown whether") as failure:
            await database.write(add(7))
        assert failure.value.code == "outcome_unknown"
        assert is_transient(failure.value)
        assert "unknown whether" in database.problem
    finally:
        database.close()
