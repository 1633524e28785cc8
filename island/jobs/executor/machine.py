"""The life of a run at its executor, as a pure machine: place, inputs, submission, statements, end, clearing.

    waiting ─► fetching ─► submitting ─► starting ─► (preparing) ─► running
       ▲           │            │            │             │           │
       └───────────┴── (full) ──┘            ▼             ▼           ▼
                 (any phase)  ────────────► clearing ─────► cleared

The intent of every call that changes something at the engine is stored before the call. After a lost answer or a
restart, the engine is therefore asked first for the session or batch with the run's name, or for the statement with the
expected number, before anything is sent again. A stock Livy may carry out late a request whose answer was lost, so it
does not get this statement or batch a second time. A run has its place from `fetching` until the engine is cleared.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from island.errors import Conflict, NotFound
from island.jobs import core
from island.jobs.engines.port import RemoteJob
from island.jobs.executor import texts
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
from island.jobs.executor.run import PHASES, JobRun, RunStatement, visible
from island.jobs.executor.run_times import timed
from island.jobs.messages import DIVERGED, NOT_STARTED, ResultRef
from island.kernel.machine import Answer, Cancel, Effect, Elapsed, Failed, Now, Refuse, Step, Wait, check_phase
from island.livy.messages import STATEMENT_ENDED

TRIES: Final = 10
"""Consecutive disk errors after which a run ends. Errors of the database are retried without limit."""

ENGINE_TRIES: Final = 3
"""Errors with which an engine answers in a row before the run is given to another engine, or back to its home."""

LEASE_CHECK_S: Final = 60.0
"""Maximum number of seconds between two checks of the lease: timers stop while the computer sleeps."""

SEARCH_AGAIN_S: Final = 5.0
"""Seconds after which the engine is asked a second time for a session or statement whose request was in doubt."""

CLEAR_CAP_S: Final = 300.0
"""Maximum number of seconds between two attempts to clear the engine."""

MAX_NOTES: Final = 150

_ENDING: Final = (
    *(effect.__name__ for effect in (TakePlace, FetchInputs, AskInstance, FindRemote, FollowRemote, ReadRemoteLog)),
    *(CancelRemote.__name__, PostCode.__name__, "statement"),
    *(f"wait {name}" for name in ("lease", "fetch", "engine", "follow", "statement", "cancel")),
)
"""The keys of the effects that are stopped when a run ends."""


def handle(run: JobRun, event: Any, now: Now) -> Step[JobRun]:
    """The next state of a run, and what has to be done. An event that means nothing in the phase changes nothing."""
    if isinstance(event, Failed):
        text = f"{type(event.error).__name__}: {event.error}"
        event = EffectFailed(event.effect, FailureKind.BUG, text)
    step = (_after_end if run.ended else _while_alive)(run, event, now)
    check_phase(PHASES, run.phase, step.state.phase)
    return _told(run, Step(timed(run, step.state, now), step.effects))


def broken(run: JobRun, error: Exception, now: Now) -> Step[JobRun]:
    """The step after an unexpected error of the machine or of the database: the run ends with the reason."""
    if run.ended:
        return _not_cleared(run, f"internal error in island: {type(error).__name__}: {error}", "clear")
    # Its texts may be the reason why the step cannot be stored.
    bare = replace(run, notes=(), log=(), app_info={})
    text = f"{type(error).__name__}: {error}".encode("ascii", "backslashreplace").decode()
    return _told(run, _end_with_bug(bare, text))


def _told(before: JobRun, step: Step[JobRun]) -> Step[JobRun]:
    """The step with a new version of the report, and a hint to home, if the report has changed."""
    run = step.state
    shown = visible(run) != visible(before)
    if not shown and run.log == before.log:
        return step
    run = _remember(run, version=run.memory.version + 1)
    return Step(run, (*step.effects, TellHome()) if shown or run.work.kind == "batch" else step.effects)


def _while_alive(run: JobRun, event: Any, now: Now) -> Step[JobRun]:
    match event:
        case HomeHeard():
            return Step(_remember(run, renewed=now.boot))
        case RunStopAsked():
            return _stopped(run, event)
        case RunForbidden(problem):
            return _end_forbidden(run, problem)
        case RunNoted(text):
            return Step(_noted(run, text))
        case Elapsed(name):
            return _elapsed(run, name, now)
        case EffectFailed():
            return _failed(run, event)
        case StatementOffered():
            return _offered(run, event)
        case StatementCancelAsked():
            return _cancel_asked(run, event)
        case RunResumed(forbidden):
            return _resumed(run, forbidden, now)
        case _:
            return _answered(run, event)


def _answered(run: JobRun, event: Any) -> Step[JobRun]:
    """The step after the result of an effect. A result that the phase does not wait for changes nothing."""
    match event:
        case PlaceGranted(engine) if run.phase == "waiting":
            run = replace(run, phase="fetching", engine=engine, memory=replace(run.memory, failures=0))
            return Step(run, (FetchInputs(engine),))
        case NoPlace(reason) if run.phase == "waiting":
            refused = "; ".join(f"{name}: {text}" for name, text in run.memory.refused.items())
            return _not_started(run, f"the engine refused the job: {refused}" if refused else reason)
        case InputsFetched() if run.phase in ("fetching", "submitting"):
            return _fetched(run, event)
        case InstanceSeen(instance, forbidden):
            return _instance_seen(run, instance, forbidden)
        case RemoteFound(remote) if run.phase == "submitting":
            return _found(run, remote)
        case RemoteCreated(remote) if run.phase == "submitting":
            return _accepted(run, remote)
        case RemoteShown(remote, instance) if run.remote is not None:
            return _shown(run, remote) if instance == run.instance else _lost(run, restarted(run))
        case RemoteLog(lines) if run.memory.ending is not None:
            return _ended_by_itself(replace(run, log=lines or run.log), run.memory.ending)
        case RemoteStatement(instance=instance):
            return _statement_shown(run, event) if instance == run.instance else _lost(run, restarted(run))
        case CodePosted(expected, remote):
            return _posted(run, expected, remote)
        case _:
            return Step(run)


# --- begin, leases and requests --------------------------------------------------------------------------------------


def _resumed(run: JobRun, forbidden: str, now: Now) -> Step[JobRun]:
    """Begin a run that was accepted, or go on with it after a restart. Its lease starts again."""
    # A stored statement may have been posted before the restart, and its request may still be under way.
    run = _remember(run, renewed=now.boot, post_doubt=run.open_statement is not None)
    if forbidden:
        return _end_forbidden(run, forbidden)
    if run.stop:
        return _stopped(run, RunStopAsked(run.stop))
    timers = _lease_timer(run, now)
    if run.phase in ("waiting", "fetching"):
        run = replace(run, phase="waiting", engine=run.engine if run.doubt else "")
        return Step(run, (*timers, TakePlace(run.engine, run.memory.refused)))
    if run.phase == "submitting":
        return Step(replace(run, doubt=True), (*timers, FetchInputs(run.engine, quiet=True)))
    return Step(run, (*timers, AskInstance()))


def _lease_timer(run: JobRun, now: Now) -> tuple[Effect, ...]:
    if not run.memory.foreign:
        return ()
    left = run.lease - (now.boot - run.memory.renewed)
    return (Wait("lease", min(LEASE_CHECK_S, max(left, 0.1))),)


def _elapsed(run: JobRun, name: str, now: Now) -> Step[JobRun]:
    match name:
        case "lease":
            silent = now.boot - run.memory.renewed
            if silent > run.lease:
                return _end(run, "killed", f"its lease expired: its home was silent for {silent:.0f} s")
            return Step(run, _lease_timer(run, now))
        case "fetch" if run.phase in ("fetching", "submitting"):
            return Step(run, (FetchInputs(run.engine, quiet=True),))
        case "engine" if run.phase not in ("waiting", "clearing", "cleared"):
            return Step(run, (AskInstance(),))
        case "follow":
            return Step(run, (FollowRemote(None),))
        case "statement":
            return Step(run, _ask_statement(run))
        case "cancel":
            return _cancelled(run)
        case _:
            return Step(run)


def _stopped(run: JobRun, event: RunStopAsked) -> Step[JobRun]:
    # As in Livy, a stopped session is dead, and a stopped batch is killed.
    state = "killed" if run.work.kind == "batch" else "dead"
    by = f"its owner ({run.user})" if event.by == "owner" else f"the administrator of {run.memory.here}"
    step = _end(run, state, f"ended by {by}")
    return step if event.reply is None else Step(step.state, (*step.effects, Answer(event.reply)))


def _offered(run: JobRun, event: StatementOffered) -> Step[JobRun]:
    """Accept a statement. Repeating the request has no effect."""
    newest = run.statement
    if newest is not None and event.number <= newest.number:
        if (newest.number, newest.code, newest.language) == (event.number, event.code, event.language):
            return Step(run, (Answer(event.reply),))
        return Step(run, (Refuse(event.reply, _diverged(event.number)),))
    if (running := run.open_statement) is not None:
        text = f"statement {running.number} is still running; they are sent one at a time"
        return Step(run, (Refuse(event.reply, Conflict(text)),))
    if run.phase != "running" or run.state != "idle":
        refusal = Conflict(f"the session is {run.state}", code="not_ready")
        return Step(run, (Refuse(event.reply, refusal),))
    fresh = RunStatement(event.number, event.code, event.language, run.next_remote)
    step = _post(_remember(replace(run, statement=fresh), posted=False, cancel_sent=False, failures=0))
    return Step(step.state, (Answer(event.reply), *step.effects))


def _diverged(number: int) -> Conflict:
    return Conflict(
        f"another statement {number} was run in this session",
        hint="This happens if the home of the job was restored from a backup. Open a new session.",
        code=DIVERGED,
    )


def _cancel_asked(run: JobRun, event: StatementCancelAsked) -> Step[JobRun]:
    statement = run.open_statement
    if statement is None or statement.number != event.number:
        return Step(run, (Answer(event.reply),))
    step = _cancelled(replace(run, statement=replace(statement, cancel=True)))
    return Step(step.state, (Answer(event.reply), *step.effects))


def _cancelled(run: JobRun) -> Step[JobRun]:
    """Send the cancel of the current statement, if it is wanted, the engine has the statement, and it was not sent."""
    statement = run.open_statement
    if statement is None or not statement.cancel or not run.memory.posted or run.memory.cancel_sent:
        return Step(run)
    return Step(_remember(run, cancel_sent=True), (CancelRemote(statement.remote),))


# --- submission -----------------------------------------------------------------------------------------------------


def _fetched(run: JobRun, event: InputsFetched) -> Step[JobRun]:
    if run.work.inputs and run.phase == "fetching":
        views = ", ".join(ref.views[-1] for ref in run.work.inputs)
        run = _noted(run, f"inputs are available as views: {views}")
    run = replace(run, moved=max(run.moved, event.moved))
    return Step(_remember(run, paths=event.paths, file=event.file, failures=0), (AskInstance(),))


def _instance_seen(run: JobRun, instance: str, forbidden: str) -> Step[JobRun]:
    if run.phase == "waiting":
        return Step(run)
    if run.phase in ("fetching", "submitting"):
        return _end_forbidden(run, forbidden) if forbidden else _submit(run, instance)
    if instance != run.instance:
        return _lost(run, restarted(run))
    run = _remember(run, failures=0)
    return Step(run, (FollowRemote(None), *(_ask_statement(run) if run.phase != "starting" else ())))


def _submit(run: JobRun, instance: str) -> Step[JobRun]:
    """Store the intent, and start the session or batch; or search for it first, if the engine may have it."""
    if run.doubt:
        # Also an engine that was restarted since may have it: the lost request may have reached the new instance.
        return Step(_remember(replace(run, phase="submitting"), seen=instance), (FindRemote(),))
    return _create(replace(run, phase="submitting", instance=instance))


def _create(run: JobRun) -> Step[JobRun]:
    return Step(_remember(run, creating=True, refusal="", seen=None), (CreateRemote(body(run)),))


def body(run: JobRun) -> dict[str, Any]:
    """Livy's request for the run, with the paths of its inputs in its conf."""
    work = run.work
    conf = {key: value for key, value in work.conf.items() if not key.startswith("spark.island.")}
    conf |= texts.input_conf(zip(work.inputs, run.memory.paths, strict=True))
    shared = {"name": run.name, "conf": conf, **work.resources}
    if work.kind == "session":
        return {"kind": work.language, **shared}
    return {"file": run.memory.file, "args": list(work.args), **shared}


