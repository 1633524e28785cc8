"""Stories of crashes from many seeds, in virtual time: counts of crash points, faults and outcomes.

    python -m tests.bench.bench_crashes [--stories 1000] [--first 0] [--processes 2]

A failing story is printed with its seed, which `--first SEED --stories 1` replays, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import structlog

from tests.sim.crash_story import crash_story

Told = tuple[int, Counter[str], Counter[str], Counter[str], str]


def tell(seed: int) -> Told:
    """The seed of a story, its crash points, faults and outcomes, and its failure or ""."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        story = crash_story(seed)
    except Exception:  # noqa: BLE001 - the failure is the result
        return seed, Counter(), Counter(), Counter(), traceback.format_exc()
    return seed, story.points, story.faults, story.outcomes, ""


def told(seeds: range, processes: int) -> Iterator[Told]:
    """Tell the stories, in this process if `processes` is 1, so that a debugger can follow."""
    if processes == 1:
        yield from map(tell, seeds)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(tell, seeds, chunksize=4)


def main(seeds: range, processes: int) -> int:
    begun, failed = time.monotonic(), 0
    totals = Counter[str](), Counter[str](), Counter[str]()
    for seed, *counts, problem in told(seeds, processes):
        for total, count in zip(totals, counts, strict=True):
            total.update(count)
        if problem:
            failed += 1
            print(f"seed {seed} failed:\n{problem}", flush=True)
    points, faults, outcomes = totals
    effects = Counter[str]()
    for point, times in points.items():
        effects[point.partition(" ")[2]] += times
    print(
        f"{len(seeds)} stories from seed {seeds.start}: {failed} failed; {points.total()} crashes at {len(effects)}"
        f" kinds of points, {faults.total()} faults, {time.monotonic() - begun:.0f} s"
    )
    for name, found in (("crashes", effects), ("faults", faults), ("outcomes", outcomes)):
        print(f"{name}: " + ", ".join(f"{what} {count}" for what, count in sorted(found.items())))
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    sys.exit(main(range(given.first, given.first + given.stories), given.processes))
