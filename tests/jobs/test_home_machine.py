"""The machine of a job at its home: playbooks, and random events against a model of executors and of the database."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from island.jobs import router
from island.jobs.home import machine
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
    JobTakenUp,
    KeepDecision,
    KeepEnd,
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
    TurnCame,
    WatchClients,
)
from island.jobs.home.machine import ExecutorContact, HomeJob, JobFacts, OpenStatement
from island.jobs.messages import (
    DIVERGED,
    FULL,
    NOT_STARTED,
    POLICY,
    RESERVATION_EXPIRED,
    STOPPED,
    CommitAnswer,
    JobReport,
    JobSpec,
    StatementReport,
)
from island.jobs.router import Candidate, JobRequirements, RoutingDecision
from island.kernel.machine import Cancel, Effect, Elapsed, Failed, Now, Wait, Write, WrongPhase

ID = "01890a5d-ac96-774b-bcce-b302099a8057.0123456789"
FACTS = JobFacts(id=ID, kind="session", user="alice", request_hash="c" * 64, work=JobSpec(kind="session"))
HASH = "d" * 64


def decision(*offers: str, refusals: dict[str, str] | None = None) -> RoutingDecision:
    """The decision among islands that offered a place, and islands that refused."""
    made = [Candidate(island=each, name=each, offered=True, languages=("sql",)) for each in offers]
    made += [Candidate(island=each, name=each, refusal=why) for each, why in (refusals or {}).items()]
    return router.decide(JobRequirements(home="home", language="sql"), made)


class Played:
    """A job to which events are given one by one."""

    def __init__(self, job: HomeJob | None = None) -> None:
        self.job = job or HomeJob(facts=FACTS)
        self.now = Now(1_000_000.0, 0.0)
        self.writes: list[Write] = []

    def on(self, event: Any) -> list[Effect]:
        """Give an event to the job. Returns what it wants to be done, without the writes, which are in `writes`."""
        step = machine.handle(self.job, event, self.now)
        self.job = step.state
        self.writes = [effect for effect in step.effects if isinstance(effect, Write)]
        return [effect for effect in step.effects if not isinstance(effect, Write | Cancel)]

    def answer(self, kind: type, *values: Any, **more: Any) -> list[Effect]:
        """Answer the effect that the job waits for."""
        return self.on(kind(self.job.doing, *values, **more))

    def notes(self) -> str:
        return "\n".join(line for write in self.writes if isinstance(write, AddNotes) for line in write.lines)

    def found(self, *islands: str) -> list[Effect]:
        places = tuple((island, f"place at {island}") for island in islands)
        return self.answer(PlaceFound, decision(*islands), places)

    def full(self, island: str = "a") -> list[Effect]:
        return self.answer(PlaceFound, decision(refusals={island: "4 jobs run there"}), full=True)

    def report(self, state: str = "idle", *statements: StatementReport, **more: Any) -> list[Effect]:
        return self.answer(Reported, report(self.job.epoch, state, *statements, **more))


def report(epoch: int, state: str = "idle", *statements: StatementReport, **more: Any) -> JobReport:
    return JobReport(job=ID, epoch=epoch, version=1, state=state, statements=statements, **more)


def told(number: int, state: str, code_hash: str = HASH) -> StatementReport:
    return StatementReport(number=number, state=state, code_hash=code_hash)


def placed(*states: str) -> Played:
    """A job that runs at island `a`, with the first report in the first of `states`."""
    played = Played()
    played.on(JobTakenUp())
    played.found("a")
    played.answer(CommitAnswered, CommitAnswer(accepted=True))
    for state in states:
        played.report(state)
    return played


# --- playbooks --------------------------------------------------------------------------------------


def test_from_acceptance_to_release() -> None:
    job = Played()
    assert job.on(JobTakenUp()) == [FindPlace(0)]
    assert job.found("a", "b") == [
        DeclinePlaces((("b", "place at b"),)),
        SendCommit("a", 1, "place at a"),
    ]
    assert (job.job.phase, job.job.executor, job.job.epoch) == ("committing", "a", 1)
    assert any(isinstance(write, KeepDecision) for write in job.writes)
    assert job.answer(CommitAnswered, CommitAnswer(accepted=True)) == [AskReport("a", 1, 0, 0)]
    [wait] = job.report("starting")
    assert isinstance(wait, Wait) and wait.name == "poll"
    assert job.on(StatementAccepted(0, HASH)) == []  # the session is not idle yet
    assert job.on(ExecutorNews()) == [AskReport("a", 1, 0, 1)]
    assert job.report("idle")[-1] == SendStatement("a", 1, 0)
    assert job.answer(ExecutorDid) == []
    assert job.on(ExecutorNews()) == [AskReport("a", 1, 0, 1)]
    job.report("idle", told(0, "available"))
    assert [write.report.statements[0].number for write in job.writes if isinstance(write, KeepReport)] == [0]
    assert job.on(StopWanted()) == [SendStop("a", 1)]
    job.answer(ExecutorDid)
    assert job.on(ExecutorNews()) == [AskReport("a", 1, 1, 1)]
    assert job.report("dead", ended=True, reason="ended by its owner") == [SendRelease("a", 1)]
    assert job.writes[-1] == KeepEnd("dead", "ended by its owner", 0)
    assert job.answer(ExecutorDid) == []
    assert job.job.phase == "released" and job.job.finished


def test_a_job_without_a_free_place_waits_in_line_until_it_is_stopped() -> None:
    job = Played()
    job.on(JobTakenUp())
    assert job.full() == [AwaitTurn(0)]
    assert "waits in line" in job.notes() and "4 jobs run there" in job.notes()
    assert job.answer(TurnCame) == [FindPlace(0)]
    assert job.full() == [AwaitTurn(0)]
    assert job.writes == []  # the wait is noted once
    assert job.on(StopWanted()) == [LeaveLine()]
    assert job.job.phase == "released"
    assert job.writes[-1] == KeepEnd("killed", "ended by its owner (alice) before it was placed", -1)


def test_a_job_behind_others_asks_nobody_and_leaves_the_line_when_it_is_placed() -> None:
    job = Played()
    job.on(JobTakenUp())
    assert job.answer(BehindOthers, 7) == [AwaitTurn(0)]
    assert "behind 7 others" in job.notes()
    job.answer(TurnCame)
    # The others do not wait for the answer to the commit, which may never come.
    assert job.found("a") == [LeaveLine(), SendCommit("a", 1, "place at a")]
    job.answer(CommitAnswered, CommitAnswer(accepted=False, code=FULL, reason="full"))
    assert job.full() == [AwaitTurn(1)]  # it joins the line again, at its old position


def test_a_job_that_no_island_can_run_ends_with_all_reasons() -> None:
    job = Played()
    job.on(JobTakenUp())
    job.answer(PlaceFound, decision(refusals={"a": "it has no engine", "b": "jobs.accept_from"}))
    [end] = [write for write in job.writes if isinstance(write, KeepEnd)]
    assert end.state == "error" and "a: it has no engine; b: jobs.accept_from" in end.reason
    assert job.job.phase == "released"


def test_a_job_waits_thirty_seconds_for_an_island_that_was_up_recently() -> None:
    job = Played()
    job.on(JobTakenUp())
    nobody = decision(refusals={"a": "down"})
    assert job.answer(PlaceFound, nobody, absent=("a",)) == [Wait("retry", 2.0)]
    assert "waiting up to 30 s for a to answer" in job.notes()
    job.now = Now(job.now.wall, 29.0)
    assert job.on(Elapsed("retry")) == [FindPlace(0)]
    assert job.answer(PlaceFound, nobody, absent=("a",)) == [Wait("retry", 1.0)]
    job.now = Now(job.now.wall, 30.0)
    job.on(Elapsed("retry"))
    job.answer(PlaceFound, nobody, absent=("a",))
    assert job.job.phase == "released"


@pytest.mark.parametrize("code", [FULL, RESERVATION_EXPIRED])
def test_a_place_that_was_lost_before_the_commit_is_asked_for_again(code: str) -> None:
    job = Played()
    job.on(JobTakenUp())
    job.found("a")
    assert job.answer(CommitAnswered, CommitAnswer(accepted=False, code=code, reason="gone")) == [FindPlace(1)]
    assert (job.job.phase, job.job.executor) == ("routing", "")
    job.found("a")
    [wait] = job.answer(CommitAnswered, CommitAnswer(accepted=False, code=code, reason="gone"))
    assert isinstance(wait, Wait)  # not at once again


@pytest.mark.parametrize("code", [POLICY, "", "unheard_of"])
def test_an_island_that_refused_for_good_is_not_asked_again(code: str) -> None:
    job = Played()
    job.on(JobTakenUp())
    job.found("a")
    assert job.answer(CommitAnswered, CommitAnswer(accepted=False, code=code, reason="no")) == [
        FindPlace(1, (("a", "no"),))
    ]


def test_after_a_lost_answer_a_refusal_is_not_believed_before_the_run_is_stopped() -> None:
    job = Played()
    job.on(JobTakenUp())
    job.found("a")
    [wait] = job.answer(ExecutorSilent, "no answer", True)
    assert isinstance(wait, Wait) and "may still be running" in job.notes()
    assert job.on(Elapsed("retry")) == [SendCommit("a", 1, "place at a")]
    assert job.answer(CommitAnswered, CommitAnswer(accepted=False, code=FULL, reason="full")) == [SendStop("a", 1)]
    assert job.answer(ExecutorDid) == [SendCommit("a", 1, "place at a")]
    assert job.answer(CommitAnswered, CommitAnswer(accepted=False, code=STOPPED, reason="stopped")) == [FindPlace(1)]


def test_a_restarted_home_does_not_know_whether_a_commit_was_sent_before() -> None:
    contact = ExecutorContact.after_restart("committing")
    job = Played(HomeJob(facts=FACTS, phase="committing", epoch=1, executor="a", reservation="r", contact=contact))
    assert job.on(JobTakenUp()) == [SendCommit("a", 1, "r")]
    assert job.answer(CommitAnswered, CommitAnswer(accepted=False, code=RESERVATION_EXPIRED, reason="old")) == [
        SendStop("a", 1)
    ]


def test_a_run_that_no_engine_accepted_is_tried_elsewhere() -> None:
    job = placed()
    assert job.report("dead", ended=True, code=NOT_STARTED, reason="the input is gone", notes=("a: hm",)) == [
        SendRelease("a", 1),
        FindPlace(1, (("a", "the input is gone"),)),
    ]
    assert "a: hm" in job.notes()
    job.answer(PlaceFound, decision(refusals={"a": "the input is gone"}))
    [end] = [write for write in job.writes if isinstance(write, KeepEnd)]
    assert end.state == "dead" and end.reason.startswith("the input is gone. no island can run")


def test_a_statement_without_an_answer_is_sent_again_only_after_a_report() -> None:
    job = placed("idle")
    assert job.on(StatementAccepted(0, HASH)) == [SendStatement("a", 1, 0)]
    job.answer(ExecutorSilent, "no answer", True)
    assert job.on(Elapsed("retry")) == [AskReport("a", 1, 0, 1)]
    assert job.report("idle")[-1] == SendStatement("a", 1, 0)  # the report proves that it did not arrive
    job.answer(ExecutorSilent, "no answer", True)
    assert job.on(ExecutorNews()) == [AskReport("a", 1, 0, 1)]  # news end the pause
    assert not [e for e in job.report("busy", told(0, "running")) if isinstance(e, SendStatement)]
    assert job.job.progress(0) == told(0, "running")


def test_a_cancel_ends_what_was_not_sent_and_asks_the_executor_for_what_was() -> None:
    job = placed("idle")
    job.on(StatementAccepted(0, HASH))
    job.answer(ExecutorDid)
    job.on(StatementAccepted(1, HASH))
    job.on(CancelWanted((1,)))
    assert job.writes == [CancelStatements((1,))]
    assert job.on(CancelWanted((0,))) == [SendStop("a", 1, 0)]
    assert job.answer(ExecutorDid) == []  # not a second time


def test_a_cancel_after_a_restart_waits_for_the_report_that_tells_what_was_sent() -> None:
    pending = OpenStatement(number=0, code_hash=HASH, cancel=True)
    job = Played(HomeJob(facts=FACTS, phase="placed", epoch=1, executor="a", statements=1, open=(pending,)))
    assert job.on(JobTakenUp()) == [AskReport("a", 1, 0, 0)]
    assert job.report("busy", told(0, "running"))[-1] == SendStop("a", 1, 0)


@pytest.mark.parametrize("foreign", [told(0, "available", "e" * 64), told(1, "available")])
def test_a_session_in_which_other_code_ran_is_stopped_before_it_is_released(foreign: StatementReport) -> None:
    job = placed("busy")
    job.on(StatementAccepted(0, HASH))
    job.on(ExecutorNews())
    assert job.report("idle", foreign) == [SendStop("a", 1)]
    [end] = [write for write in job.writes if isinstance(write, KeepEnd)]
    assert end.state == "dead" and "restored from a backup" in end.reason and end.sent == -1
    assert job.answer(ExecutorDid) == [SendRelease("a", 1)]


def test_a_refused_statement_may_be_sent_again_and_a_diverged_one_ends_the_session() -> None:
    job = placed("idle")
    job.on(StatementAccepted(0, HASH))
    assert job.answer(ExecutorRefused, "not_ready", "the session is busy") == [Wait("retry", 0.2)]
    job.on(Elapsed("retry"))
    assert job.report("idle")[-1] == SendStatement("a", 1, 0)
    assert job.answer(ExecutorRefused, DIVERGED, "another statement 0") == [SendStop("a", 1)]
    assert any(isinstance(write, KeepEnd) for write in job.writes)


def test_a_job_in_line_tells_who_has_refused_it() -> None:
    job = Played()
    job.on(JobTakenUp())
    job.found("a")
    job.answer(CommitAnswered, CommitAnswer(accepted=False, code=POLICY, reason="no"))
    assert job.full("b") == [AwaitTurn(1, (("a", "no"),))]


def test_an_executor_that_forgot_the_run_ends_the_job() -> None:
    job = placed("idle")
    job.on(ExecutorNews())
    assert job.answer(ExecutorRefused, "not_found", "no run") == [SendRelease("a", 1)]
    [end] = [write for write in job.writes if isinstance(write, KeepEnd)]
    assert end.state == "dead" and "no longer knows this job" in end.reason


def test_a_statement_that_meets_the_end_of_its_run_leaves_the_last_word_to_the_report() -> None:
    job = placed("idle")
    assert job.on(StatementAccepted(0, HASH)) == [SendStatement("a", 1, 0)]
    assert job.answer(ExecutorRefused, "not_found", "no run is alive") == [Wait("retry", 0.2)]
    assert job.on(Elapsed("retry")) == [AskReport("a", 1, 0, 1)]
    assert job.report("dead", ended=True, reason="ended by the administrator") == [SendRelease("a", 1)]
    assert KeepEnd("dead", "ended by the administrator", -1) in job.writes


def test_a_stop_before_the_commit_is_answered_stops_first_and_then_learns_what_happened() -> None:
    job = Played()
    job.on(JobTakenUp())
    job.found("a")
    assert job.on(StopWanted()) == []  # the commit is under way
    job.answer(ExecutorSilent, "no answer", False)
    assert job.on(Elapsed("retry")) == [SendStop("a", 1)]
    assert job.answer(ExecutorDid) == [SendCommit("a", 1, "place at a")]
    job.answer(CommitAnswered, CommitAnswer(accepted=False, code=STOPPED, reason="stopped"))
    assert job.job.phase == "released" and any(isinstance(write, KeepEnd) for write in job.writes)


def test_trouble_with_the_disk_of_this_island_only_delays() -> None:
    job = placed("idle")
    job.on(ExecutorNews())
    [wait] = job.answer(DiskTrouble, "disk full")
    assert isinstance(wait, Wait) and job.writes == []
    assert job.on(Elapsed("retry")) == [AskReport("a", 1, 0, 1)]


@pytest.mark.parametrize("phase", ["committing", "placed"])
def test_a_bug_ends_the_job_and_its_run(phase: str) -> None:
    job = Played(HomeJob(facts=FACTS, phase=phase, epoch=1, executor="a"))
    job.on(JobTakenUp())
    assert job.on(Failed(job.job.doing or SendRelease("a", 1), ValueError("odd"))) == [SendStop("a", 1)]
    [end] = [write for write in job.writes if isinstance(write, KeepEnd)]
    assert end.state == "error" and "internal error in island: ValueError: odd" in end.reason
    step = machine.broken(job.job, ValueError("odd"), job.now)
    assert step.state.finished, "an ended job with a bug is left to the next start"


def test_a_session_whose_clients_are_silent_ends() -> None:
    job = Played(HomeJob(facts=replace(FACTS, heartbeat=60.0), phase="placed", epoch=1, executor="a"))
    assert WatchClients(60.0) in job.on(JobTakenUp())
    job.report("idle")
    assert job.on(ClientsSilent(61.0)) == [SendStop("a", 1)]
    assert KeepStop() in job.writes and "heartbeatTimeoutInSecond" in job.notes()


def test_a_run_whose_state_is_unknown_at_the_end_counts_its_first_statement_as_run() -> None:
    pending = OpenStatement(number=3, code_hash=HASH)
    job = Played(HomeJob(facts=FACTS, phase="placed", epoch=1, executor="a", statements=4, open=(pending,)))
    job.on(JobTakenUp())
    job.answer(ExecutorRefused, "not_found", "no run")
    assert [write.sent for write in job.writes if isinstance(write, KeepEnd)] == [3]


def test_an_answer_to_an_effect_that_nobody_waits_for_is_ignored_and_its_places_are_declined() -> None:
    job = placed("idle")
    before = job.job
    assert job.on(PlaceFound(FindPlace(0), decision("b"), (("b", "x"),))) == [DeclinePlaces((("b", "x"),))]
    assert job.on(NoRoute(FindPlace(0), "no")) == [] and job.on(ExecutorDid(SendStop("b", 9))) == []
    assert job.job == before


def test_a_transition_that_the_table_does_not_allow_is_a_bug() -> None:
    turn = machine._Turn(HomeJob(facts=FACTS), Now(0, 0))
    with pytest.raises(WrongPhase):
        turn.change(phase="placed")


# --- random events ----------------------------------------------------------------------------------


@dataclass
class ModelRun:
    """A run at an executor: alive, ended, or never to begin."""

    state: str
    started: bool = True
    statements: dict[int, list[str]] = field(default_factory=dict)
    """Hash and state of each statement."""


class ModelExecutor:
    """What an executor promises: idempotent requests, and a stop that also prevents a run from beginning."""

    def __init__(self) -> None:
        self.runs: dict[int, ModelRun] = {}
        self.ran: list[tuple[int, int]] = []

    def alive(self) -> list[int]:
        return [epoch for epoch, run in self.runs.items() if run.state == "alive"]

    def do(self, effect: Any, refusal: str) -> Any:
        """Carry out a request and return its answer. `refusal`: the code with which a fresh commit is refused."""
        run = self.runs.get(effect.epoch)
        match effect:
            case SendCommit():
                return CommitAnswered(effect, self._commit(effect.epoch, run, refusal))
            case SendStop(number=None):
                if run is None:
                    self.runs[effect.epoch] = ModelRun("never")
                elif run.state == "alive":
                    self.end(effect.epoch)
            case SendStop():
                if run and effect.number in run.statements and run.statements[effect.number][1] == "running":
                    run.statements[effect.number][1] = "cancelled"
            case AskReport():
                return self._report(effect, run)
            case SendStatement():
                return self._statement(effect, run)
        return ExecutorDid(effect)

    def _commit(self, epoch: int, run: ModelRun | None, refusal: str) -> CommitAnswer:
        if run is not None:
            return CommitAnswer(accepted=run.state != "never", code=STOPPED if run.state == "never" else "")
        if refusal or max(self.runs, default=0) > epoch:
            return CommitAnswer(accepted=False, code=refusal or STOPPED, reason="no")
        self.runs[epoch] = ModelRun("alive", started=False)
        return CommitAnswer(accepted=True)

    def _report(self, effect: AskReport, run: ModelRun | None) -> Any:
        if run is None or run.state == "never":
            return ExecutorRefused(effect, "not_found", "no run")
        statements = [told(n, s, h) for n, (h, s) in sorted(run.statements.items()) if n >= effect.acknowledged]
        busy = any(s == "running" for _, s in run.statements.values())
        ended = run.state == "ended"
        code = NOT_STARTED if ended and not run.started else ""
        state = "dead" if ended else "busy" if busy else "idle" if run.started else "starting"
        return Reported(effect, report(effect.epoch, state, *statements, ended=ended, code=code))

    def _statement(self, effect: SendStatement, run: ModelRun | None) -> Any:
        if run is None or run.state != "alive":
            return ExecutorRefused(effect, "not_found", "no run")
        if effect.number in run.statements:
            return ExecutorDid(effect)
        if any(number > effect.number for number in run.statements):
            return ExecutorRefused(effect, DIVERGED, "a later statement")
        if not run.started or any(state == "running" for _, state in run.statements.values()):
            return ExecutorRefused(effect, "not_ready", "busy")
        run.statements[effect.number] = [HASH, "running"]
        self.ran.append((effect.epoch, effect.number))
        return ExecutorDid(effect)

    def end(self, epoch: int) -> None:
        run = self.runs[epoch]
        run.state = "ended"
        for statement in run.statements.values():
            if statement[1] == "running":
                statement[1] = "error"


class JobUnderFaults(RuleBasedStateMachine):
    """One job, two executors, lost and late messages, crashes of home, and a client that posts, cancels and stops."""

    def __init__(self) -> None:
        super().__init__()
        self.executors = {"a": ModelExecutor(), "b": ModelExecutor()}
        self.now = Now(1_000_000.0, 0.0)
        self.late: list[Any] = []
        # What the database has.
        self.stop = False
        self.statements: dict[int, str] = {}
        self.cancels: set[int] = set()
        self.ended = 0
        self.job = HomeJob(facts=FACTS)
        self.stored = self.job
        self.waits: set[str] = set()
        self.unproven: set[int] = set()
        """Numbers of the statements that may be at the executor: no report has been handled since they were sent."""
        self.event(JobTakenUp())

    def event(self, event: Any) -> None:
        if isinstance(event, Reported):
            self.unproven.clear()
        elif isinstance(event, ExecutorRefused) and isinstance(event.effect, SendStatement):
            self.unproven.discard(event.effect.number)
        step = machine.handle(self.job, event, self.now)
        self.job = self.stored = step.state
        for effect in step.effects:
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        match effect:
            case Wait():
                self.waits.add(effect.name)
            case Cancel():
                self.waits.discard(effect.of.removeprefix("wait "))
            case CancelStatements():
                self.statements.update(dict.fromkeys(effect.numbers, "cancelled"))
            case KeepReport():
                for each in effect.report.statements:
                    assert self.statements[each.number] == "waiting", "a result is stored once"
                    self.statements[each.number] = each.state
            case KeepEnd():
                self.ended += 1
                for number, state in self.statements.items():
                    self.statements[number] = "lost" if state == "waiting" else state
            case SendStatement():
                assert effect.number not in self.unproven, "a statement is not sent twice without proof of absence"
                self.unproven.add(effect.number)
            case SendRelease():
                assert effect.epoch not in self.executors[effect.to].alive(), "a run that may live is not released"
            case _:
                pass

    def end_pause(self) -> None:
        if self.job.paused:
            self.waits.discard("retry")
            self.event(Elapsed("retry"))

    # What the client does.

    @precondition(lambda self: self.job.live and not self.stop and len(self.statements) < 6)
    @rule()
    def post(self) -> None:
        number = len(self.statements)
        self.statements[number] = "waiting"
        self.event(StatementAccepted(number, HASH))

    @precondition(lambda self: self.job.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([each.number for each in self.job.open]))
        self.cancels.add(number)
        self.event(CancelWanted((number,)))

    @precondition(lambda self: self.job.live)
    @rule(chance=st.integers(0, 9))
    def close(self, chance: int) -> None:
        if not chance:
            self.stop = True
            self.event(StopWanted())

    # What happens to the search for a place and to requests.

    @precondition(lambda self: self.job.phase == "routing")
    @rule(
        outcome=st.sampled_from(["offers", "offers", "offers", "full", "behind", "trouble"]),
        islands=st.sampled_from(["a", "b", "ab"]),
    )
    def search(self, outcome: str, islands: str) -> None:
        self.end_pause()
        doing = self.job.doing
        assert doing is not None
        refused = {island for island, _ in doing.refused} if isinstance(doing, FindPlace) else set()
        offers = sorted(set(islands) - refused)
        if isinstance(doing, AwaitTurn):
            self.event(TurnCame(doing))
        elif outcome == "offers" and offers:
            self.event(PlaceFound(doing, decision(*offers), tuple((each, "place") for each in offers)))
        elif outcome == "behind":
            self.event(BehindOthers(doing, 1))
        elif outcome == "trouble":
            self.event(DiskTrouble(doing, "disk"))
        else:
            self.event(PlaceFound(doing, decision(refusals={"a": "full"}), full=True))

    @precondition(lambda self: self.job.phase != "routing" and (self.job.doing or self.job.paused))
    @rule(
        fate=st.sampled_from(["answered", "answered", "answered", "lost", "answer lost", "late", "not ready"]),
        refusal=st.sampled_from(["", "", FULL, RESERVATION_EXPIRED, POLICY]),
    )
    def exchange(self, fate: str, refusal: str) -> None:
        self.end_pause()
        effect: Any = self.job.doing
        if effect is None:
            return
        if fate == "late":
            self.late.append(effect)
        if fate == "not ready":
            self.event(ExecutorRefused(effect, "not_ready", "not yet"))
            return
        answer = self.executors[effect.to].do(effect, refusal) if fate.startswith("answer") else None
        self.event(answer if fate == "answered" else ExecutorSilent(effect, "no answer", True))

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def arrive_late(self, data: st.DataObject) -> None:
        effect = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        if not isinstance(effect, SendStatement) or self.statements[effect.number] == "waiting":
            self.executors[effect.to].do(effect, "")

    # What happens at the executors, and to time.

    @precondition(lambda self: any(each.alive() for each in self.executors.values()))
    @rule(what=st.sampled_from(["start", "start", "finish", "finish", "end"]))
    def run_goes_on(self, what: str) -> None:
        [(executor, epoch)] = [(each, epoch) for each in self.executors.values() for epoch in each.alive()]
        run = executor.runs[epoch]
        if what == "start":
            run.started = True
        elif what == "end":
            executor.end(epoch)
        for statement in run.statements.values():
            if what == "finish" and statement[1] == "running":
                statement[1] = "available"
        self.event(ExecutorNews())

    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        self.now = Now(self.now.wall + 10, self.now.boot + 10)
        if self.waits:
            name = data.draw(st.sampled_from(sorted(self.waits)))
            self.waits.discard(name)
            self.event(Elapsed(name))

    @rule(chance=st.integers(0, 4))
    def crash(self, chance: int) -> None:
        """Home is killed and started again with what its database has."""
        if chance:
            return
        old, self.waits = self.stored, set()
        waiting = [number for number, state in self.statements.items() if state == "waiting"]
        self.unproven = set(waiting)
        self.job = HomeJob(
            facts=FACTS,
            phase=old.phase,
            epoch=old.epoch,
            executor=old.executor,
            reservation=old.reservation,
            stop=self.stop,
            statements=len(self.statements),
            open=tuple(OpenStatement(number=n, code_hash=HASH, cancel=n in self.cancels) for n in waiting),
            contact=ExecutorContact.after_restart(old.phase),
        )
        if not self.job.finished:
            self.event(JobTakenUp())

    @precondition(lambda self: self.job.live and self.job.doing)
    @rule(chance=st.integers(0, 9))
    def bug(self, chance: int) -> None:
        if not chance and self.job.doing is not None:
            self.event(Failed(self.job.doing, ValueError("odd")))

    # What must always be true.

    @invariant()
    def at_most_one_run_lives(self) -> None:
        assert sum(len(each.alive()) for each in self.executors.values()) <= 1

    @invariant()
    def no_statement_runs_twice(self) -> None:
        numbers = [number for each in self.executors.values() for _, number in each.ran]
        assert len(numbers) == len(set(numbers)), numbers

    @invariant()
    def a_job_ends_once_with_all_its_statements(self) -> None:
        assert self.ended == (not self.job.live)
        if not self.job.live:
            assert "waiting" not in self.statements.values()

    @invariant()
    def something_is_always_under_way(self) -> None:
        if self.job.paused:
            assert "retry" in self.waits
        elif self.job.live and self.job.doing is None:
            assert self.job.phase == "placed" and "poll" in self.waits

    def teardown(self) -> None:
        """When the client stops the job and every request is answered, everything ends and nothing is left alive."""
        if self.job.live:
            self.close(0)
        for _ in range(60):
            if self.job.finished:
                break
            if isinstance(doing := self.job.doing, FindPlace | AwaitTurn | None):
                name = "retry" if self.job.paused else "poll"
                self.waits.discard(name)
                self.event(Elapsed(name))
            else:
                effect: Any = doing
                self.event(self.executors[effect.to].do(effect, ""))
        assert self.job.phase == "released"
        assert not any(each.alive() for each in self.executors.values())


JobUnderFaults.TestCase.settings = settings(max_examples=200, stateful_step_count=80, deadline=None)
TestJobUnderFaults = JobUnderFaults.TestCase
