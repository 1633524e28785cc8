"""The words of pure state machines: steps, effects, and the events that effects lead to.

A machine is a function `handle(state, event, now) -> Step`. It has no I/O and no clock. It says what has to be
done as effects; `kernel.actor` performs them and passes their results and failures back as events. A machine
can therefore be tested with lists of events alone, and a failure of an effect is an input like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar


class HasFinished(Protocol):
    """The state of a machine."""

    @property
    def finished(self) -> bool:
        """Whether nothing can happen any more: the actor ends when its effects are done."""


S = TypeVar("S", bound=HasFinished)


@dataclass(frozen=True, slots=True)
class Now:
    """The time of an event: `wall` in Unix seconds, for display; `boot` in seconds since boot, for durations."""

    wall: float
    boot: float


class Effect:
    """Something that a machine wants to be done. Subclasses are frozen dataclasses."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """At most one effect with a key is in progress: a newer one cancels the earlier one."""
        return type(self).__name__


class Write(Effect):
    """A change of the database. All writes of a step are one transaction, before any other effect of the step."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Wait(Effect):
    """Pass `Elapsed(name)` to the machine after `seconds`."""

    name: str
    seconds: float

    @property
    def key(self) -> str:
        return f"wait {self.name}"


@dataclass(frozen=True, slots=True)
class Cancel(Effect):
    """Stop the effect with this key, if it is in progress. A cancelled effect leads to no event."""

    of: str


class Reply:
    """The identity of a request that waits for an answer of the machine."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Answer(Effect):
    """Answer a request, after the writes of the step."""

    reply: Reply
    value: Any = None


@dataclass(frozen=True, slots=True)
class Refuse(Effect):
    """Raise `error` to the caller of a request, after the writes of the step."""

    reply: Reply
    error: Exception


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Event: the time of a `Wait` is over."""

    name: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Event: an effect raised an exception."""

    effect: Effect
    error: Exception


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """The outcome of an event: the next state, and what has to be done."""

    state: S
    effects: tuple[Effect, ...] = ()


class WrongPhase(Exception):
    """A machine has tried a transition that its table does not allow: a bug of the machine."""


def check_phase(phases: Mapping[str, frozenset[str]], old: str, new: str) -> None:
    """Raise `WrongPhase` unless the table `phases` (phase to next phases) allows to go from `old` to `new`."""
    if new != old and new not in phases[old]:
        raise WrongPhase(f"the phase cannot change from {old} to {new}")
