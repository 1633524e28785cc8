"""Avro as Parquet for Spark, in a process of its own: `python -m island.replicas.convert TARGET < sources`.

Decoding a large file takes minutes of one core; in the daemon's process it would slow every
answer. The parent writes the paths as one JSON line and keeps the pipe open: when it closes,
because the parent is gone or has changed its mind, the child ends. Progress, and the result
or error, come back as JSON lines.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from island.errors import IslandError

_LINE_LIMIT = 2**20


async def convert(sources: Sequence[Path], target: Path, progress: Callable[[int, int, str], None]) -> None:
    """Write the records of `sources` as a folder of Parquet files that appears whole or not at all.

    Raises what `formats.avro.to_parquet` raises, and `IslandError` when the child dies.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "island.replicas.convert",
        str(target),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT,
    )
    assert child.stdin is not None and child.stdout is not None
    last: dict[str, Any] = {}
    try:
        child.stdin.write(json.dumps([str(path) for path in sources]).encode() + b"\n")
        await child.stdin.drain()
        while line := await child.stdout.readline():
            last = json.loads(line)
            if "progress" in last:
                progress(*last["progress"])
        await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        child.stdin.close()
    if "error" in last:
        raise IslandError(last["message"], hint=last["hint"], code=last["error"])
    if "done" not in last:
        raise IslandError(
            f"the conversion of {sources[0].name} to Parquet ended with status {child.returncode}",
            hint="Is there enough memory and disk? Ask again to try again.",
        )


def main() -> None:
    """The child: one conversion."""
    sources = [Path(path) for path in json.loads(sys.stdin.readline())]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    told = [0]

    def say(line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    def progress(done: int, total: int, what: str) -> None:
        if done - told[0] >= 2**20 or done == total:
            told[0] = done
            say({"progress": [done, total, what]})

    from island.formats.avro import to_parquet

    try:
        to_parquet(sources, Path(sys.argv[1]), progress)
    except IslandError as error:
        say({"error": error.code, "message": error.message, "hint": error.hint})
    except OSError as error:
        say({"error": "full", "message": f"{sys.argv[1]}: {error.strerror or error}", "hint": "Check the disk."})
    else:
        say({"done": True})


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
