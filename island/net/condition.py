"""Whether this island serves: one decision, which `/readyz` and `island status` both report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Phase = Literal["starting", "running", "stopping"]
State = Literal["starting", "ready", "degraded", "unavailable", "stopping"]


@dataclass(frozen=True, slots=True)
class Condition:
    """The state of an island and its current problems."""

    state: State = "ready"
    """`degraded`: it serves, but some operations fail. `unavailable`: it runs, but can accept no job or change."""
    problems: tuple[str, ...] = ()

    @property
    def serves(self) -> bool:
        """Whether clients should be sent to this island."""
        return self.state in {"ready", "degraded"}


def decide(phase: Phase, fatal: Sequence[str], others: Sequence[str]) -> Condition:
    """Return the condition in a phase of the daemon; with a problem in `fatal`, the island cannot serve."""
    state: State = phase if phase != "running" else "unavailable" if fatal else "degraded" if others else "ready"
    return Condition(state, (*fatal, *others))


def summary(condition: Condition) -> str:
    """Return the state and the problems in one sentence, for the status line of a service manager."""
    return f"{condition.state}: {'; '.join(condition.problems)}" if condition.problems else condition.state