def _found(run: JobRun, remote: RemoteJob | None) -> Step[JobRun]:
    """Go on after the search for the run's name at the engine."""
    seen = run.instance if run.memory.seen is None else run.memory.seen
    if remote is not None:
        return _accepted(replace(run, instance=seen), remote)
    if run.memory.refusal:
        return _refused(run)
    if seen != run.instance:
        # A session in which nothing has run can be started again without loss. A batch may have run.
        if run.work.kind == "batch":
            return _lost(run, "the engine was restarted while the batch was being submitted")
        return _create(replace(run, instance=seen))
    if not run.instance and run.work.kind == "batch":
        return _end(
            run,
            "dead",
            "Livy's answer was lost and Livy no longer shows the batch; it is unknown whether the batch ran",
        )
    return _create(run)


def _refused(run: JobRun) -> Step[JobRun]:
    """The engine has refused the run, and does not have it: wait for a place there, or try another engine."""
    memory, bound = run.memory, run.engine if run.doubt else ""
    if not memory.full and run.doubt:
        return _end(run, "dead", f"the engine refused the job: {memory.refusal}")
    refused = memory.refused if memory.full else {**memory.refused, run.engine: memory.refusal}
    if memory.full:
        run = _noted(run, f"the engine {run.engine} has no place now ({memory.refusal}); waiting for one")
    run = replace(run, phase="waiting", engine=bound, instance=run.instance if bound else "")
    run = _remember(run, refused=refused, refusal="", full=False)
    return Step(run, (FreePlace(full=memory.full), TakePlace(bound, refused)))


