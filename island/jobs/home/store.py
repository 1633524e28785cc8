"""SQL of home's tables: job, job_log, job_statement, job_decision, job_file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from island.errors import Conflict
from island.jobs import batch_files, core
from island.jobs.home.events import AddNotes, CancelStatements, KeepDecision, KeepEnd, KeepReport, KeepStop
from island.jobs.home.machine import HomeJob
from island.jobs.messages import LOG_LINES, JobReport, JobSpec, StatementReport
from island.kernel import codec
from island.kernel.machine import Write
from island.livy.messages import STATEMENT_ENDED

_BRIEF: Final = (
    "id, kind, local, user, name, request_hash, '{}' AS request, work, pin, reattach, created, ended, phase, epoch,"
    " executor, reservation, released, stop, deleted, state, reason, app_id, app_info, '[]' AS engine_log, notes,"
    " moved, statements"
)
"""The columns of a job in a listing, without its long texts."""

_OPEN: Final = "state IN ('waiting', 'running', 'cancelling')"


@dataclass(frozen=True, slots=True)
class JobRow:
    """One row of `job`. Times are Unix seconds."""

    id: str
    kind: str
    local: int
    user: str
    name: str | None
    request_hash: str
    request: dict[str, Any]
    work: JobSpec
    pin: str
    reattach: str
    created: float
    ended: float | None
    phase: str
    epoch: int
    executor: str
    reservation: str
    released: bool
    stop: bool
    deleted: bool
    state: str
    reason: str
    app_id: str
    app_info: dict[str, str]
    engine_log: list[str]
    notes: int
    moved: int
    statements: int

    @property
    def live(self) -> bool:
        """Whether the job has not ended."""
        return self.phase != "ended"


@dataclass(frozen=True, slots=True)
class StatementRow:
    """One row of `job_statement`. Times are milliseconds since 1970; 0 if not reached."""

    number: int
    code: str
    language: str
    state: str
    output: str
    started: int
    completed: int
    cancel: bool

    @property
    def ended(self) -> bool:
        """Whether the statement has its last state."""
        return self.state in STATEMENT_ENDED

    def report(self) -> StatementReport:
        """The stored statement in the form of a report."""
        return StatementReport(
            number=self.number,
            state=self.state,
            output=self.output,
            started=self.started,
            completed=self.completed,
        )


def _job(row: sqlite3.Row) -> JobRow:
    # A look-up in a dict is much faster than one in a `sqlite3.Row`, which compares the names of all columns.
    value = dict(zip(row.keys(), row, strict=True))
    return JobRow(
        id=value["id"],
        kind=value["kind"],
        local=value["local"],
        user=value["user"],
        name=value["name"],
        request_hash=value["request_hash"],
        request=msgspec.json.decode(value["request"]),
        work=codec.decode(value["work"], JobSpec),
        pin=value["pin"],
        reattach=value["reattach"],
        created=value["created"],
        ended=value["ended"],
        phase=value["phase"],
        epoch=value["epoch"],
        executor=value["executor"],
        reservation=value["reservation"],
        released=bool(value["released"]),
        stop=bool(value["stop"]),
        deleted=bool(value["deleted"]),
        state=value["state"],
        reason=value["reason"],
        app_id=value["app_id"],
        app_info=msgspec.json.decode(value["app_info"]),
        engine_log=msgspec.json.decode(value["engine_log"]),
        notes=value["notes"],
        moved=value["moved"],
        statements=value["statements"],
    )


def _statement(row: sqlite3.Row) -> StatementRow:
    return StatementRow(
        number=row["number"],
        code=row["code"],
        language=row["language"],
        state=row["state"],
        output=row["output"],
        started=row["started"],
        completed=row["completed"],
        cancel=bool(row["cancel"]),
    )


# --- accept ---------------------------------------------------------------------------------


def repeated(conn: sqlite3.Connection, user: str, key: str, request_hash: str) -> JobRow | None:
    """The job that was created with this user's idempotency key, or None.

    Raises `Conflict` if another request created it.
    """
    row = conn.execute("SELECT * FROM job WHERE user = ? AND idempotency = ?", (user, key)).fetchone()
    if row is None:
        return None
    if row["request_hash"] != request_hash:
        raise Conflict(
            f"the idempotency key '{key[:80]}' was used for another request (job {row['id']})",
            hint="Use a new key for a new request.",
        )
    return _job(row)


def next_local(conn: sqlite3.Connection) -> int:
    """The next local id. Sessions and batches share the counter, and ids are never reused."""
    row = conn.execute("UPDATE job_counter SET next = next + 1 RETURNING next - 1").fetchone()
    return int(row[0])


def skip_locals(conn: sqlite3.Connection, count: int) -> None:
    """Leave out `count` local ids, which may have been used after the backup that this database is restored from."""
    conn.execute("UPDATE job_counter SET next = next + ?", (count,))


def living_name(conn: sqlite3.Connection, kind: str, name: str, user: str) -> int | None:
    """The local id of the user's live job with this name, or None. Users do not see the names of others."""
    row = conn.execute(
        "SELECT local FROM job WHERE kind = ? AND name = ? AND user = ? AND deleted = 0 AND phase != 'ended'",
        (kind, name, user),
    ).fetchone()
    return None if row is None else int(row["local"])


