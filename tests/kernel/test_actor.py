"""The order in which an actor stores, performs and passes back; and what failures lead to."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from island.errors import NotFound
from island.kernel.actor import Actor, ActorEnded
from island.kernel.machine import (
    Answer,
    Cancel,
    Effect,
    Elapsed,
    Failed,
    Now,
    Refuse,
    Reply,
    Step,
    Wait,
    Write,
    WrongPhase,
    check_phase,
)
from island.kernel.ports import SeededRng, SystemClock
from tests.standins.faults import full_disk


@dataclass(frozen=True)
class Count:
    total: int = 0
    finished: bool = False
    seen: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Add:
    number: int


@dataclass(frozen=True)
class Asked:
    reply: Reply


@dataclass(frozen=True)
class Stored(Write):
    total: int


@dataclass(frozen=True)
class Call(Effect):
    what: str


class HandClock(SystemClock):
    """A clock whose time since boot is set by hand."""

    now = 0.0

    def boottime(self) -> float:
        return self.now


class Bug(Exception):
    pass


def handle(state: Count, event: Any, now: Now) -> Step[Count]:
    """A counter: it stores its total, calls out with it, and ends at 100."""
    assert now.wall > 0
    state = replace(state, seen=(*state.seen, event))
    match event:
        case Add(0):
            raise Bug("nothing to add")
        case Add(number):
            total = state.total + number
            state = replace(state, total=total, finished=total >= 100)
            return Step(state, (Stored(total), Call(f"did {total}")))
        case Asked(reply):
            return Step(state, (Answer(reply, state.total),))
        case ("wait", name, seconds):
            return Step(state, (Wait(name, seconds),))
        case ("call", what):
            return Step(state, (Call(what),))
        case ("cancel", key):
            return Step(state, (Cancel(key),))
        case ("refuse", reply):
            return Step(state, (Refuse(reply, NotFound("no such thing")),))
        case Elapsed("end"):
            return Step(replace(state, finished=True))
    return Step(state)


@dataclass
class Recorded:
    """The surroundings of an actor: what it saved and performed, in order."""

    lines: list[str] = field(default_factory=list)
    problems: list[Exception] = field(default_factory=list)
    """Raised by the next saves."""
    answer: Callable[[Call], Awaitable[Any]] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def save(self, old: Count, new: Count, writes: Sequence[Write]) -> None:
        await asyncio.sleep(0)
        if self.problems:
            raise self.problems.pop(0)
        self.lines.append(f"saved {old.total} -> {new.total} with {len(writes)}")
        self.changed.set()

    async def perform(self, effect: Effect) -> Any:
        assert isinstance(effect, Call)
        self.lines.append(effect.what)
        self.changed.set()
        return await self.answer(effect) if self.answer else None

    def actor(self) -> Actor[Count]:
        def broken(state: Count, error: Exception, now: Now) -> Step[Count]:
            return Step(replace(state, finished=True), (Call(f"broken: {error}"),))

        return Actor(
            "counter",
            Count(),
            handle=handle,
            save=self.save,
            perform=self.perform,
            broken=broken,
            clock=SystemClock(),
            rng=SeededRng(1),
        )

    async def until(self, line: str) -> None:
        async with asyncio.timeout(20):
            while line not in self.lines:
                self.changed.clear()
                await self.changed.wait()


async def run(actor: Actor[Count]) -> None:
    async with asyncio.timeout(20):
        await actor.run()


async def test_events_that_wait_share_one_transaction_before_their_effects() -> None:
    around = Recorded()
    actor = around.actor()
    for number in (1, 2, 97):
        actor.tell(Add(number))
    await run(actor)
    # Of effects with the same key, only the last one is performed.
    assert around.lines == ["saved 0 -> 100 with 3", "did 100"]
    assert actor.state.total == 100


async def test_a_full_disk_delays_the_machine_and_loses_nothing() -> None:
    around = Recorded(problems=[full_disk(), full_disk()])
    actor = around.actor()
    task = asyncio.ensure_future(run(actor))
    actor.tell(Add(60))
    while len(around.problems) == 2:
        await asyncio.sleep(0)
    assert (actor.state.total, around.lines) == (0, [])
    actor.tell(Add(40))
    await task
    assert around.lines[0] == "saved 0 -> 60 with 1"
    assert actor.state.total == 100


async def test_a_request_whose_caller_has_gone_is_withdrawn_unless_it_was_handled() -> None:
    around = Recorded(problems=[full_disk(), full_disk(), full_disk()])
    actor = around.actor()
    task = asyncio.ensure_future(run(actor))
    handled = asyncio.ensure_future(actor.ask(Asked))
    while len(around.problems) == 3:
        await asyncio.sleep(0)
    waiting = asyncio.ensure_future(actor.ask(Asked))
    await asyncio.sleep(0)
    assert actor.is_deciding(Asked)
    for asked in (handled, waiting):
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert actor.is_deciding(Asked), "the first is being stored"
    actor.tell(Add(100))
    await task
    assert not actor.is_deciding(Asked)
    assert [type(event) for event in actor.state.seen] == [Asked, Add]


async def test_an_event_has_the_time_of_its_arrival_also_if_it_waits() -> None:
    around, times, clock = Recorded(problems=[full_disk()]), list[float](), HandClock()
    inner = around.actor()

    def timed(state: Count, event: Any, now: Now) -> Step[Count]:
        times.append(now.boot)
        return handle(state, event, now)

    actor = Actor(
        "counter",
        Count(),
        handle=timed,
        save=around.save,
        perform=around.perform,
        broken=inner._broken,
        clock=clock,
        rng=SeededRng(1),
    )
    actor.tell(Add(1))
    task = asyncio.ensure_future(run(actor))
    while around.problems:
        await asyncio.sleep(0)
    clock.now = 10.0
    actor.tell(Add(2))
    clock.now = 900.0
    actor.tell(Add(97))
    await task
    assert times == [0.0, 10.0, 900.0]


async def test_an_answer_follows_the_transaction_of_its_step() -> None:
    around = Recorded()
    actor = around.actor()
    task = asyncio.ensure_future(run(actor))
    actor.tell(Add(5))
    assert await actor.ask(Asked) == 5
    assert around.lines[-1].startswith(("saved 0 -> 5", "did 5"))
    with pytest.raises(NotFound, match="no such thing"):
        await actor.ask(lambda reply: ("refuse", reply))
    actor.tell(Add(95))
    await task
    with pytest.raises(ActorEnded):
        await actor.ask(Asked)


async def test_a_failed_effect_is_an_event() -> None:
    async def fail(_: Call) -> None:
        raise OSError("no route")

    around = Recorded(answer=fail)
    actor = around.actor()
    actor.tell(("call", "there"))
    actor.tell(("wait", "end", 0.01))
    await run(actor)
    (failed,) = [event for event in actor.state.seen if isinstance(event, Failed)]
    assert (failed.effect, str(failed.error)) == (Call("there"), "no route")


async def test_a_newer_effect_replaces_the_earlier_one_with_its_key_and_a_cancelled_one_is_silent() -> None:
    never = asyncio.Event()

    async def wait(call: Call) -> Any:
        if call.what != "second":
            await never.wait()
        return f"end of {call.what}"

    around = Recorded(answer=wait)
    actor = around.actor()
    task = asyncio.ensure_future(run(actor))
    actor.tell(("call", "first"))
    await around.until("first")
    actor.tell(("call", "second"))
    await around.until("second")
    actor.tell(("call", "third"))
    await around.until("third")
    actor.tell(("cancel", "Call"))
    actor.tell(("wait", "long", 600))
    actor.tell(("cancel", "wait long"))
    actor.tell(Elapsed("end"))
    await task
    assert [event for event in actor.state.seen if str(event).startswith("end of")] == ["end of second"]
    assert Elapsed("long") not in actor.state.seen


async def test_a_bug_of_the_machine_ends_its_subject_with_the_reason() -> None:
    around = Recorded()
    actor = around.actor()
    actor.tell(Add(0))
    await run(actor)
    assert around.lines == ["saved 0 -> 0 with 0", "broken: nothing to add"]


async def test_a_step_that_cannot_be_stored_because_of_a_bug_ends_its_subject() -> None:
    around = Recorded(problems=[Bug("odd value"), sqlite3.ProgrammingError("odd value again")])
    actor = around.actor()
    actor.tell(Add(7))
    await run(actor)
    assert around.lines == ["saved 0 -> 0 with 0", "broken: odd value again"]


async def test_requests_do_not_wait_for_ever_when_the_machine_breaks_or_the_daemon_stops() -> None:
    around = Recorded()
    actor = around.actor()
    task = asyncio.ensure_future(run(actor))
    asked = asyncio.ensure_future(actor.ask(lambda reply: ("nobody answers", reply)))
    await around.until("saved 0 -> 0 with 0")
    task.cancel()
    with pytest.raises(ActorEnded):
        await asked
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_table_of_phases_is_binding() -> None:
    phases = {"one": frozenset({"two"}), "two": frozenset[str]()}
    check_phase(phases, "one", "two")
    check_phase(phases, "two", "two")
    with pytest.raises(WrongPhase, match="from two to one"):
        check_phase(phases, "two", "one")
