"""Bytes that are transferred for a read of some columns of a remote dataset, compared with the minimum.

Run `python -m tests.bench.bench_pruned_read` in the checkout. It starts two islands with their
services over TLS on loopback, and publishes Parquet files in the form of a catalogue. pandas reads
some columns through `island://`, first without and then with local data, in a new process each
time. The minimum is the exact size of the footers and of the chunks of these columns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from island.kernel import telemetry
from island.net.api import files
from island.net.api.user_port import UserServer, build
from island.net.condition import Condition
from island.trust.users import Tokens
from tests.replicas.test_over_tls import Island, join

READ = """
import sys, json, pandas as pd
path, columns, options = json.loads(sys.argv[1])
print(len(pd.read_parquet(path, columns=columns, storage_options=options)))
"""


def write(folder: Path, count: int, rows: int, columns: int, compression: str) -> None:
    """Write the files of a catalogue: identifier, type, and columns of numbers with some nulls."""
    folder.mkdir()
    random = np.random.default_rng(1)
    for number in range(count):
        data: dict[str, Any] = {
            "id": [f"NGC {number * rows + i:07d}" for i in range(rows)],
            "type": random.choice(["G", "GPair", "OCl", "PN"], rows),
        }
        for index in range(columns - 2):
            values = random.normal(15, 3, rows).round(4)
            data[f"c{index}"] = pa.array(values, mask=random.random(rows) < 0.2)
        pq.write_table(pa.table(data), folder / f"part{number}.parquet", compression=compression)


def ideal(folder: Path, columns: list[str]) -> int:
    """Size in bytes of the footers and of the column chunks of `columns` in all files."""
    total = 0
    for path in folder.rglob("*.parquet"):
        metadata = pq.read_metadata(path)
        total += metadata.serialized_size + 8
        for group in range(metadata.num_row_groups):
            chunks = [metadata.row_group(group).column(index) for index in range(metadata.num_columns)]
            total += sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema in columns)
    return total


async def read(path: str, columns: list[str], options: dict[str, Any]) -> int:
    """The number of rows that pandas reads in a new process."""
    argument = json.dumps([path, columns, options])
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", READ, argument], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout)


async def main() -> None:
    """Print one line for each case."""
    telemetry.configure("error")
    cases = [
        ("5 files of 1 MB", 5, 10_000, 25, "snappy", ["type", "c3", "c17"]),
        ("4 files of 8 MB", 4, 60_000, 30, "zstd", ["c0", "c10", "c20"]),
        ("3 files of 0.3 MB", 3, 3_600, 20, "snappy", ["type", "c1", "c2"]),
    ]
    print(f"{'case':<20} {'all':>12} {'ideal':>10} {'moved':>10} {'ratio':>6} {'warm':>6}")
    with tempfile.TemporaryDirectory() as name:
        async with contextlib.AsyncExitStack() as stack:
            owner = await stack.enter_async_context(Island(Path(name) / "owner", "owner").running())
            reader = await stack.enter_async_context(Island(Path(name) / "reader", "reader").running())
            await join(owner, reader)
            tokens = Tokens({"administrator": "a", "user": "u"})
            server = UserServer(build(tokens, files.routes(reader.catalog, reader.replicas), Condition), "127.0.0.1:0")
            await server.start()
            stack.push_async_callback(server.stop)
            options = {"endpoint": server.url, "token": "u"}
            for number, (title, count, rows, columns, compression, wanted) in enumerate(cases):
                folder = Path(name) / f"data{number}"
                write(folder, count, rows, columns, compression)
                view = await owner.catalog.publish("administrator@owner", folder, f"data{number}")
                resolved = await reader.resolved(f"owner/data{number}")
                least = ideal(folder, wanted)
                found = await read(f"island://owner/data{number}", wanted, options)
                assert found == count * rows
                moved = (await reader.replicas.status(resolved)).bytes_moved
                assert moved == await owner.replicas.sent(resolved), "the two ends count differently"
                await read(f"island://owner/data{number}", wanted, options)
                warm = (await reader.replicas.status(resolved)).bytes_moved - moved
                print(f"{title:<20} {view.bytes:>12,} {least:>10,} {moved:>10,} {moved / least:>6.3f} {warm:>6,}")


if __name__ == "__main__":
    asyncio.run(main())