def living_of(conn: sqlite3.Connection, user: str) -> int:
    """The number of live jobs of a user."""
    # SQLite would choose the index on all jobs of the user, and read those of years.
    row = conn.execute(
        "SELECT count(*) FROM job INDEXED BY job_of_user WHERE user = ? AND phase != 'ended'", (user,)
    ).fetchone()
    return int(row[0])


def insert(
    conn: sqlite3.Connection,
    *,
    job: str,
    kind: str,
    local: int,
    user: str,
    name: str | None,
    idempotency: str | None,
    request_hash: str,
    request: dict[str, Any],
    work: JobSpec,
    pin: str,
    reattach: str,
    created: float,
) -> None:
    """Insert a new job in phase `routing`."""
    conn.execute(
        "INSERT INTO job (id, kind, local, user, name, idempotency, request_hash, request, work, file_hash, pin,"
        " reattach, created, phase, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'routing', 'starting')",
        (
            job,
            kind,
            local,
            user,
            name,
            idempotency,
            request_hash,
            json.dumps(request, ensure_ascii=False),
            codec.encode(work),
            work.file_hash,
            pin,
            reattach,
            created,
        ),
    )


# --- look up ----------------------------------------------------------------------------------


def get(conn: sqlite3.Connection, job: str) -> JobRow | None:
    """The job with this public id, or None."""
    row = conn.execute("SELECT * FROM job WHERE id = ?", (job,)).fetchone()
    return None if row is None else _job(row)


def by_local(conn: sqlite3.Connection, kind: str, local: int) -> JobRow | None:
    """The job with this local id, which Livy clients use, or None."""
    row = conn.execute("SELECT * FROM job WHERE kind = ? AND local = ?", (kind, local)).fetchone()
    return None if row is None else _job(row)


def by_name(conn: sqlite3.Connection, kind: str, name: str, user: str | None) -> JobRow | None:
    """The newest job with this name that Livy clients of a user see (of any if `user` is None), live jobs first."""
    row = conn.execute(
        "SELECT * FROM job WHERE kind = ? AND name = ? AND (? IS NULL OR user = ?) AND deleted = 0"
        " ORDER BY phase = 'ended', local DESC LIMIT 1",
        (kind, name, user, user),
    ).fetchone()
    return None if row is None else _job(row)


