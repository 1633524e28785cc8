"""Runs one pure state machine: stores its changes, performs its effects, passes back what they lead to.

The order is fixed: events, one transaction, then the other effects. `Actor.state` is therefore never ahead of
the database, nothing is done before it is stored, and a disk that is full only delays the machine. No failure
ends the task of an actor: what an effect raises becomes an event, and an error of the machine itself is given
to its function `broken`, which ends the subject of the machine with a reason.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic

import structlog

from island.errors import IslandError
from island.kernel.loops import FAULTS, backoff, is_transient
from island.kernel.machine import Answer, Cancel, Effect, Elapsed, Failed, Now, Refuse, Reply, S, Step, Wait, Write
from island.kernel.ports import Clock, Rng, Signal

log = structlog.get_logger("island")

_AT_ONCE = 64
"""Maximum number of events that share one transaction."""


class ActorEnded(IslandError):
    """The machine has ended before it answered a request."""

    code = "ended"
    blame = "island"


class Actor(Generic[S]):
    """One machine with its inbox.

    `save(old, new, writes)` stores a step in one transaction. `perform(effect)` does one other effect and returns
    the event that it leads to, or None. `broken(state, error)` is the step that ends the subject of the machine
    after an unexpected error. `name` is for logs, for example `job 12`.
    """

    def __init__(
        self,
        name: str,
        state: S,
        *,
        handle: Callable[[S, Any, Now], Step[S]],
        save: Callable[[S, S, Sequence[Write]], Awaitable[None]],
        perform: Callable[[Effect], Awaitable[Any]],
        broken: Callable[[S, Exception, Now], Step[S]],
        clock: Clock,
        rng: Rng,
    ) -> None:
        self.name, self.state = name, state
        self._handle, self._save, self._perform, self._broken = handle, save, perform, broken
        self._clock, self._rng = clock, rng
        self._inbox: deque[tuple[Any, Now]] = deque()
        """The events that wait, each with the time of its arrival."""
        self._deciding: Sequence[tuple[Any, Now]] = ()
        """The events of the step that is being stored."""
        self._news = Signal()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[Reply, asyncio.Future[Any]] = {}
        self._ended = False

    def tell(self, event: Any) -> None:
        """Put an event into the inbox. No effect after the end."""
        if not self._ended:
            self._inbox.append((event, self._now()))
            self._news.set()

    async def ask(self, event: Callable[[Reply], Any]) -> Any:
        """Put `event(reply)` into the inbox and wait for the machine's `Answer` or `Refuse` to this reply.

        A caller that no longer waits withdraws its event, unless the event was handled before. Raises the error of the
        refusal, or `ActorEnded`.
        """
        if self._ended:
            raise ActorEnded(f"{self.name} has ended")
        reply = Reply()
        future = self._asked[reply] = asyncio.get_running_loop().create_future()
        asked = event(reply)
        self.tell(asked)
        try:
            return await future
        finally:
            self._asked.pop(reply, None)
            self._withdraw(asked)

    def is_deciding(self, kind: type) -> bool:
        """Whether an event of this type waits to be handled, or its step is being stored: `state` does not show it."""
        return any(isinstance(event, kind) for event, _ in (*self._deciding, *self._inbox))

    def _withdraw(self, event: Any) -> None:
        kept = [each for each in self._inbox if each[0] is not event]
        if len(kept) < len(self._inbox):
            self._inbox = deque(kept)

    async def run(self) -> None:
        """Handle events until the state is finished and all effects are done."""
        try:
            while not (self.state.finished and not self._running and not self._inbox):
                await self._news.wait()
                while self._inbox:
                    await self._turn([self._inbox.popleft() for _ in range(min(_AT_ONCE, len(self._inbox)))])
        finally:
            self._ended = True
            await self._stop()

    async def _turn(self, events: Sequence[tuple[Any, Now]]) -> None:
        self._deciding = events
        step = self._fold(events)
        failures = 0
        while True:
            try:
                await self._save(self.state, step.state, [e for e in step.effects if isinstance(e, Write)])
                break
            except Exception as error:  # noqa: BLE001 - the machine must not lose a step because of an error
                failures += 1
                if not is_transient(error):
                    step = self._end_broken(self.state, error)
                if failures & (failures - 1) == 0:  # 1, 2, 4, 8, ...: a disk may stay full for days
                    log.warning("actor.save_retry", actor=self.name, error=str(error), failures=failures)
                if failures > 1 or is_transient(error):
                    await asyncio.sleep(backoff(failures, self._rng))
        self.state, self._deciding = step.state, ()
        for effect in step.effects:
            if not isinstance(effect, Write):
                self._begin(effect)

    def _fold(self, events: Sequence[tuple[Any, Now]]) -> Step[S]:
        state, effects = self.state, list[Effect]()
        for event, arrived in events:
            try:
                # An event may have waited for hours while the disk was full, which is no silence of its sender.
                step = self._handle(state, event, arrived)
            except Exception as error:  # noqa: BLE001 - a bug in the machine; `_end_broken` logs it
                step = self._end_broken(state, error)
            state = step.state
            effects += step.effects
        return Step(state, tuple(effects))

    def _now(self) -> Now:
        return Now(self._clock.wall(), self._clock.boottime())

    def _end_broken(self, state: S, error: Exception) -> Step[S]:
        FAULTS.labels(self.name.partition(" ")[0]).inc()
        log.error("actor.bug", actor=self.name, exc_info=error)
        self._drop_asked(ActorEnded(f"internal error in {self.name}: {type(error).__name__}: {error}"))
        return self._broken(state, error, self._now())

    def _begin(self, effect: Effect) -> None:
        if isinstance(effect, Answer | Refuse):
            self._reply(effect)
            return
        key = effect.of if isinstance(effect, Cancel) else effect.key
        if (earlier := self._running.pop(key, None)) is not None:
            earlier.cancel()
        if not isinstance(effect, Cancel):
            task = asyncio.get_running_loop().create_task(self._do(effect), name=f"{self.name}: {key}")
            self._running[key] = task
            task.add_done_callback(lambda done: self._done(key, done))

    def _reply(self, effect: Answer | Refuse) -> None:
        future = self._asked.get(effect.reply)
        if future is None or future.done():
            return  # its caller no longer waits
        if isinstance(effect, Answer):
            future.set_result(effect.value)
        else:
            future.set_exception(effect.error)

    async def _do(self, effect: Effect) -> None:
        try:
            if isinstance(effect, Wait):
                await asyncio.sleep(effect.seconds)
                event: Any = Elapsed(effect.name)
            else:
                event = await self._perform(effect)
        except Exception as error:  # noqa: BLE001 - the failure is an event for the machine
            event = Failed(effect, error)
        if event is not None:
            self.tell(event)

    def _done(self, key: str, task: asyncio.Task[None]) -> None:
        if self._running.get(key) is task:
            del self._running[key]
            self._news.set()  # the last effect of a finished machine ends the actor

    def _drop_asked(self, error: Exception) -> None:
        for future in self._asked.values():
            if not future.done():
                future.set_exception(error)

    async def _stop(self) -> None:
        tasks = list(self._running.values())
        self._running.clear()
        for task in tasks:
            task.cancel()
        self._drop_asked(ActorEnded(f"{self.name} has ended"))
        if tasks:
            await asyncio.wait(tasks)
