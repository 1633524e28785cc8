"""Loops that go on whatever they meet, and say so; wake-ups that lose nothing."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable

import pytest
import structlog

from island.errors import DiskFailed, Full, PeerRefused, Unreachable
from island.kernel.loops import ENDED, FAULTS, LoopFaults, Tasks, backoff, forever, is_transient
from island.kernel.ports import SeededRng, Signal, Topic
from tests.sim.virtual import VirtualLoop
from tests.standins.faults import failed_read


async def test_expected_failures_are_retried() -> None:
    calls = 0
    done = asyncio.Event()

    async def step() -> None:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise Unreachable("not yet")
        done.set()
        await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(forever(step, name="t", rng=SeededRng(1), base=0.001))
    await asyncio.wait_for(done.wait(), 60)
    task.cancel()
    assert calls == 4


UNFORESEEN = [KeyError("bug"), ValueError("of a peer"), sqlite3.IntegrityError("UNIQUE constraint failed")]
FORESEEN = [sqlite3.OperationalError("disk I/O error"), OSError(5, "Input/output error"), Unreachable("not yet")]


@pytest.mark.parametrize("error", [*UNFORESEEN, *FORESEEN], ids=repr)
async def test_a_loop_survives_any_error(error: Exception) -> None:
    calls = 0

    async def step() -> object:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise error
        return ENDED

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        tasks = Tasks(group)
        tasks.forever("some.loop x", step, rng=SeededRng(1), base=0.001)
    assert calls == 4
    assert tasks.faults.problems() == []


async def test_what_nobody_foresaw_is_logged_whole_once_counted_and_a_problem_until_it_is_over() -> None:
    fail, went = True, asyncio.Event()
    counted = FAULTS.labels("some.loop")._value.get()

    async def step() -> None:
        if fail:
            failures.append(None)
            if len(failures) == 3:
                went.set()
                await asyncio.Event().wait()
            raise KeyError("bug")

    failures: list[None] = []
    faults = LoopFaults()
    with structlog.testing.capture_logs() as logs:
        task = asyncio.get_running_loop().create_task(
            forever(step, name="some.loop.x", rng=SeededRng(1), base=0.001, faults=faults)
        )
        await asyncio.wait_for(went.wait(), 60)
        task.cancel()
    assert [line["event"] for line in logs] == ["loop.fault", "loop.retry", "loop.retry"]
    assert isinstance(logs[0]["exc_info"], KeyError)
    assert FAULTS.labels("some.loop")._value.get() == counted + 2
    (problem,) = faults.problems()
    assert problem.startswith("some.loop.x fails and is retried (KeyError: 'bug')")
    faults.over("some.loop.x")
    assert faults.problems() == []


async def test_a_step_that_goes_on_after_a_failure_works_again() -> None:
    calls = 0

    async def step() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("bug")
        await asyncio.Event().wait()

    class Watched(LoopFaults):
        def over(self, name: str) -> None:
            super().over(name)
            if not self.problems():
                works.set()

    works, faults = asyncio.Event(), Watched()
    task = asyncio.get_running_loop().create_task(
        forever(step, name="t", rng=SeededRng(1), base=0.001, cap=0.001, faults=faults)
    )
    await asyncio.wait_for(works.wait(), 60)
    task.cancel()
    assert calls == 2


async def test_a_loop_that_is_cancelled_is_no_longer_a_problem() -> None:
    failed, faults = asyncio.Event(), LoopFaults()

    async def step() -> None:
        if failed.is_set():
            await asyncio.Event().wait()
        failed.set()
        raise KeyError("bug")

    task = asyncio.get_running_loop().create_task(
        forever(step, name="streams.source.removed", rng=SeededRng(1), base=0.001, faults=faults)
    )
    await asyncio.wait_for(failed.wait(), 60)
    assert len(faults.problems()) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert faults.problems() == []


async def _shown(faults: LoopFaults, step: Callable[[], Awaitable[None]], seconds: int) -> list[bool]:
    """Run a loop in virtual time, and return for each second whether it was a problem."""
    task = asyncio.get_running_loop().create_task(forever(step, name="t", rng=SeededRng(1), faults=faults))
    shown = []
    for _ in range(seconds):
        await asyncio.sleep(1)
        shown.append(bool(faults.problems()))
    task.cancel()
    return shown


def test_a_step_that_fails_after_a_long_wait_is_a_problem_all_the_time() -> None:
    calls = 0

    async def step() -> None:
        nonlocal calls
        await asyncio.sleep(59.5)  # four times the longest pause of the loop
        calls += 1
        raise KeyError("bug")

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        shown = runner.run(_shown(LoopFaults(), step, 600))
    assert calls > 5
    assert shown == [False] * 59 + [True] * 541


def test_a_step_that_failed_after_days_and_goes_on_for_days_works_again_after_minutes() -> None:
    calls = 0

    async def step() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(10_000)
        raise KeyError("bug")

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        shown = runner.run(_shown(LoopFaults(), step, 10_300))
    assert calls == 2
    assert shown[10_000:10_100] == [True] * 100
    assert not shown[-1]


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (sqlite3.OperationalError("disk I/O error"), True),
        (OSError(28, "No space left on device"), True),
        (Unreachable("no answer"), False),
        (TimeoutError(), False),
        (ConnectionResetError(), False),
    ],
    ids=repr,
)
def test_a_disk_is_a_problem_of_this_island_and_a_peer_is_not(error: Exception, shown: bool) -> None:
    faults = LoopFaults()
    faults.met("some.loop", error)
    assert bool(faults.problems()) is shown


def test_what_may_succeed_later_is_told_from_what_may_not() -> None:
    wrong = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.OperationalError) as statement:
        wrong.execute("SELECT nothing FROM nowhere")
    wrong.close()
    quota, disk = Full("the quota is used up"), Full("the disk is full")
    disk.__cause__ = sqlite3.OperationalError("database or disk is full")
    assert [is_transient(each) for each in (sqlite3.OperationalError("disk I/O error"), OSError(5, ""), disk)] == [
        True
    ] * 3
    assert [is_transient(each) for each in (statement.value, quota, KeyError("bug"))] == [False] * 3
    assert is_transient(DiskFailed("here"))
    assert is_transient(failed_read())
    assert not is_transient(PeerRefused("there", code=DiskFailed.code))


async def test_a_bug_in_spawned_work_concerns_only_itself() -> None:
    async def work() -> None:
        raise KeyError("bug")

    async with asyncio.TaskGroup() as group:
        await Tasks(group).spawn("t", work())


def test_backoff_grows_to_its_cap() -> None:
    rng = SeededRng(7)
    waits = [backoff(n, rng, base=0.5, cap=15) for n in range(1, 200)]
    assert 0.25 <= waits[0] <= 0.5
    assert all(7.5 <= wait <= 15 for wait in waits[10:])


async def test_a_signal_set_before_waiting_is_not_lost() -> None:
    signal = Signal()
    signal.set()
    assert await signal.wait(0.01)
    assert not await signal.wait(0.01)


async def test_a_signal_stays_set_when_the_work_that_it_woke_fails() -> None:
    signal = Signal()
    signal.set()
    assert await signal.wait(0.01)
    with pytest.raises(OSError), signal.kept():
        raise OSError(5, "Input/output error")
    assert await signal.wait(0.01)
    with signal.kept():
        pass
    assert not await signal.wait(0.01)


async def test_a_topic_tells_every_waiter() -> None:
    topic = Topic()
    seen = topic.version
    waiting = [asyncio.get_running_loop().create_task(topic.after(seen)) for _ in range(3)]
    await asyncio.sleep(0)
    topic.touch()
    assert await asyncio.gather(*waiting) == [1, 1, 1]
    assert await topic.after(0) == 1
    assert await topic.after(1, 0.01) == 1


async def test_a_loop_that_fails_for_long_is_logged_ever_more_rarely() -> None:
    runs = 0

    async def step() -> object:
        nonlocal runs
        runs += 1
        if runs <= 100:
            raise OSError("nobody is there")
        return ENDED

    with structlog.testing.capture_logs() as logs:
        await forever(step, name="poll", rng=SeededRng(1), base=0.0, cap=0.0)
    assert [line["failures"] for line in logs if line["event"] == "loop.retry"] == [1, 2, 4, 8, 16, 32, 64]
    assert logs[-1] == {"event": "loop.works_again", "loop": "poll", "failures": 100, "log_level": "info"}