def by_prefix(conn: sqlite3.Connection, prefix: str, user: str | None, limit: int = 6) -> list[JobRow]:
    """Jobs whose public id begins with `prefix`, of one user, or of all if `user` is None."""
    rows = conn.execute(
        "SELECT * FROM job WHERE id >= ? AND id < ? AND (? IS NULL OR user = ?) ORDER BY id LIMIT ?",
        (prefix, prefix + "\x7f", user, user, limit),
    )
    return [_job(row) for row in rows]


def page(
    conn: sqlite3.Connection, kind: str, user: str | None, start: int, size: int, since: float
) -> tuple[int, list[JobRow]]:
    """The number of jobs of a kind that Livy's listing shows, and a page of them.

    These are the live jobs in the order of their local ids, then those that have ended after `since` (Unix seconds),
    the newest first. Jobs of all users, if `user` is None.
    """
    # `+kind`: the index of local ids has all ended jobs.
    mine = "+kind = ? AND deleted = 0 AND (? IS NULL OR user = ?)"
    listed = (
        f"SELECT *, 0 AS over, local AS rank FROM job WHERE {mine} AND phase != 'ended' UNION ALL"
        f" SELECT *, 1 AS over, -local AS rank FROM job WHERE {mine} AND phase = 'ended' AND ended > ?"
    )
    values = (kind, user, user, kind, user, user, since)
    total = conn.execute(f"SELECT count(*) FROM ({listed})", values).fetchone()[0]
    if size <= 0 or start + size <= 0:
        return total, []
    first, count = max(start, 0), min(start + size, 2**31) - max(start, 0)
    rows = conn.execute(f"SELECT * FROM ({listed}) ORDER BY over, rank LIMIT ? OFFSET ?", (*values, count, first))
    return total, [_job(row) for row in rows]