def _accepted(run: JobRun, remote: RemoteJob) -> Step[JobRun]:
    run = replace(run, phase="starting", remote=remote.id, doubt=False)
    run = _remember(run, creating=False, refusal="", failures=0)
    return _shown(_noted(run, f"Spark is starting at {run.memory.here}"), remote)


# --- the session or batch --------------------------------------------------------------------------------------------


def _shown(run: JobRun, remote: RemoteJob) -> Step[JobRun]:
    """Take over what the engine shows of the session or batch."""
    if remote.name not in ("", run.name):
        return _lost(run, f"the engine at {run.memory.here} shows another {run.work.kind} under its id")
    run = replace(run, log=tuple(remote.log) or run.log, app_id=remote.app_id, app_info=remote.app_info)
    run = _remember(run, last=remote, follow_failures=0)
    if core.has_ended(remote.state):
        return Step(_remember(run, ending=remote), (ReadRemoteLog(),))
    if run.work.kind == "batch":
        return Step(replace(run, phase="running", state=remote.state), (FollowRemote(remote),))
    ready = remote.state in ("idle", "busy")
    more: tuple[Effect, ...] = ()
    if ready and run.phase == "starting":
        run = _remember(replace(run, phase="preparing" if run.prepares else "running"), posted=False, failures=0)
        more = _ask_statement(run)
    if run.phase == "running":
        run = replace(run, state="idle" if ready else remote.state)
    elif run.phase == "starting":
        run = replace(run, state=remote.state)
    return Step(run, (FollowRemote(remote), *more))


