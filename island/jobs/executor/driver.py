"""The life cycle of a run at its executor: inputs, submission, statements, end.

The intent of every call that changes something at the engine is stored before the call. After
a crash the run therefore finds the same session and the same statement again: before anything
is sent a second time, the engine is asked for the session or batch with the run's name, or for
the statement with the expected number.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from island.errors import BadInput, EngineFailed, IslandError
from island.jobs import batch_files, core
from island.jobs.dependencies import JobsDependencies
from island.jobs.engines.livy_engine import EngineLost, RemoteJob
from island.jobs.executor import store as run_store
from island.jobs.executor import texts
from island.jobs.executor.store import JobRun, RunStatement
from island.jobs.messages import (
    InputRef,
    StatementReport,
)
from island.kernel.ids import DatasetName, IslandId
from island.kernel.loops import Tasks, backoff, is_database, is_transient
from island.kernel.ports import Signal, Topic
from island.kernel.units import format_bytes
from island.kernel.work import to_the_end
from island.livy.conf import PATH_PREFIX
from island.livy.messages import STATEMENT_ENDED

log = structlog.get_logger("island")

CLEARS = 8
"""Maximum number of attempts to end a session or batch at the engine after its run has ended."""

TRIES = 10
"""Consecutive disk errors after which a run fails. Database errors are retried without limit."""

_QUIET_S = 300.0
"""Seconds without an error after which the count of consecutive disk errors starts again."""

_POLL_FAST, _POLL_SLOW, _POLL_IDLE = 0.004, 0.5, 3.0


@dataclass(slots=True)
class LiveRun:
    """A run that has not ended, with the state that is kept in memory only."""

    run: JobRun
    version: int
    renewed: float
    """Time of the last request of its home, in seconds since the machine was started (boottime)."""
    next_remote: int = 0
    current: RunStatement | None = None
    last_number: int = -1
    signal: Signal = field(default_factory=Signal)
    accepting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a statement is being accepted, until it is stored."""
    adopted: bool = False
    """The current statement was loaded from the database, so it may have been posted already."""
    cancel_sent: bool = False
    placed: bool = False
    """Whether the run has one of the engine's places."""
    progress_noted: float = -1e9
    """Monotonic time of the last notification of home about progress only."""
    evicted: bool = False
    """Ended by this island's administrator, not by its owner."""
    forbidden: bool = False
    """A request of its home was refused by the policy of this island, so the run has to end."""
    ending: bool = False
    """The end is being stored: no more statements are accepted."""

    def take_up(self, statements: Sequence[RunStatement]) -> None:
        """Continue from the stored statements. The last one may have been posted already."""
        if statements:
            self.last_number, self.next_remote = statements[-1].number, statements[-1].remote + 1
            self.current = None if statements[-1].ended else statements[-1]
            self.adopted = self.current is not None


class RunEnded(Exception):
    """Raised when a run has ended, with its last state and the reason."""

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(reason)
        self.state, self.reason = state, reason