def newest(conn: sqlite3.Connection, user: str | None, limit: int, *, live_only: bool = False) -> list[JobRow]:
    """The newest jobs, including deleted ones, of one user, or of all if `user` is None.

    Their requests and the logs of their engines are left out.
    """
    # An id begins with the time of acceptance. `+id` keeps SQLite from walking through all ended jobs to find the live
    # ones, which have an index.
    where = [*(["user = ?"] if user is not None else []), *(["phase != 'ended'"] if live_only else [])]
    rows = conn.execute(
        f"SELECT {_BRIEF} FROM job {'WHERE ' if where else ''}{' AND '.join(where)}"
        f" ORDER BY {'+id' if live_only else 'id'} DESC LIMIT ?",
        (*([user] if user is not None else []), limit),
    )
    return [_job(row) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSince:
    """Jobs that ended before these times (Unix seconds) lose their log and decisions, or are forgotten."""

    state: float
    results: float
    closed: float


_AT_ONCE: Final = 100
"""Maximum number of jobs that one transaction deletes from."""


def expire(conn: sqlite3.Connection, since: KeptSince) -> tuple[int, int]:
    """Delete from some of the ended jobs whose time is over. Returns how many were forgotten, and how many trimmed."""
    over = {
        row["id"]
        for condition, before in (("AND deleted = 1", since.closed), ("", since.results))
        for row in conn.execute(
            f"SELECT id FROM job WHERE phase = 'ended' {condition} AND released = 1 AND ended < ?"
            " ORDER BY ended LIMIT ?",
            (before, _AT_ONCE),
        )
    }
    for job in over:
        conn.execute("DELETE FROM job_statement WHERE job = ?", (job,))
        conn.execute("DELETE FROM job WHERE id = ?", (job,))
    old = {
        row["id"]
        for row in conn.execute(
            "SELECT id FROM job WHERE phase = 'ended' AND trimmed = 0 AND ended < ? ORDER BY ended LIMIT ?",
            (since.state, _AT_ONCE),
        )
    }
    for job in over | old:
        conn.execute("DELETE FROM job_log WHERE job = ?", (job,))
        conn.execute("DELETE FROM job_decision WHERE job = ?", (job,))
        conn.execute("UPDATE job SET trimmed = 1, engine_log = '[]' WHERE id = ?", (job,))
    return len(over), len(old)


def count_by_state(conn: sqlite3.Connection) -> list[tuple[str, str, int]]:
    """The kind and Livy's state of the stored jobs, and the number of jobs with both."""
    return [tuple(row) for row in conn.execute("SELECT kind, state, count(*) FROM job GROUP BY kind, state")]


def unfinished(conn: sqlite3.Connection) -> list[tuple[JobRow, list[StatementRow]]]:
    """The jobs that have not ended or are not released at their executor, oldest first, with their open statements."""
    pending: dict[str, list[StatementRow]] = {}
    for row in conn.execute(f"SELECT * FROM job_statement WHERE {_OPEN} ORDER BY job, number"):
        pending.setdefault(row["job"], []).append(_statement(row))
    rows = conn.execute("SELECT * FROM job WHERE phase != 'ended' OR released = 0 ORDER BY +id")
    return [(_job(row), pending.get(row["id"], [])) for row in rows]


# --- log and decisions -------------------------------------------------------------------------


def add_log(conn: sqlite3.Connection, job: str, at: float, lines: Iterable[str]) -> None:
    """Append notes of island to the log of a job. The newest `LOG_LINES` are kept."""
    number = conn.execute("SELECT coalesce(max(number) + 1, 0) FROM job_log WHERE job = ?", (job,)).fetchone()[0]
    for line in lines:
        conn.execute("INSERT INTO job_log (job, number, at, text) VALUES (?, ?, ?, ?)", (job, number, at, line[:4000]))
        number += 1
    if number > LOG_LINES:
        conn.execute("DELETE FROM job_log WHERE job = ? AND number < ?", (job, number - LOG_LINES))


def log_lines(conn: sqlite3.Connection, job: str) -> list[tuple[float, str]]:
    """The notes of island in the log of a job, as (Unix time, line)."""
    rows = conn.execute("SELECT at, text FROM job_log WHERE job = ? ORDER BY number", (job,))
    return [(row["at"], row["text"]) for row in rows]


def first_log(conn: sqlite3.Connection, job: str, at: float, line: str) -> None:
    """Insert the first line of the log of a new job."""
    conn.execute("INSERT INTO job_log (job, number, at, text) VALUES (?, 0, ?, ?)", (job, at, line[:4000]))


def add_decision(conn: sqlite3.Connection, job: str, at: float, decision: str) -> None:
    """Store a routing decision (JSON)."""
    conn.execute(
        "INSERT INTO job_decision (job, number, at, decision)"
        " SELECT ?, coalesce(max(number) + 1, 0), ?, ? FROM job_decision WHERE job = ?",
        (job, at, decision, job),
    )


def decisions(conn: sqlite3.Connection, job: str) -> list[tuple[float, str]]:
    """The routing decisions of a job, oldest first, as (Unix time, JSON)."""
    rows = conn.execute("SELECT at, decision FROM job_decision WHERE job = ? ORDER BY number", (job,))
    return [(row["at"], row["decision"]) for row in rows]


# --- progress ----------------------------------------------------------------------------------


def is_changed(old: HomeJob, new: HomeJob) -> bool:
    """Whether two states of a job differ in what its row has."""
    return _stored(old) != _stored(new)


def _stored(job: HomeJob) -> tuple[object, ...]:
    return job.phase, job.epoch, job.executor, job.reservation


def save(conn: sqlite3.Connection, old: HomeJob, new: HomeJob, writes: Sequence[Write], at: float) -> None:
    """Store one step of the machine of a job. `at` is in Unix seconds."""
    job = new.facts.id
    if is_changed(old, new):
        conn.execute(
            "UPDATE job SET phase = ?, epoch = ?, executor = ?, reservation = ?, released = ?,"
            " notes = CASE WHEN epoch = ? THEN notes ELSE 0 END WHERE id = ?",
            (
                "ended" if new.phase == "released" else new.phase,
                new.epoch,
                new.executor,
                new.reservation,
                int(new.phase == "released"),
                new.epoch,
                job,
            ),
        )
    for write in writes:
        _SAVE[type(write)](conn, new, write, at)
    if new.phase == "released" and new.facts.work.file_hash:
        batch_files.drop_unused(conn)


def _save_notes(conn: sqlite3.Connection, job: HomeJob, write: AddNotes, at: float) -> None:
    add_log(conn, job.facts.id, at, write.lines)


def _save_decision(conn: sqlite3.Connection, job: HomeJob, write: KeepDecision, at: float) -> None:
    add_decision(conn, job.facts.id, at, msgspec.json.encode(write.decision).decode())


def _save_report(conn: sqlite3.Connection, job: HomeJob, write: KeepReport, at: float) -> None:
    apply_report(conn, job.facts.id, write.report, at)


def _save_cancelled(conn: sqlite3.Connection, job: HomeJob, write: CancelStatements, _at: float) -> None:
    for number in write.numbers:
        apply_statement(conn, job.facts.id, StatementReport(number=number, state="cancelled", progress=1.0))


def _save_stop(conn: sqlite3.Connection, job: HomeJob, _: KeepStop, _at: float) -> None:
    want_stop(conn, job.facts.id, deleted=False)


def _save_end(conn: sqlite3.Connection, job: HomeJob, write: KeepEnd, at: float) -> None:
    end(conn, job.facts.id, at, write.state, write.reason)
    for each in open_statements(conn, job.facts.id):
        report = each.report()
        if each.number <= write.sent:
            report = msgspec.structs.replace(report, state="running")
        why = write.reason or f"its session is {write.state}"
        apply_statement(conn, job.facts.id, core.lost_statement(report, why))


_SAVE: Final[dict[type[Write], Callable[[sqlite3.Connection, HomeJob, Any, float], None]]] = {
    AddNotes: _save_notes,
    KeepDecision: _save_decision,
    KeepReport: _save_report,
    CancelStatements: _save_cancelled,
    KeepStop: _save_stop,
    KeepEnd: _save_end,
}


def apply_report(conn: sqlite3.Connection, job: str, report: JobReport, at: float) -> None:
    """Store the report of an executor. Results are written once: a statement in its last state is not changed."""
    row = conn.execute("SELECT notes FROM job WHERE id = ?", (job,)).fetchone()
    if fresh := report.notes[row["notes"] :]:
        add_log(conn, job, at, fresh)
    conn.execute(
        "UPDATE job SET state = ?, reason = CASE WHEN ? = '' THEN reason ELSE ? END, app_id = ?, app_info = ?,"
        " engine_log = coalesce(?, engine_log), notes = ?, moved = ? WHERE id = ?",
        (
            report.state,
            report.reason,
            report.reason,
            report.app_id,
            json.dumps(report.app_info),
            None if report.log is None else json.dumps(list(report.log), ensure_ascii=False),
            max(len(report.notes), row["notes"]),
            report.moved,
            job,
        ),
    )
    for statement in report.statements:
        apply_statement(conn, job, statement)


def apply_statement(conn: sqlite3.Connection, job: str, report: StatementReport) -> None:
    """Store the state and result of a statement, unless it already has its last state."""
    conn.execute(
        "UPDATE job_statement SET state = ?, output = ?, started = ?, completed = ?"
        f" WHERE job = ? AND number = ? AND {_OPEN}",
        (report.state, report.output, report.started, report.completed, job, report.number),
    )


def end(conn: sqlite3.Connection, job: str, at: float, state: str, reason: str) -> None:
    """Store the last state of a job."""
    conn.execute("UPDATE job SET state = ?, reason = ?, ended = ? WHERE id = ?", (state, reason, at, job))


def insert_ended(conn: sqlite3.Connection, job: str, at: float, state: str, reason: str) -> None:
    """Give a job that was just inserted its last state: it needs no executor."""
    end(conn, job, at, state, reason)
    conn.execute("UPDATE job SET phase = 'ended', released = 1 WHERE id = ?", (job,))


def want_stop(conn: sqlite3.Connection, job: str, *, deleted: bool) -> None:
    """Record that the owner ends a job and, with `deleted`, that Livy clients no longer see it."""
    conn.execute("UPDATE job SET stop = 1, deleted = max(deleted, ?) WHERE id = ?", (int(deleted), job))


def stop_restored(conn: sqlite3.Connection, at: float) -> None:
    """Request the end of jobs that cannot go on in a database that was restored from a backup at `at` (Unix seconds).

    A job that was not placed at the time of the backup may have run since. A session may have got statements
    since, whose numbers would be given again. Batches that were placed go on.
    """
    rows = conn.execute(
        "SELECT id FROM job WHERE phase IN ('routing', 'committing') OR (kind = 'session' AND phase != 'ended')"
    ).fetchall()
    for row in rows:
        want_stop(conn, row["id"], deleted=False)
        add_log(conn, row["id"], at, ["this island was restored from a backup, and what the job did since is unknown"])


# --- statements --------------------------------------------------------------------------------


def add_statement(conn: sqlite3.Connection, job: str, code: str, language: str, limit: int) -> int | None:
    """Append a statement and return its number; None if `limit` statements are already unfinished."""
    waiting = conn.execute(f"SELECT count(*) FROM job_statement WHERE job = ? AND {_OPEN}", (job,)).fetchone()[0]
    if waiting >= limit:
        return None
    row = conn.execute(
        "UPDATE job SET statements = statements + 1 WHERE id = ? RETURNING statements - 1", (job,)
    ).fetchone()
    conn.execute(
        "INSERT INTO job_statement (job, number, code, language, state) VALUES (?, ?, ?, ?, 'waiting')",
        (job, row[0], code, language),
    )
    return int(row[0])


def statement(conn: sqlite3.Connection, job: str, number: int) -> StatementRow | None:
    """A statement of a job by number, or None."""
    row = conn.execute("SELECT * FROM job_statement WHERE job = ? AND number = ?", (job, number)).fetchone()
    return None if row is None else _statement(row)


def statements(conn: sqlite3.Connection, job: str, numbers: Iterable[int], room: int) -> list[StatementRow]:
    """The first of the statements with these numbers: at least one, more while they have at most `room` characters."""
    found: list[StatementRow] = []
    for number in numbers:
        if (row := statement(conn, job, number)) is None:
            continue
        room -= len(row.code) + len(row.output)
        if found and room < 0:
            break
        found.append(row)
    return found


def is_busy(conn: sqlite3.Connection, job: str) -> bool:
    """Whether the job has an unfinished statement."""
    row = conn.execute(f"SELECT 1 FROM job_statement WHERE job = ? AND {_OPEN} LIMIT 1", (job,)).fetchone()
    return row is not None


def open_statements(conn: sqlite3.Connection, job: str) -> list[StatementRow]:
    """The unfinished statements of a job, in order."""
    rows = conn.execute(
        f"SELECT * FROM job_statement WHERE job = ? AND {_OPEN} ORDER BY number",
        (job,),
    )
    return [_statement(row) for row in rows]


def want_cancel(conn: sqlite3.Connection, job: str, number: int | None) -> list[int]:
    """Record that the owner cancels a statement, or all if `number` is None. Returns the numbers of those concerned."""
    rows = conn.execute(
        f"UPDATE job_statement SET cancel = 1 WHERE job = ? AND (? IS NULL OR number = ?) AND {_OPEN} RETURNING number",
        (job, number, number),
    )
    return sorted(row["number"] for row in rows.fetchall())
