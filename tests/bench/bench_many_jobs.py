"""The list of jobs beside many that have ended, and the start of an island with many live jobs.

    python -m tests.bench.bench_many_jobs [--ended 200000] [--live 10000]

Goals: the list takes at most 20 ms; the start takes at most 2 s more than that of an island without jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import structlog

from island.kernel.ids import uuid7
from island.kernel.ports import SystemRng
from island.livy.messages import SessionRequest
from island.trust.users import Principal
from tests.islands.user_port import site

USER = Principal("user", "user")
ABSENT = "ab" * 32
"""The key of an executor that does not answer."""

LISTED = 20


def multiply(home: Path, count: int, changes: dict[str, object]) -> None:
    """Add copies of the stored job to the database of an island that is not running, with some columns changed."""
    with closing(sqlite3.connect(home / "state.db")) as conn:
        conn.row_factory = sqlite3.Row
        row = dict(conn.execute("SELECT * FROM job ORDER BY local LIMIT 1").fetchone())
        first = conn.execute("SELECT max(local) + 1 FROM job").fetchone()[0]
        row |= {"name": None, "idempotency": None, **changes}
        names, suffix, rng = ", ".join(row), row["id"].partition(".")[2], SystemRng()
        values = (
            {**row, "id": f"{uuid7(row['created'] + n, rng.bytes(10))}.{suffix}", "local": first + n}
            for n in range(count)
        )
        with conn:
            conn.executemany(f"INSERT INTO job ({names}) VALUES ({', '.join(f':{name}' for name in row)})", values)


async def started(home: Path) -> tuple[float, float]:
    """Seconds until an island serves requests, and until its drivers have tried to reach the executors of all jobs."""
    begun = time.perf_counter()
    async with site(home) as made:
        serves = time.perf_counter() - begun
        for job in list(made.jobs.driver._actors):
            await made.jobs.driver.handled(job)
        return serves, time.perf_counter() - begun


async def main(ended: int, live: int) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        async with site(home) as made:
            job = await made.jobs.open_session(USER, SessionRequest(kind="sql"))
            while (await made.jobs.named(USER, job.id)).live:
                await asyncio.sleep(0.1)
        alone, _ = await started(home)
        multiply(home, ended, {"phase": "ended", "released": 1})
        async with site(home) as made:
            took = []
            for _ in range(30):
                begun = time.perf_counter()
                assert len(await made.jobs.listing(USER, LISTED)) == LISTED
                took.append((time.perf_counter() - begun) * 1000)
        print(f"{LISTED} of {ended} ended jobs: p50 {statistics.median(took):.1f} ms (goal 20)")
        multiply(home, live, {"phase": "placed", "state": "idle", "released": 0, "executor": ABSENT, "epoch": 1})
        serves, tried = await started(home)
        print(
            f"start with {live} live jobs: serves after {serves:.2f} s, without jobs {alone:.2f} s (goal: 2 s more);"
            f" has tried all their executors after {tried:.2f} s"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ended", type=int, default=200_000)
    parser.add_argument("--live", type=int, default=10_000)
    given = parser.parse_args()
    asyncio.run(main(given.ended, given.live))