class RunDriver:
    """Runs the jobs of this executor at one engine."""

    def __init__(
        self,
        needs: JobsDependencies,
        *,
        changed: Callable[[IslandId, str, int], None],
        policy: Callable[[IslandId, str], str],
        account: Callable[[JobRun], str | None],
    ) -> None:
        """`policy(home, user)` is the reason why this island does not run jobs of a user of `home` now, or "".

        `account(run)` is the local account under which the site's own Livy runs a job, or None.
        """
        self._account = account
        self._state, self._catalog, self._inputs = needs.state, needs.catalog, needs.inputs
        self._trust, self._config, self._engine, self._policy = needs.trust, needs.config, needs.livy, policy
        self._clock, self._rng, self._folder, self._changed = needs.clock, needs.rng, needs.home / "jobs", changed
        self._workers = needs.workers
        self.live: dict[tuple[str, int], LiveRun] = {}
        """The runs that have not ended, by job and epoch, in the order in which they were accepted."""
        self.places = Topic()
        """Touched when a place may have become free."""
        self._tasks: Tasks | None = None

    async def start(self, tasks: Tasks) -> None:
        """Resume every run that has not ended, and clear up after runs that have."""
        self._tasks = tasks
        uncleared = await self._state.read(run_store.uncleared)
        for run in await self._state.read(run_store.unended):
            statements = await self._state.read(partial(run_store.statements, job=run.job, epoch=run.epoch))
            self.begin(run).take_up(statements)
        for run in uncleared:  # after `live` is complete, because inputs of live runs are not released
            tasks.spawn(f"clear {run.job} {run.epoch}", self._clear(run))

    def run_folder(self, job: str, epoch: int) -> Path:
        """The folder to which the file of a batch is written."""
        return self._folder / f"{job.partition('.')[0]}-{epoch}"

    def begin(self, run: JobRun) -> LiveRun:
        """Start the driver of a stored run."""
        assert self._tasks is not None
        live = LiveRun(run, int(self._clock.wall() * 1000), self._clock.boottime(), next_remote=run.hidden)
        self.live[run.job, run.epoch] = live
        self._tasks.spawn(f"run {run.job} {run.epoch}", self._carry(live))
        return live

    def stop(self, live: LiveRun, *, evicted: bool = False) -> None:
        """End a run after its `stop` was stored; `evicted`: at the request of this island's administrator."""
        live.run.stop, live.evicted = True, live.evicted or evicted
        self.stir(live)

    def stir(self, live: LiveRun) -> None:
        """Wake the driver of a run after a request of its owner or of the administrator."""
        live.signal.set()
        self.places.touch()

    async def _carry(self, live: LiveRun) -> None:
        """Drive a run to its end. After a disk error the run is reloaded from the database, as after a crash."""
        failures, failed_at = 0, 0.0
        while True:
            try:
                if failures:
                    await self._reload(live)
                await self._live_through(live)
            except Exception as error:  # noqa: BLE001 - after any error the run must get an end
                now = self._clock.monotonic()
                failures, failed_at = 1 if now - failed_at > _QUIET_S else failures + 1, now
                if not is_transient(error) or (failures >= TRIES and not is_database(error)):
                    await self._end(live, *self._verdict(live, error))
                    return
                log.warning("jobs.run_retry", job=live.run.job, error=str(error), failures=failures)
                if failures == 1:
                    self._note(live, f"disk error: {error}; retrying")
                await asyncio.sleep(backoff(failures, self._rng))

    def _verdict(self, live: LiveRun, error: Exception) -> tuple[str, str]:
        """The last state of a run that `error` ended, and the reason as text."""
        if isinstance(error, RunEnded):
            return error.state, error.reason
        if isinstance(error, EngineLost):
            return "dead", f"{error.message}; its variables and views are lost, finished results are kept"
        if isinstance(error, BadInput):
            return "dead", f"the engine refused the job: {error.message}"
        if isinstance(error, IslandError):
            return "dead", error.line
        if is_transient(error):
            return "dead", f"{TRIES} disk errors at {self._trust.name}; the last one: {error}"
        log.error("jobs.run_bug", job=live.run.job, epoch=live.run.epoch, exc_info=error)
        return "dead", f"internal error in island at {self._trust.name}: {type(error).__name__}: {error}"

    async def _reload(self, live: LiveRun) -> None:
        """Replace the state in memory by the rows of the database, because changes may not have been stored."""
        job, epoch = live.run.job, live.run.epoch
        async with live.accepting:
            run, statements = await self._state.read(
                lambda conn: (run_store.get(conn, job, epoch), run_store.statements(conn, job, epoch))
            )
            if run is None:
                raise RunEnded("dead", "its row is missing in the database")
            run.stop, run.notes, run.log = run.stop or live.run.stop, live.run.notes, live.run.log
            live.run, live.cancel_sent, live.next_remote = run, False, run.hidden
            live.current, live.adopted, live.last_number = None, False, -1
            live.take_up(statements)
        if run.step == "accepted" and live.placed:
            live.placed = False
            self.places.touch()

    async def _live_through(self, live: LiveRun) -> None:
        self._check_policy(live)
        if live.run.step == "accepted":
            await self._take_place(live)
        live.placed = True
        if live.run.step in ("accepted", "submitting"):
            body = await self._body(live)
            await self._submit(live, body)
        await self._check_instance(live)
        if live.run.work.kind == "batch":
            await self._follow_batch(live)
        else:
            await self._serve_session(live)

    async def _take_place(self, live: LiveRun) -> None:
        noted = False
        while True:
            self._check_stop(live)
            version = self.places.version
            limit = self._config.livy.max_sessions
            if sum(1 for other in self.live.values() if other.placed) < limit and live is next(
                other for other in self.live.values() if not other.placed
            ):
                live.placed = True
                self.places.touch()
                return
            if not noted:
                noted = True
                self._note(live, f"waiting for a place: {limit} of {limit} are taken (livy.max_sessions)")
            await self.places.after(version, timeout=30.0)

    async def _body(self, live: LiveRun) -> dict[str, Any]:
        """Fetch and verify all inputs, and return Livy's request with their paths in its conf."""
        run, work = live.run, live.run.work
        paths = []
        moved = 0
        for ref in work.inputs:
            self._check_stop(live)
            resolved = await self._catalog.resolve(DatasetName(ref.owner, ref.name, ref.snapshot))
            missing = await self._inputs.missing(resolved)
            if missing:
                self._note(live, f"fetching {format_bytes(missing)} of {ref}")
            local = await self._inputs.materialise(resolved, self._progress(live, ref))
            if missing:
                moved += missing
                self._note(live, f"{ref} is complete: {format_bytes(missing)} fetched and verified")
            paths.append((ref, local.path))
        live.run.moved = max(live.run.moved, moved)
        if work.inputs and live.run.step == "accepted":
            views = ", ".join(ref.views[-1] for ref in work.inputs)
            self._note(live, f"inputs are available as views: {views}")
        conf = {key: value for key, value in work.conf.items() if not key.startswith("spark.island.")}
        conf |= texts.input_conf(paths)
        body: dict[str, Any] = {"name": run.name, "conf": conf, **work.resources}
        if self._config.livy.url and (account := self._account(run)) is not None:
            body["proxyUser"] = account
        if work.kind == "session":
            return {"kind": work.language, **body}
        file = await self._place_file(run)
        return {"file": str(file), "args": list(work.args), **body}

    async def _place_file(self, run: JobRun) -> Path:
        """Write the file of a batch to a folder of its own, where the engine can read it."""
        data = await self._state.read(lambda conn: batch_files.read(conn, run.work.file_hash))
        path = self.run_folder(run.job, run.epoch) / run.work.file_name
        await to_the_end(self._workers.disk(_place, path, data))
        return path

    def _progress(self, live: LiveRun, ref: InputRef) -> Callable[[int, int, str], None]:
        def progress(done: int, total: int, what: str) -> None:
            now = self._clock.monotonic()
            if now - live.progress_noted >= 2.0 and done < total:
                live.progress_noted = now
                self._note(live, f"{ref}: {format_bytes(done)} of {format_bytes(total)} ({what})")

        return progress

    async def _submit(self, live: LiveRun, body: Mapping[str, Any]) -> None:
        """Create the session or batch once. If the answer is lost, look for it by its name before another attempt."""
        run = live.run
        assert self._engine is not None
        failures = 0
        while True:
            self._check_stop(live)
            self._check_policy(live)
            try:
                instance = await self._engine.instance()
                remote = await self._adopted(live, instance)
                if remote is None:
                    run.step, run.engine = "submitting", instance
                    await self.save(live)
                    remote = await self._create(live, body)
                break
            except EngineLost:
                raise
            except EngineFailed as error:
                failures += 1
                if failures == 1:
                    self._note(live, f"the engine does not answer ({error.message}); retrying")
                await live.signal.wait(backoff(failures, self._rng))
        run.step, run.remote = "running", remote.id
        self._note(live, f"Spark is starting at {self._trust.name}")
        await self.save(live)

    async def _create(self, live: LiveRun, body: Mapping[str, Any]) -> RemoteJob:
        assert self._engine is not None
        kind = live.run.work.kind
        try:
            return await self._engine.create(kind, body)
        except BadInput:
            # An earlier attempt, whose answer was lost, may have succeeded since: then the name is taken by this run.
            if (found := await self._engine.find(kind, live.run.name)) is not None:
                return found
            raise

    async def _adopted(self, live: LiveRun, instance: str) -> RemoteJob | None:
        """The session or batch that an earlier attempt, whose answer was lost, has started; None if there is none."""
        run = live.run
        if run.step != "submitting":
            return None
        assert self._engine is not None
        if instance != run.engine:
            # A session in which nothing has run can be started again without loss. A batch may have run.
            if run.work.kind == "batch":
                raise EngineLost("the engine was restarted while the batch was being submitted")
            return None
        if (found := await self._engine.find(run.work.kind, run.name)) is not None:
            return found
        if not instance and run.work.kind == "batch":
            raise RunEnded(
                "dead",
                "Livy's answer was lost and Livy no longer shows the batch; it is unknown whether the batch ran",
            )
        return None

    async def _check_instance(self, live: LiveRun) -> None:
        run = live.run
        assert self._engine is not None
        failures = 0
        while True:
            try:
                instance = await self._engine.instance()
                break
            except EngineFailed:
                failures += 1
                await live.signal.wait(backoff(failures, self._rng))
                self._check_stop_silent(live)
        if instance != run.engine:
            raise EngineLost(f"the engine at {self._trust.name} was restarted, which ended its Spark sessions")

    async def _serve_session(self, live: LiveRun) -> None:
        run = live.run
        wait = 0.05
        while run.state not in ("idle", "busy"):
            await self._look(live)
            if run.state not in ("idle", "busy"):
                await live.signal.wait(wait)
                wait = min(wait * 1.3, 0.5)
        if not run.engine and run.work.inputs and not run.hidden:
            await self._preamble(live)
        run.state = "idle"
        await self._save_and_notify(live)
        while True:
            if live.current is not None:
                await self._run_statement(live)
            else:
                await self._look(live)
                if live.current is None:
                    await live.signal.wait(_POLL_IDLE * (0.75 + 0.5 * self._rng.random()))

    async def _look(self, live: LiveRun) -> None:
        """Handle stop and lease, request the state of the session or batch, and notify home of changes."""
        run = live.run
        assert self._engine is not None and run.remote is not None
        self._check_stop(live)
        self._check_lease(live)
        try:
            remote = await self._engine.show(run.work.kind, run.remote)
        except EngineLost:
            raise
        except EngineFailed as error:
            self._silent(live, error)
            return
        self._verify_instance(live)
        if remote.log and remote.log != run.log:
            run.log = remote.log
            live.version += 1
            if run.work.kind == "batch" and self._clock.monotonic() - live.progress_noted >= 1.0:
                live.progress_noted = self._clock.monotonic()
                self._changed(IslandId(run.home), run.job, run.epoch)
        before = (run.state, run.app_id, run.app_info)
        state = remote.state if remote.state != "busy" or run.work.kind == "batch" else "idle"
        if core.has_ended(remote.state):
            run.log = await self._last_log(live) or run.log
            reason = "" if remote.state == "success" else _last_line(run.log) or f"the {run.work.kind} ended by itself"
            raise RunEnded(remote.state, reason)
        if run.work.kind == "session" and run.state == "starting" and state == "idle":
            state = "starting" if not run.engine and run.work.inputs and not run.hidden else "idle"
            if state == "starting":
                run.state = "busy"  # the engine is ready, but the views of the inputs must be created first
                return
        run.state, run.app_id, run.app_info = state, remote.app_id, remote.app_info
        if before != (run.state, run.app_id, run.app_info):
            await self._save_and_notify(live)

    async def _last_log(self, live: LiveRun) -> list[str]:
        run = live.run
        assert self._engine is not None and run.remote is not None
        try:
            return await self._engine.log(run.work.kind, run.remote)
        except EngineFailed:
            return []  # the short log of the last answer is kept

    def _silent(self, live: LiveRun, error: EngineFailed) -> None:
        if live.run.notes[-1:] != [text := f"the engine does not answer: {error.message}"]:
            self._note(live, text)

    async def _preamble(self, live: LiveRun) -> None:
        """Create the views of the inputs in a stock Livy, with statements that run before the user's first one."""
        run = live.run
        assert self._engine is not None and run.remote is not None
        statements = _view_statements(await self._body(live), run.work.inputs)
        for number, code in enumerate(statements):
            if await self._engine.statement(run.remote, number) is None:
                await self._engine.post(run.remote, code, "sql")
            view = await self._await_remote(live, run.remote, number)
            output = view.get("output") or {}
            if output.get("status") == "error":
                raise RunEnded("dead", f"the view of an input could not be created: {output.get('evalue', '')}"[:1000])
        run.hidden = live.next_remote = len(statements)
        await self.save(live)

    async def _await_remote(self, live: LiveRun, remote: int, number: int) -> dict[str, Any]:
        assert self._engine is not None
        wait = _POLL_FAST
        while True:
            self._check_stop(live)
            view = await self._engine.statement(remote, number)
            if view is not None and view.get("state") in STATEMENT_ENDED:
                return view
            await live.signal.wait(wait)
            wait = min(wait * 1.3, _POLL_SLOW)

    # --- statements ---------------------------------------------------------------------------

    async def _run_statement(self, live: LiveRun) -> None:
        """Post the current statement, unless the engine has it already, and follow it to its end."""
        run, statement = live.run, live.current
        assert statement is not None and run.remote is not None and self._engine is not None
        posted, wait, failures = False, _POLL_FAST, 0
        while True:
            self._check_stop(live)
            try:
                view = None
                if posted or failures or live.adopted:
                    view = await self._engine.statement(run.remote, statement.remote)
                    self._verify_instance(live)
                    self._verify_code(statement, view)
                if view is None and not posted:
                    await self._post(live, statement)
                    posted, live.adopted = True, False
                    continue
                failures = 0
            except EngineLost:
                raise
            except BadInput as error:
                await self._finish(live, statement, "error", core.error_output("Refused", error.message), 0, 0)
                return
            except EngineFailed as error:
                failures += 1
                posted = False
                self._silent(live, error)
                await live.signal.wait(backoff(failures, self._rng, base=0.2, cap=5.0))
                continue
            if view is None:
                raise EngineLost("the engine no longer knows the statement that was running")
            posted = True
            if view.get("state") in STATEMENT_ENDED:
                output = view.get("output")
                text = "" if output is None else json.dumps(output, ensure_ascii=False, separators=(",", ":"))
                await self._finish(
                    live,
                    statement,
                    str(view["state"]),
                    texts.cut_output(text),
                    view.get("started", 0),
                    view.get("completed", 0),
                )
                return
            await self._note_running(live, statement, view)
            if await live.signal.wait(wait):
                wait = _POLL_FAST
            wait = min(wait * 1.3, _POLL_SLOW)

    async def _post(self, live: LiveRun, statement: RunStatement) -> None:
        run = live.run
        assert self._engine is not None and run.remote is not None
        number = await self._engine.post(run.remote, statement.code, statement.language)
        if number != statement.remote:
            statement.remote, live.next_remote = number, number + 1
            await self._state.write(lambda conn: run_store.save_statement(conn, run, statement))

    def _verify_instance(self, live: LiveRun) -> None:
        assert self._engine is not None
        if self._engine.seen != live.run.engine:
            raise EngineLost(f"the engine at {self._trust.name} was restarted, which ended its Spark sessions")

    def _verify_code(self, statement: RunStatement, view: Mapping[str, Any] | None) -> None:
        # A database that was restored from a backup may expect a number that the engine has given to later code.
        if view is not None and view.get("code", statement.code) != statement.code:
            raise EngineLost(
                f"the engine has other code as its statement {statement.remote}; "
                f"{self._trust.name} was probably restored from a backup"
            )

    async def _note_running(self, live: LiveRun, statement: RunStatement, view: Mapping[str, Any]) -> None:
        assert self._engine is not None and live.run.remote is not None
        if statement.cancel and not live.cancel_sent:
            await self._engine.cancel(live.run.remote, statement.remote)
            live.cancel_sent = True
        before = (statement.state, statement.progress)
        statement.state = str(view.get("state", "running"))
        statement.progress, statement.started = float(view.get("progress", 0.0)), int(view.get("started", 0))
        if before != (statement.state, statement.progress):
            live.version += 1
            self._changed(IslandId(live.run.home), live.run.job, live.run.epoch)

    async def _finish(
        self, live: LiveRun, statement: RunStatement, state: str, output: str, started: int, completed: int
    ) -> None:
        """Store the result, then notify home."""
        statement.state, statement.output = state, output
        statement.started, statement.completed = started, completed
        await self._state.write(lambda conn: run_store.save_statement(conn, live.run, statement))
        live.current, live.adopted = None, False
        live.version += 1
        self._changed(IslandId(live.run.home), live.run.job, live.run.epoch)

    # --- batches ------------------------------------------------------------------------------

    async def _follow_batch(self, live: LiveRun) -> None:
        wait = 0.05
        while True:
            await self._look(live)
            await live.signal.wait(wait)
            wait = min(wait * 1.3, 1.0)

    # --- the end ------------------------------------------------------------------------------

    def _check_policy(self, live: LiveRun) -> None:
        # The administrator may have changed island.toml since the run was accepted.
        if problem := self._policy(IslandId(live.run.home), live.run.user):
            raise RunEnded("killed", f"{self._trust.name} no longer runs it: {problem}")

    def _check_stop(self, live: LiveRun) -> None:
        if live.forbidden:
            self._check_policy(live)
        if live.run.stop:
            # As in Livy, a stopped session is dead, and a stopped batch is killed.
            state = "killed" if live.run.work.kind == "batch" else "dead"
            by = f"the administrator of {self._trust.name}" if live.evicted else f"its owner ({live.run.user})"
            raise RunEnded(state, f"ended by {by}")

    def _check_stop_silent(self, live: LiveRun) -> None:
        # While the engine does not answer, the session cannot be ended there. Its idle timeout will end it.
        self._check_stop(live)
        self._check_lease(live)

    def _check_lease(self, live: LiveRun) -> None:
        silent = self._clock.boottime() - live.renewed
        if live.run.home != self._trust.me and silent > live.run.lease:
            raise RunEnded("killed", f"its lease expired: its home was silent for {silent:.0f} s")

    async def _end(self, live: LiveRun, state: str, reason: str) -> None:
        """Store the end of a run, with retries until it succeeds; then notify home."""
        live.ending = True
        if reason:
            self._note(live, f"{live.run.work.kind} {state}: {reason}", notify=False)
        run = replace(live.run, step="ended", state=state, reason=reason[:4000])
        failures = 0
        while live.run is not run:
            try:
                await self._store_end(live, run)
            except Exception as error:  # a run without an end would keep its place without limit
                failures += 1
                if not is_transient(error):
                    log.error("jobs.end_bug", job=run.job, epoch=run.epoch, exc_info=error)
                    # Its texts may be the reason why it cannot be stored.
                    run.reason, run.notes, run.log = "internal error in island", [], []
                log.warning("jobs.end_retry", job=run.job, error=str(error), failures=failures)
                await asyncio.sleep(backoff(failures, self._rng))
        await self._clear(run)

    async def _store_end(self, live: LiveRun, run: JobRun) -> None:
        reason = run.reason

        def write(conn: sqlite3.Connection) -> None:
            for statement in run_store.statements(conn, run.job, run.epoch):
                if not statement.ended:
                    last = core.lost_statement(_as_running(statement), reason)
                    statement.state, statement.output = last.state, last.output
                    run_store.save_statement(conn, run, statement)
            run_store.save(conn, run)

        def then(_: None) -> None:
            live.run = run
            live.version += 1
            self.live.pop((run.job, run.epoch), None)
            self.places.touch()
            log.info("jobs.run_ended", job=run.job, epoch=run.epoch, state=run.state, reason=reason)
            self._changed(IslandId(run.home), run.job, run.epoch)

        await self._state.write(write, then=then)

    async def _clear(self, run: JobRun) -> None:
        """Remove the session or batch at the engine, also after a lost answer to its submission, and the file.

        Inputs that no other run uses are released after that. If the engine does not answer, the run may
        still read them, and they stay reserved for the rest of the day.
        """
        for failures in range(1, CLEARS + 1):
            try:
                await self._clear_engine(run)
                await self._release_inputs(run)
                break
            except IslandError as error:
                log.info("jobs.not_cleared", job=run.job, error=error.message, failures=failures)
                await asyncio.sleep(backoff(failures, self._rng))
        if run.work.file_name:
            await self._workers.disk(_remove, self.run_folder(run.job, run.epoch))
        await self._state.write(partial(run_store.set_cleared, job=run.job, epoch=run.epoch))

    async def _release_inputs(self, run: JobRun) -> None:
        for ref in run.work.inputs:
            key = (ref.owner, ref.name, ref.snapshot)
            others = (other for live in self.live.values() for other in live.run.work.inputs)
            if not any((other.owner, other.name, other.snapshot) == key for other in others):
                await self._inputs.release(IslandId(ref.owner), ref.name, ref.snapshot)

    async def _clear_engine(self, run: JobRun) -> None:
        if self._engine is None or await self._engine.instance() != run.engine:
            return  # the instance of the engine that had it is gone
        remote = run.remote
        if remote is None and (found := await self._engine.find(run.work.kind, run.name)) is not None:
            remote = found.id
        if remote is not None:
            await self._engine.end(run.work.kind, remote)

    # --- notes for home -----------------------------------------------------------------------

    def _note(self, live: LiveRun, text: str, *, notify: bool = True) -> None:
        if len(live.run.notes) < 150:
            live.run.notes.append(f"{self._trust.name}: {text}"[:4000])
        if notify:
            live.version += 1
            self._changed(IslandId(live.run.home), live.run.job, live.run.epoch)

    async def _save_and_notify(self, live: LiveRun) -> None:
        await self.save(live)
        live.version += 1
        self._changed(IslandId(live.run.home), live.run.job, live.run.epoch)

    async def save(self, live: LiveRun) -> None:
        """Write the row of a run."""
        await self._state.write(lambda conn: run_store.save(conn, live.run))


