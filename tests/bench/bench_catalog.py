"""Search by words and sky over many datasets, compared with a plain tantivy query on the same index.

Run `python -m tests.bench.bench_catalog [DATASETS]` in the checkout (default 100,000). It starts
one island with its services and writes records into its projection, as gossip does. The output is
the median and the maximum of the runs, in milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import tantivy

from island.catalog import core, store
from island.catalog.messages import DatasetRecord, SearchQuery
from tests.islands.publishing import Island, Islands

RARE = [f"term{number}" for number in range(5000)]
COMMON = ["galaxies", "stars", "quasars", "survey", "spectra"]


def fill(conn: sqlite3.Connection, count: int) -> None:
    """Write datasets of 1,000 islands, with titles of ten words and a sky coverage each."""
    rng = random.Random(1)
    for number in range(count):
        start, length = rng.randrange(12_288), rng.randrange(1, 60)
        cells = (((1 << length) - 1) << start) & ((1 << 12_288) - 1)
        record = DatasetRecord(
            title=" ".join([*rng.choices(COMMON, k=3), *rng.choices(RARE, k=7)]),
            format="parquet",
            rows=number,
            size=number,
            files=1,
            snapshot=f"{number:064x}",
            created=1.0,
            updated=2.0,
            card=f"{number:064x}",
            coverage=core.pack_coverage(cells.to_bytes(1536, "little")),
            time=(number * 1000.0, number * 1000.0 + 10),
            columns=("id", "ra", "dec", "mag"),
        )
        store.put_entry(conn, f"{number % 1000:064x}", f"dataset-{number}", record)
    conn.execute("DELETE FROM catalog_wanted")


async def timed(name: str, work: Callable[[], Awaitable[int]], runs: int = 50) -> float:
    """Measure and print the duration of `work`. Returns the median in milliseconds."""
    took = []
    found = await work()
    for _ in range(runs):
        begun = time.perf_counter()
        found = await work()
        took.append((time.perf_counter() - begun) * 1000)
    middle = statistics.median(took)
    print(f"{name:<28} {middle:8.1f}  {max(took):8.1f}  {found:>7} found")
    return middle


async def measure(island: Island, count: int) -> None:
    begun = time.perf_counter()
    await island.gossip_db.write(lambda conn: fill(conn, count))
    print(f"{count:,} records stored in {time.perf_counter() - begun:.1f} s", end=", ")
    begun = time.perf_counter()
    await island.catalog.index()
    print(f"indexed in {time.perf_counter() - begun:.1f} s")
    print(f"{'':<28} {'median':>8}  {'worst':>8}  ms")
    bare = tantivy.Index.open(str(island.home / "search"))

    def direct(text: str) -> Callable[[], Awaitable[int]]:
        async def work() -> int:
            query = bare.parse_query(text, ["title", "name", "words"], conjunction_by_default=True)
            return len(bare.searcher().search(query, 100).hits)

        return work

    def search(**parts: str) -> Callable[[], Awaitable[int]]:
        async def work() -> int:
            return len(await island.catalog.search(SearchQuery(**parts, limit=100)))

        return work

    reference = await timed("bare tantivy, two words", direct("stars survey"))
    ours = await timed("two words", search(words="stars survey"))
    print(f"{'':<28} {ours / max(reference, 0.001):8.1f} x bare")
    await timed("one rare word", search(words="term1717"))
    await timed("word and sky", search(words="stars", region="circle 187.7 12.4 5"))
    await timed("sky", search(region="circle 187.7 12.4 5"), 10)
    await timed("time", search(time="1970-01-02..1970-01-03"), 10)


async def main(count: int) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as folder:
        async with Islands(Path(folder)).island("alpha") as island:
            await measure(island, count)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
