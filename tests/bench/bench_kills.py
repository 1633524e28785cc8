"""Daemons of a home and an executor, and a played Livy, killed with SIGKILL again and again while clients use them.

    python -m tests.bench.bench_kills [--kills 100] [--seed 1]

The clients demand an answer to all that was accepted; at the end nothing may have run twice or be left over.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.servers.kill_story import kill_story


def main(kills: int, seed: int) -> None:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        story = kill_story(Path(folder), kills, seed)
    counted = ", ".join(f"{name} {count}" for name, count in sorted(story.kills.items()))
    print(f"{kills} kills ({counted}), {len(story.jobs)} jobs, {time.monotonic() - begun:.0f} s: nothing lost")
    print("outcomes: " + ", ".join(f"{what} {count}" for what, count in sorted(story.outcomes.items())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    main(given.kills, given.seed)