def _as_running(statement: RunStatement) -> StatementReport:
    """The report on an unfinished statement. An accepted one counts as running, because it may have been posted."""
    report = statement.report()
    if report.state == "waiting":
        return StatementReport(number=report.number, state="running")
    return report


def _last_line(lines: list[str]) -> str:
    """The last line of a log that is neither empty nor a heading."""
    found = [line.strip() for line in lines if line.strip() and line.strip() not in ("stdout:", "stderr:")]
    return found[-1][:500] if found else ""


def _place(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_bytes(data)


def _remove(folder: Path) -> None:
    for entry in folder.glob("*"):
        entry.unlink(missing_ok=True)
    if folder.exists():
        folder.rmdir()


def _view_statements(body: Mapping[str, Any], inputs: tuple[InputRef, ...]) -> list[str]:
    """SQL statements that create the views of the inputs in a stock Livy."""
    conf, statements = body["conf"], []
    for ref in inputs:
        path = conf[PATH_PREFIX + ref.views[0]]
        files = json.loads(path) if path.startswith("[") else [path]
        source = " UNION ALL ".join(f"SELECT * FROM parquet.`{file.replace('`', '``')}`" for file in files)
        statements.append(f"CREATE OR REPLACE TEMPORARY VIEW `{ref.views[0]}` AS {source}")
        statements += [
            f"CREATE OR REPLACE TEMPORARY VIEW `{alias}` AS SELECT * FROM `{ref.views[0]}`" for alias in ref.views[1:]
        ]
    return statements
