"""The machine of a run at its executor: playbooks, and random events in any order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from island.errors import Conflict, IslandError, NotFound
from island.jobs.engines.port import RemoteJob
from island.jobs.executor import machine
from island.jobs.executor.events import (
    AskInstance,
    CancelRemote,
    CleanUp,
    ClearRemote,
    CodePosted,
    CreateRemote,
    EffectFailed,
    FailureKind,
    FetchInputs,
    FindRemote,
    FollowRemote,
    FollowStatement,
    FreePlace,
    HomeHeard,
    InputsFetched,
    InstanceSeen,
    NoPlace,
    PlaceGranted,
    PostCode,
    ReadRemoteLog,
    RemoteCleared,
    RemoteCreated,
    RemoteFound,
    RemoteLog,
    RemoteShown,
    RemoteStatement,
    RunCleaned,
    RunForbidden,
    RunNoted,
    RunResumed,
    RunStopAsked,
    StatementCancelAsked,
    StatementOffered,
    TakePlace,
    TellHome,
)
from island.jobs.executor.run import JobRun, RunMemory
from island.jobs.messages import DIVERGED, NOT_STARTED, InputRef, JobSpec, RunTimes
from island.kernel.machine import Answer, Cancel, Effect, Elapsed, Failed, Now, Refuse, Reply, Wait

HOME = "a" * 64
JOB = f"01890a5d-ac96-774b-bcce-b302099a8057.{HOME[:10]}"
NAME = "isl-01890a5d-ac96-774b-bcce-b302099a8057-1"
SESSION = JobSpec(kind="session", language="pyspark")
BATCH = JobSpec(kind="batch", language="batch", file_name="x.py", file_hash="0" * 64)
STARTING, IDLE, BUSY = (RemoteJob(7, state, NAME) for state in ("starting", "idle", "busy"))
RUNNING = {"state": "running", "progress": 0.5, "started": 1}
DONE = {"state": "available", "output": {"status": "ok", "data": {"text/plain": "2"}}, "started": 1, "completed": 2}


def run_of(work: JobSpec = SESSION, *, foreign: bool = False, **changes: Any) -> JobRun:
    run = JobRun(
        job=JOB,
        epoch=1,
        home=HOME,
        user="ann",
        request_hash="c" * 64,
        work=work,
        lease=600.0,
        accepted=0.0,
        memory=RunMemory(here="kiso", foreign=foreign),
    )
    return replace(run, **changes)


def failed(effect: Effect, kind: FailureKind, text: str = "no answer") -> EffectFailed:
    return EffectFailed(effect, kind, text)


@dataclass
class Play:
    """A run, to which events are played."""

    run: JobRun
    boot: float = 0.0

    def on(self, *events: Any) -> list[Effect]:
        """The effects of the last of these events, without those that stop others and hints to home."""
        effects: tuple[Effect, ...] = ()
        for event in events:
            step = machine.handle(self.run, event, Now(1.8e9, self.boot))
            self.run, effects = step.state, step.effects
        return [effect for effect in effects if not isinstance(effect, Cancel | TellHome)]

    def restart(self) -> None:
        """Only what is stored is left, as after a crash."""
        self.run = replace(self.run, memory=RunMemory(here="kiso", foreign=self.run.memory.foreign))

    @property
    def phase(self) -> str:
        return self.run.phase


def idle(work: JobSpec = SESSION, *, foreign: bool = False, instance: str = "i") -> Play:
    """A session that takes statements, at an embedded engine with an instance id, or at a stock Livy without one."""
    play = Play(run_of(work, foreign=foreign))
    play.on(RunResumed(), PlaceGranted("main"), InputsFetched((), "", 0), InstanceSeen(instance), RemoteCreated(IDLE))
    assert play.phase == "running"
    return play


def busy() -> Play:
    """A session that runs its first statement."""
    play = idle()
    play.on(StatementOffered(Reply(), 0, "1+1", ""), CodePosted(0, 0), RemoteStatement(0, RUNNING, "i"))
    return play


# --- playbooks ------------------------------------------------------------------------------------------------------


def test_a_session_from_the_line_to_its_first_result() -> None:
    play, reply = Play(run_of()), Reply()
    assert play.on(RunResumed()) == [TakePlace("", {})]
    assert play.on(PlaceGranted("main")) == [FetchInputs("main")]
    assert play.on(InputsFetched((), "", 0)) == [AskInstance()]
    assert play.on(InstanceSeen("i")) == [CreateRemote({"kind": "pyspark", "name": NAME, "conf": {}})]
    assert (play.phase, play.run.engine, play.run.instance) == ("submitting", "main", "i")
    assert play.on(RemoteCreated(STARTING)) == [FollowRemote(STARTING)]
    assert (play.phase, play.run.remote, play.run.state) == ("starting", 7, "starting")
    assert play.on(RemoteShown(IDLE, "i")) == [FollowRemote(IDLE)]
    assert (play.phase, play.run.state) == ("running", "idle")
    assert play.on(StatementOffered(reply, 0, "1+1", "")) == [Answer(reply), PostCode(0, "1+1", "")]
    assert play.on(CodePosted(0, 0)) == [FollowStatement(0)]
    assert play.on(RemoteStatement(0, RUNNING, "i")) == [FollowStatement(0, RUNNING)]
    assert play.on(RemoteStatement(0, DONE, "i")) == []
    assert play.run.statement is not None
    assert (play.run.statement.state, play.run.open_statement) == ("available", None)


def at(play: Play, boot: float, *events: Any) -> None:
    play.boot = boot
    play.on(*events)


def test_the_parts_of_a_session_are_measured_until_its_first_result() -> None:
    play = Play(run_of(memory=RunMemory(here="kiso", part_since=0.0)))
    at(play, 3.0, RunResumed(), PlaceGranted("main"))
    at(play, 5.0, InputsFetched((), "", 0), InstanceSeen("i"))
    at(play, 12.0, RemoteCreated(STARTING))
    at(play, 13.0, RemoteShown(IDLE, "i"))
    assert play.run.times == RunTimes(wait=3.0, fetch=2.0, start=8.0)
    at(play, 100.0, StatementOffered(Reply(), 0, "1+1", ""), CodePosted(0, 0), RemoteStatement(0, RUNNING, "i"))
    at(play, 104.5, RemoteStatement(0, DONE, "i"))
    at(play, 105.0, StatementOffered(Reply(), 1, "1+1", ""), CodePosted(1, 1))
    at(play, 205.0, RemoteStatement(1, DONE, "i"))
    assert play.run.times == RunTimes(wait=3.0, fetch=2.0, start=8.0, compute=4.5)


def test_the_parts_of_a_batch_are_measured_until_its_success() -> None:
    play = Play(run_of(BATCH, memory=RunMemory(here="kiso", part_since=0.0)))
    at(play, 1.0, RunResumed(), PlaceGranted("main"), InputsFetched((), "", 0), InstanceSeen("i"))
    at(play, 2.0, RemoteCreated(STARTING))
    at(play, 7.0, RemoteShown(RemoteJob(7, "running", NAME), "i"))
    at(play, 30.0, RemoteShown(RemoteJob(7, "success", NAME), "i"), RemoteLog(()))
    assert play.run.times == RunTimes(wait=1.0, fetch=0.0, start=6.0, compute=23.0)


def test_what_ended_by_an_error_or_before_its_end_is_not_measured() -> None:
    play = idle()
    bad = {"state": "available", "output": {"status": "error", "ename": "NameError", "evalue": "x"}}
    play.on(StatementOffered(Reply(), 0, "x", ""), CodePosted(0, 0), RemoteStatement(0, bad, "i"))
    assert play.run.times.compute is None
    play = Play(run_of(BATCH, memory=RunMemory(here="kiso", part_since=0.0)))
    play.on(RunResumed(), PlaceGranted("main"), InputsFetched((), "", 0), InstanceSeen("i"), RemoteCreated(STARTING))
    at(play, 9.0, RunStopAsked("owner"))
    assert play.run.times == RunTimes(wait=0.0, fetch=0.0)


def test_a_part_during_which_the_island_was_restarted_is_not_measured_and_a_full_engine_counts_as_waiting() -> None:
    play = Play(run_of(memory=RunMemory(here="kiso", part_since=0.0)))
    at(play, 2.0, RunResumed(), PlaceGranted("main"))
    at(play, 3.0, InputsFetched((), "", 0), InstanceSeen("i"))
    at(play, 4.0, failed(CreateRemote({}), FailureKind.FULL), RemoteFound(None))
    at(play, 10.0, PlaceGranted("main"))
    assert play.run.times.wait == 9.0
    at(play, 11.0, InputsFetched((), "", 0), InstanceSeen("i"), RemoteCreated(STARTING))
    play.restart()
    at(play, 20.0, RunResumed(), InstanceSeen("i"), RemoteShown(IDLE, "i"))
    assert play.phase == "running" and play.run.times == RunTimes(wait=9.0, fetch=1.0)


def test_an_end_clears_the_engine_before_the_place_is_free() -> None:
    play, reply = idle(), Reply()
    assert play.on(RunStopAsked("owner", reply)) == [ClearRemote(), Answer(reply)]
    assert (play.phase, play.run.state, play.run.reason) == ("clearing", "dead", "ended by its owner (ann)")
    assert play.on(RemoteCleared(found=True)) == [FreePlace(), CleanUp()]
    assert play.on(RunCleaned()) == [] and play.run.finished


def test_a_run_that_never_got_a_place_leaves_the_engines_alone() -> None:
    play = Play(run_of())
    play.on(RunResumed())
    assert play.on(RunStopAsked("administrator")) == [FreePlace(), CleanUp()]
    assert play.run.reason == "ended by the administrator of kiso"
    assert play.on(PlaceGranted("main")) == [FreePlace()], "a place that was granted at the same moment is given back"


def test_a_full_engine_means_waiting() -> None:
    play = Play(run_of())
    play.on(RunResumed(), PlaceGranted("main"), InputsFetched((), "", 0), InstanceSeen("i"))
    create = CreateRemote({})
    assert play.on(failed(create, FailureKind.FULL, "too many sessions")) == [FindRemote()]
    assert play.on(RemoteFound(None)) == [FreePlace(full=True), TakePlace("", {})]
    assert (play.phase, play.run.engine, play.run.ended) == ("waiting", "", False)


def test_a_refused_run_tries_the_other_engines_and_then_tells_home_that_nothing_ran() -> None:
    play = Play(run_of())
    play.on(RunResumed(), PlaceGranted("a"), InputsFetched((), "", 0), InstanceSeen(""))
    play.on(failed(CreateRemote({}), FailureKind.REFUSED, "no REPL"))
    assert play.on(RemoteFound(None)) == [FreePlace(), TakePlace("", {"a": "no REPL"})]
    play.on(NoPlace("no engine is left"))
    assert (play.run.state, play.run.code) == ("dead", NOT_STARTED)
    assert play.run.reason == "the engine refused the job: a: no REPL"


def test_a_lost_answer_to_the_submission_is_cleared_up_by_the_name() -> None:
    play = Play(run_of())
    play.on(RunResumed(), PlaceGranted("main"), InputsFetched((), "", 0), InstanceSeen("i"))
    [pause] = play.on(failed(CreateRemote({}), FailureKind.SILENT))
    assert isinstance(pause, Wait) and pause.name == "engine" and play.run.doubt
    assert play.on(Elapsed("engine")) == [AskInstance()]
    assert play.on(InstanceSeen("i")) == [FindRemote()]
    assert play.on(RemoteFound(STARTING)) == [FollowRemote(STARTING)]
    assert (play.phase, play.run.doubt) == ("starting", False)


def test_a_restart_while_it_is_submitted_searches_before_it_creates_again() -> None:
    play = Play(run_of())
    play.on(RunResumed(), PlaceGranted("main"), InputsFetched((), "", 0), InstanceSeen("i"))
    play.restart()
    assert play.on(RunResumed()) == [FetchInputs("main", quiet=True)]
    assert play.on(InputsFetched((), "", 0)) == [AskInstance()]
    assert play.on(InstanceSeen("i")) == [FindRemote()]
    [create] = play.on(RemoteFound(None))
    assert isinstance(create, CreateRemote)


@pytest.mark.parametrize("work", [SESSION, BATCH], ids=["session", "batch"])
def test_a_lost_request_may_have_reached_the_next_instance_of_the_engine(work: JobSpec) -> None:
    play = Play(run_of(work))
    play.on(RunResumed(), PlaceGranted("main"), InputsFetched((), "", 0), InstanceSeen("i"))
    play.on(failed(CreateRemote({}), FailureKind.SILENT), Elapsed("engine"))
    assert play.on(InstanceSeen("j")) == [FindRemote()]
    found = Play(play.run)
    found.on(RemoteFound(STARTING))
    assert (found.run.remote, found.run.instance, found.run.ended) == (7, "j", False)
    play.on(RemoteFound(None))
    assert play.run.ended == (work is BATCH), "a batch may have run, a session has lost nothing"


def test_a_batch_whose_answer_a_stock_livy_lost_is_not_run_again() -> None:
    play = Play(run_of(BATCH))
    play.on(RunResumed(), PlaceGranted("main"), InputsFetched((), "/x.py", 0), InstanceSeen(""))
    play.on(failed(CreateRemote({}), FailureKind.SILENT), Elapsed("engine"), InstanceSeen(""))
    play.on(RemoteFound(None))
    assert "it is unknown whether the batch ran" in play.run.reason and play.run.code == ""


def test_an_end_during_the_submission_waits_for_its_answer_to_clear_it() -> None:
    play = Play(run_of())
    play.on(RunResumed(), PlaceGranted("main"), InputsFetched((), "", 0), InstanceSeen("i"))
    assert play.on(RunStopAsked("owner")) == []
    assert play.on(RemoteCreated(STARTING)) == [ClearRemote()]
    assert play.run.ref.id == 7


def test_a_session_whose_creation_is_in_doubt_is_searched_twice_before_its_place_is_free() -> None:
    play = Play(run_of())
    play.on(RunResumed(), PlaceGranted("main"), InputsFetched((), "", 0), InstanceSeen("i"))
    play.on(failed(CreateRemote({}), FailureKind.SILENT))
    assert play.on(RunStopAsked("owner")) == [ClearRemote()]
    assert play.on(RemoteCleared(found=False)) == [Wait("clear", machine.SEARCH_AGAIN_S)]
    assert play.on(Elapsed("clear")) == [ClearRemote()]
    assert play.on(RemoteCleared(found=False)) == [FreePlace(), CleanUp()]


def test_a_failed_clear_is_repeated_for_ever_with_growing_pauses() -> None:
    play = idle()
    play.on(RunStopAsked("owner"))
    pauses = []
    for _ in range(40):
        [pause] = play.on(failed(ClearRemote(), FailureKind.SILENT))
        assert isinstance(pause, Wait)
        pauses.append(pause.seconds)
        assert play.on(Elapsed("clear")) == [ClearRemote()]
    assert pauses == sorted(pauses) and machine.CLEAR_CAP_S / 2 <= pauses[-1] <= machine.CLEAR_CAP_S
    play.restart()
    assert play.on(RunResumed()) == [ClearRemote()]


def test_a_failed_cancel_is_sent_again_and_ends_nothing() -> None:
    play, reply = busy(), Reply()
    assert play.on(StatementCancelAsked(reply, 0)) == [Answer(reply), CancelRemote(0)]
    [pause] = play.on(failed(CancelRemote(0), FailureKind.SILENT))
    assert isinstance(pause, Wait) and play.phase == "running"
    assert play.on(Elapsed("cancel")) == [CancelRemote(0)]
    play.on(RemoteStatement(0, {"state": "cancelled"}, "i"))
    assert play.on(Elapsed("cancel")) == [], "it has ended"


def test_a_cancel_that_comes_before_the_engine_has_the_statement_is_sent_after_it() -> None:
    play, reply = idle(), Reply()
    play.on(StatementOffered(reply, 0, "1+1", ""))
    assert play.on(StatementCancelAsked(reply, 0)) == [Answer(reply)]
    assert play.on(CodePosted(0, 0)) == [FollowStatement(0), CancelRemote(0)]


@pytest.mark.parametrize("begun", [lambda: Play(run_of(foreign=True)), lambda: idle(foreign=True)], ids=["line", "run"])
def test_the_lease_is_checked_by_a_timer_in_every_phase(begun: Any) -> None:
    play = begun()
    timers = [effect for effect in play.on(RunResumed()) if isinstance(effect, Wait)]
    assert timers == [Wait("lease", machine.LEASE_CHECK_S)]
    play.boot = 500.0
    play.on(HomeHeard())
    play.boot = 1090.0
    assert play.on(Elapsed("lease")) == [Wait("lease", 10.0)]
    play.boot = 1101.0
    play.on(Elapsed("lease"))
    assert play.run.ended and "its home was silent for 601 s" in play.run.reason


def in_doubt(play: Play) -> Play:
    """The answer to the first statement is lost, and the engine does not show it when it is asked first."""
    play.on(StatementOffered(Reply(), 0, "1+1", ""))
    play.on(failed(PostCode(0, "1+1", ""), FailureKind.SILENT))
    assert play.on(Elapsed("statement")) == [FollowStatement(0)]
    assert play.on(RemoteStatement(0, None, play.run.instance)) == [Wait("statement", machine.SEARCH_AGAIN_S)]
    assert play.on(Elapsed("statement")) == [FollowStatement(0)]
    return play


def test_a_statement_after_a_lost_answer_is_sent_again_only_if_the_engine_has_not_got_it_some_time_later() -> None:
    play = in_doubt(idle())
    assert play.on(RemoteStatement(0, None, "i")) == [PostCode(0, "1+1", "")]
    assert play.on(RemoteStatement(0, None, "i"), Elapsed("statement")) == [], "it is under way"
    play.on(failed(PostCode(0, "1+1", ""), FailureKind.SILENT), Elapsed("statement"))
    assert play.on(RemoteStatement(0, {**RUNNING, "code": "1+1"}, "i")) != [PostCode(0, "1+1", "")]
    play.on(RemoteStatement(0, None, "i"))
    assert play.run.ended, "a statement that the engine had has vanished"


@pytest.mark.parametrize(
    ("kind", "text", "again"),
    [
        (FailureKind.UNREACHABLE, "connection refused", True),
        (FailureKind.ERROR, "Livy answered 500: Session is in state starting", True),
        (FailureKind.ERROR, "Livy answered 504: Gateway Time-out", False),
    ],
)
def test_a_statement_that_certainly_was_not_begun_is_sent_again_at_once(
    kind: FailureKind, text: str, again: bool
) -> None:
    play = idle(instance="")
    play.on(StatementOffered(Reply(), 0, "1+1", ""))
    play.on(failed(PostCode(0, "1+1", ""), kind, text), Elapsed("statement"))
    assert (play.on(RemoteStatement(0, None, "")) == [PostCode(0, "1+1", "")]) == again


def test_a_statement_whose_answer_a_stock_livy_lost_is_not_run_again() -> None:
    play = in_doubt(idle(instance=""))
    assert play.on(RemoteStatement(0, None, "")) == []
    assert play.run.statement is not None and play.run.statement.state == "error"
    assert "it is unknown whether it ran" in play.run.statement.output
    assert PostCode(0, "2+2", "") in play.on(StatementOffered(Reply(), 1, "2+2", ""))
    play.on(CodePosted(0, 1))
    assert play.run.statement.remote == 1, "Livy has begun the earlier one after all"


def test_a_look_at_the_engine_does_not_replace_a_statement_that_is_being_posted() -> None:
    play = idle()
    play.restart()
    play.on(RunResumed())
    assert PostCode(0, "1+1", "") in play.on(StatementOffered(Reply(), 0, "1+1", ""))
    assert play.on(InstanceSeen("i")) == [FollowRemote(None)]
    assert play.on(CodePosted(0, 0)) == [FollowStatement(0)]


@pytest.mark.parametrize("instance", ["i", ""], ids=["embedded", "stock"])
def test_a_statement_that_may_have_been_posted_before_a_restart_is_looked_up_twice(instance: str) -> None:
    play = idle(instance=instance)
    play.on(StatementOffered(Reply(), 0, "1+1", ""))
    play.restart()
    play.on(RunResumed(), InstanceSeen(instance))
    assert play.on(RemoteStatement(0, None, instance)) == [Wait("statement", machine.SEARCH_AGAIN_S)]
    play.on(Elapsed("statement"))
    assert play.on(RemoteStatement(0, None, instance)) == [PostCode(0, "1+1", "")]


def test_a_refused_statement_does_not_use_a_number_of_the_engine() -> None:
    play = idle()
    play.on(StatementOffered(Reply(), 0, "1+1", ""))
    assert play.on(failed(PostCode(0, "1+1", ""), FailureKind.REFUSED, "too long")) == []
    assert play.run.statement is not None and "Refused" in play.run.statement.output
    assert PostCode(0, "2+2", "") in play.on(StatementOffered(Reply(), 1, "2+2", ""))


def test_a_statement_after_a_restart_is_looked_up_first() -> None:
    play = busy()
    play.restart()
    assert play.on(RunResumed()) == [AskInstance()]
    assert play.on(InstanceSeen("i")) == [FollowRemote(None), FollowStatement(0)]


def test_a_repeated_statement_has_no_effect_and_another_with_its_number_diverges() -> None:
    play, reply = busy(), Reply()
    assert play.on(StatementOffered(reply, 0, "1+1", "")) == [Answer(reply)]
    [refusal] = play.on(StatementOffered(reply, 0, "2+2", ""))
    assert isinstance(refusal, Refuse) and isinstance(refusal.error, Conflict) and refusal.error.code == DIVERGED
    [refusal] = play.on(StatementOffered(reply, 1, "2+2", ""))
    assert isinstance(refusal, Refuse) and "one at a time" in str(refusal.error)


@pytest.mark.parametrize(
    "event",
    [
        RemoteShown(IDLE, "j"),
        RemoteStatement(0, RUNNING, "j"),
        RemoteShown(replace(IDLE, name="isl-of-another"), "i"),
        RemoteStatement(0, {**RUNNING, "code": "other"}, "i"),
        failed(FollowRemote(None), FailureKind.LOST),
        failed(FollowStatement(0), FailureKind.LOST),
    ],
    ids=["instance", "instance of a statement", "name", "code", "gone", "statement gone"],
)
def test_what_is_not_the_runs_own_ends_it(event: Any) -> None:
    play = busy()
    assert play.on(event) == [ClearRemote()]
    assert play.run.state == "dead" and "its variables and views are lost" in play.run.reason
    assert play.run.statement is not None and "SessionLost" in play.run.statement.output


def test_the_views_of_inputs_are_made_in_a_stock_livy_before_statements_are_taken() -> None:
    ref = InputRef(owner=HOME, owner_name="o", name="x", snapshot="0" * 64, views=("o__x", "x"))
    play = Play(run_of(JobSpec(kind="session", language="sql", inputs=(ref,))))
    play.on(
        RunResumed(), PlaceGranted("livy"), InputsFetched(("/p",), "", 5), InstanceSeen(""), RemoteCreated(STARTING)
    )
    assert play.on(RemoteShown(IDLE, "")) == [FollowRemote(IDLE), FollowStatement(0)]
    assert (play.phase, play.run.state) == ("preparing", "starting")
    [refusal] = play.on(StatementOffered(Reply(), 0, "SELECT 1", ""))
    assert isinstance(refusal, Refuse) and getattr(refusal.error, "code", "") == "not_ready"
    [post] = play.on(RemoteStatement(0, None, ""))
    assert isinstance(post, PostCode) and "`o__x` AS SELECT * FROM parquet.`/p`" in post.code
    play.on(CodePosted(0, 0))
    assert play.on(RemoteStatement(0, DONE, "")) == [FollowStatement(1)]
    play.on(RemoteStatement(1, None, ""), CodePosted(1, 1), RemoteStatement(1, DONE, ""))
    assert (play.phase, play.run.hidden, play.run.state) == ("running", 2, "idle")
    assert PostCode(2, "SELECT 1", "") in play.on(StatementOffered(Reply(), 0, "SELECT 1", ""))


def test_a_batch_ends_by_itself_with_the_last_line_of_its_log() -> None:
    play = Play(run_of(BATCH))
    play.on(RunResumed(), PlaceGranted("main"), InputsFetched((), "/x.py", 0), InstanceSeen("i"))
    play.on(RemoteCreated(replace(STARTING, state="running")))
    assert play.on(RemoteShown(replace(STARTING, state="dead"), "i")) == [ReadRemoteLog()]
    assert play.on(RemoteLog(("stdout: ", "boom", "\nstderr: "))) == [ClearRemote()]
    assert (play.run.state, play.run.reason) == ("dead", "boom")


def test_disk_errors_are_retried_and_then_given_as_the_reason() -> None:
    play = Play(run_of())
    play.on(RunResumed(), PlaceGranted("main"))
    fetch = FetchInputs("main")
    for _ in range(machine.TRIES - 1):
        [pause] = play.on(failed(fetch, FailureKind.DISK, "Input/output error"))
        assert isinstance(pause, Wait) and pause.name == "fetch"
        play.on(Elapsed("fetch"))
    play.on(failed(fetch, FailureKind.DISK, "Input/output error"))
    assert "10 disk errors at kiso; the last one: Input/output error" in play.run.reason
    assert play.run.code == NOT_STARTED


def test_an_unexpected_exception_of_an_effect_ends_the_run_with_it() -> None:
    play = busy()
    assert play.on(Failed(FollowRemote(None), ValueError("odd"))) == [ClearRemote()]
    assert play.run.reason == "internal error in island at kiso: ValueError: odd"


def test_a_bug_of_the_machine_ends_the_run_and_does_not_stop_the_clearing() -> None:
    step = machine.broken(busy().run, ValueError("\ud800"), Now(0, 0))
    assert step.state.phase == "clearing" and ClearRemote() in step.effects
    assert step.state.reason.isascii() and step.state.statement is not None and step.state.statement.ended
    again = machine.broken(step.state, ValueError("odd"), Now(0, 0))
    assert again.state.phase == "clearing" and isinstance(again.effects[0], Wait)


def test_a_policy_that_forbids_the_home_ends_the_run() -> None:
    play = busy()
    play.on(RunForbidden("jobs.same_user is false"))
    assert (play.run.state, play.run.reason) == ("killed", "kiso no longer runs it: jobs.same_user is false")
    late = Play(run_of())
    late.on(RunResumed(), PlaceGranted("main"), InputsFetched((), "", 0))
    assert late.on(InstanceSeen("i", forbidden="jobs.same_user is false")) == [FreePlace(), CleanUp()]


def test_what_home_sees_has_a_new_version_and_a_hint() -> None:
    play = busy()
    before = play.run.memory.version
    step = machine.handle(play.run, RunNoted("something"), Now(0, 0))
    assert step.state.memory.version == before + 1 and TellHome() in step.effects
    step = machine.handle(step.state, HomeHeard(), Now(0, 5))
    assert step.state.memory.version == before + 1 and not step.effects


# --- random events --------------------------------------------------------------------------------------------------


@dataclass
class ModelSession:
    statements: list[dict[str, Any]] = field(default_factory=list)


class RandomRun(RuleBasedStateMachine):
    """A run beside a model of its engine: effects are performed, fail or lose their answers in any order."""

    work = SESSION

    def __init__(self) -> None:
        super().__init__()
        self.run = run_of(self.work, foreign=True)
        self.pending: dict[str, Effect] = {}
        self.boot, self.instance, self.taken = 0.0, 1, False
        self.sessions: dict[int, ModelSession] = {}
        self.created: list[int] = []
        """The instance of the engine at each creation."""
        self.posted: list[str] = []
        self.number = 0
        self.accepted: set[int] = set()
        self.tell(RunResumed())

    # --- the actor ---

    def tell(self, event: Any) -> None:
        was = self.run.ended
        step = machine.handle(self.run, event, Now(1.8e9, self.boot))
        self.run = step.state
        assert self.run.ended or not was, "an end is final"
        for effect in step.effects:
            self.begin(effect, event)

    def begin(self, effect: Effect, event: Any) -> None:
        match effect:
            case Answer() if isinstance(event, StatementOffered):
                self.accepted.add(event.number)
            case Answer() | TellHome():
                pass
            case Refuse(error=error):
                assert isinstance(error, IslandError)
                assert isinstance(error, Conflict | NotFound)
            case Cancel(of):
                self.drop(of)
            case FreePlace():
                self.taken = False
            case _:
                self.drop(effect.key)
                self.pending[effect.key] = effect

    def drop(self, key: str) -> None:
        """Stop an effect. The engine may have got the request of one that posts code, so it carries it out."""
        effect = self.pending.pop(key, None)
        if isinstance(effect, PostCode):
            self.perform(effect)

    def perform(self, effect: Effect) -> Any:
        """Do an effect at the model, and return its event."""
        session = self.sessions.get(self.run.remote or 0)
        match effect:
            case Wait(name):
                return Elapsed(name)
            case TakePlace():
                self.taken = True
                return PlaceGranted("main")
            case FetchInputs():
                return InputsFetched((), "/x.py", 0)
            case AskInstance():
                return InstanceSeen(str(self.instance))
            case FindRemote():
                return RemoteFound(self.shown(next(iter(self.sessions), None)))
            case CreateRemote():
                assert not self.sessions, "it was not searched before it was created again"
                self.created.append(self.instance)
                self.sessions[len(self.created)] = ModelSession()
                return RemoteCreated(self.shown(len(self.created)) or STARTING)
            case ClearRemote():
                found = bool(self.sessions)
                self.sessions.clear()
                return RemoteCleared(found)
            case CleanUp():
                return RunCleaned()
            case ReadRemoteLog():
                return RemoteLog(())
            case FollowRemote():
                shown = self.shown(self.run.remote)
                return failed(effect, FailureKind.LOST) if shown is None else RemoteShown(shown, str(self.instance))
        return failed(effect, FailureKind.LOST) if session is None else self.perform_statement(effect, session)

    def perform_statement(self, effect: Effect, session: ModelSession) -> Any:
        match effect:
            case PostCode(expected, code):
                session.statements.append({"state": "running", "code": code})
                self.posted.append(code)
                return CodePosted(expected, len(session.statements) - 1)
            case FollowStatement(remote):
                known = remote < len(session.statements)
                return RemoteStatement(remote, session.statements[remote] if known else None, str(self.instance))
            case CancelRemote(remote):
                if remote < len(session.statements):
                    session.statements[remote]["state"] = "cancelled"
                return None
        raise AssertionError(effect)

    def shown(self, remote: int | None) -> RemoteJob | None:
        return RemoteJob(remote, "idle", NAME) if remote in self.sessions and remote is not None else None

    # --- what happens ---

    @property
    def next_keys(self) -> list[str]:
        """The effects that can be performed now: waits only if nothing else can, and the lease is not waited for."""
        unchanged = self.run.remote in self.sessions
        keys = [key for key in self.pending if key != "wait lease" and not (key == "FollowRemote" and unchanged)]
        return sorted(key for key in keys if not key.startswith("wait")) or sorted(keys)

    @initialize(times=st.sampled_from([0, 3, 4, 6, 8]))
    def begun(self, times: int) -> None:
        self.all_goes_well(times)

    @rule(times=st.integers(1, 8))
    def all_goes_well(self, times: int) -> None:
        """Effects are performed, statements end, and home sends the next one."""
        for _ in range(times):
            self.a_statement_ends()
            if keys := self.next_keys:
                self.tell(self.perform(self.pending.pop(keys[0])))
            elif not self.run.ended:
                self.home_sends_a_statement("c", again=False)

    @precondition(lambda self: self.next_keys)
    @rule(data=st.data(), how=st.sampled_from(["done", "answer lost", "answer lost", "not sent", "full", "refused"]))
    def an_effect_is_performed_or_fails(self, data: st.DataObject, how: str) -> None:
        key = data.draw(st.sampled_from(self.next_keys))
        effect = self.pending.pop(key)
        if how == "done" or isinstance(effect, Wait | TakePlace):
            event = self.perform(effect)
        elif how == "answer lost":
            self.perform(effect)
            event = failed(effect, FailureKind.SILENT)
        else:
            kinds = {"not sent": FailureKind.UNREACHABLE, "full": FailureKind.FULL, "refused": FailureKind.REFUSED}
            event = failed(effect, kinds[how])
        if event is not None:
            self.tell(event)

    @rule(code=st.sampled_from(["a", "b"]), again=st.booleans())
    def home_sends_a_statement(self, code: str, again: bool) -> None:
        number = self.number if again else self.number + 1
        self.tell(StatementOffered(Reply(), number, f"{code} {number}", ""))
        if number in self.accepted:
            self.number = number

    def a_statement_ends(self) -> None:
        for session in self.sessions.values():
            for statement in session.statements:
                if statement["state"] == "running":
                    statement.update(state="available", output={"status": "ok", "data": {}})

    @precondition(lambda self: self.run.open_statement)
    @rule()
    def home_cancels(self) -> None:
        self.tell(StatementCancelAsked(Reply(), self.number))

    @rule(seconds=st.sampled_from([1.0, 10.0, 601.0]))
    def time_passes(self, seconds: float) -> None:
        self.boot += seconds
        if seconds < 600 or self.number < 3:
            self.tell(HomeHeard())
        self.tell(Elapsed("lease"))

    @rule(really=st.integers(0, 3))
    def the_engine_is_restarted(self, really: int) -> None:
        if really:
            return  # it happens, but not often
        self.instance += 1
        self.sessions.clear()

    @rule(data=st.data())
    def the_island_is_started_anew(self, data: st.DataObject) -> None:
        for key in sorted(self.pending):
            effect = self.pending[key]
            if not isinstance(effect, Wait | TakePlace) and data.draw(st.booleans()):
                self.perform(effect)  # its answer is lost
        self.pending.clear()
        self.taken = False
        if self.run.finished:
            return
        self.run = replace(self.run, memory=RunMemory(here="kiso", foreign=True))
        self.taken = self.run.needs_place
        self.tell(RunResumed())

    @rule(
        event=st.sampled_from(
            [
                Elapsed("engine"),
                Elapsed("statement"),
                Elapsed("follow"),
                Elapsed("cancel"),
                RemoteLog(()),
                RunNoted("x"),
                CodePosted(9, 9),
                RemoteStatement(99, None, "1"),
            ]
        )
    )
    def something_comes_late(self, event: Any) -> None:
        if isinstance(event, RemoteStatement):
            event = replace(event, instance=self.run.instance)
        self.tell(event)

    @rule(
        end=st.sampled_from([RunStopAsked("owner"), RunForbidden("no"), Failed(FollowRemote(None), ValueError("odd"))]),
        really=st.integers(0, 4),
    )
    def it_is_ended(self, end: Any, really: int) -> None:
        if not really:
            self.tell(end)

    # --- what holds ---

    @invariant()
    def nothing_is_sent_twice(self) -> None:
        assert len(self.posted) == len(set(self.posted)), self.posted
        assert len(self.sessions) <= 1

    @invariant()
    def a_session_has_a_place(self) -> None:
        assert self.taken or not self.sessions

    @invariant()
    def what_is_cleared_is_gone(self) -> None:
        if self.run.finished:
            assert not self.sessions and not self.taken and not self.pending

    @invariant()
    def an_end_leaves_no_open_statement(self) -> None:
        if self.run.ended:
            assert self.run.open_statement is None

    @invariant()
    def something_is_always_under_way(self) -> None:
        if not self.run.finished and not (self.run.phase == "running" and self.run.open_statement is None):
            assert any(key != "wait lease" for key in self.pending), self.run

    def teardown(self) -> None:
        """An end comes to its end, whatever was before."""
        self.tell(RunStopAsked("owner"))
        for _ in range(50):
            if self.pending:
                self.tell(self.perform(self.pending.pop(min(self.pending))))
        assert self.run.finished and not self.sessions and not self.taken


class RandomBatch(RandomRun):
    """The same for a batch, which must never be created again."""

    work = BATCH

    @invariant()
    def a_batch_runs_once(self) -> None:
        assert len(self.created) <= 1


_SETTINGS = settings(max_examples=60, stateful_step_count=50, deadline=None)

TestRandomRun = RandomRun.TestCase
TestRandomRun.settings = _SETTINGS
TestRandomBatch = RandomBatch.TestCase
TestRandomBatch.settings = _SETTINGS
