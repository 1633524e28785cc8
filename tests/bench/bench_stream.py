"""Time from the arrival of a file to durable rows at the subscriber, and throughput of alerts with a predicate.

`python -m tests.bench.bench_stream [--files N] [--alerts FOLDER] [--copies N]`. It runs two islands in two
processes over real sessions. The times are those in the databases of both. Goals: docs/design.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fastavro

from tests.islands.subscribing import Home, write

ROOT = Path(__file__).resolve().parents[2]
GOAL_P50, GOAL_P99, GOAL_ALERTS = 0.050, 0.250, 2600


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def islands(root: Path, where: str) -> Iterator[None]:
    """Run a source that watches `root/drop`, and a subscriber, until the end of the context."""
    (root / "drop").mkdir()
    python = [sys.executable, "-m", "tests.islands.subscribing_process"]
    log = (root / "log").open("ab")
    source = subprocess.Popen(
        [*python, str(root / "a"), "source", str(port()), "--watch", str(root / "drop")],
        cwd=ROOT,
        stdout=log,
        stderr=log,
    )
    until(lambda: (root / "invitation").exists())  # noqa: PLW0108
    subscriber = subprocess.Popen(
        [*python, str(root / "b"), "subscriber", str(port()), "--where", where], cwd=ROOT, stdout=log, stderr=log
    )
    try:
        yield
    finally:
        for process in (source, subscriber):
            process.kill()
            process.wait()
        log.close()


def until(condition: Callable[[], bool], seconds: float = 300.0, pause: float = 0.01) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"the benchmark made no progress for {seconds:.0f} s")
        time.sleep(pause)


def query(path: Path, sql: str) -> list[sqlite3.Row]:
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path)) as conn:
        try:
            return conn.execute(sql).fetchall()
        except sqlite3.OperationalError:  # not migrated yet
            return []


def committed(root: Path) -> int:
    rows = query(root / "b" / "state.db", "SELECT coalesce(sum(rows), 0) FROM stream_segments")
    return int(rows[0][0]) if rows else 0


def latency(files: int) -> None:
    """Write one small file at a time, each when the rows of the previous one are durable, and print the delays."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        home = Home(root)
        with islands(root, ""):
            write(home, "first", 0, 10)
            until(lambda: committed(root) == 10)
            dropped = []
            for number in range(files):
                time.sleep(0.3)
                dropped.append(time.time())
                write(home, f"f{number:04d}", 1000 + number * 100, 10)
                until(lambda number=number: committed(root) == 20 + number * 10, pause=0.002)  # type: ignore[misc]
            arrived = [
                row[0] for row in query(root / "a" / "state.db", "SELECT arrived FROM stream_files ORDER BY seq")
            ]
            durable = [
                row[0]
                for row in query(
                    root / "b" / "state.db", "SELECT committed FROM stream_segments WHERE rows>0 ORDER BY number"
                )
            ]
    published = [after - before for before, after in zip(arrived[1:], durable[1:], strict=True)]
    whole = [after - before for before, after in zip(dropped, durable[1:], strict=True)]
    report("journaled at the source → durable", published, goals=True)
    report("dropped → durable, including the poll of 50 ms", whole, goals=False)


def report(what: str, values: list[float], *, goals: bool) -> None:
    ordered = sorted(values)
    p50, p99 = statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    text = f"{what}: p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms ({len(values)} files)"
    if goals:
        text += f"; goal/measured: p50 {GOAL_P50 / p50:.2f}, p99 {GOAL_P99 / p99:.2f}"
    sys.stdout.write(text + "\n")


def alerts(folder: Path, copies: int, per_file: int) -> None:
    """Send copies of real ZTF alert packets, each with its own candid, through a predicate, and print the rate."""
    source = sorted(folder.glob("ZTF*.avro"))
    records, schema = [], None
    for path in source:
        with path.open("rb") as file:
            reader = fastavro.reader(file)
            schema = schema or reader.writer_schema
            records += [record for record in reader if isinstance(record, dict)]
    assert schema is not None
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        with islands(root, "candidate.magpsf < 99 AND candid % 10 = 0"):
            (root / "staged").mkdir()
            serial, size = 0, 0
            for number in range(copies // per_file):
                batch = []
                for _ in range(per_file):
                    serial += 1
                    batch.append({**records[serial % len(records)], "candid": serial})
                data = io.BytesIO()
                fastavro.writer(data, schema, batch)
                size += data.tell()
                (root / "staged" / f"n{number:05d}.avro").write_bytes(data.getvalue())
            began = time.time()
            for path in sorted((root / "staged").iterdir()):
                path.rename(root / "drop" / path.name)
            until(lambda: committed(root) >= serial // 10, pause=0.05)
            took = time.time() - began
            conn_rows = query(root / "a" / "state.db", "SELECT min(arrived), max(arrived) FROM stream_files")
            journal = conn_rows[0][1] - conn_rows[0][0]
        rate = serial / took
        sys.stdout.write(
            f"{serial} ZTF alerts of {size / serial / 1000:.0f} kB in files of {per_file}, one in ten kept: "
            f"{rate:.0f}/s from folder to durable ({serial / max(journal, 1e-9):.0f}/s journaled); "
            f"measured/goal {rate / GOAL_ALERTS:.2f}\n"
        )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--alerts", type=Path, default=ROOT.parent / "shared" / "data" / "alerts" / "ztf")
    parser.add_argument("--copies", type=int, default=4000)
    parser.add_argument("--per-file", type=int, default=50)
    options = parser.parse_args()
    latency(options.files)
    if options.alerts.is_dir():
        alerts(options.alerts, options.copies, options.per_file)
    else:
        sys.stdout.write(f"{options.alerts} does not exist: the throughput of alerts is not measured\n")


if __name__ == "__main__":
    main()
