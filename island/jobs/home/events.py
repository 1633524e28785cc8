"""What happens to a job at its home (events), and what its machine wants to be done (effects). Pure.

An effect that asks an executor, or looks for a place, is answered by exactly one event that has the effect in its
field `effect`. The machine ignores answers to other effects than the one that it waits for.
"""

from __future__ import annotations

from dataclasses import dataclass

from island.jobs.messages import CommitAnswer, JobReport, RunTimes
from island.jobs.router import RoutingDecision
from island.kernel.machine import Effect, Reply, Write

# --- events: what clients, other islands and the clock cause ---------------------------------------


@dataclass(frozen=True, slots=True)
class JobTakenUp:
    """The job was accepted, or this island was started again."""


@dataclass(frozen=True, slots=True)
class StatementAccepted:
    """A statement was stored. `code_hash` is its `core.statement_hash`."""

    number: int
    code_hash: str


@dataclass(frozen=True, slots=True)
class CancelWanted:
    """The owner's wish to cancel these statements was stored."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredSoFar:
    """Somebody waits until everything before this event has been handled and stored."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class StopWanted:
    """The owner's wish to end the job was stored."""


@dataclass(frozen=True, slots=True)
class ExecutorNews:
    """The executor says that the run has changed, or the session with it was established or lost."""


@dataclass(frozen=True, slots=True)
class IslandsChanged:
    """A session with some island was established or lost while the job has no executor."""


@dataclass(frozen=True, slots=True)
class ClientsSilent:
    """No client has asked about the session for `seconds`."""

    seconds: float


# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FindPlace(Effect):
    """Ask islands for offers. `refused`: keys of islands that refused the job for good, with their reasons."""

    epoch: int
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class AwaitTurn(Effect):
    """Wait in line until a place may be free. The job keeps its position until `LeaveLine`.

    `refused` is as in `FindPlace`.
    """

    epoch: int
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LeaveLine(Effect):
    """The job was offered a place or has ended: the next job in line may try."""


@dataclass(frozen=True, slots=True)
class DeclinePlaces(Effect):
    """Tell islands that their reservations are not used: pairs of island and reservation."""

    reservations: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SendCommit(Effect):
    """Permit the executor to start the job."""

    to: str
    epoch: int
    reservation: str


@dataclass(frozen=True, slots=True)
class AskReport(Effect):
    """Ask for the report on the run. Results of statements before `acknowledged` are stored here."""

    to: str
    epoch: int
    acknowledged: int
    seen: int


@dataclass(frozen=True, slots=True)
class SendStatement(Effect):
    """Send a stored statement to the executor."""

    to: str
    epoch: int
    number: int


@dataclass(frozen=True, slots=True)
class SendStop(Effect):
    """Ask the executor to cancel the statement `number`; with None, to end the run, or never to begin it."""

    to: str
    epoch: int
    number: int | None = None


@dataclass(frozen=True, slots=True)
class SendRelease(Effect):
    """Tell the executor that this home has stored everything about the run."""

    to: str
    epoch: int

    @property
    def key(self) -> str:
        return f"SendRelease {self.epoch}"


@dataclass(frozen=True, slots=True)
class WatchClients(Effect):
    """Wait until no client has asked about the session for `seconds`."""

    seconds: float


# --- answers to effects ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlaceFound:
    """The offers. `decision.chosen` is "" if there is no place now.

    `full`: some island could run the job but has no free place. `absent`: names of islands that may run the job
    and that were linked a short time ago, or did not answer the request for an offer.
    """

    effect: Effect
    decision: RoutingDecision
    reservations: tuple[tuple[str, str], ...] = ()
    asked: tuple[str, ...] = ()
    full: bool = False
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BehindOthers:
    """`count` other jobs that need the same wait for a place already: no island was asked."""

    effect: Effect
    count: int


@dataclass(frozen=True, slots=True)
class NoRoute:
    """The job cannot be routed at all, for example because an input is unknown."""

    effect: Effect
    reason: str


@dataclass(frozen=True, slots=True)
class TurnCame:
    """A place may be free for the job that waited in line."""

    effect: Effect


@dataclass(frozen=True, slots=True)
class CommitAnswered:
    """The executor has accepted the job, or refuses it under this epoch."""

    effect: Effect
    answer: CommitAnswer


@dataclass(frozen=True, slots=True)
class Reported:
    """The executor's report, checked."""

    effect: Effect
    report: JobReport


@dataclass(frozen=True, slots=True)
class ExecutorDid:
    """The executor has taken a statement, a stop or a release."""

    effect: Effect


@dataclass(frozen=True, slots=True)
class ExecutorRefused:
    """The executor has answered with an error."""

    effect: Effect
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class ExecutorSilent:
    """There was no valid answer: whether the request was carried out is unknown. `linked`: there is a session."""

    effect: Effect
    reason: str
    linked: bool


@dataclass(frozen=True, slots=True)
class DiskTrouble:
    """This island's own disk failed while it prepared the request."""

    effect: Effect
    reason: str


# --- changes of the database ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddNotes(Write):
    """Append lines to the log of the job."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeepDecision(Write):
    """Store a routing decision."""

    decision: RoutingDecision


@dataclass(frozen=True, slots=True)
class KeepReport(Write):
    """Store a report with the results that are in it."""

    report: JobReport


@dataclass(frozen=True, slots=True)
class KeepObservation(Write):
    """Store what the job has cost at its executor."""

    executor: str
    epoch: int
    times: RunTimes
    output_bytes: int | None


@dataclass(frozen=True, slots=True)
class CancelStatements(Write):
    """End statements that no executor has."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KeepStop(Write):
    """Store that the job has to end."""


@dataclass(frozen=True, slots=True)
class KeepEnd(Write):
    """Store the last state of the job and of its unfinished statements.

    Statements up to number `sent` may have run. `user` is for the journal.
    """

    state: str
    reason: str
    sent: int