def _ended_by_itself(run: JobRun, remote: RemoteJob) -> Step[JobRun]:
    reason = "" if remote.state == "success" else texts.last_line(run.log) or f"the {run.work.kind} ended by itself"
    return _end(run, remote.state, reason)


# --- statements: those of the user, and those that create the views of inputs ---------------------------------------


def _current(run: JobRun) -> tuple[int, str, str] | None:
    """The statement that the engine must run now: its number there, code and language."""
    if run.phase == "preparing":
        views = texts.view_statements(run.work.inputs, run.memory.paths)
        return run.memory.view, views[run.memory.view], "sql"
    statement = run.open_statement
    if run.phase != "running" or statement is None:
        return None
    return statement.remote, statement.code, statement.language


def _ask_statement(run: JobRun) -> tuple[Effect, ...]:
    """Ask the engine whether it has the current statement: it may have been posted before a restart."""
    if run.phase == "preparing" and not run.memory.paths:
        return (FetchInputs(run.engine, quiet=True),)  # after a restart
    current = _current(run)
    if current is None or run.memory.posting:
        return ()  # the answer to the request that is under way says it
    return (FollowStatement(current[0]),)


def _post(run: JobRun) -> Step[JobRun]:
    """Post the current statement."""
    current = _current(run)
    assert current is not None
    return Step(
        _remember(run, posting=True, post_doubt=False, post_lost=False, looked_again=False), (PostCode(*current),)
    )


