"""Loops that retry what is expected and escalate what is not; wake-ups that lose nothing."""

import asyncio

import pytest

from island.errors import Unreachable
from island.kernel.loops import Tasks, backoff, forever
from island.kernel.ports import SeededRng, Signal, Topic


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
    await asyncio.wait_for(done.wait(), 5)
    task.cancel()
    assert calls == 4


async def test_a_bug_escalates() -> None:
    async def step() -> None:
        raise KeyError("bug")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            Tasks(group).loop("t", forever(step, name="t", rng=SeededRng(1)))
    assert isinstance(caught.value.exceptions[0], KeyError)


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


async def test_a_topic_tells_every_waiter() -> None:
    topic = Topic()
    seen = topic.version
    waiting = [asyncio.get_running_loop().create_task(topic.after(seen)) for _ in range(3)]
    await asyncio.sleep(0)
    topic.touch()
    assert await asyncio.gather(*waiting) == [1, 1, 1]
    assert await topic.after(0) == 1
    assert await topic.after(1, 0.01) == 1
