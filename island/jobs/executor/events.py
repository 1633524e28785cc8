"""What happens to a run, and what it wants to be done: the events and effects of `machine`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from island.jobs.engines.port import RemoteJob
from island.jobs.messages import ResultRef
from island.kernel.machine import Effect, Reply


class FailureKind(Enum):
    """What the failure of an effect means for the run."""

    LOST = "lost"
    """The session, batch or statement is lost."""
    FULL = "full"
    """The engine has no place now, and has not done what was asked."""
    REFUSED = "refused"
    """The engine refuses the request for good."""
    UNREACHABLE = "unreachable"
    """The engine certainly did not get the request."""
    SILENT = "silent"
    """The engine did not answer. It may have done what was asked."""
    DATABASE = "database"
    """The database or memory of this island failed; a later attempt may succeed."""
    DISK = "disk"
    """The disk of this island failed; a later attempt may succeed."""
    ERROR = "error"
    """An answer of the engine that is an error of its own, or another expected error."""
    BUG = "bug"
    """An unexpected exception."""


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunResumed:
    """The run was accepted, or the island was started. `forbidden`: why this island does not run it, or ""."""

    forbidden: str = ""


@dataclass(frozen=True, slots=True)
class HomeHeard:
    """Its home has sent a request about it."""


@dataclass(frozen=True, slots=True)
class RunForbidden:
    """A request of its home was refused by the policy of this island."""

    problem: str


@dataclass(frozen=True, slots=True)
class RunStopAsked:
    """The run must end. `by` is `owner` or `administrator`; `reply` is None if nobody waits."""

    by: str
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class StatementOffered:
    """Home sends a statement."""

    reply: Reply
    number: int
    code: str
    language: str


@dataclass(frozen=True, slots=True)
class StatementCancelAsked:
    """Home cancels a statement."""

    reply: Reply
    number: int


@dataclass(frozen=True, slots=True)
class RunNoted:
    """Something that the owner may want to know."""

    text: str


@dataclass(frozen=True, slots=True)
class PlaceGranted:
    """The run has a place at an engine."""

    engine: str


@dataclass(frozen=True, slots=True)
class NoPlace:
    """No engine of this island may run it."""

    reason: str


@dataclass(frozen=True, slots=True)
class InputsFetched:
    """The inputs are here. `paths` are those at the engine; `moved` is in bytes."""

    paths: tuple[str, ...]
    file: str
    moved: int


@dataclass(frozen=True, slots=True)
class InstanceSeen:
    """The engine answers, with this instance id. `forbidden` as in `RunResumed`."""

    instance: str
    forbidden: str = ""


@dataclass(frozen=True, slots=True)
class RemoteFound:
    """What the engine has under the name of the run: a session or batch, or nothing."""

    remote: RemoteJob | None


@dataclass(frozen=True, slots=True)
class RemoteCreated:
    """The engine has accepted the session or batch."""

    remote: RemoteJob


@dataclass(frozen=True, slots=True)
class RemoteShown:
    """The engine shows the session or batch differently than before. `instance` is that of its answer."""

    remote: RemoteJob
    instance: str


@dataclass(frozen=True, slots=True)
class RemoteLog:
    """The last log of a session or batch that has ended."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RemoteStatement:
    """The statement with the number `remote`, as the engine shows it; None if it has none.

    `result`: its output, which is not in `view` then.
    """

    remote: int
    view: Mapping[str, Any] | None
    instance: str
    result: ResultRef | None = None


@dataclass(frozen=True, slots=True)
class CodePosted:
    """The engine has accepted the statement that was expected as `expected`, as number `remote`."""

    expected: int
    remote: int


@dataclass(frozen=True, slots=True)
class RemoteCleared:
    """The engine does not have the session or batch any more. `found`: it had it until now."""

    found: bool


@dataclass(frozen=True, slots=True)
class RunCleaned:
    """The files of the run are removed, and its inputs are released."""


@dataclass(frozen=True, slots=True)
class EffectFailed:
    """An effect has failed."""

    effect: Effect
    kind: FailureKind
    text: str


# --- effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TakePlace(Effect):
    """Wait for a place at one of the engines that run the job. Gives `PlaceGranted` or `NoPlace`.

    `bound`: only at this engine, unless "". `refused`: at none of these.
    """

    bound: str
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FreePlace(Effect):
    """Give the place back. `full`: the engine has refused the run because it has no place."""

    full: bool = False


@dataclass(frozen=True, slots=True)
class FetchInputs(Effect):
    """Bring the inputs and the file. Gives `RunNoted` in between, and `InputsFetched`."""

    engine: str
    quiet: bool = False
    """The inputs were brought before, so nothing is noted."""


@dataclass(frozen=True, slots=True)
class AskInstance(Effect):
    """Ask the engine for its instance id. Gives `InstanceSeen`."""


@dataclass(frozen=True, slots=True)
class FindRemote(Effect):
    """Search the engine for the name of the run. Gives `RemoteFound`."""


@dataclass(frozen=True, slots=True)
class CreateRemote(Effect):
    """Start the session or batch. Gives `RemoteCreated`."""

    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FollowRemote(Effect):
    """Wait until the engine shows the session or batch differently than `known`. Gives `RemoteShown`."""

    known: RemoteJob | None


@dataclass(frozen=True, slots=True)
class ReadRemoteLog(Effect):
    """Read the whole log of the session or batch. Gives `RemoteLog`."""


@dataclass(frozen=True, slots=True)
class FollowStatement(Effect):
    """Wait until the engine shows a statement differently than `known`. Gives `RemoteStatement`; None: at once."""

    remote: int
    known: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        return "statement"


@dataclass(frozen=True, slots=True)
class PostCode(Effect):
    """Post a statement, which the engine is expected to give the number `expected`. Gives `CodePosted`."""

    expected: int
    code: str
    language: str


@dataclass(frozen=True, slots=True)
class CancelRemote(Effect):
    """Cancel a statement. Gives nothing: the statement shows it."""

    remote: int


@dataclass(frozen=True, slots=True)
class ClearRemote(Effect):
    """End the session or batch at the engine, if it is there. Gives `RemoteCleared`."""


@dataclass(frozen=True, slots=True)
class CleanUp(Effect):
    """Remove the files of the run, and release the inputs that no other run uses. Gives `RunCleaned`."""


@dataclass(frozen=True, slots=True)
class TellHome(Effect):
    """Tell home that the report has changed. Gives nothing."""