def _not_there(run: JobRun) -> Step[JobRun]:
    """The engine does not have the current statement: post it, unless an earlier request may still bring it."""
    if run.memory.posting:
        return Step(run)
    if run.memory.posted:
        return _lost(run, "the engine no longer knows the statement that was running")
    if run.memory.post_doubt and not run.memory.looked_again:
        return Step(_remember(run, looked_again=True), (Wait("statement", SEARCH_AGAIN_S),))
    if run.memory.post_lost and run.phase == "running" and not run.instance:
        text = (
            "Livy's answer to the statement was lost and Livy does not show the statement; it is unknown whether it"
            " ran. Check its effects before you run it again."
        )
        return _without_number(run, core.error_output("StatementUnknown", text))
    return _post(run)


def _statement_shown(run: JobRun, event: RemoteStatement) -> Step[JobRun]:
    current, remote, view = _current(run), event.remote, event.view
    if current is None or current[0] != remote:
        return Step(run)
    if view is None:
        return _not_there(run)
    code = current[1]
    if view.get("code", code) != code:
        # A database that was restored from a backup may expect a number that the engine has given to later code.
        restored = f"{run.memory.here} was probably restored from a backup"
        return _lost(run, f"the engine has other code as its statement {remote}; {restored}")
    run = _remember(run, posted=True, failures=0)
    if view.get("state") in STATEMENT_ENDED:
        return _view_made(run, view) if run.phase == "preparing" else _result(run, view, event.result)
    step = _progressed(run, view) if run.phase == "running" else Step(run)
    return Step(step.state, (FollowStatement(remote, view), *step.effects))


def _progressed(run: JobRun, view: Mapping[str, Any]) -> Step[JobRun]:
    assert run.statement is not None
    statement = replace(
        run.statement,
        state=str(view.get("state", "running")),
        progress=float(view.get("progress", 0.0)),
        started=int(view.get("started", 0)),
    )
    return _cancelled(replace(run, statement=statement))


def _result(run: JobRun, view: Mapping[str, Any], result: ResultRef | None) -> Step[JobRun]:
    assert run.statement is not None
    output = view.get("output")
    text = "" if output is None else core.compact_json(output)
    started, completed = int(view.get("started", 0)), int(view.get("completed", 0))
    statement = replace(run.statement, result=result, started=started, completed=completed)
    return _finished_statement(replace(run, statement=statement), str(view["state"]), text)


def _finished_statement(run: JobRun, state: str, output: str) -> Step[JobRun]:
    assert run.statement is not None
    done = replace(run.statement, state=state, output=output)
    return Step(replace(run, statement=done), (Cancel(CancelRemote.__name__), Cancel("wait cancel")))


def _without_number(run: JobRun, output: str) -> Step[JobRun]:
    """End a statement to which the engine gave no number: the next one gets the number that was expected for it."""
    assert run.statement is not None
    run = replace(run, statement=replace(run.statement, remote=run.statement.remote - 1))
    return _finished_statement(run, "error", output)


