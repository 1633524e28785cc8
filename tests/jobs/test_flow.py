"""Sessions, statements and batches across islands, in virtual time."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from island.errors import Ambiguous, BadInput, Conflict, Denied, NotFound
from island.jobs.home import store
from island.jobs.home.local_files import BatchFile
from island.jobs.home.store import JobRow
from island.jobs.messages import MAX_FILE, StatementReport
from island.kernel.ids import IslandId
from island.livy.messages import BatchRequest, SessionRequest
from island.livy.rest import LivyRefusal
from island.trust import journal
from island.trust.users import Principal
from tests.sim.archipelago import Archipelago, simulate
from tests.sim.jobs import ADMINISTRATOR, OPEN, USER, PlayedEngine, World


def text(statement: Any) -> str:
    return str(json.loads(statement.output)["data"]["text/plain"])


def test_a_session_without_inputs_runs_at_home() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine())
        job = await world.open(home, name="mine")
        assert (job.local, job.state, job.kind) == (0, "starting", "session")
        job = await world.settled(home, job)
        assert job.state == "idle" and job.executor == home.id
        assert text(await world.run(home, job, "1+1")) == "did 1+1"
        assert text(await world.run(home, job, "2+2")) == "did 2+2"
        assert "runs at home: your own island is the fastest place" in await world.log(home, job)
        assert "hello from isl-" in await world.log(home, job)
        rows = await world.jobs["home"].listing(USER, 10)
        assert [(r["id"], r["job"], r["state"], r["island"], r["owner"], r["inputs"]) for r in rows] == [
            (0, job.id, "idle", "home", "user@home", [])
        ]
        await world.jobs["home"].end(job, deleted=True)
        job = await world.settled(home, job)
        assert job.state == "dead"
        with pytest.raises(LivyRefusal):
            await world.jobs["home"].find(USER, "session", 0)
        assert (await world.jobs["home"].named(USER, "0")).id == job.id
        await a.until(lambda: not world.engines["home"].alive(), within=10)  # type: ignore[union-attr]  # it has one
        entries = await home.state.read(lambda conn: [e.act for e in journal.entries(conn)])
        assert [act for act in entries if act.startswith("job.")] == ["job.accept", "job.run", "job.end"]

    simulate(1, scenario)


def test_the_path_of_a_batch_may_name_anything_but_only_a_small_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.py")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "large.py").write_bytes(b"#" * (MAX_FILE + 1))
    (tmp_path / "good.py").write_bytes(b"#" * MAX_FILE)

    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine(), jobs={"allow_files": [str(tmp_path)]})
        jobs = world.jobs["home"]
        for name in ("fifo.py", "folder.py"):
            job = await jobs.submit_batch(USER, BatchRequest(file=str(tmp_path / name)))
            assert job.state == "dead" and "it is not a regular file" in job.reason
        with pytest.raises(LivyRefusal, match="more than"):
            await jobs.submit_batch(USER, BatchRequest(file=str(tmp_path / "large.py")))
        good = await jobs.submit_batch(USER, BatchRequest(file=str(tmp_path / "good.py")))
        assert (await world.settled(home, good)).state == "success"

    simulate(1, scenario)


def test_a_session_runs_where_its_input_is() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("laptop", engine=PlayedEngine())
        data = await world.island("big", engine=PlayedEngine(), jobs=OPEN)
        await world.island("other", engine=PlayedEngine(), jobs=OPEN)
        world.publish(data, "galaxies", 5_000_000_000)
        await world.linked()
        job = await world.settled(home, await world.open(home, "big/galaxies"))
        assert (job.state, job.executor) == ("idle", data.id)
        engine = world.engines["big"]
        assert engine is not None
        body = engine.alive()[0].body
        assert body["conf"]["spark.island.path.big__galaxies"] == "/data/big/galaxies"
        assert body["conf"]["spark.island.path.galaxies"] == "/data/big/galaxies"
        assert text(await world.run(home, job, "count")) == "did count"
        rows = await world.jobs["laptop"].explain(job)
        assert {row["island"]: row["verdict"] for row in rows} == {
            "big": "chosen",
            "laptop": "considered",
            "other": "considered",
        }
        assert all(row["replayed"] for row in rows)
        laptop = next(row for row in rows if row["island"] == "laptop")
        assert laptop["missing_bytes"] == 5_000_000_000 and laptop["transfer_s"] > 100
        seen = await world.jobs["big"].listing(ADMINISTRATOR, 10)
        assert [(r["job"], r["owner"], r["island"]) for r in seen] == [(job.id, "user@laptop", "big")]
        assert await world.jobs["big"].listing(USER, 10) == []

    simulate(2, scenario)


def test_a_refused_job_is_placed_elsewhere_and_the_reason_is_logged() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("laptop", engine=PlayedEngine())
        data = await world.island("big", engine=PlayedEngine(), jobs={"accept_from": ["laptop"]})
        world.publish(data, "galaxies", 900_000_000)
        await world.linked()
        job = await world.settled(home, await world.open(home, "big/galaxies"))
        assert (job.state, job.executor) == ("idle", home.id)
        assert world.materialised == [("laptop", "galaxies")]
        log = await world.log(home, job)
        assert 'in its island.toml, jobs.foreign_code is "none"' in log
        assert "laptop: fetching 858 MiB of big/galaxies" in log
        assert job.moved == 900_000_000

    simulate(3, scenario)


@pytest.mark.parametrize(
    ("policy", "key"),
    [
        ({}, "jobs.accept_from"),
        ({"accept_from": ["members"]}, "jobs.foreign_code"),
        ({"accept_from": ["members"], "foreign_code": "any"}, "jobs.same_user"),
    ],
)
def test_a_job_that_no_island_may_run_has_a_reason_for_each_island(policy: dict[str, Any], key: str) -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("laptop")
        await world.island("big", engine=PlayedEngine(), jobs=policy)
        await world.linked()
        job = await world.settled(home, await world.open(home))
        assert job.state == "error" and job.phase == "ended"
        assert "no island can run this job" in job.reason
        assert "laptop: it has no Spark engine" in job.reason and key in job.reason
        assert await world.log(home, job)
        with pytest.raises(LivyRefusal):
            await world.jobs["laptop"].post(job, "1", None)

    simulate(4, scenario)


def test_bad_requests_are_refused_at_once() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine())
        world.publish(home, "stars", 10)
        jobs = world.jobs["home"]
        with pytest.raises(NotFound, match="no dataset home/stairs is known") as unknown:
            await world.open(home, "home/stairs")
        assert "home/stars" in unknown.value.hint
        with pytest.raises(BadInput, match="is not a valid dataset name"):
            await world.open(home, "a/b/c")
        for conf in ({"spark.master": "x"}, {"spark.hadoop.fs.defaultFS": "x"}, {"spark.island.path.x": "/etc"}):
            with pytest.raises(LivyRefusal, match="Blacklisted"):
                await jobs.open_session(USER, SessionRequest(kind="sql", conf=conf))
        with pytest.raises(LivyRefusal, match="supports kind 'spark'; they support pyspark, shared, sql"):
            await jobs.open_session(USER, SessionRequest(kind="spark"))
        with pytest.raises(LivyRefusal, match="cannot be added"):
            await jobs.open_session(USER, SessionRequest(kind="sql", jars=["/etc/passwd"]))
        with pytest.raises(NotFound):
            await world.open(home, queue="island:nowhere")
        assert await jobs.listing(ADMINISTRATOR, 10) == []
        # None of them used an id, and only one live session may have a name.
        first = await world.open(home, name="one", proxy_user="root")
        assert first.local == 0 and "proxyUser" not in first.request
        with pytest.raises(LivyRefusal, match="Duplicate session name"):
            await world.open(home, name="one")
        await world.settled(home, first)

    simulate(5, scenario)


def test_the_same_key_gives_the_same_job_and_another_request_a_conflict() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine())
        jobs = world.jobs["home"]
        request = SessionRequest(kind="sql", name="n")
        first = await jobs.open_session(USER, request, key="k")
        again = await jobs.open_session(USER, request, key="k")
        assert first.id == again.id
        with pytest.raises(Conflict, match="was used for another request"):
            await jobs.open_session(USER, SessionRequest(kind="pyspark"), key="k")
        other = await jobs.open_session(Principal("user", "eve"), SessionRequest(kind="sql"), key="k")
        assert other.id != first.id and other.local == first.local + 1
        await world.settled(home, other)

    simulate(6, scenario)


def test_users_see_their_own_and_ids_may_be_shortened() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine())
        jobs, eve = world.jobs["home"], Principal("user", "eve")
        mine = await world.open(home)
        await asyncio.sleep(5)
        hers = await world.open(home, who=eve)
        with pytest.raises(NotFound):
            await jobs.named(eve, mine.id)
        with pytest.raises(LivyRefusal):
            await jobs.find(eve, "session", mine.local)
        assert (await jobs.named(ADMINISTRATOR, mine.id)).id == mine.id
        assert (await jobs.named(USER, mine.id[:4])).id == mine.id
        assert (await jobs.named(USER, "0")).id == mine.id
        with pytest.raises(Ambiguous):
            await jobs.named(ADMINISTRATOR, mine.id[:4])
        batch = await jobs.submit_batch(USER, BatchRequest(file="x.py"), file=BatchFile("x.py", b"print(1)"))
        assert batch.local == 2, "sessions and batches share one counter, so that a local id means one job"
        assert (await jobs.named(USER, "2")).id == batch.id
        with pytest.raises(NotFound):
            await jobs.named(USER, "2", "session")
        assert [r["job"] for r in await jobs.listing(eve, 10)] == [hers.id]
        assert (await world.ended(home, batch)).state == "success"

    simulate(7, scenario)


def test_users_do_not_see_the_names_of_others() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine())
        jobs, eve = world.jobs["home"], Principal("user", "eve")
        mine = await world.open(home, name="spectra")
        with pytest.raises(LivyRefusal, match="Duplicate session name"):
            await world.open(home, name="spectra")
        with pytest.raises(LivyRefusal):
            await jobs.find(eve, "session", "spectra")
        hers = await world.open(home, who=eve, name="spectra")
        for who, job in ((USER, mine), (eve, hers)):
            assert (await jobs.find(who, "session", "spectra")).id == job.id
            assert (await jobs.find_summary(who, "session", "spectra")).job.id == job.id
            assert (await jobs.named(who, "spectra")).id == job.id
        assert (await jobs.find(ADMINISTRATOR, "session", "spectra")).id == hers.id
        await world.settled(home, hers)
        statement = await jobs.post(hers, "1", None)
        assert (await jobs.find_statement(eve, "spectra", statement.number))[0].id == hers.id
        with pytest.raises(LivyRefusal):
            await jobs.find_statement(USER, "spectra", statement.number)

    simulate(8, scenario)


def test_each_user_has_a_quota_that_parallel_requests_do_not_exceed() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island(
            "home", engine=PlayedEngine(), jobs={"max_live_per_user": 3, "max_live_of": {"eve": 5}}, max_sessions=20
        )
        eve = Principal("user", "eve")

        async def opened(who: Principal) -> tuple[list[JobRow], list[LivyRefusal]]:
            answers = await asyncio.gather(*(world.open(home, who=who) for _ in range(12)), return_exceptions=True)
            return [each for each in answers if isinstance(each, JobRow)], [
                each for each in answers if isinstance(each, LivyRefusal)
            ]

        for who, limit in ((USER, 3), (eve, 5)):
            jobs, refusals = await opened(who)
            assert (len(jobs), len(refusals)) == (limit, 12 - limit)
            assert {refusal.status for refusal in refusals} == {400}
            [text] = {refusal.message for refusal in refusals}
            assert text.startswith(f"Rejected, Reason: {limit} sessions and batches of {who.user} have not ended")
        await world.jobs["home"].end(jobs[0], deleted=True)
        await world.ended(home, jobs[0])
        assert len((await opened(eve))[0]) == 1, "an ended session makes room"

    simulate(9, scenario)


@pytest.mark.parametrize("after", [0.0, 0.0005, 0.002, 0.01, 0.05, 0.5])
def test_a_cancel_while_a_statement_is_being_sent_leaves_nothing_running(after: float) -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home")
        there = await world.island("there", engine=PlayedEngine(), jobs=OPEN)
        world.publish(there, "data", 5_000_000_000)
        await world.linked()
        jobs = world.jobs["home"]
        job = await world.settled(home, await world.open(home, "there/data"))
        long = await jobs.post(job, "sleep", None)
        if after:
            await asyncio.sleep(after)
        home.disk.slow = 0.6  # a slow disk
        await jobs.cancel_statement(job, long.number)
        home.disk.slow = 0.0
        assert text(await world.run(home, job, "next", within=20)) == "did next"
        assert (await jobs.finished_statement(job, long.number, 5))[0].state == "cancelled"

    simulate(9, scenario)


def test_statements_run_in_order_and_can_be_cancelled() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        engine = PlayedEngine()
        home = await world.island("home", engine=engine, jobs={"max_statements": 3})
        jobs = world.jobs["home"]
        job = await world.open(home)
        early = await jobs.post(job, "early", None)
        job = await world.settled(home, job)
        assert (await jobs.finished_statement(job, early.number, 60))[0].state == "available"
        long, queued, third = [await jobs.post(job, code, None) for code in ("sleep", "queued", "third")]
        with pytest.raises(LivyRefusal, match="max_statements"):
            await jobs.post(job, "too many", None)
        await asyncio.sleep(2)
        assert await jobs.state_of(job) == "busy"
        assert (await jobs.statement(job, long.number))[1].state == "running"
        assert (await jobs.statement(job, long.number))[1].progress == 0.5
        await jobs.cancel_statement(job, queued.number)
        assert (await jobs.statement(job, queued.number))[0].state == "cancelled"
        await jobs.cancel_statement(job, long.number)
        assert (await jobs.finished_statement(job, long.number, 5))[0].state == "cancelled"
        assert (await jobs.finished_statement(job, third.number, 5))[0].state == "available"
        assert engine.ran == ["early", "sleep", "third"]
        await jobs.cancel_statement(job, 99)  # Livy answers "canceled" to this as well

    simulate(8, scenario)


def test_an_error_for_a_table_that_is_not_an_input_has_the_line_to_add() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        engine = PlayedEngine()
        home = await world.island("home", engine=engine)
        world.publish(home, "messier", 10)
        world.publish(home, "stars", 10)
        missing = "[TABLE_OR_VIEW_NOT_FOUND] The table or view `{}` cannot be found."
        for table in ("home__messier", "mesier", "elsewhere"):
            engine.outputs[table] = {"status": "error", "ename": "Error", "evalue": missing.format(table)}
        job = await world.settled(home, await world.open(home, "home/stars"))
        exact, near, none = [json.loads((await world.run(home, job, t)).output) for t in engine.outputs]
        line = "spark.island.inputs = home/stars,home/messier"
        assert "is the dataset home/messier" in exact["evalue"] and line in exact["evalue"]
        assert "may mean the dataset home/messier" in near["evalue"] and line in near["evalue"]
        assert none["evalue"] == missing.format("elsewhere")

    simulate(9, scenario)


def test_a_batch_is_sent_with_its_file() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("laptop")
        await world.island("big", engine=PlayedEngine(), jobs=OPEN)
        await world.linked()
        jobs = world.jobs["laptop"]
        code = b"print('x')\n" * 30_000  # much larger than a control message
        job = await jobs.submit_batch(USER, BatchRequest(file="x.py", args=["a"]), file=BatchFile("x.py", code))
        await a.until(lambda: bool(world.engines["big"].alive()), within=30)  # type: ignore[union-attr]  # it has one
        path = world.engines["big"].alive()[0].body["file"]  # type: ignore[union-attr]  # it has one
        with open(path, "rb") as found:
            assert found.read() == code
        job = await world.settled(home, job)
        assert job.state == "success"
        assert "hello from" in await world.log(home, job)
        bad = await jobs.submit_batch(USER, BatchRequest(file="x.py", args=["bad"]), file=BatchFile("x.py", b"exit(3)"))
        assert (await world.settled(home, bad)).state == "dead"
        with pytest.raises(LivyRefusal, match="cannot be added"):
            await jobs.submit_batch(USER, BatchRequest(file="/etc/passwd"))
        with pytest.raises(BadInput, match="the limit is"):
            await jobs.submit_batch(USER, BatchRequest(file="x.py"), file=BatchFile("x.py", b"#" * (1 << 20) + b"#"))

    simulate(10, scenario)


def test_a_pinned_job_does_not_wait_for_other_islands() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine())
        there = await world.island("there", engine=PlayedEngine(), jobs=OPEN)
        await world.linked()
        job = await world.settled(home, await world.open(home, queue="island:there"))
        assert job.executor == there.id
        verdicts = {r["island"]: r["reason"] for r in await world.jobs["home"].explain(job)}
        assert verdicts["home"] == "you asked for another island (--at, or the queue)"

    simulate(11, scenario)


def test_places_are_limited_and_the_next_in_line_is_served() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine(), max_sessions=1)
        first = await world.settled(home, await world.open(home))
        second = await world.settled(home, await world.open(home), within=20)
        assert (first.state, second.state) == ("idle", "starting")
        assert "waiting for a place: 1 of 1 are taken" in await world.log(home, second)
        await world.jobs["home"].end(first, deleted=True)
        assert (await world.settled(home, second)).state == "idle"

    simulate(12, scenario)


def test_a_lost_link_gives_unknown_and_then_the_result() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home")
        there = await world.island("there", engine=PlayedEngine(), jobs=OPEN)
        await world.linked()
        jobs = world.jobs["home"]
        job = await world.settled(home, await world.open(home))
        statement = await jobs.post(job, "once", None)
        a.network.partition([[home.id], [there.id]])
        await asyncio.sleep(40)
        row = (await jobs.listing(USER, 5))[0]
        assert row["state"] == "unknown" and row["silent_since"] is not None
        assert "there does not answer" in await world.log(home, job)
        a.network.heal()
        found, _ = await jobs.finished_statement(job, statement.number, 120)
        assert text(found) == "did once"
        assert world.engines["there"].ran == ["once"]  # type: ignore[union-attr]  # it has one
        assert "there answers again" in await world.log(home, job)

    simulate(13, scenario)


def test_a_wait_is_logged_once() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine())
        there = await world.island("there", engine=PlayedEngine(), jobs=OPEN)
        world.publish(there, "stars", 10)
        await world.linked()
        a.network.partition([[home.id], [there.id]])
        await a.until(lambda: not home.m.is_up(there.id), within=120)
        job = await world.settled(home, await world.open(home, "there/stars"))
        assert job.state == "error" and "no holder (there) is up" in job.reason
        log = await world.log(home, job)
        assert log.count("asking home for an offer") == log.count("waiting up to 30 s for there to answer") == 1

    simulate(15, scenario)


def test_an_executor_ends_a_session_when_its_lease_expires() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home")
        await world.island("there", engine=PlayedEngine(), jobs=OPEN)
        await world.linked()
        job = await world.settled(home, await world.open(home))
        await world.run(home, job, "before")
        await a.crash(home)
        await a.until(lambda: not world.engines["there"].alive(), within=700)  # type: ignore[union-attr]  # it has one
        await a.restart(home)
        job = await world.ended(home, job)
        assert job.state == "killed" and "lease expired" in job.reason
        assert text((await world.jobs["home"].statement(job, 0))[0]) == "did before"

    simulate(14, scenario)


def test_a_restarted_engine_loses_sessions_but_not_finished_results() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        engine = PlayedEngine()
        home = await world.island("home", engine=engine)
        jobs = world.jobs["home"]
        job = await world.settled(home, await world.open(home))
        await world.run(home, job, "done")
        running, waiting = await jobs.post(job, "sleep", None), await jobs.post(job, "never", None)
        await asyncio.sleep(2)
        engine.start_anew("two")
        job = await world.settled(home, job)
        for _ in range(2):
            assert job.state == "dead" and "was restarted" in job.reason
            assert "was restarted" in await world.log(home, job)
            lost = json.loads((await jobs.statement(job, running.number))[0].output)
            assert lost["ename"] == "SessionLost" and "its result is lost" in lost["evalue"]
            assert (await jobs.statement(job, running.number))[0].state == "error"
            assert (await jobs.statement(job, waiting.number))[0].state == "cancelled"
            assert text((await jobs.statement(job, 0))[0]) == "did done"
            await asyncio.sleep(1)
            await a.crash(home)
            await a.restart(home)
            jobs = world.jobs["home"]
            await asyncio.sleep(1)
        assert engine.ran == ["done", "sleep"]

    simulate(15, scenario)


def test_an_owner_follows_a_job_from_another_island_by_its_key() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine())
        await world.island("cafe")
        await world.linked()
        job = await world.settled(home, await world.open(home))
        await world.run(home, job, "answer")
        key = (await world.jobs["home"].show(job))["key"]
        cafe = world.jobs["cafe"]
        assert (await cafe.elsewhere(job.id, key, "show"))["state"] == "idle"
        statements = await cafe.elsewhere(job.id, key, "statements")
        assert statements[0]["output"]["data"]["text/plain"] == "did answer"
        assert any("runs at home" in line for line in await cafe.elsewhere(job.id, key, "logs"))
        assert "key" not in await cafe.elsewhere(job.id, key, "show")
        for wrong in ("0" * 32, "", key[:-1]):
            with pytest.raises(Exception, match="not the key of this job"):
                await cafe.elsewhere(job.id, wrong, "show")
        with pytest.raises(BadInput):
            await cafe.elsewhere("not-an-id", key, "show")
        await cafe.elsewhere(job.id, key, "cancel")
        assert (await world.ended(home, job)).state == "dead"

    simulate(16, scenario)


def test_an_owner_elsewhere_gets_the_newest_statements_that_fit_into_one_answer() -> None:
    async def scenario(a: Archipelago) -> None:
        world, engine = World(a), PlayedEngine()
        home = await world.island("home", engine=engine)
        await world.island("cafe")
        await world.linked()
        job = await world.settled(home, await world.open(home))
        output = json.dumps({"status": "ok", "execution_count": 0, "data": {"text/plain": "x" * 50_000}})

        def fill(conn: sqlite3.Connection) -> None:
            for _ in range(100):
                number = store.add_statement(conn, job.id, "1", "", 1000)
                assert number is not None
                store.apply_statement(conn, job.id, StatementReport(number=number, state="available", output=output))

        await home.state.write(fill)
        key = (await world.jobs["home"].show(job))["key"]
        encoded = 0

        def counted(value: Any) -> bytes:
            nonlocal encoded
            encoded += 1
            return msgspec.json.Encoder().encode(value)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("island.jobs.service.msgspec.json.encode", counted)
            listed = await world.jobs["cafe"].elsewhere(job.id, key, "statements")
        # The answer is too long for the control session, so it is asked for twice.
        assert encoded <= 2 * (len(listed) + 1), "each statement is encoded once for an answer"
        numbers = [each["id"] for each in listed]
        assert numbers == list(range(numbers[0], 100)) and 10 < len(numbers) < 100

    simulate(47, scenario)


def test_the_key_of_a_job_is_sent_to_no_island_that_only_resembles_its_home() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine())
        cafe = await world.island("cafe")
        await world.linked()
        job = await world.settled(home, await world.open(home))
        key = (await world.jobs["home"].show(job))["key"]
        views = cafe.m.views
        twin = replace(views()[-1], island=IslandId(home.id[:10] + "0" * 54))
        cafe.m.views = lambda: [twin, *views()]  # type: ignore[method-assign]  # a key with this prefix is costly to make
        with pytest.raises(Ambiguous, match=f"2 islands have keys that begin with {home.id[:10]}") as caught:
            await world.jobs["cafe"].elsewhere(job.id, key, "show")
        assert "its home" in caught.value.hint

    simulate(17, scenario)


def test_an_executor_answers_only_the_home_of_a_job() -> None:
    async def scenario(a: Archipelago) -> None:
        from island.jobs.messages import RunStatementRequest, StatusRequest, StopRequest

        world = World(a)
        home = await world.island("home")
        there = await world.island("there", engine=PlayedEngine(), jobs=OPEN)
        eve = await world.island("eve")
        await world.linked()
        job = await world.settled(home, await world.open(home))
        executor = world.jobs["there"].executor
        with pytest.raises(Denied):
            await executor.status(eve.id, StatusRequest(job=job.id, epoch=job.epoch))
        with pytest.raises(Denied):
            await executor.stop(eve.id, StopRequest(job=job.id, epoch=job.epoch))
        with pytest.raises(Denied):
            await executor.statement(
                eve.id, RunStatementRequest(job=job.id, epoch=job.epoch, number=0, code="steal", language="")
            )
        assert there.id == job.executor and world.engines["there"].ran == []  # type: ignore[union-attr]  # it has one

    simulate(17, scenario)


def test_an_input_that_cannot_be_fetched_ends_the_session_with_the_reason() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine())
        far = await world.island("far")
        world.publish(far, "alerts", 10)
        world.broken["alerts"] = "far is down since noon"
        await world.linked()
        job = await world.settled(home, await world.open(home, "far/alerts"))
        assert job.state == "dead" and "far is down since noon" in job.reason

    simulate(18, scenario)


def test_an_input_is_released_when_the_last_session_that_uses_it_has_ended() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine())
        owner = await world.island("owner")
        world.publish(owner, "stars", 10)
        world.publish(owner, "dust", 10)
        await world.linked()
        engine = world.engines["home"]
        assert engine is not None
        first = await world.settled(home, await world.open(home, "owner/stars", "owner/dust"))
        second = await world.settled(home, await world.open(home, "owner/stars"))
        engine.up = False  # the first session cannot be removed at the engine before the restart
        await world.jobs["home"].end(first, deleted=True)
        await world.ended(home, first)
        await asyncio.sleep(1.0)
        assert not world.released
        await a.crash(home)
        await a.restart(home)
        engine.up = True
        await a.until(lambda: bool(world.released), within=60)
        assert world.released == [("home", "dust")] and len(engine.alive()) == 1
        await world.jobs["home"].end(second, deleted=True)
        await a.until(lambda: len(world.released) == 2, within=10)
        assert world.released[1] == ("home", "stars") and not engine.alive()

    simulate(30, scenario)


def test_the_engine_of_home_does_not_decide_which_kinds_exist() -> None:
    async def scenario(a: Archipelago) -> None:
        world, stock = World(a), PlayedEngine("")
        home = await world.island("home", engine=PlayedEngine())
        there = await world.island("there", engine=stock, jobs={**OPEN, "max_foreign": 5})
        await world.linked()
        jobs = world.jobs["home"]
        for queue in ("island:there", None):
            job = await jobs.open_session(USER, SessionRequest(kind="spark", queue=queue))
            job = await world.settled(home, job)
            assert (job.state, job.executor) == ("idle", there.id)
        shared = await jobs.open_session(USER, SessionRequest(queue="island:there"))
        shared = await world.settled(home, shared)
        statement = await jobs.post(shared, "1", "spark")
        assert (await jobs.finished_statement(shared, statement.number, 60))[0].state == "available"
        with pytest.raises(LivyRefusal, match="no engine of home supports kind 'spark'"):
            await jobs.open_session(USER, SessionRequest(kind="spark", queue="island:home"))
        mine = await world.settled(home, await jobs.open_session(USER, SessionRequest(queue="island:home")))
        with pytest.raises(LivyRefusal, match="no engine of home supports kind 'sparkr'"):
            await jobs.post(mine, "1", "sparkr")

    simulate(49, scenario)


def test_a_foreign_job_may_set_fewer_keys() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home")
        await world.island("there", engine=PlayedEngine(), jobs=OPEN)
        await world.linked()
        jobs = world.jobs["home"]
        fine = {"spark.sql.shuffle.partitions": "4"}
        job = await world.settled(home, await jobs.open_session(USER, SessionRequest(kind="sql", conf=fine)))
        assert job.state == "idle"
        bold = SessionRequest(kind="sql", conf={"spark.sql.extensions": "evil.Code"})
        for pin in ("island:there", None):  # home has no engine, so both can only run elsewhere
            with pytest.raises(LivyRefusal, match=r"may not set spark\.sql\.extensions"):
                await jobs.open_session(USER, msgspec.structs.replace(bold, queue=pin))
        assert len(await jobs.listing(ADMINISTRATOR, 10)) == 1, "refused before it was accepted"

    simulate(19, scenario)


def test_the_administrator_ends_runs_of_other_homes() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home")
        there = await world.island("there", engine=PlayedEngine(), jobs=OPEN)
        world.publish(there, "data", 5_000_000_000)
        await world.linked()
        job = await world.settled(home, await world.open(home, "there/data"))
        site = world.jobs["there"]
        assert await site.guest(USER, job.id) is None
        run = await site.guest(ADMINISTRATOR, job.id[:12])
        assert run is not None and run.job == job.id
        await site.evict(ADMINISTRATOR, run)
        assert (await world.ended(home, job)).state == "dead"
        assert "ended by the administrator of there" in await world.log(home, job)
        assert not world.engines["there"].alive()  # type: ignore[union-attr]  # it has one
        acts = await there.state.read(lambda conn: [e.act for e in journal.entries(conn)])
        assert "job.evict" in acts

    simulate(10, scenario)
