"""What jobs cost: measured by executors, checked and stored by home, and compared with what was expected."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from island.jobs import accuracy, router
from island.jobs.cost_model import JobObservation, JobPrediction
from island.jobs.home import observation_store, reports
from island.jobs.home.events import ExecutorNews, KeepObservation, StatementAccepted
from island.jobs.messages import JobReport, RunTimes
from island.jobs.router import Candidate, InputTransfer, JobRequirements
from island.kernel import codec
from island.kernel.codec import Malformed
from island.kernel.db import Database
from tests.jobs.test_home_machine import HASH, placed, report, told
from tests.sim.archipelago import Archipelago, simulate
from tests.sim.jobs import OPEN, PlayedEngine, World

EXPECTED = JobPrediction(wait_s=0.0, fetch_s=4.0, start_s=5.0, compute_s=10.0, output_bytes=1000.0)
SEEN = JobObservation("a" * 64, "sql", 10, start_s=1.0, compute_s=10.0, output_bytes=3000, wait_s=0.0)
DECISION = router.decide(
    JobRequirements(home="home", language="sql"),
    [Candidate(island="a", name="a", wait=3.0, parts=(InputTransfer("x/y", 40_000_000, 40_000_000, 2, "x"),))],
)


# --- home -----------------------------------------------------------------------------------------


def test_a_session_is_observed_once_after_its_first_result() -> None:
    job = placed("idle")
    job.on(StatementAccepted(0, HASH))
    job.on(ExecutorNews())
    times = RunTimes(wait=1.0, fetch=2.0, start=3.0)
    job.report("busy", told(0, "running"), times=times)
    assert not [write for write in job.writes if isinstance(write, KeepObservation)]
    job.on(ExecutorNews())
    times = msgspec.structs.replace(times, compute=4.0)
    job.report("idle", msgspec.structs.replace(told(0, "available"), output="x" * 7), times=times)
    assert [write for write in job.writes if isinstance(write, KeepObservation)] == [KeepObservation("a", 1, times, 7)]
    job.on(ExecutorNews())
    job.report("dead", ended=True, times=times)
    assert not [write for write in job.writes if isinstance(write, KeepObservation)]


@pytest.mark.parametrize(
    ("times", "observed"),
    [
        (None, False),  # from an island of an earlier version
        (RunTimes(), False),
        (RunTimes(wait=1.0), False),  # it was stopped in line
        (RunTimes(wait=1.0, fetch=2.0, start=3.0), True),  # a session without statements
    ],
)
def test_a_run_that_ended_is_observed_if_anything_was_measured(times: RunTimes | None, observed: bool) -> None:
    job = placed("idle")
    job.on(ExecutorNews())
    job.report("dead", ended=True, times=times)
    assert any(isinstance(write, KeepObservation) for write in job.writes) == observed


def test_a_batch_brings_its_log_home() -> None:
    assert reports.output_size(report(1, log=("ab", "é")), "batch") == 4
    assert reports.output_size(report(1), "batch") is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e10, "1"])
def test_a_measurement_that_is_no_duration_makes_a_report_malformed(value: Any) -> None:
    body = {"job": "0" * 40, "epoch": 1, "version": 1, "state": "idle"}
    assert codec.decode(msgspec.msgpack.encode(body), JobReport).times is None
    with pytest.raises(Malformed):
        codec.decode(msgspec.msgpack.encode({**body, "times": {"compute": value}}), JobReport)


def test_a_part_that_took_longer_than_the_job_is_not_believed() -> None:
    times = RunTimes(wait=1.0, fetch=20.0, start=1e9, compute=31.0)
    seen = reports.observation(DECISION, times, 5, elapsed=30.0)
    assert (seen.wait_s, seen.fetch_s, seen.start_s, seen.compute_s) == (1.0, 20.0, None, 31.0)
    assert (seen.island, seen.language, seen.input_bytes, seen.output_bytes) == ("a", "sql", 40_000_000, 5)
    set_back = reports.observation(DECISION, times, 5, elapsed=-3600.0)
    assert (set_back.wait_s, set_back.compute_s) == (None, None)


def test_what_was_expected_is_the_sum_of_the_terms_that_are_measured_together() -> None:
    expected = router.prediction(DECISION)
    assert (expected.wait_s, expected.start_s, expected.compute_s) == (3.0, 5.0, 1.0)
    assert expected.fetch_s == pytest.approx(4.0 + 0.2 + 2 * 0.05)


async def test_the_newest_observations_are_kept_and_one_run_is_stored_once(tmp_path: Path) -> None:
    def fill(conn: sqlite3.Connection) -> list[observation_store.StoredObservation]:
        for number in range(observation_store.KEPT + 10):
            observation_store.add(conn, f"job {number}", 1, SEEN, EXPECTED)
        observation_store.add(conn, f"job {number}", 1, msgspec.structs.replace(SEEN, start_s=9.0), EXPECTED)
        return observation_store.after(conn, 0)

    with closing(Database.open(tmp_path, "state")) as database:
        rows = await database.write(fill)
        assert len(rows) == observation_store.KEPT
        assert (rows[0].number, rows[-1].observed, rows[-1].predicted) == (11, SEEN, EXPECTED)
        assert await database.read(lambda conn: observation_store.after(conn, rows[-2].number)) == rows[-1:]
        assert await database.read(lambda conn: observation_store.of_job(conn, "job 10")) == {1: rows[0]}
        assert await database.read(lambda conn: observation_store.of_job(conn, "job 9")) == {}


# --- accuracy -------------------------------------------------------------------------------------


def test_the_accuracy_has_the_ratio_of_observed_to_expected_for_each_term() -> None:
    slower = replace_seen(start_s=20.0, compute_s=15.0)
    terms = {each.term: each for each in accuracy.accuracy([(EXPECTED, SEEN), (EXPECTED, slower)])}
    assert list(terms) == ["wait", "fetch", "start", "compute", "output"]
    assert terms["start"] == accuracy.TermAccuracy("start", "s", 2, 2.1, 0.0)
    assert terms["compute"] == accuracy.TermAccuracy("compute", "s", 2, 1.25, 1.0)
    assert terms["output"].median_ratio == 3.0
    assert terms["wait"].median_ratio == 1.0, "0 s of 0 s is right"
    assert terms["fetch"] == accuracy.TermAccuracy("fetch", "s", 0, None, None)


def replace_seen(**changes: Any) -> JobObservation:
    return msgspec.structs.replace(SEEN, **changes)


# --- islands ----------------------------------------------------------------------------------------


def test_the_explanation_shows_what_was_observed_and_a_restarted_home_still_knows_it() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("laptop")
        data = await world.island("big", engine=PlayedEngine(), jobs=OPEN)
        world.publish(data, "galaxies", 5_000_000)
        await world.linked()
        job = await world.settled(home, await world.open(home, "big/galaxies"))
        await world.run(home, job, "count")
        [row] = [row for row in await world.jobs["laptop"].explain(job) if row["chosen"]]
        assert row["start_s"] == 5.0 and 0.9 < row["observed_start_s"] < 2.0
        assert 0.2 < row["observed_compute_s"] < 1.0 and row["observed_wait_s"] == 0.0
        assert row["observed_output_bytes"] > 10 and "compute" in row["observed"] and row["replayed"]
        [row] = [row for row in await world.jobs["laptop"].explain(job) if not row["chosen"]]
        assert row["observed_start_s"] is None and row["observed"] == ""

        await a.crash(home)
        await a.start(home)
        await world.linked()
        job = await world.settled(home, await world.open(home, "big/galaxies"))
        [row] = [row for row in await world.jobs["laptop"].explain(job) if row["chosen"]]
        assert row["start_s"] < 4.0 and "from 1 job at this island" in row["terms"]
        assert {row["jobs"] for row in await world.jobs["laptop"].accuracy()} == {1}

    simulate(1, scenario)


def test_a_decision_has_at_most_ten_islands_and_goes_on_to_others_if_they_refuse() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("laptop")
        for number in range(13):
            await world.island(f"closed{number}", engine=PlayedEngine())
        last = await world.island("open", engine=PlayedEngine(), jobs=OPEN)
        await world.linked()
        job = await world.settled(home, await world.open(home))
        assert (job.state, job.executor) == ("idle", last.id)
        rows = await world.jobs["laptop"].explain(job)
        assert len(rows) == router.RANKED and rows[0]["island"] == "open" and rows[0]["replayed"]

    simulate(1, scenario)


def test_an_offer_has_the_wait_that_runs_of_that_island_suggest() -> None:
    async def scenario(a: Archipelago) -> None:
        world = World(a)
        home = await world.island("home", engine=PlayedEngine(), max_sessions=1)
        for _ in range(12):
            job = await world.settled(home, await world.open(home))
            await asyncio.sleep(30.0)
            await world.jobs["home"].end(job, deleted=True)
            await a.until(lambda: not world.engines["home"].alive(), within=60)  # type: ignore[union-attr]  # it has one
        await world.settled(home, await world.open(home))
        waiting, rows = await world.open(home), list[dict[str, Any]]()
        while not rows:
            await asyncio.sleep(0.1)
            rows = await world.jobs["home"].explain(waiting)
        assert 20 < rows[0]["wait_s"] < 40

    simulate(1, scenario)