def _view_made(run: JobRun, view: Mapping[str, Any]) -> Step[JobRun]:
    """Go on with the next view of an input, or with the statements of the user."""
    output = view.get("output") or {}
    if output.get("status") == "error":
        return _end(run, "dead", f"the view of an input could not be created: {output.get('evalue', '')}"[:1000])
    made = run.memory.view + 1
    run = _remember(run, view=made, posted=False, post_doubt=False, post_lost=False, looked_again=False)
    if made == len(texts.view_statements(run.work.inputs, run.memory.paths)):
        run = replace(run, phase="running", hidden=made, state="idle")
    return Step(run, _ask_statement(run))


def _posted(run: JobRun, expected: int, remote: int) -> Step[JobRun]:
    """The engine has the current statement, perhaps under another number than was expected."""
    current = _current(run)
    if current is None or current[0] != expected:
        return Step(run)
    if run.phase == "preparing" and remote != expected:
        return _lost(run, f"the engine has statements in the session that {run.memory.here} did not send")
    if run.phase == "running":
        assert run.statement is not None
        run = replace(run, statement=replace(run.statement, remote=remote))
    step = _cancelled(_remember(run, posted=True, posting=False, failures=0))
    return Step(step.state, (FollowStatement(remote), *step.effects))


# --- failures -------------------------------------------------------------------------------------------------------


def _failed(run: JobRun, event: EffectFailed) -> Step[JobRun]:
    if isinstance(event.effect, CreateRemote):
        run = _remember(run, creating=False)
    if isinstance(event.effect, CancelRemote):
        # The statement goes on until the engine has cancelled it, or it ends by itself.
        run = _remember(run, cancel_sent=False, failures=run.memory.failures + 1)
        return Step(run, (_pause(run, "cancel", run.memory.failures),))
    if isinstance(event.effect, ReadRemoteLog) and run.memory.ending is not None:
        return _ended_by_itself(run, run.memory.ending)
    if event.kind is FailureKind.BUG:
        return _end_with_bug(run, event.text)
    match event.effect:
        case FetchInputs() if run.phase in ("fetching", "submitting", "preparing"):
            return _not_fetched(run, event)
        case AskInstance() | FindRemote() | CreateRemote() if run.phase in ("fetching", "submitting"):
            return _not_submitted(run, event)
        case AskInstance() if run.phase != "waiting":
            return _retried(run, event.text, "engine")
        case FollowRemote():
            return _not_followed(run, event)
        case FollowStatement() | PostCode():
            return _statement_failed(run, event)
        case _:
            return Step(run)


def _not_fetched(run: JobRun, event: EffectFailed) -> Step[JobRun]:
    if event.kind not in (FailureKind.DATABASE, FailureKind.DISK):
        return _not_started(run, event.text)
    if event.kind is FailureKind.DISK and run.memory.failures + 1 >= TRIES:
        return _not_started(run, f"{TRIES} disk errors at {run.memory.here}; the last one: {event.text}")
    if run.memory.failures == 0:
        run = _noted(run, f"disk error: {event.text}; retrying")
    run = _remember(run, failures=run.memory.failures + 1)
    return Step(run, (_pause(run, "fetch", run.memory.failures),))


def _not_submitted(run: JobRun, event: EffectFailed) -> Step[JobRun]:
    refused = event.kind in (FailureKind.FULL, FailureKind.REFUSED, FailureKind.ERROR)
    if isinstance(event.effect, CreateRemote):
        if refused:
            # An earlier attempt, whose answer was lost, may have succeeded since: then the name is taken by this run.
            run = _remember(run, refusal=event.text or "it did not say why", full=event.kind is FailureKind.FULL)
            return Step(run, (FindRemote(),))
        if event.kind is not FailureKind.UNREACHABLE:
            run = replace(run, doubt=True)
    elif refused and not run.doubt and run.phase == "fetching" and run.memory.failures + 1 >= ENGINE_TRIES:
        run = _remember(run, refusal=event.text, full=event.kind is FailureKind.FULL)
        return _refused(run)
    return _retried(run, event.text, "engine")


