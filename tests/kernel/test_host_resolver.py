"""Names that no server answers for, under the event loop of the daemon: they delay neither others nor the end."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from island.errors import EngineFailed
from island.kernel.host_resolver import HostResolver
from island.kernel.work import ThreadWorkers
from island.livy.client import LivyClient
from tests.islands.sessions import QUICK, archipelago

STUCK = "observatory.invalid"


class SystemResolver:
    """The system's resolver, which never answers for one name until it is released."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._answer = threading.Event()
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: str, *args: Any, **options: Any) -> Any:
        if options.get("flags", 0) & socket.AI_NUMERICHOST:
            return self._real(host, *args, **options)
        self.calls[host] += 1
        if host == STUCK:
            self._answer.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return self._real(host, *args, **options)

    def release(self) -> None:
        self._answer.set()


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[SystemResolver]:
    made = SystemResolver()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.release()


def run(main: Callable[[ThreadWorkers], Coroutine[Any, Any, None]]) -> None:
    """Run a function as the daemon does, and close the workers at its end."""

    async def whole() -> None:
        workers = ThreadWorkers()
        try:
            await main(workers)
        finally:
            workers.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())


def test_a_stuck_name_has_a_timeout_and_one_look_up_and_delays_no_other(system: SystemResolver) -> None:
    async def main(workers: ThreadWorkers) -> None:
        resolver = HostResolver(workers, timeout_s=0.1)
        stuck = await asyncio.gather(*(resolver.resolve(STUCK, port) for port in range(100)), return_exceptions=True)
        assert all(isinstance(error, TimeoutError) and STUCK in str(error) for error in stuck)
        assert system.calls == {STUCK: 1}
        found = await HostResolver(workers).resolve("localhost", 80)
        assert {each.sockaddr[:2] for each in found} <= {("127.0.0.1", 80), ("::1", 80)} and found

    run(main)  # ends although the look-up does not


def test_a_name_is_looked_up_again_after_its_answer(system: SystemResolver) -> None:
    async def main(workers: ThreadWorkers) -> None:
        resolver = HostResolver(workers)
        for _ in range(2):
            await resolver.resolve("localhost", 80)
        with pytest.raises(socket.gaierror):
            await resolver.resolve("no-such-host.invalid", 80)
        assert system.calls == {"localhost": 2, "no-such-host.invalid": 1}

    run(main)


def test_numeric_addresses_need_no_thread(system: SystemResolver) -> None:
    async def main(workers: ThreadWorkers) -> None:
        resolver = HostResolver(workers)
        assert (await resolver.resolve("192.0.2.7", 5))[0].sockaddr == ("192.0.2.7", 5)
        assert (await resolver.resolve("::1", 5))[0].sockaddr == ("::1", 5, 0, 0)
        assert not system.calls

    run(main)


def test_an_island_is_dialled_at_its_next_address(system: SystemResolver, tmp_path: Path) -> None:
    async def main(_: ThreadWorkers) -> None:
        async with archipelago(tmp_path, 2, mesh=False, limits=replace(QUICK, connect_s=0.5)) as (one, other):
            one.known[other.id] = [f"{STUCK}:1", other.address]
            one.peers.connect_soon()
            await one.linked(other)
            assert system.calls[STUCK] == 1

    run(main)


def test_the_client_of_livy_uses_the_same_look_ups(system: SystemResolver) -> None:
    async def main(workers: ThreadWorkers) -> None:
        async with LivyClient(f"http://{STUCK}:1", resolver=HostResolver(workers, timeout_s=0.1)) as client:
            with pytest.raises(EngineFailed, match=f"no name server answered for {STUCK}"):
                await client.sessions()
        assert system.calls[STUCK] == 1

    run(main)


PROGRAM = """
import asyncio, socket, threading, uvloop
from island.kernel.host_resolver import HostResolver
from island.kernel.work import ThreadWorkers
socket.getaddrinfo = lambda *_, flags=0, **__: threading.Event().wait() if not flags else numeric()
def numeric():
    raise socket.gaierror
async def main():
    workers = ThreadWorkers()
    try:
        await HostResolver(workers, timeout_s=0.1).resolve("observatory.invalid", 1)
    except TimeoutError:
        print("timed out")
    workers.close()
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


def test_a_program_ends_while_a_look_up_is_stuck() -> None:
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout == "timed out\n" and not ended.stderr
