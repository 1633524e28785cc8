"""Many ended jobs: new ones stay visible, lists stay fast, and what is over is deleted after its time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from island.config import JobsSection
from island.jobs.home import store
from island.jobs.home.retention import DAY_S, Retention
from island.jobs.messages import JobSpec, StatementReport
from island.kernel.db import Database
from island.kernel.ports import SeededRng, SystemClock
from island.livy.messages import SessionRequest
from island.trust.users import Principal
from tests.sim.archipelago import Archipelago, simulate
from tests.sim.jobs import USER, PlayedEngine, World

NOW = 1_800_000_000.0


def insert(conn: sqlite3.Connection, number: int, *, user: str = "user", ended: float | None = None) -> str:
    """Store a session, ended at a time or live."""
    job = f"{number:08x}-ac96-774b-bcce-b302099a8057.0123456789"
    store.insert(
        conn,
        job=job,
        kind="session",
        local=store.next_local(conn),
        user=user,
        name=None,
        idempotency=None,
        request_hash="a" * 64,
        request={},
        work=JobSpec(kind="session", language="sql"),
        pin="",
        reattach="0" * 32,
        created=NOW - 1e6 + number,
    )
    store.first_log(conn, job, NOW, "the first line")
    store.add_decision(conn, job, NOW, "{}")
    if ended is not None:
        store.insert_ended(conn, job, ended, "dead", "over")
    return job


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Database]:
    with closing(Database.open(tmp_path, "state")) as database:
        yield database


class FixedClock(SystemClock):
    def wall(self) -> float:
        return NOW


def rows_of(conn: sqlite3.Connection, job: str) -> tuple[int, ...]:
    """The numbers of rows of a job: itself, its statements, its log, its decisions."""
    tables = (("job", "id"), ("job_statement", "job"), ("job_log", "job"), ("job_decision", "job"))
    return tuple(conn.execute(f"SELECT count(*) FROM {t} WHERE {c} = ?", (job,)).fetchone()[0] for t, c in tables)


async def test_results_are_kept_longer_than_logs_and_decisions(state: Database) -> None:
    def fill(conn: sqlite3.Connection) -> dict[str, str]:
        made = {}
        ages: list[tuple[str, float | None]] = [("live", None), ("new", 1), ("old", 40), ("older", 400), ("closed", 40)]
        for number, (name, days) in enumerate(ages):
            job = made[name] = insert(conn, number)
            store.add_statement(conn, job, "1", "sql", 10)
            store.apply_statement(conn, job, StatementReport(number=0, state="available", output="{}"))
            if name == "closed":
                store.want_stop(conn, job, deleted=True)
            if days is not None:
                store.insert_ended(conn, job, NOW - days * DAY_S, "dead", "over")
        return made

    jobs = await state.write(fill)
    await Retention(state, JobsSection(), FixedClock(), SeededRng(1)).apply()
    left = await state.read(lambda conn: {name: rows_of(conn, job) for name, job in jobs.items()})
    assert left == {
        "live": (1, 1, 1, 1),
        "new": (1, 1, 1, 1),
        "old": (1, 1, 0, 0),
        "older": (0, 0, 0, 0),
        "closed": (0, 0, 0, 0),
    }


async def test_all_of_many_jobs_are_deleted_in_short_transactions(state: Database) -> None:
    await state.write(lambda conn: [insert(conn, number, ended=NOW - 400 * DAY_S) for number in range(350)])
    writes, write = 0, state.write

    async def counted(function: object) -> object:
        nonlocal writes
        writes += 1
        return await write(function)  # type: ignore[arg-type]  # passed through

    state.write = counted  # type: ignore[method-assign, assignment]  # counts the transactions
    await Retention(state, JobsSection(), FixedClock(), SeededRng(1)).apply()
    assert writes == 5
    assert await state.read(lambda conn: conn.execute("SELECT count(*) FROM job").fetchone()[0]) == 0


def plan(conn: sqlite3.Connection, calls: list[str]) -> str:
    return "\n".join(
        row["detail"]
        for call in calls
        if call.startswith("SELECT")
        for row in conn.execute("EXPLAIN QUERY PLAN " + call)
    )


@pytest.mark.parametrize("user", [None, "user"])
async def test_no_list_walks_through_the_ended_jobs(state: Database, user: str | None) -> None:
    """SQLite's plans have no scan of the table and no sorting of more than is shown."""

    def look(conn: sqlite3.Connection) -> tuple[str, str, str]:
        calls: list[str] = []
        conn.set_trace_callback(calls.append)
        store.newest(conn, user, 1000)
        newest = list(calls)
        calls.clear()
        store.page(conn, "session", user, 0, 100, NOW)
        page = list(calls)
        calls.clear()
        store.expire(conn, store.KeptSince(state=NOW, results=NOW, closed=NOW))
        conn.set_trace_callback(None)
        return plan(conn, newest), plan(conn, page), plan(conn, list(calls))

    newest, page, expire = await state.write(look)
    assert "TEMP B-TREE" not in newest and "USING INDEX" in newest, newest
    for text in (page, expire):
        assert "SCAN job\n" not in f"{text}\n", text
    assert "job_ended" in page and "job_ended" in expire and "job_closed" in expire and "job_untrimmed" in expire


def test_a_new_session_is_on_the_first_page_behind_hundreds_of_ended_ones() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine())
        now = a.clock(home).wall()
        await home.state.write(lambda conn: [insert(conn, n, ended=now - 5) for n in range(150)])
        await home.state.write(lambda conn: [insert(conn, n, ended=now - 700) for n in range(150, 250)])
        jobs = world.jobs["home"]
        mine = await jobs.open_session(USER, SessionRequest(kind="sql"))
        total, listed = await jobs.page(USER, "session", 0, 100)
        assert total == 151 and len(listed) == 100
        assert listed[0].id == mine.id
        assert [job.local for job in listed[1:4]] == [149, 148, 147], "then the newest of those that have ended"
        assert (await jobs.find(USER, "session", 200)).local == 200, "older ones are found by their id"
        assert await jobs.page(Principal("user", "eve"), "session", 0, 100) == (0, [])
        await world.settled(home, mine)

    simulate(48, scenario)


async def test_accepting_a_job_reads_no_ended_jobs(state: Database) -> None:
    """The quota of a user is counted with the index of live jobs."""

    def look(conn: sqlite3.Connection) -> tuple[int, str]:
        insert(conn, 1)
        insert(conn, 2, ended=NOW)
        calls: list[str] = []
        conn.set_trace_callback(calls.append)
        live = store.living_of(conn, "user")
        conn.set_trace_callback(None)
        return live, plan(conn, calls)

    live, how = await state.write(look)
    assert live == 1 and "job_of_user" in how, how
