"""The state of a run: a job at its executor under one epoch. Pure.

What is stored in the database are the fields of `JobRun` and `RunStatement`. `RunMemory` is kept in memory only; after
a restart it begins with its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from island.jobs.engines.port import RemoteJob, RemoteRef
from island.jobs.messages import JobSpec, ResultRef, RunTimes, StatementReport
from island.livy.messages import STATEMENT_ENDED

PHASES: Final[Mapping[str, frozenset[str]]] = {
    "waiting": frozenset({"fetching", "clearing"}),
    "fetching": frozenset({"waiting", "submitting", "clearing"}),
    "submitting": frozenset({"waiting", "starting", "preparing", "running", "clearing"}),
    "starting": frozenset({"preparing", "running", "clearing"}),
    "preparing": frozenset({"running", "clearing"}),
    "running": frozenset({"clearing"}),
    "clearing": frozenset({"cleared"}),
    "cleared": frozenset(),
}
"""The phases of a run, each with those that may follow.

- `waiting`: accepted, in line for a place at an engine.
- `fetching`: it has a place; its inputs are brought.
- `submitting`: the engine is asked to start it. After a lost answer the engine is searched for its name.
- `starting`: the engine has accepted it.
- `preparing`: the views of its inputs are created in a Livy of the site, by statements before the first of the user.
- `running`: the session takes statements, or the batch runs.
- `clearing`: it has ended for its home. The engine may still have its session or batch, which is ended now.
- `cleared`: the engine, and the disk of this island, have nothing of it. Its place is free.
"""

ENDED_PHASES: Final = frozenset({"clearing", "cleared"})


@dataclass(frozen=True, slots=True)
class RunStatement:
    """One row of `run_statement`. Times are milliseconds since 1970; 0 if not reached."""

    number: int
    code: str
    language: str
    remote: int
    state: str = "waiting"
    output: str = ""
    result: ResultRef | None = None
    """The output, if it is kept as a file."""
    started: int = 0
    completed: int = 0
    cancel: bool = False
    progress: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether the statement has its last state."""
        return self.state in STATEMENT_ENDED

    def report(self) -> StatementReport:
        """The statement as a message for home."""
        return StatementReport(
            number=self.number,
            state=self.state,
            output=self.output,
            result=self.result,
            progress=1.0 if self.ended else self.progress,
            started=self.started,
            completed=self.completed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMemory:
    """What is known about a run in memory only."""

    here: str = ""
    """The name of this island, for texts."""
    foreign: bool = False
    """Whether its home is another island."""
    version: int = 0
    """Version of the report to its home; it grows with every change that home should see."""
    renewed: float = 0.0
    """Time of the last request of its home, in seconds since boot."""
    failures: int = 0
    """Consecutive failures of the effect that the phase is waiting for."""
    follow_failures: int = 0
    """Consecutive failures to follow the session or batch."""
    clear_failures: int = 0
    """Consecutive failures to clear the engine."""
    problem: str = ""
    """Why the engine could not be cleared."""
    creating: bool = False
    """The request to start it is under way."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """The engines of this island that refused the job, with the reasons."""
    refusal: str = ""
    """The engine's refusal, which holds if the engine does not have the job under its name."""
    seen: str | None = None
    """The instance id of the engine when it was searched; None if that was not necessary."""
    full: bool = False
    """Whether this refusal means that the engine has no place now."""
    paths: tuple[str, ...] = ()
    """The paths of the inputs at the engine, in the order of the inputs."""
    file: str = ""
    """The path of the file of a batch at the engine."""
    view: int = 0
    """Number of the statement that creates the next view."""
    posted: bool = False
    """The engine has confirmed that it has the current statement."""
    posting: bool = False
    """The request with the current statement is under way."""
    post_doubt: bool = False
    """The engine may have got the current statement, and may still begin it: it is asked again after a pause."""
    post_lost: bool = False
    """The answer to the current statement was lost while this island was up."""
    looked_again: bool = False
    """The engine was asked once for a statement in doubt, and did not have it."""
    cancel_sent: bool = False
    part_since: float | None = None
    """Begin of the part that is measured now, in seconds since boot; None if this island was restarted since."""
    first_since: float | None = None
    """Begin of the first statement, in seconds since boot, while it runs; None if this island was restarted since."""
    searched: bool = False
    """The engine was searched once for a session whose creation was in doubt, and had none."""
    last: RemoteJob | None = None
    """What the engine showed last."""
    ending: RemoteJob | None = None
    """What the engine showed of a session or batch that has ended by itself, while its log is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """One row of `run`: a job at its executor under one epoch. Times are Unix seconds."""

    job: str
    epoch: int
    home: str
    user: str
    request_hash: str
    work: JobSpec
    lease: float
    accepted: float
    phase: str = "waiting"
    engine: str = ""
    """The name of the engine that has the run, or may have it; "" while the run is bound to none."""
    instance: str = ""
    """The instance id of that engine when the run was submitted; "" for a Livy of the site."""
    doubt: bool = False
    """The engine may have the session or batch although its answer was lost."""
    remote: int | None = None
    """The id of its session or batch at the engine, which alone does not identify it: see `name`."""
    hidden: int = 0
    """Number of statements that created the views of the inputs."""
    state: str = "starting"
    reason: str = ""
    code: str = ""
    app_id: str = ""
    app_info: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    moved: int = 0
    stop: str = ""
    """Who has requested the end: `owner`, `administrator`, or ""."""
    released: bool = False
    statement: RunStatement | None = None
    """The newest statement. The results of all earlier ones are stored by its home."""
    times: RunTimes = field(default_factory=RunTimes)
    """What was measured so far."""
    memory: RunMemory = RunMemory()

    @property
    def ended(self) -> bool:
        """Whether the run has ended for its home."""
        return self.phase in ENDED_PHASES

    @property
    def finished(self) -> bool:
        """Whether nothing of the run is left to do."""
        return self.phase == "cleared"

    @property
    def name(self) -> str:
        """The unique name of its session or batch at the engine."""
        return f"isl-{self.job.partition('.')[0]}-{self.epoch}"

    @property
    def ref(self) -> RemoteRef:
        """Its session or batch at the engine."""
        assert self.remote is not None
        return RemoteRef(self.work.kind, self.remote, self.name)

    @property
    def needs_place(self) -> bool:
        """Whether the run has a place from the phase alone, as after a restart."""
        return self.phase in ("submitting", "starting", "preparing", "running") or (
            self.phase == "clearing" and bool(self.engine)
        )

    @property
    def open_statement(self) -> RunStatement | None:
        """The statement that has not ended."""
        return None if self.statement is None or self.statement.ended else self.statement

    @property
    def next_remote(self) -> int:
        """The number that the engine will give to the next statement."""
        return self.hidden if self.statement is None else self.statement.remote + 1

    @property
    def prepares(self) -> bool:
        """Whether statements must create the views of the inputs. The embedded engine creates them itself."""
        return self.work.kind == "session" and not self.instance and bool(self.work.inputs) and not self.hidden


def visible(run: JobRun) -> tuple[Any, ...]:
    """What a report to home shows, apart from the log."""
    return (
        run.ended,
        run.state,
        run.reason,
        run.app_id,
        run.app_info,
        run.notes,
        run.moved,
        run.statement,
    )
