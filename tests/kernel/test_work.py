"""Work elsewhere: pools apart by purpose, cancellation, and one way in for the whole program."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import island
from island.catalog.messages import SearchQuery
from island.kernel.host_resolver import HostResolver
from island.kernel.work import (
    BLOCKING_THREADS,
    DISK_THREADS,
    FOLDER_THREADS,
    FOLDERS_THREADS,
    ThreadWorkers,
    ended,
    to_the_end,
)
from tests.islands.publishing import Islands, write_table


@contextlib.asynccontextmanager
async def nothing_answers(workers: ThreadWorkers) -> AsyncIterator[None]:
    """Every thread for blocking calls waits for an answer that does not come, and more calls wait for a thread."""
    answer, waiting = threading.Event(), threading.Semaphore(0)

    def ask() -> None:
        waiting.release()
        answer.wait()

    calls = [workers.blocking(ask) for _ in range(BLOCKING_THREADS)]
    try:
        for _ in range(BLOCKING_THREADS):
            await workers.disk(waiting.acquire)
        calls += [workers.blocking(ask) for _ in range(BLOCKING_THREADS)]
        yield
        assert not any(call.done() for call in calls)
    finally:
        answer.set()
        await asyncio.gather(*calls)


async def test_work_of_other_kinds_goes_on_while_every_blocking_call_is_stuck() -> None:
    workers = ThreadWorkers()
    lane = workers.lane("test")
    async with nothing_answers(workers):
        task = asyncio.get_running_loop().create_task(HostResolver(workers).resolve("localhost", 80))
        assert await workers.disk(sum, [1, 2]) == 3
        assert await workers.cpu(sum, [1, 2]) == 3
        assert await lane.run(sum, [1, 2]) == 3
        assert not task.done()
    assert await task
    lane.close()
    workers.close()


async def test_a_publication_goes_on_while_every_blocking_call_is_stuck(tmp_path: Path) -> None:
    async with Islands(tmp_path).island("alpha") as alpha, nothing_answers(alpha.workers):
        view = await alpha.catalog.publish("administrator@alpha", write_table(tmp_path / "stars.parquet"), "stars")
        assert view.rows == 1000
        assert [found.name for found in await alpha.catalog.search(SearchQuery(words="stars"))] == ["stars"]


async def test_a_folder_that_hangs_delays_only_itself_and_not_the_end() -> None:
    workers = ThreadWorkers()
    heal, waiting, done = threading.Event(), threading.Semaphore(0), []

    def hang(number: int) -> None:
        waiting.release()
        heal.wait()
        done.append(number)

    hung = [workers.folder("/mnt/a", hang, number) for number in range(DISK_THREADS + FOLDER_THREADS)]
    for _ in range(FOLDER_THREADS):
        await workers.disk(waiting.acquire)
    assert await workers.folder("/mnt/b", sum, [1, 2]) == 3
    assert await workers.disk(sum, [1, 2]) == 3
    assert not waiting.acquire(blocking=False)  # no more threads were started for the folder
    gone = hung.pop()
    gone.cancel()
    await asyncio.sleep(0)  # the cancellation reaches the queue
    heal.set()
    await asyncio.gather(*hung)
    assert sorted(done) == [*range(DISK_THREADS + FOLDER_THREADS - 1)]  # the cancelled call did not start

    heal.clear()
    again = workers.folder("/mnt/a", hang, 0)
    await workers.disk(waiting.acquire)
    workers.close()  # returns although the folder hangs
    with pytest.raises(asyncio.CancelledError):
        await to_the_end(again)
    heal.set()


async def test_more_folders_than_threads_take_turns() -> None:
    workers = ThreadWorkers()
    begun, heal = threading.Semaphore(0), threading.Event()

    def hang() -> None:
        begun.release()
        heal.wait()

    calls = [workers.folder(f"/mnt/{number}", hang) for number in range(FOLDERS_THREADS + 5)]
    for _ in range(FOLDERS_THREADS):
        await workers.disk(begun.acquire)
    assert not begun.acquire(blocking=False)
    heal.set()
    await asyncio.gather(*calls)
    workers.close()


async def test_a_dataset_on_a_mount_that_hangs_does_not_delay_another(tmp_path: Path) -> None:
    async with Islands(tmp_path).island("alpha") as alpha:
        first, other = [
            await alpha.catalog.publish(
                "administrator@alpha", write_table(tmp_path / name / "stars.parquet", rows), name
            )
            for name, rows in (("first", 10), ("other", 20))
        ]
        heal = threading.Event()
        hung = [alpha.workers.folder(str(tmp_path / "first"), heal.wait) for _ in range(FOLDER_THREADS)]
        waiting = asyncio.get_running_loop().create_task(alpha.catalog.own_file(first.snapshot, "stars.parquet"))
        found = await alpha.catalog.own_file(other.snapshot, "stars.parquet")
        assert found is not None and found.path == tmp_path / "other" / "stars.parquet"
        assert not waiting.done()
        heal.set()
        found = await waiting
        assert found is not None and found.path == tmp_path / "first" / "stars.parquet"
        await asyncio.gather(*hung)


STUCK = """
import asyncio, sys, threading
from island.kernel.work import ThreadWorkers, exit_after
async def main():
    workers = ThreadWorkers()
    hang = threading.Event()
    workers.folder("/mnt/a", hang.wait)
    if sys.argv[1] == "disk":
        workers.disk(hang.wait)
        exit_after(0.1, lambda: print("last", flush=True))
    workers.close()
asyncio.run(main())
"""


@pytest.mark.parametrize(("what", "code", "said"), [("folder", 0, ""), ("disk", 1, "last\n")])
def test_a_process_exits_although_a_thread_hangs(what: str, code: int, said: str) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", STUCK, what], stdout=subprocess.PIPE, text=True, cwd=root, check=False)
    assert (done.returncode, done.stdout) == (code, said)


async def test_a_lane_keeps_the_order_and_runs_a_turn_to_its_end() -> None:
    lane = ThreadWorkers().lane("test")
    done: list[int] = []

    def turn() -> Iterator[None]:
        done.append(1)
        yield
        done.append(2)

    lane.post(turn)
    await lane.run(done.append, 3)
    lane.post(turn)
    lane.close()
    assert done == [1, 2, 3, 1, 2]


async def test_a_caller_that_is_cancelled_waits_for_the_end_of_its_work() -> None:
    workers = ThreadWorkers()
    begun, gate, finished = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait()
        finished.set()

    task = asyncio.get_running_loop().create_task(to_the_end(workers.disk(work)))
    await workers.cpu(begun.wait)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished.is_set()
    workers.close()


async def test_work_that_ends_badly_has_ended() -> None:
    workers = ThreadWorkers()
    work = workers.cpu(int, "no number")
    await ended(work)
    with pytest.raises(ValueError, match="no number"):
        await work
    workers.close()


def test_nothing_else_uses_an_executor() -> None:
    """Ruff bans the functions and classes; this finds the method of the event loop too."""
    package = Path(island.__file__).parent
    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package).parts[0] != "engine" and path != package / "kernel" / "work.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("run_in_executor", "set_default_executor")
    ]
    assert not found, found
