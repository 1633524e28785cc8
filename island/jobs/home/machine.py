"""The life of a job at its home, as a pure state machine.

    routing ──(place chosen)──► committing ──(accepted)──► placed ──(ended)──► ended ──(executor told)──► released
       ▲                            │                        │
       └───────(refused)────────────┴─────(never started)────┘

The phase is stored before anything that it permits is done; a restarted home continues from the stored phase.
At most one request to the executor is in progress, and it is the one that matters most: stop, cancel, report,
statement. Every request may be repeated, because the executor recognizes repetitions.

Three rules keep code from running twice. A job leaves an executor only after a definite refusal; if an earlier
commit was not answered, the executor is told first never to begin. A statement is sent only after a report has
shown which statements the executor has. A run that ended without a report of its end is stopped before it is released.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from island.jobs.home import reports
from island.jobs.home.events import (
    AddNotes,
    AskReport,
    AwaitTurn,
    BehindOthers,
    CancelStatements,
    CancelWanted,
    ClientsSilent,
    CommitAnswered,
    DeclinePlaces,
    DiskTrouble,
    ExecutorDid,
    ExecutorNews,
    ExecutorRefused,
    ExecutorSilent,
    FindPlace,
    IslandsChanged,
    JobTakenUp,
    KeepDecision,
    KeepEnd,
    KeepObservation,
    KeepReport,
    KeepStop,
    LeaveLine,
    NoRoute,
    PlaceFound,
    Reported,
    SendCommit,
    SendRelease,
    SendStatement,
    SendStop,
    StatementAccepted,
    StopWanted,
    StoredSoFar,
    TurnCame,
    WatchClients,
)
from island.jobs.messages import (
    DIVERGED,
    FULL,
    NOT_STARTED,
    RESERVATION_EXPIRED,
    JobReport,
    JobSpec,
    StatementReport,
)
from island.kernel.machine import Answer, Cancel, Effect, Elapsed, Failed, Now, Step, Wait, check_phase
from island.livy.messages import STATEMENT_ENDED

PHASES: Final = {
    "routing": frozenset({"committing", "released"}),
    "committing": frozenset({"routing", "placed", "ended"}),
    "placed": frozenset({"routing", "ended"}),
    "ended": frozenset({"released"}),
    "released": frozenset[str](),
}
"""Each phase with the phases that may follow."""

POLL_S: Final = 20.0
"""Average seconds between status requests for a job without news; executors push changes."""

PATIENCE_S: Final = 30.0
"""Seconds for which a job waits for an island that was up recently, when no other island can run it."""

MAX_REFUSALS: Final = 20
"""Maximum number of places that may refuse a job for good; then it fails."""

NOT_READY_S: Final = 0.2
"""Seconds until a request is repeated that the executor was not ready for."""

TRY_AGAIN: Final = frozenset({"not_ready", "disk_failed", "full", "outcome_unknown", "internal_error"})
"""Codes of errors after which the executor has not decided anything: the same request is repeated."""

_RETRY, _POLL = "retry", "poll"
_MAX_REASONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """What does not change in the life of a job. `heartbeat` is in seconds; 0 if clients may be silent."""

    id: str
    kind: str
    user: str
    request_hash: str
    work: JobSpec
    pin: str = ""
    heartbeat: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStatement:
    """An unfinished statement. `report`: its progress at the executor."""

    number: int
    code_hash: str
    cancel: bool = False
    report: StatementReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceSearch:
    """The search for a place. It is not stored: a restarted home searches anew."""

    refused: tuple[tuple[str, str], ...] = ()
    """Keys of islands that refused the job for good, with their reasons."""
    refusals: int = 0
    attempts: int = 0
    """Consecutive commits that were refused although a place was offered."""
    in_line: bool = False
    patience: float | None = None
    """Seconds since boot until which the job waits for islands that are not linked yet."""
    asked: tuple[str, ...] = ()
    """Names of the islands in the last note about offers."""
    never_started: tuple[str, str] | None = None
    """State and reason of the last run that no engine has accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorContact:
    """What home knows about the run under the current epoch. It is not stored: a report restores it."""

    unanswered: int = 0
    """Number of commits that were not answered."""
    closing: tuple[str, str] | None = None
    """Code and reason of a refusal; the executor is told never to begin before the job looks for another place."""
    stop_taken: bool = False
    stale: bool = True
    """The executor may have news."""
    confirmed: bool = False
    """A report has shown which statements the executor has, and none was sent without an answer since."""
    sent: int = -1
    """Number of the last statement that the executor has, or may have."""
    cancels: frozenset[int] = frozenset()
    """Numbers of the statements whose cancel the executor has taken."""
    failures: int = 0
    lost_since: float | None = None
    """Unix time since which the executor does not answer; None while it answers."""
    idle: bool = False
    """The session can take a statement."""
    report: JobReport | None = None
    """The last report, as it is stored, without its statements."""
    version: int = 0
    observed: bool = False
    """What the job has cost is stored."""
    run_over: bool = False
    """The run has ended at the executor, or is unknown there."""

    @classmethod
    def after_restart(cls, phase: str) -> ExecutorContact:
        """What is known when home starts again: a commit may have been sent before."""
        return cls(unanswered=int(phase == "committing"))


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeJob:
    """One job at its home."""

    facts: JobFacts
    phase: str = "routing"
    epoch: int = 0
    executor: str = ""
    executor_name: str = ""
    reservation: str = ""
    stop: bool = False
    statements: int = 0
    """The number that the next statement gets."""
    open: tuple[OpenStatement, ...] = ()
    """The unfinished statements, in order."""
    search: PlaceSearch = field(default_factory=PlaceSearch)
    contact: ExecutorContact = field(default_factory=ExecutorContact)
    doing: Effect | None = None
    """The effect whose answer the job waits for."""
    paused: bool = False
    """The job waits before it tries again."""
    abandoned: bool = False
    """The executor cannot be told of the end because of an error in this program. The next start tries again."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.phase == "released" or self.abandoned

    @property
    def live(self) -> bool:
        """Whether the job has not ended."""
        return self.phase in ("routing", "committing", "placed")

    @property
    def acknowledged(self) -> int:
        """All statements with smaller numbers have their last state here."""
        return self.open[0].number if self.open else self.statements

    def progress(self, number: int) -> StatementReport | None:
        """The progress of an unfinished statement; None if the database has the newest state."""
        found = next((each for each in self.open if each.number == number), None)
        if found is None:
            return None
        if found.report is not None:
            return found.report
        return StatementReport(number=number, state="running") if number <= self.contact.sent else None


def handle(job: HomeJob, event: Any, now: Now) -> Step[HomeJob]:
    """The job after an event, and what has to be done."""
    turn = _Turn(job, now)
    turn.take(event)
    turn.go_on()
    return Step(turn.job, tuple(turn.effects))


def broken(job: HomeJob, error: Exception, now: Now) -> Step[HomeJob]:
    """The end of a job after an error in this program, at home and at its executor."""
    turn = _Turn(job, now)
    turn.bug(error)
    turn.go_on()
    return Step(turn.job, tuple(turn.effects))


class _Turn:
    """The handling of one event: the job so far, and the effects so far."""

    def __init__(self, job: HomeJob, now: Now) -> None:
        self.job, self.now = job, now
        self.effects: list[Effect] = []

    # --- parts of every step ------------------------------------------------------------------------

    def change(self, **changes: Any) -> None:
        check_phase(PHASES, self.job.phase, changes.get("phase", self.job.phase))
        self.job = replace(self.job, **changes)

    def contact(self, **changes: Any) -> None:
        self.job = replace(self.job, contact=replace(self.job.contact, **changes))

    def search(self, **changes: Any) -> None:
        self.job = replace(self.job, search=replace(self.job.search, **changes))

    def do(self, *effects: Effect) -> None:
        self.effects += effects

    def ask(self, effect: Effect) -> None:
        """Do an effect and wait for its answer."""
        self.change(doing=effect)
        self.do(effect)

    def note(self, *lines: str) -> None:
        self.do(AddNotes(lines))

    def pause(self, seconds: float) -> None:
        self.change(paused=True)
        self.do(Wait(_RETRY, seconds))

    def resume(self) -> None:
        if self.job.paused:
            self.change(paused=False)
            self.do(Cancel(Wait(_RETRY, 0).key))

    def draw(self, what: object) -> float:
        """A number in [0, 1) that differs between jobs, so that they do not all try at the same time."""
        return zlib.crc32(f"{self.job.facts.id} {what}".encode()) / 2**32

    def backoff(self, failures: int, cap: float = 15.0) -> float:
        return min(cap, 0.5 * 2.0 ** min(failures - 1, 30)) * (0.5 + 0.5 * self.draw(failures))

    # --- events -------------------------------------------------------------------------------------

    def take(self, event: Any) -> None:
        if (effect := getattr(event, "effect", None)) is not None:
            if effect != self.job.doing:
                if isinstance(event, PlaceFound) and event.reservations:
                    self.do(DeclinePlaces(event.reservations))
                return
            self.change(doing=None)
        _TAKE[type(event)](self, event)

    def taken_up(self, _: JobTakenUp) -> None:
        if self.job.facts.heartbeat and self.job.live:
            self.do(WatchClients(self.job.facts.heartbeat))

    def statement_accepted(self, event: StatementAccepted) -> None:
        if self.job.live and event.number >= self.job.statements:
            new = OpenStatement(number=event.number, code_hash=event.code_hash)
            self.change(open=(*self.job.open, new), statements=event.number + 1)

    def cancel_wanted(self, event: CancelWanted) -> None:
        marked = tuple(replace(each, cancel=True) if each.number in event.numbers else each for each in self.job.open)
        self.change(open=marked)

    def stored_so_far(self, event: StoredSoFar) -> None:
        self.do(Answer(event.reply))

    def stop_wanted(self, _: StopWanted) -> None:
        if not self.job.live:
            return
        self.change(stop=True)
        if self.job.phase == "routing":
            self.resume()
            if self.job.doing is not None:
                self.do(Cancel(self.job.doing.key))
                self.change(doing=None)

    def clients_silent(self, event: ClientsSilent) -> None:
        if self.job.live and not self.job.stop:
            self.do(KeepStop())
            silence = f"no client has asked about this session for {event.seconds:.0f} s"
            self.note(f"{silence} (heartbeatTimeoutInSecond); the session is ended")
            self.stop_wanted(StopWanted())

    def executor_news(self, _: ExecutorNews) -> None:
        if self.job.phase in ("committing", "placed", "ended"):
            self.contact(stale=True)
            self.resume()

    def islands_changed(self, _: IslandsChanged) -> None:
        if self.job.phase == "routing":
            self.resume()

    def elapsed(self, event: Elapsed) -> None:
        if event.name == _RETRY:
            self.change(paused=False)
        elif event.name == _POLL:
            self.contact(stale=True)

    def failed(self, event: Failed) -> None:
        self.bug(event.error)

    def bug(self, error: Exception) -> None:
        """An error in this program: end the job with the error in its log, instead of leaving it without a driver."""
        if self.job.live:
            self.end("error", f"internal error in island: {type(error).__name__}: {error}")
        else:
            self.change(abandoned=True)

    # --- looking for a place --------------------------------------------------------------------------

    def place_found(self, event: PlaceFound) -> None:
        if event.asked and event.asked != self.job.search.asked:
            self.note(f"asking {', '.join(event.asked)} for an offer")
            self.search(asked=event.asked)
        if event.decision.chosen:
            self.place(event)
        elif event.full:
            self.join_line(event)
        elif event.absent and self.has_patience(event):
            return
        else:
            self.nowhere(event)

    def place(self, event: PlaceFound) -> None:
        decision, reservations = event.decision, dict(event.reservations)
        chosen = next(verdict for verdict in decision.verdicts if verdict.island == decision.chosen)
        others = [f"{v.name}: {v.reason}" for v in decision.verdicts if v is not chosen]
        self.do(KeepDecision(decision))
        self.note(f"runs at {chosen.name}: {chosen.reason}", *others[:_MAX_REASONS])
        self.change(
            phase="committing",
            epoch=self.job.epoch + 1,
            executor=decision.chosen,
            executor_name=chosen.name,
            reservation=reservations.pop(decision.chosen),
            contact=ExecutorContact(),
        )
        if reservations:
            self.do(DeclinePlaces(tuple(reservations.items())))
        # The next in line need not wait for the answer to the commit: the island may have died.
        if self.job.search.in_line:
            self.search(in_line=False)
            self.do(LeaveLine())

    def join_line(self, event: PlaceFound) -> None:
        if not self.job.search.in_line:
            reasons = [f"{v.name}: {v.reason}" for v in event.decision.verdicts]
            self.note("no place is free, so the job waits in line", *reasons[:_MAX_REASONS])
            self.do(KeepDecision(event.decision))
        self.await_turn()

    def behind_others(self, event: BehindOthers) -> None:
        if not self.job.search.in_line:
            self.note(f"no place is free, so the job waits in line behind {event.count} others")
        self.await_turn()

    def await_turn(self) -> None:
        self.search(in_line=True, patience=None)
        self.ask(AwaitTurn(self.job.epoch, self.job.search.refused))

    def turn_came(self, _: TurnCame) -> None:
        """Nothing to note: the job asks for offers again."""

    def has_patience(self, event: PlaceFound) -> bool:
        """Wait for islands that were up recently. False if the time for that is over."""
        if self.job.search.patience is None:
            self.search(patience=self.now.boot + PATIENCE_S)
            names = ", ".join(event.absent)
            self.note(f"no island can run the job yet; waiting up to {PATIENCE_S:.0f} s for {names} to answer")
        left = (self.job.search.patience or 0.0) - self.now.boot
        if left <= 0:
            return False
        self.pause(min(2.0, left))
        return True

    def nowhere(self, event: PlaceFound) -> None:
        self.do(KeepDecision(event.decision))
        reasons = "; ".join(f"{v.name}: {v.reason}" for v in event.decision.verdicts)
        self.end_unplaced(f"no island can run this job. {reasons}")

    def no_route(self, event: NoRoute) -> None:
        self.end_unplaced(event.reason)

    def end_unplaced(self, reason: str) -> None:
        if (last := self.job.search.never_started) is not None:
            self.end(last[0], f"{last[1]}. {reason}")
        else:
            self.end("error", reason)

    def seek(self) -> None:
        if self.job.stop:
            self.end("killed", f"ended by its owner ({self.job.facts.user}) before it was placed")
        elif self.job.search.refusals >= MAX_REFUSALS:
            self.end_unplaced(f"the job was refused at all {MAX_REFUSALS} places that were tried")
        else:
            self.ask(FindPlace(self.job.epoch, self.job.search.refused))

    def look_elsewhere(self, code: str, reason: str) -> None:
        """Return to routing after a definite refusal."""
        self.note(f"{self.job.executor_name} refused: {reason}; looking for another place")
        executor, search = self.job.executor, self.job.search
        self.change(
            phase="routing",
            executor="",
            executor_name="",
            reservation="",
            contact=ExecutorContact(),
            search=replace(search, attempts=search.attempts + 1, asked=()),
        )
        if code not in (FULL, RESERVATION_EXPIRED):
            self.search(refused=(*search.refused, (executor, reason)), refusals=search.refusals + 1)
        if self.job.search.attempts > 1 and not self.job.stop:
            self.pause(self.backoff(self.job.search.attempts))

    # --- committing ---------------------------------------------------------------------------------

    def commit(self) -> None:
        job = self.job
        if (job.stop or job.contact.closing) and not job.contact.stop_taken:
            self.ask(SendStop(job.executor, job.epoch))
        else:  # also after a stop: the answer tells whether the run had begun before
            self.ask(SendCommit(job.executor, job.epoch, job.reservation))

    def commit_answered(self, event: CommitAnswered) -> None:
        self.answered()
        if event.answer.accepted:
            self.change(phase="placed", search=PlaceSearch(refused=self.job.search.refused), contact=ExecutorContact())
        else:
            self.commit_refused(event.answer.code, event.answer.reason, proof=not self.job.contact.unanswered)

    def commit_refused(self, code: str, reason: str, *, proof: bool) -> None:
        """Look for another place. Without a proof that the run will never begin here, make sure of that first."""
        if self.job.contact.stop_taken:
            self.look_elsewhere(*(self.job.contact.closing or (code, reason)))
        elif proof:
            self.look_elsewhere(code, reason)
        else:
            # The refusal proves nothing about an earlier attempt, which may still be under way.
            self.contact(closing=(code, reason))

    # --- following the run --------------------------------------------------------------------------

    def follow(self) -> None:
        job, contact = self.job, self.job.contact
        to, epoch = job.executor, job.epoch
        cancel = next((s.number for s in job.open if s.cancel and s.number not in contact.cancels), None)
        first = job.open[0].number if job.open else -1
        if job.stop and not contact.stop_taken:
            self.ask(SendStop(to, epoch))
        elif contact.confirmed and cancel is not None:
            self.ask(SendStop(to, epoch, cancel))
        elif contact.stale:
            self.contact(stale=False)
            self.ask(AskReport(to, epoch, job.acknowledged, contact.version))
        elif contact.confirmed and not job.stop and first > contact.sent and contact.idle:
            self.contact(sent=first)
            self.ask(SendStatement(to, epoch, first))

    def cancel_unsent(self) -> None:
        """End the statements to be cancelled that no executor has. Nothing was sent before a job is placed."""
        if self.job.phase == "placed" and not self.job.contact.confirmed:
            return
        unsent = tuple(each for each in self.job.open if each.cancel and each.number > self.job.contact.sent)
        if unsent:
            self.change(open=tuple(each for each in self.job.open if each not in unsent))
            self.do(CancelStatements(tuple(each.number for each in unsent)))

    def reported(self, event: Reported) -> None:
        self.answered()
        report, own = event.report, {each.number: each for each in self.job.open}
        mine = [each.number for each in report.statements if not self.is_foreign(each, own.get(each.number))]
        asked = event.effect.acknowledged if isinstance(event.effect, AskReport) else 0
        # A statement that the executor does not have did not arrive, and may be sent again.
        self.contact(confirmed=True, sent=max(mine, default=asked - 1))
        if len(mine) < len(report.statements):
            self.end_diverged()
        elif report.ended and report.code == NOT_STARTED and not self.job.stop:
            self.never_started(report)
        else:
            self.keep(report)

    def is_foreign(self, report: StatementReport, own: OpenStatement | None) -> bool:
        """Whether the executor has run a statement that this home did not send, or has another code here."""
        if own is None:
            return report.number >= self.job.statements
        return report.code_hash not in ("", own.code_hash)

    def keep(self, report: JobReport) -> None:
        """Store what is new in a report, and remember the progress of statements. The end of the run ends the job."""
        done = {each.number for each in report.statements if each.state in STATEMENT_ENDED}
        progress = {each.number: each for each in report.statements if each.number not in done}
        mine = {each.number for each in self.job.open}
        stored = msgspec.structs.replace(
            report,
            state="idle" if report.state == "busy" and self.job.facts.kind == "session" else report.state,
            statements=tuple(each for each in report.statements if each.number in done & mine),
        )
        if stored.statements or reports.differs(self.job.contact.report, stored):
            self.do(KeepReport(stored))
        self.observe(stored)
        self.change(
            open=tuple(replace(s, report=progress.get(s.number)) for s in self.job.open if s.number not in done)
        )
        report_kept = msgspec.structs.replace(stored, statements=())
        self.contact(report=report_kept, version=report.version, idle=report.state == "idle")
        if report.ended:
            self.end(report.state, report.reason, run_over=True, note=False)
        else:
            self.do(Wait(_POLL, POLL_S * (0.75 + 0.5 * self.draw(report.version))))

    def observe(self, report: JobReport) -> None:
        """Store what the job has cost, once that is known."""
        times = reports.final_times(report)
        if times is not None and not self.job.contact.observed:
            size = reports.output_size(report, self.job.facts.kind)
            self.do(KeepObservation(self.job.executor, self.job.epoch, times, size))
            self.contact(observed=True)

    def never_started(self, report: JobReport) -> None:
        """No engine has accepted the run, so another island may run the job."""
        known = self.job.contact.report
        if lines := report.notes[len(known.notes) if known else 0 :]:
            self.note(*lines)
        self.do(SendRelease(self.job.executor, self.job.epoch), Cancel(Wait(_POLL, 0).key))
        self.search(never_started=(report.state, report.reason))
        self.look_elsewhere("", report.reason)

    # --- answers of every executor --------------------------------------------------------------------

    def answered(self) -> None:
        if self.job.contact.lost_since is not None:
            self.note(f"{self.job.executor_name} answers again")
        self.contact(failures=0, lost_since=None)

    def executor_did(self, event: ExecutorDid) -> None:
        self.answered()
        if isinstance(event.effect, SendStop) and event.effect.number is not None:
            self.contact(cancels=self.job.contact.cancels | {event.effect.number})
        elif isinstance(event.effect, SendStop):
            self.contact(stop_taken=True, run_over=self.job.phase == "ended")
        elif isinstance(event.effect, SendRelease):
            self.change(phase="released")

    def executor_silent(self, event: ExecutorSilent) -> None:
        if self.job.contact.lost_since is None:
            self.contact(lost_since=self.now.wall)
            name = self.job.executor_name
            self.note(f"{name} does not answer ({event.reason}); the job may still be running there; retrying")
        # A new session with the executor ends the pause, so it may be long while there is none.
        self.try_again(event.effect, cap=15.0 if event.linked else 300.0)

    def disk_trouble(self, event: DiskTrouble) -> None:
        self.try_again(event.effect)

    def try_again(self, effect: Effect, cap: float = 15.0) -> None:
        """Repeat a request later. Whether the executor has carried it out is unknown."""
        contact = self.job.contact
        self.contact(
            failures=contact.failures + 1,
            stale=True,
            confirmed=contact.confirmed and not isinstance(effect, SendStatement),
            unanswered=contact.unanswered + isinstance(effect, SendCommit),
        )
        self.pause(self.backoff(self.job.contact.failures, cap))

    def executor_refused(self, event: ExecutorRefused) -> None:
        self.answered()
        if is_statement := isinstance(event.effect, SendStatement):
            self.contact(sent=event.effect.number - 1, stale=True)
        # A statement is not taken when the run has just ended: the report tells how.
        if event.code == "not_ready" or (is_statement and event.code == "not_found"):
            self.contact(stale=True)
            self.pause(NOT_READY_S)
        elif self.job.phase == "placed":
            self.refused_while_placed(event)
        elif event.code in TRY_AGAIN:
            self.try_again(event.effect)
        elif isinstance(event.effect, SendCommit):
            self.commit_refused("", event.reason, proof=False)
        elif isinstance(event.effect, SendStop):  # there is nothing of ours to be stopped
            self.contact(stop_taken=True, run_over=self.job.phase == "ended")
        else:
            self.change(phase="released")

    def refused_while_placed(self, event: ExecutorRefused) -> None:
        if event.code == "not_found":
            self.end("dead", f"{self.job.executor_name} no longer knows this job: {event.reason}", run_over=True)
        elif event.code == DIVERGED:
            self.end_diverged()
        else:
            self.try_again(event.effect)

    # --- the end ------------------------------------------------------------------------------------

    def end_diverged(self) -> None:
        """End a session whose statements at the executor are not those of home, at both."""
        self.end(
            "dead",
            f"{self.job.executor_name} has run statements in this session that its home does not know: the home was"
            " probably restored from a backup. Open a new session",
        )

    def end(self, state: str, reason: str, *, run_over: bool = False, note: bool = True) -> None:
        """Give the job its last state. Unless `run_over`, the executor is told to stop before it may release."""
        if note:
            self.note(reason)
        self.do(KeepEnd(state, reason, self.last_that_may_have_run()))
        if self.job.search.in_line:
            self.do(LeaveLine())
        self.do(Cancel(Wait(_POLL, 0).key), Cancel("WatchClients"))
        if isinstance(self.job.doing, FindPlace | AwaitTurn):
            self.do(Cancel(self.job.doing.key))
        self.resume()
        self.change(
            phase="released" if self.job.phase == "routing" else "ended",
            open=(),
            doing=None,
            search=PlaceSearch(),
            contact=ExecutorContact(run_over=run_over, lost_since=self.job.contact.lost_since),
        )

    def last_that_may_have_run(self) -> int:
        """The number of the last statement that the executor may have got."""
        contact = self.job.contact
        if self.job.phase == "placed" and not contact.confirmed and self.job.open:
            return max(contact.sent, self.job.open[0].number)
        return contact.sent

    def release(self) -> None:
        if not self.job.contact.run_over:
            self.ask(SendStop(self.job.executor, self.job.epoch))
        else:
            self.ask(SendRelease(self.job.executor, self.job.epoch))

    def go_on(self) -> None:
        """Do what the phase requires next, unless something is in progress."""
        self.cancel_unsent()
        if not (self.job.doing or self.job.paused or self.job.finished):
            _GO_ON[self.job.phase](self)


_GO_ON: Final[dict[str, Callable[[_Turn], None]]] = {
    "routing": _Turn.seek,
    "committing": _Turn.commit,
    "placed": _Turn.follow,
    "ended": _Turn.release,
}

_TAKE: Final[dict[type, Callable[[_Turn, Any], None]]] = {
    JobTakenUp: _Turn.taken_up,
    StatementAccepted: _Turn.statement_accepted,
    CancelWanted: _Turn.cancel_wanted,
    StoredSoFar: _Turn.stored_so_far,
    StopWanted: _Turn.stop_wanted,
    ClientsSilent: _Turn.clients_silent,
    ExecutorNews: _Turn.executor_news,
    IslandsChanged: _Turn.islands_changed,
    Elapsed: _Turn.elapsed,
    Failed: _Turn.failed,
    PlaceFound: _Turn.place_found,
    BehindOthers: _Turn.behind_others,
    NoRoute: _Turn.no_route,
    TurnCame: _Turn.turn_came,
    CommitAnswered: _Turn.commit_answered,
    Reported: _Turn.reported,
    ExecutorDid: _Turn.executor_did,
    ExecutorRefused: _Turn.executor_refused,
    ExecutorSilent: _Turn.executor_silent,
    DiskTrouble: _Turn.disk_trouble,
}
