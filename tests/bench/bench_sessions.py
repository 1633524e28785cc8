"""Requests and streams between two islands in one process, compared with plain TLS streams in the same run.

python -m tests.bench.bench_sessions
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from pathlib import Path

import structlog

from island.kernel.host_resolver import HostResolver
from island.kernel.ids import IslandId
from island.kernel.ports import BulkStream, SystemRng
from island.kernel.work import ThreadWorkers
from island.net import tls
from island.net.limits import PeerLimits
from island.net.listener import dial
from island.trust.keys import Identity
from tests.islands.sessions import Node, archipelago

BLOCK, COUNT = 64 * 1024, 6000


def register(node: Node) -> None:
    """Register handlers for an echo and for a stream of random blocks."""
    block = os.urandom(BLOCK)

    async def echo(_sender: IslandId, body: bytes) -> bytes:
        return body

    async def pour(_sender: IslandId, _body: bytes, stream: BulkStream) -> None:
        for _ in range(COUNT):
            await stream.send(block)

    node.peers.on_request("echo", echo)
    node.peers.on_bulk("pour", pour)


async def bare() -> float:
    """MB/s of the same blocks over a TLS stream without any protocol."""
    block = os.urandom(BLOCK)

    async def pour(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(COUNT):
            writer.write(block)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(pour, "127.0.0.1", 0, ssl=tls.listener_context(Identity.generate(SystemRng())))
    port = server.sockets[0].getsockname()[1]
    reader, writer = await dial(f"127.0.0.1:{port}", tls.dialler_context(), PeerLimits(), HostResolver(ThreadWorkers()))
    begun = time.perf_counter()
    for _ in range(COUNT):
        await reader.readexactly(BLOCK)
    rate = BLOCK * COUNT / (time.perf_counter() - begun) / 1e6
    writer.close()
    server.close()
    return rate


async def main() -> None:
    """Print the results."""
    reference = await bare()
    with tempfile.TemporaryDirectory() as folder:
        async with archipelago(Path(folder), 2, register=register) as (one, other):
            begun = time.perf_counter()
            for _ in range(2000):
                await one.peers.request(other.id, "echo", bytes(100))
            print(f"request and answer, one at a time: {(time.perf_counter() - begun) / 2:.3f} ms")
            begun = time.perf_counter()
            await asyncio.gather(*(one.peers.request(other.id, "echo", bytes(100)) for _ in range(5000)))
            print(f"requests together: {5000 / (time.perf_counter() - begun):.0f} /s")
            begun = time.perf_counter()
            async with one.peers.bulk(other.id, "pour", b"") as stream:
                while await stream.receive() is not None:
                    pass
            rate = BLOCK * COUNT / (time.perf_counter() - begun) / 1e6
            print(f"one stream, blocks of 64 KiB: {rate:.0f} MB/s, {rate / reference:.2f} x bare TLS ({reference:.0f})")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(main())