def _retried(run: JobRun, text: str, timer: str) -> Step[JobRun]:
    """Try again after a pause, because the engine gave no answer."""
    run = _remember(_silent(run, text), failures=run.memory.failures + 1)
    return Step(run, (_pause(run, timer, run.memory.failures),))


def _not_followed(run: JobRun, event: EffectFailed) -> Step[JobRun]:
    if event.kind is FailureKind.LOST:
        return _lost(run, event.text)
    run = _remember(_silent(run, event.text), follow_failures=run.memory.follow_failures + 1)
    return Step(run, (_pause(run, "follow", run.memory.follow_failures),))


def _statement_failed(run: JobRun, event: EffectFailed) -> Step[JobRun]:
    if isinstance(event.effect, PostCode):
        lost = _may_have_begun(event)
        run = _remember(run, posting=False, post_doubt=lost, post_lost=lost)
    if event.kind is FailureKind.LOST:
        return _lost(run, event.text)
    if _current(run) is None:
        return Step(run)
    if event.kind in (FailureKind.DATABASE, FailureKind.DISK):
        return _not_kept(run, event)
    if event.kind is FailureKind.REFUSED and isinstance(event.effect, PostCode):
        if run.phase == "preparing":
            return _end(run, "dead", f"the view of an input could not be created: {event.text}"[:1000])
        return _without_number(run, core.error_output("Refused", event.text))
    run = _remember(_silent(run, event.text), failures=run.memory.failures + 1)
    return Step(run, (_pause(run, "statement", run.memory.failures, base=0.2, cap=5.0),))


def _may_have_begun(event: EffectFailed) -> bool:
    """Whether the engine may still run a statement although its request failed."""
    if event.kind is FailureKind.ERROR:
        # Livy refuses a statement of a session that is not ready. Other errors may come from a proxy before Livy.
        return "Session is in state" not in event.text
    return event.kind is FailureKind.SILENT


def _not_kept(run: JobRun, event: EffectFailed) -> Step[JobRun]:
    """Ask the engine for the result again after a pause: this island's disk could not take it."""
    if run.memory.failures == 0:
        run = _noted(run, f"the result cannot be stored: {event.text}; retrying")
    run = _remember(run, failures=run.memory.failures + 1)
    return Step(run, (_pause(run, "statement", run.memory.failures, cap=5.0),))


# --- the end --------------------------------------------------------------------------------------------------------


def restarted(run: JobRun) -> str:
    """The reason why a run is lost whose engine has another instance id."""
    return f"the engine at {run.memory.here} was restarted, which ended its Spark sessions"


def _lost(run: JobRun, text: str) -> Step[JobRun]:
    return _end(run, "dead", f"{text}; its variables and views are lost, finished results are kept")


def _not_started(run: JobRun, reason: str) -> Step[JobRun]:
    """End a run that no engine has accepted, unless an answer of the engine was lost."""
    certain = not run.doubt and run.phase in ("waiting", "fetching")
    return _end(run, "dead", reason, NOT_STARTED if certain else "")


def _end_forbidden(run: JobRun, problem: str) -> Step[JobRun]:
    return _end(run, "killed", f"{run.memory.here} no longer runs it: {problem}")


def _end_with_bug(run: JobRun, text: str) -> Step[JobRun]:
    return _end(run, "dead", f"internal error in island at {run.memory.here}: {text}")


def _end(run: JobRun, state: str, reason: str, code: str = "") -> Step[JobRun]:
    """End a run for its home, together with its statement; then clear the engine, if it may have something of it."""
    if reason:
        run = _noted(run, f"{run.work.kind} {state}: {reason}")
    untouched = not run.doubt and run.phase in ("waiting", "fetching")
    run = replace(
        run,
        phase="clearing",
        state=state,
        reason=_storable(reason)[:4000],
        code=code,
        statement=_last_statement(run, reason),
        engine="" if untouched else run.engine,
    )
    stops = tuple(Cancel(key) for key in _ENDING)
    return Step(run, (*stops, *_clearing(run)))


def _last_statement(run: JobRun, reason: str) -> RunStatement | None:
    statement = run.open_statement
    if statement is None:
        return run.statement
    # An accepted statement counts as running, because it may have been posted.
    report = replace(statement, state="running" if statement.state == "waiting" else statement.state).report()
    last = core.lost_statement(report, _storable(reason))
    return replace(statement, state=last.state, output=last.output)


