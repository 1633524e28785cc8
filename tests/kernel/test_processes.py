"""Children for work on strangers' bytes: what they may take, how they end, and what they tell."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
import uvloop

from island.errors import Corrupt, OverLimit, Unsupported
from island.kernel.processes import FunctionFailed, InPlaceProcesses, Limits, ProcessDied, ProcessPool, Stalled
from tests.kernel import process_functions as f

MIB = 2**20

EventLoop = Callable[[], asyncio.AbstractEventLoop]
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture
async def pool() -> AsyncIterator[ProcessPool]:
    made = ProcessPool("test", memory_bytes=256 * MIB, hint="Raise the limit.")
    yield made
    await made.close()
    assert made.pids == []


def ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def test_a_function_runs_in_one_child_again_and_again(pool: ProcessPool) -> None:
    assert await pool.run(f.add, 2, 3) == 5
    assert await pool.run(f.parent_of, Path("/a/b")) == Path("/a")
    first, second = await pool.run(f.pid), await pool.run(f.pid)
    assert first == second != os.getpid()


async def test_a_child_starts_with_few_imports(pool: ProcessPool) -> None:
    assert await pool.run(f.imported, ["msgspec", "asyncio", "structlog", "rich"]) == ["msgspec"]


async def test_items_come_as_they_are_made_and_may_be_many(pool: ProcessPool) -> None:
    async with aclosing(pool.stream(f.count, 20_000)) as items:
        assert [item async for item in items] == list(range(20_000))
    seen = []
    with pytest.raises(Corrupt, match="after 3"):
        async for item in pool.stream(f.count_and_fail, 3):
            seen.append(item)
    assert seen == [0, 1, 2]


async def test_no_more_children_than_allowed_and_none_when_idle() -> None:
    pool = ProcessPool("test", memory_bytes=256 * MIB, hint="", size=2, idle_seconds=0.0)
    pids = set(await asyncio.gather(*(pool.run(f.pid) for _ in range(12))))
    async with asyncio.timeout(60):
        while pool.pids:
            await asyncio.sleep(0.01)
    assert all(ended(pid) for pid in pids)
    assert await pool.run(f.add, 1, 1) == 2  # another is started
    await pool.close()
    busy = ProcessPool("test", memory_bytes=256 * MIB, hint="", size=2)
    assert len(set(await asyncio.gather(*(busy.run(f.pid) for _ in range(12))))) <= 2
    await busy.close()


async def test_a_call_goes_back_to_the_child_that_knows_its_key() -> None:
    pool = ProcessPool("test", memory_bytes=256 * MIB, hint="", size=2)
    mine, theirs = await asyncio.gather(pool.run(f.pid, near="a"), pool.run(f.pid, near="b"))
    assert mine != theirs
    assert [await pool.run(f.pid, near=key) for key in ("b", "a", "b")] == [theirs, mine, theirs]
    await pool.close()


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("corrupt", Corrupt, "it is broken"),
        ("unknown", Unsupported, "it is odd"),
        ("os", OSError, "/nonexistent/file: No such file"),
        ("bug", FunctionFailed, "ZeroDivisionError: a mistake"),
    ],
)
async def test_errors_arrive_and_the_child_lives_on(
    pool: ProcessPool, name: str, kind: type[Exception], words: str
) -> None:
    pid = await pool.run(f.pid)
    with pytest.raises(kind, match=words) as caught:
        await pool.run(f.raise_named, name)
    if isinstance(caught.value, Corrupt):
        assert (caught.value.hint, caught.value.code) == ("Write it again.", "odd_code")
    assert await pool.run(f.pid) == pid


async def test_memory_is_limited_and_the_child_replaced(pool: ProcessPool) -> None:
    pid = await pool.run(f.pid)
    assert await pool.run(f.grow, 50) == 50 * MIB
    with pytest.raises(OverLimit, match=r"big\.avro .* more than 256 MiB of memory") as caught:
        await pool.run(f.grow, 300)
    assert caught.value.hint == "Raise the limit."
    assert ended(pid) and await pool.run(f.pid) != pid


async def test_processor_time_is_limited_by_file(pool: ProcessPool) -> None:
    assert await pool.run(f.spin_twice, 1.0, limits=Limits(cpu_seconds=1.0)) == 3
    with pytest.raises(OverLimit, match=r"slow\.avro .* more than 1 s of processor time"):
        async with aclosing(pool.stream(f.spin, 1.0)) as items:
            pid = await anext(items)
            await anext(items)
    assert ended(pid)


async def test_a_child_that_is_silent_is_ended(pool: ProcessPool) -> None:
    pid = await pool.run(f.pid)  # the limit is not for the start of a child
    with pytest.raises(Stalled, match="no progress for 1 s"):
        async with aclosing(pool.stream(f.hang, limits=Limits(silent_seconds=1.0))) as items:
            async for each in items:
                assert each == pid
    assert ended(pid)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
async def test_a_crash_is_told_with_the_file(pool: ProcessPool, number: signal.Signals) -> None:
    with pytest.raises(ProcessDied, match=rf"crash\.parquet was ended by signal {number.name}") as caught:
        await pool.run(f.crash, int(number))
    assert caught.value.crashed == (number == signal.SIGSEGV)
    assert await pool.run(f.add, 1, 2) == 3


def on(loop: EventLoop, calls: Callable[[ProcessPool], Awaitable[None]], idle_seconds: float) -> None:
    """Run `calls` with a pool of two children on an event loop of this kind."""

    async def scenario() -> None:
        pool = ProcessPool("test", memory_bytes=256 * MIB, hint="", size=2, idle_seconds=idle_seconds)
        try:
            async with asyncio.timeout(60):
                await calls(pool)
        finally:
            await pool.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("loop", LOOPS)
def test_no_call_gets_a_child_that_was_idle_for_too_long(loop: EventLoop) -> None:
    async def calls(pool: ProcessPool) -> None:
        for _ in range(3):
            assert await pool.run(f.add, 1, 2) == 3
            while pool._idle:  # until the idle time has ended
                await asyncio.sleep(0)
            assert pool.pids, "the child ends later"

    on(loop, calls, idle_seconds=0.01)


@pytest.mark.parametrize("loop", LOOPS)
def test_children_that_were_killed_while_idle_are_replaced(loop: EventLoop) -> None:
    async def calls(pool: ProcessPool) -> None:
        for turns in (0, 1, 2, 3, 5, 50):
            for pid in await asyncio.gather(pool.run(f.pid), pool.run(f.pid)):
                os.kill(pid, signal.SIGKILL)
            for _ in range(turns):  # the call may find any state of the end of a child
                await asyncio.sleep(0)
            assert await pool.run(f.add, 1, 2) == 3

    on(loop, calls, idle_seconds=60.0)


async def test_a_call_that_crashes_at_once_is_not_repeated(pool: ProcessPool, tmp_path: Path) -> None:
    await pool.run(f.pid)
    with pytest.raises(ProcessDied, match="SIGKILL"):
        await pool.run(f.crash_at_once, tmp_path / "calls")
    assert (tmp_path / "calls").read_text() == "called\n"


async def test_an_answer_is_limited_and_must_be_of_its_type(pool: ProcessPool) -> None:
    with pytest.raises(OverLimit, match="more than 1000"):
        await pool.run(f.say_much, 10_000, limits=Limits(answer_bytes=1000))
    assert len(await pool.run(f.say_much, 10 * MIB)) == 10 * MIB
    pid = await pool.run(f.pid)
    with pytest.raises(ProcessDied, match="malformed answer"):
        await pool.run(f.lie)
    assert ended(pid)


async def test_cancelling_the_caller_kills_the_child(pool: ProcessPool) -> None:
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def call() -> None:
        async with aclosing(pool.stream(f.spin, 3600.0)) as items:
            async for pid in items:
                started.set_result(pid)

    task = asyncio.create_task(call())
    pid = await started
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled() and ended(pid)
    assert await pool.run(f.add, 1, 2) == 3


async def test_closing_ends_what_is_under_way_and_takes_nothing_more() -> None:
    pool = ProcessPool("test", memory_bytes=256 * MIB, hint="")
    items = pool.stream(f.spin, 3600.0)
    pid = await anext(items)
    await pool.close()
    assert ended(pid)
    with pytest.raises(ProcessDied):
        await anext(items)
    with pytest.raises(ProcessDied, match="the island is stopping"):
        await pool.run(f.add, 1, 2)


async def test_a_child_gets_no_secrets_no_sockets_and_no_stdout(
    pool: ProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISLAND_TOKEN", "a-secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        inside = await pool.run(f.environment)
        assert "ISLAND_TOKEN" not in inside and "a-secret" not in inside.values() and "HOME" not in inside
        assert not await pool.run(f.has_socket)
    assert await pool.run(f.chatter) == 1


async def test_a_child_imports_nothing_from_the_working_directory(
    pool: ProcessPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("queue", "island", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{os.environ.get('PYTHONPATH', '')}")  # an empty entry is this folder
    assert await pool.run(f.add, 1, 2) == 3
    assert await pool.run(f.working_directory) == Path("/")
    assert not (tmp_path / "ran").exists()


PARENT = """
import asyncio
from island.kernel import telemetry
from island.kernel.processes import ProcessPool
from tests.kernel import process_functions as f
async def main():
    telemetry.configure("info")
    pool = ProcessPool("test", memory_bytes=2**28, hint="")
    async for pid in pool.stream(f.spin, 3600.0):
        print(pid, flush=True)
asyncio.run(main())
"""


def test_a_busy_child_ends_with_a_parent_that_is_killed() -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=root) as parent:
        try:
            assert parent.stdout is not None
            watch = os.pidfd_open(int(parent.stdout.readline()))
        finally:
            parent.kill()
    # Readable once the process has ended.
    assert select.select([watch], [], [], 60)[0] == [watch]
    os.close(watch)


async def test_in_place_the_same_functions_run_here() -> None:
    here = InPlaceProcesses()
    assert await here.run(f.pid) == os.getpid()
    assert [item async for item in here.stream(f.count, 3)] == [0, 1, 2]
    await here.close()
