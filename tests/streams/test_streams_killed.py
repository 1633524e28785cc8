"""Real processes over real sessions: source and subscriber are killed by SIGKILL twenty times."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from island.cli.demo.demo_island import free_ports
from tests.islands.subscribing import Home, delivered, rows_of, total, write

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
KILLS = 20


class Process:
    """One side, started again after each kill on the same home and port."""

    def __init__(self, home: Path, name: str, *options: str) -> None:
        self.home, self.name, self.options = home, name, options
        [self.port] = free_ports(1)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self.home.parent / f"{self.name}.log").open("ab")
        with log:
            command = [sys.executable, "-m", "tests.islands.subscribing_process"]
            command += [str(self.home), self.name, str(self.port), *self.options]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def check(self) -> None:
        """It has not ended by itself."""
        assert self.process is None or self.process.poll() is None, self.said()

    def said(self) -> str:
        return (self.home.parent / f"{self.name}.log").read_text()[-4000:]


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[tuple[Home, Process, Process]]:
    a = Home(tmp_path / "a")
    source = Process(a.path, "source", "--watch", str(tmp_path / "drop"))
    subscriber = Process(tmp_path / "b", "subscriber", "--where", "mag < 15 and dec > 0")
    (tmp_path / "drop").mkdir()
    yield Home(tmp_path), source, subscriber
    source.kill()
    subscriber.kill()


def expected(folder: Home) -> Counter[tuple[Any, ...]]:
    everything = rows_of(sorted(folder.drop.glob("*.parquet")))
    return Counter({row: n for row, n in everything.items() if row[3] is not None and row[3] < 15 and row[2] > 0})


def test_no_row_is_lost_or_doubled_by_sigkill(sides: tuple[Home, Process, Process]) -> None:
    folder, source, subscriber = sides
    rng = random.Random(5)
    b = Home(subscriber.home)
    write(folder, "first", 0, 200)
    source.start()
    wait((folder.path / "invitation").exists, source)
    subscriber.start()
    wait(lambda: _total(b) > 0, source, subscriber)
    written = 1
    for _ in range(KILLS):
        for _ in range(rng.randrange(1, 4)):
            write(folder, f"f{written:03d}", written * 5000, rng.randrange(1, 4000))
            written += 1
        before = _total(b)
        # Half of the kills fall into a flow that is known to be under way, the others anywhere.
        if rng.random() < 0.5:
            end = time.monotonic() + 5
            while _total(b) == before and time.monotonic() < end:
                time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        victim = rng.choice((source, subscriber))
        victim.kill()
        victim.start()
    want = expected(folder)
    wait(lambda: _total(b) >= sum(want.values()), source, subscriber)
    assert delivered(b) == want
    assert _total(b) == sum(want.values())


def _total(home: Home) -> int:
    return total(home) if (home.path / "state.db").exists() and _has_tables(home) else 0


def _has_tables(home: Home) -> bool:
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(home.path / "state.db")) as conn:
        return bool(conn.execute("SELECT 1 FROM sqlite_master WHERE name='stream_segments'").fetchone())


def wait(condition: Any, *processes: Process, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        for process in processes:
            process.check()
        assert time.monotonic() < end, "\n".join(process.said() for process in processes)
        time.sleep(0.05)
