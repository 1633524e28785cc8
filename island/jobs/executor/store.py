"""SQL of the executor's tables: run, run_statement."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from typing import Final

import msgspec

from island.jobs.executor.run import JobRun, RunStatement
from island.jobs.messages import CommitRequest, JobSpec, ResultRef, RunTimes
from island.kernel import codec

_ALIVE: Final = "phase != 'cleared' AND phase != 'clearing'"
"""Condition for runs that have not ended for their home. Its first part is that of the index `run_open`."""


def insert(conn: sqlite3.Connection, request: CommitRequest, now: float) -> None:
    """Insert an accepted run that has not been submitted to the engine yet."""
    envelope = request.envelope
    conn.execute(
        "INSERT INTO run (job, epoch, home, user, request_hash, work, signature, file_hash, lease, accepted, phase)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'waiting')",
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
        "INSERT OR IGNORE INTO run (job, epoch, home, user, request_hash, work, signature, lease, accepted, phase,"
        " state, reason, stop) VALUES (?, ?, ?, '', '', ?, x'', 0, ?, 'cleared', 'killed', ?, 'owner')",
        (job, epoch, home, codec.encode(JobSpec(kind="session")), now, reason),
    )


def get(conn: sqlite3.Connection, job: str, epoch: int) -> JobRun | None:
    """The run of a job under an epoch, or None."""
    row = conn.execute("SELECT * FROM run WHERE job = ? AND epoch = ?", (job, epoch)).fetchone()
    return None if row is None else _run(conn, row)


def newest_epoch(conn: sqlite3.Connection, job: str) -> int:
    """The highest epoch of a job at this executor; 0 if there is none."""
    return int(conn.execute("SELECT coalesce(max(epoch), 0) FROM run WHERE job = ?", (job,)).fetchone()[0])


def unfinished(conn: sqlite3.Connection) -> list[JobRun]:
    """The runs that are not cleared, oldest first."""
    rows = conn.execute("SELECT * FROM run WHERE phase != 'cleared' ORDER BY accepted, job, epoch").fetchall()
    return [_run(conn, row) for row in rows]


def count_alive(conn: sqlite3.Connection, *, without_home: str = "") -> int:
    """The number of runs that have not ended, without those of one home."""
    query = f"SELECT count(*) FROM run INDEXED BY run_open WHERE {_ALIVE} AND home != ?"
    return int(conn.execute(query, (without_home,)).fetchone()[0])


def stop_restored(conn: sqlite3.Connection) -> None:
    """Request the end of runs that cannot go on in a database that was restored from a backup.

    A run that was not submitted at the time of the backup may have been submitted since. A session may have
    got statements since. Batches that were submitted go on.
    """
    for run in unfinished(conn):
        if not run.ended and (run.remote is None or run.work.kind == "session"):
            conn.execute("UPDATE run SET stop = 'owner' WHERE job = ? AND epoch = ?", (run.job, run.epoch))


def newest(conn: sqlite3.Connection, limit: int) -> list[JobRun]:
    """The newest runs, newest first, without their statements."""
    return [_row(row) for row in conn.execute("SELECT * FROM run ORDER BY accepted DESC LIMIT ?", (limit,))]


def save_step(conn: sqlite3.Connection, old: JobRun, new: JobRun) -> None:
    """Store what a step of the machine has changed. A run that has ended gets only what clearing changes."""
    if old.ended:
        _save_clearing(conn, new)
        return
    if new.statement is not None and _kept(new.statement) != _kept(old.statement):
        _save_statement(conn, new, new.statement, known=old.statement)
    save(conn, new)


def kept(run: JobRun) -> tuple[object, ...]:
    """What must be stored of a run before it is acted on: not the log, and not the progress of a statement."""
    return (
        *(run.phase, run.engine, run.instance, run.doubt, run.remote, run.hidden, run.state, run.reason, run.code),
        *(run.app_id, run.app_info, run.notes, run.moved, _kept(run.statement)),
    )


def _kept(statement: RunStatement | None) -> RunStatement | None:
    if statement is None or statement.ended:
        return statement
    return replace(statement, state="waiting", progress=0.0, started=0)


def save(conn: sqlite3.Connection, run: JobRun) -> None:
    """Write the columns of a run that can change. A run that has ended is not changed."""
    conn.execute(
        "UPDATE run SET phase = ?, engine = ?, instance = ?, doubt = ?, remote = ?, hidden = ?, state = ?, reason = ?,"
        " code = ?, app_id = ?, app_info = ?, notes = ?, log = ?, moved = ?, times = ?"
        f" WHERE job = ? AND epoch = ? AND {_ALIVE}",
        (*_columns(run), run.job, run.epoch),
    )


def _columns(run: JobRun) -> tuple[str | int | None, ...]:
    return (
        run.phase,
        run.engine,
        run.instance,
        int(run.doubt),
        run.remote,
        run.hidden,
        run.state,
        run.reason,
        run.code,
        run.app_id,
        json.dumps(dict(run.app_info)),
        json.dumps(run.notes, ensure_ascii=False),
        json.dumps(run.log, ensure_ascii=False),
        run.moved,
        msgspec.json.encode(run.times).decode(),
    )


def _save_clearing(conn: sqlite3.Connection, run: JobRun) -> None:
    conn.execute(
        "UPDATE run SET phase = ?, remote = ? WHERE job = ? AND epoch = ? AND phase = 'clearing'",
        (run.phase, run.remote, run.job, run.epoch),
    )


def set_stop(conn: sqlite3.Connection, job: str, epoch: int, by: str) -> None:
    """Record that a run has to end, requested by `owner` or `administrator`. No effect if it has ended."""
    conn.execute(f"UPDATE run SET stop = ? WHERE job = ? AND epoch = ? AND {_ALIVE}", (by, job, epoch))


def release(conn: sqlite3.Connection, job: str, epoch: int) -> None:
    """Delete the statements and the log of a run that has ended.

    Its row is kept, so that a late request cannot start it again.
    """
    conn.execute("DELETE FROM run_statement WHERE job = ? AND epoch = ?", (job, epoch))
    conn.execute(
        f"UPDATE run SET released = 1, log = '[]' WHERE job = ? AND epoch = ? AND NOT ({_ALIVE})", (job, epoch)
    )


def _save_statement(
    conn: sqlite3.Connection, run: JobRun, statement: RunStatement, *, known: RunStatement | None
) -> None:
    """Insert or update the newest statement. Earlier ones are deleted: home has stored their results."""
    key = (run.job, run.epoch, statement.number)
    statement = _kept(statement) or statement
    if known is None or known.number != statement.number:
        conn.execute("DELETE FROM run_statement WHERE job = ? AND epoch = ? AND number < ?", key)
        conn.execute(
            "INSERT INTO run_statement (job, epoch, number, code, language, remote, state)"
            " VALUES (?, ?, ?, ?, ?, ?, 'waiting')",
            (*key, statement.code, statement.language, statement.remote),
        )
    conn.execute(
        "UPDATE run_statement SET remote = ?, state = ?, output = ?, result = ?, result_size = ?, started = ?,"
        " completed = ?, cancel = ?"
        " WHERE job = ? AND epoch = ? AND number = ?",
        (
            statement.remote,
            statement.state,
            statement.output,
            statement.result.hash if statement.result else "",
            statement.result.size if statement.result else 0,
            statement.started,
            statement.completed,
            int(statement.cancel),
            *key,
        ),
    )


def _newest_statement(conn: sqlite3.Connection, job: str, epoch: int) -> RunStatement | None:
    row = conn.execute(
        "SELECT * FROM run_statement WHERE job = ? AND epoch = ? ORDER BY number DESC LIMIT 1", (job, epoch)
    ).fetchone()
    if row is None:
        return None
    return RunStatement(
        number=row["number"],
        code=row["code"],
        language=row["language"],
        remote=row["remote"],
        state=row["state"],
        output=row["output"],
        result=ResultRef(hash=row["result"], size=row["result_size"]) if row["result"] else None,
        started=row["started"],
        completed=row["completed"],
        cancel=bool(row["cancel"]),
    )


def _run(conn: sqlite3.Connection, row: sqlite3.Row) -> JobRun:
    return replace(_row(row), statement=_newest_statement(conn, row["job"], row["epoch"]))


def _row(row: sqlite3.Row) -> JobRun:
    return JobRun(
        job=row["job"],
        epoch=row["epoch"],
        home=row["home"],
        user=row["user"],
        request_hash=row["request_hash"],
        work=codec.decode(row["work"], JobSpec),
        lease=row["lease"],
        accepted=row["accepted"],
        phase=row["phase"],
        engine=row["engine"],
        instance=row["instance"],
        doubt=bool(row["doubt"]),
        remote=row["remote"],
        hidden=row["hidden"],
        state=row["state"],
        reason=row["reason"],
        code=row["code"],
        app_id=row["app_id"],
        app_info=json.loads(row["app_info"]),
        notes=tuple(json.loads(row["notes"])),
        log=tuple(json.loads(row["log"])),
        moved=row["moved"],
        times=msgspec.json.decode(row["times"], type=RunTimes),
        stop=row["stop"],
        released=bool(row["released"]),
    )
