"""SQL of the executor's tables: run, run_statement."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field

from island.jobs.messages import CommitRequest, JobSpec, StatementReport
from island.kernel import codec
from island.livy.messages import STATEMENT_ENDED


@dataclass(slots=True)
class JobRun:
    """One row of `run`: a job at its executor under one epoch. Times are Unix seconds."""

    job: str
    epoch: int
    home: str
    user: str
    request_hash: str
    work: JobSpec
    lease: float
    accepted: float
    step: str = "accepted"
    engine: str = ""
    remote: int | None = None
    hidden: int = 0
    state: str = "starting"
    reason: str = ""
    app_id: str = ""
    app_info: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    moved: int = 0
    stop: bool = False
    released: bool = False

    @property
    def ended(self) -> bool:
        """Whether the run has ended."""
        return self.step == "ended"

    @property
    def name(self) -> str:
        """The name of its session or batch at the engine, by which it is found after a lost answer."""
        return f"isl-{self.job.partition('.')[0]}-{self.epoch}"


@dataclass(slots=True)
class RunStatement:
    """One row of `run_statement`. Times are milliseconds since 1970; 0 if not reached."""

    number: int
    code: str
    language: str
    remote: int
    state: str = "waiting"
    output: str = ""
    started: int = 0
    completed: int = 0
    cancel: bool = False
    progress: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether the statement has its last state."""
        return self.state in STATEMENT_ENDED

    def report(self) -> StatementReport:
        """The statement as a message for home."""
        return StatementReport(
            number=self.number,
            state=self.state,
            output=self.output,
            progress=1.0 if self.ended else self.progress,
            started=self.started,
            completed=self.completed,
        )


def insert(conn: sqlite3.Connection, request: CommitRequest, now: float) -> None:
    """Insert an accepted run that has not been submitted to the engine yet."""
    envelope = request.envelope
    conn.execute(
        "INSERT INTO run (job, epoch, home, user, request_hash, work, signature, file_hash, lease, accepted, step)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'accepted')",
        (
            envelope.job,
            envelope.epoch,
            envelope.home,
            envelope.user,
            envelope.request_hash,
            codec.encode(request.work),
            envelope.signature,
            request.work.file_hash,
            request.lease,
            now,
        ),
    )


def insert_refused(conn: sqlite3.Connection, job: str, epoch: int, home: str, reason: str, now: float) -> None:
    """Insert a run that is ended from the start, so that a late commit of this epoch is refused."""
    conn.execute(
        "INSERT OR IGNORE INTO run (job, epoch, home, user, request_hash, work, signature, lease, accepted, step,"
        " state, reason, stop, cleared) VALUES (?, ?, ?, '', '', ?, x'', 0, ?, 'ended', 'killed', ?, 1, 1)",
        (job, epoch, home, codec.encode(JobSpec(kind="session")), now, reason),
    )


def get(conn: sqlite3.Connection, job: str, epoch: int) -> JobRun | None:
    """The run of a job under an epoch, or None."""
    row = conn.execute("SELECT * FROM run WHERE job = ? AND epoch = ?", (job, epoch)).fetchone()
    return None if row is None else _run(row)


def newest_epoch(conn: sqlite3.Connection, job: str) -> int:
    """The highest epoch of a job at this executor; 0 if there is none."""
    return int(conn.execute("SELECT coalesce(max(epoch), 0) FROM run WHERE job = ?", (job,)).fetchone()[0])


def unended(conn: sqlite3.Connection) -> list[JobRun]:
    """The runs that have not ended, oldest first."""
    return [_run(row) for row in conn.execute("SELECT * FROM run WHERE step != 'ended' ORDER BY accepted, job")]


def stop_restored(conn: sqlite3.Connection) -> None:
    """Request the end of runs that cannot go on in a database that was restored from a backup.

    A run that was not submitted at the time of the backup may have been submitted since. A session may have
    got statements since. Batches that were submitted go on.
    """
    for run in unended(conn):
        if run.step != "running" or run.work.kind == "session":
            conn.execute("UPDATE run SET stop = 1 WHERE job = ? AND epoch = ?", (run.job, run.epoch))


def uncleared(conn: sqlite3.Connection) -> list[JobRun]:
    """The runs that have ended and may still have a session or batch at the engine."""
    return [_run(row) for row in conn.execute("SELECT * FROM run WHERE step = 'ended' AND cleared = 0")]