def _clearing(run: JobRun) -> tuple[Effect, ...]:
    """What is left to do for a run that has ended."""
    if run.memory.creating:
        return ()  # the engine is about to answer whether it has it
    return (ClearRemote(),) if run.engine else (FreePlace(), CleanUp())


def _after_end(run: JobRun, event: Any, now: Now) -> Step[JobRun]:
    match event:
        case PlaceGranted():
            return Step(run, (FreePlace(),))
        case RunStopAsked(reply=reply) | StatementCancelAsked(reply=reply):
            return Step(run, () if reply is None else (Answer(reply),))
        case StatementOffered(reply=reply):
            return Step(run, (Refuse(reply, NotFound(f"the run of {run.job} has ended: {run.reason}")),))
        case _:
            return Step(run) if run.finished else _while_clearing(run, event)


def _while_clearing(run: JobRun, event: Any) -> Step[JobRun]:
    match event:
        case RunResumed() | Elapsed("clear"):
            return Step(run, _clearing(run))
        case RemoteCreated(remote) if run.memory.creating:
            run = _remember(replace(run, remote=remote.id), creating=False)
            return Step(run, _clearing(run))
        case EffectFailed(effect=CreateRemote()) if run.memory.creating:
            run = _remember(run, creating=False)
            return Step(run, _clearing(run))
        case RemoteCleared(found):
            return _cleared(run, found)
        case EffectFailed(effect=ClearRemote(), text=text):
            return _not_cleared(run, text, "clear")
        case EffectFailed(effect=CleanUp(), text=text):
            return _not_cleared(run, text, "clean")
        case Elapsed("clean"):
            return Step(run, (CleanUp(),))
        case RunCleaned():
            return Step(replace(_remember(run, problem=""), phase="cleared"))
        case _:
            return Step(run)


def _cleared(run: JobRun, found: bool) -> Step[JobRun]:
    if run.remote is None and not found and not run.memory.searched:
        # A request whose answer was lost may still be carried out.
        return Step(_remember(run, searched=True), (Wait("clear", SEARCH_AGAIN_S),))
    return Step(_remember(run, problem=""), (FreePlace(), CleanUp()))


def _not_cleared(run: JobRun, text: str, timer: str) -> Step[JobRun]:
    """Try again later, for as long as it takes: until then the run keeps its place."""
    run = _remember(run, clear_failures=run.memory.clear_failures + 1, problem=_storable(text))
    return Step(run, (_pause(run, timer, run.memory.clear_failures, cap=CLEAR_CAP_S),))


# --- small parts ----------------------------------------------------------------------------------------------------


def _remember(run: JobRun, **changes: Any) -> JobRun:
    return replace(run, memory=replace(run.memory, **changes))


def _storable(text: str) -> str:
    """The text without lone surrogates, which neither SQLite nor messages can hold."""
    return text.encode("utf-8", "replace").decode()


def _noted(run: JobRun, text: str) -> JobRun:
    """The run with a line for its owner."""
    if len(run.notes) >= MAX_NOTES:
        return run
    return replace(run, notes=(*run.notes, _storable(f"{run.memory.here}: {text}")[:4000]))


def _silent(run: JobRun, text: str) -> JobRun:
    """The run with a line that its engine does not answer, unless that is its last line."""
    line = f"the engine does not answer: {text}"
    return run if run.notes[-1:] == (_storable(f"{run.memory.here}: {line}")[:4000],) else _noted(run, line)


def _pause(run: JobRun, timer: str, failures: int, *, base: float = 0.5, cap: float = 15.0) -> Wait:
    """A pause after failures: exponential, capped. Half of it is the same for all runs, the rest is the run's own."""
    ceiling = min(cap, base * 2.0 ** min(max(failures, 1) - 1, 30))
    own = zlib.crc32(run.name.encode()) / 2**32
    return Wait(timer, ceiling * (0.5 + 0.5 * own))