def set_cleared(conn: sqlite3.Connection, job: str, epoch: int) -> None:
    """Record that the run has no session or batch at the engine."""
    conn.execute("UPDATE run SET cleared = 1 WHERE job = ? AND epoch = ?", (job, epoch))


def newest(conn: sqlite3.Connection, limit: int) -> list[JobRun]:
    """The newest runs, newest first."""
    return [_run(row) for row in conn.execute("SELECT * FROM run ORDER BY accepted DESC LIMIT ?", (limit,))]


def save(conn: sqlite3.Connection, run: JobRun) -> None:
    """Write the columns of a run that can change. A run that has ended is not changed."""
    conn.execute(
        "UPDATE run SET step = ?, engine = ?, remote = ?, hidden = ?, state = ?, reason = ?, app_id = ?, app_info = ?,"
        " notes = ?, log = ?, moved = ?, stop = max(stop, ?), released = ?"
        " WHERE job = ? AND epoch = ? AND step != 'ended'",
        (
            run.step,
            run.engine,
            run.remote,
            run.hidden,
            run.state,
            run.reason,
            run.app_id,
            json.dumps(run.app_info),
            json.dumps(run.notes, ensure_ascii=False),
            json.dumps(run.log, ensure_ascii=False),
            run.moved,
            int(run.stop),
            int(run.released),
            run.job,
            run.epoch,
        ),
    )


def set_stop(conn: sqlite3.Connection, job: str, epoch: int) -> None:
    """Record that a run has to end. No effect if it has ended."""
    conn.execute("UPDATE run SET stop = 1 WHERE job = ? AND epoch = ? AND step != 'ended'", (job, epoch))


def release(conn: sqlite3.Connection, job: str, epoch: int) -> None:
    """Delete the statements and the log of a run. Its row is kept, so that a late request cannot start it again."""
    conn.execute("DELETE FROM run_statement WHERE job = ? AND epoch = ?", (job, epoch))
    conn.execute("UPDATE run SET released = 1, log = '[]' WHERE job = ? AND epoch = ? AND step = 'ended'", (job, epoch))


def add_statement(conn: sqlite3.Connection, run: JobRun, statement: RunStatement) -> None:
    """Insert an accepted statement before it is posted, and delete earlier ones, whose results home has stored."""
    conn.execute(
        "DELETE FROM run_statement WHERE job = ? AND epoch = ? AND number < ?", (run.job, run.epoch, statement.number)
    )
    conn.execute(
        "INSERT INTO run_statement (job, epoch, number, code, language, remote, state) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (run.job, run.epoch, statement.number, statement.code, statement.language, statement.remote, statement.state),
    )


def save_statement(conn: sqlite3.Connection, run: JobRun, statement: RunStatement) -> None:
    """Write the columns of a statement that can change."""
    conn.execute(
        "UPDATE run_statement SET remote = ?, state = ?, output = ?, started = ?, completed = ?,"
        " cancel = max(cancel, ?) WHERE job = ? AND epoch = ? AND number = ?",
        (
            statement.remote,
            statement.state,
            statement.output,
            statement.started,
            statement.completed,
            int(statement.cancel),
            run.job,
            run.epoch,
            statement.number,
        ),
    )


def statements(conn: sqlite3.Connection, job: str, epoch: int, since: int = 0) -> list[RunStatement]:
    """The stored statements of a run from number `since`, in order."""
    rows = conn.execute(
        "SELECT * FROM run_statement WHERE job = ? AND epoch = ? AND number >= ? ORDER BY number", (job, epoch, since)
    )
    return [
        RunStatement(
            number=row["number"],
            code=row["code"],
            language=row["language"],
            remote=row["remote"],
            state=row["state"],
            output=row["output"],
            started=row["started"],
            completed=row["completed"],
            cancel=bool(row["cancel"]),
        )
        for row in rows
    ]


def _run(row: sqlite3.Row) -> JobRun:
    return JobRun(
        job=row["job"],
        epoch=row["epoch"],
        home=row["home"],
        user=row["user"],
        request_hash=row["request_hash"],
        work=codec.decode(row["work"], JobSpec),
        lease=row["lease"],
        accepted=row["accepted"],
        step=row["step"],
        engine=row["engine"],
        remote=row["remote"],
        hidden=row["hidden"],
        state=row["state"],
        reason=row["reason"],
        app_id=row["app_id"],
        app_info=json.loads(row["app_info"]),
        notes=json.loads(row["notes"]),
        log=json.loads(row["log"]),
        moved=row["moved"],
        stop=bool(row["stop"]),
        released=bool(row["released"]),
    )
