"""The jobs service of an island, which the gateway and the operator API call. It joins home's side and the executor."""

from __future__ import annotations

import hashlib
import hmac
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
import structlog

from island.catalog.messages import ResolvedDataset
from island.catalog.view_names import view_names
from island.errors import Ambiguous, BadInput, Denied, NotFound, PeerMisbehaved, PeerRefused
from island.jobs import batch_files, core, router
from island.jobs.dependencies import JobsDependencies
from island.jobs.exchange import JobExchange
from island.jobs.executor.run import JobRun
from island.jobs.executor.service import Executor
from island.jobs.home import requests, store, views
from island.jobs.home.driver import DECLINE, JobForwarder
from island.jobs.home.store import JobRow, StatementRow
from island.jobs.messages import (
    MAX_CODE,
    MAX_FILE,
    CodeCompletionAnswer,
    CodeCompletionRequest,
    CommitRequest,
    Decline,
    InputRef,
    JobChanged,
    JobSpec,
    OfferRequest,
    ReattachAnswer,
    ReattachRequest,
    ReleaseRequest,
    RunStatementRequest,
    StatementReport,
    StatusRequest,
    StopRequest,
)
from island.jobs.router import RoutingDecision
from island.kernel import codec
from island.kernel.ids import DatasetName, IslandId, is_job_id, job_id
from island.kernel.loops import Tasks
from island.kernel.regular_file import open_regular
from island.kernel.telemetry import counter
from island.livy.conf import refused_conf
from island.livy.messages import BatchRequest, SessionRequest
from island.livy.rest import duplicate_name, not_active, rejected, session_not_found, statement_not_found
from island.trust import journal
from island.trust.users import Principal

log = structlog.get_logger("island")

ACCEPTED = counter("jobs_accepted", "Sessions and batches accepted by this island as home", ("kind",))
STATEMENTS = counter("job_statements_accepted", "Statements accepted by this island as home")

CHANGED = "job.changed"
_MAX_KEY = 200
_KEPT, _KEPT_SIZE = 1000, 32 * 1024
"""Cache of answers to polling clients: maximum number of entries, and maximum characters of each."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BatchFile:
    """The file of a batch: name and content."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class JobSummary:
    """A job with its current Livy state and its log, as a Livy client sees them."""

    job: JobRow
    state: str
    log: list[str]


class Jobs:
    """Sessions, statements and batches of this home, and runs of other homes at this island."""

    def __init__(self, needs: JobsDependencies) -> None:
        self._state, self._catalog, self._membership = needs.state, needs.catalog, needs.membership
        self._trust, self._peers, self._config = needs.trust, needs.peers, needs.config
        self._clock, self._rng, self._workers, self._home = needs.clock, needs.rng, needs.workers, needs.home
        self._exchange = JobExchange(needs.peers)
        self.executor = Executor(needs, changed=self._tell_home)
        self.forwarding = JobForwarder(needs, self._exchange, decline=self.executor.decline)
        self.changed = self.forwarding.changed
        self._kept: dict[object, tuple[int, Any]] = {}
        self._serve()

    def _serve(self) -> None:
        executor, exchange = self.executor, self._exchange
        exchange.serve("offer", OfferRequest, executor.offer)
        exchange.serve("commit", CommitRequest, executor.commit)
        exchange.serve("statement", RunStatementRequest, executor.statement)
        exchange.serve("status", StatusRequest, executor.status)
        exchange.serve("stop", StopRequest, executor.stop)
        exchange.serve("release", ReleaseRequest, executor.release)
        exchange.serve("complete", CodeCompletionRequest, executor.complete)
        exchange.serve("reattach", ReattachRequest, self._reattach)
        self._peers.on_push(CHANGED, self._on_changed)
        self._peers.on_push(DECLINE, self._on_decline)

    async def start(self, tasks: Tasks) -> None:
        """Resume unfinished runs, then unfinished jobs, whose drivers ask for their runs."""
        await self._state.write(batch_files.drop_unused)
        await self.executor.start(tasks)
        await self.forwarding.start(tasks)

    async def count(self) -> list[tuple[str, str, int]]:
        """The kind and Livy's state of the stored jobs of this home, and the number of jobs with both."""
        return await self._state.read(store.count_by_state)

    def problems(self) -> list[str]:
        """What an administrator should know about jobs, as sentences for the status."""
        return self.executor.problems()

    def live_runs(self) -> dict[str, int]:
        """The number of sessions and batches of all homes that have not ended at this island, by kind."""
        return self.executor.live_runs()

    async def stop(self) -> None:
        """Do nothing: unfinished work is stored, and resumes at the next start."""

    def _tell_home(self, home: IslandId, job: str, epoch: int) -> None:
        if home == self._trust.me:
            self.forwarding.news(home, job, epoch)
        else:
            self._peers.push(home, CHANGED, codec.encode(JobChanged(job=job, epoch=epoch)))

    async def _on_changed(self, sender: IslandId, body: bytes) -> None:
        news = codec.decode(body, JobChanged)
        self.forwarding.news(sender, news.job, news.epoch)

    async def _on_decline(self, sender: IslandId, body: bytes) -> None:
        self.executor.decline(sender, codec.decode(body, Decline).reservation)

    # --- accept -------------------------------------------------------------------------------

    async def open_session(self, caller: Principal, request: SessionRequest, *, key: str | None = None) -> JobRow:
        """Accept a session. It is stored and journaled on return, then placed and started in the background.

        `key` is an idempotency key: a repeated request returns the job of the first one.
        Raises `LivyRefusal` with Livy's message, `NotFound` for an unknown input with similar names,
        `BadInput` for a request that is too large, and `Conflict` for an idempotency key that was used
        for another request.
        """
        _check_files([*request.jars, *request.py_files, *request.files, *request.archives])
        kind = {"pyspark3": "pyspark"}.get(request.kind or "shared", request.kind or "shared")
        if kind in ("spark", "sparkr") and not self._config.livy.url:
            raise rejected(
                f"the embedded engine does not support kind '{kind}'; it supports pyspark and sql.",
                hint="Open a session of kind pyspark or sql, or set [livy] url to a Livy that supports the kind.",
            )
        shown = {"kind": kind, **msgspec.to_builtins(msgspec.structs.replace(request, proxy_user=None, kind=kind))}
        work = JobSpec(
            kind="session",
            language=kind,
            inputs=await self._inputs_of(request.conf),
            conf=request.conf,
            resources=_resources(shown),
        )
        return await self._accept(caller, shown, work, request.name, request.queue, key)

    async def submit_batch(
        self, caller: Principal, request: BatchRequest, *, file: BatchFile | None = None, key: str | None = None
    ) -> JobRow:
        """Accept a batch. Its file is given as bytes, or as a path that the administrator allows.

        Raises the same errors as `open_session`, and `BadInput` for a file that is too large.
        """
        _check_files([*request.jars, *request.py_files, *request.files, *request.archives])
        if request.class_name:
            raise rejected("requirement failed: this version runs Python files (.py) only.")
        problem = ""
        if file is None:
            content, problem = await self._workers.folder("jobs.allow_files", self._read_file, request.file or "")
        else:
            content = file
        if not content.name.endswith(".py"):
            raise rejected("requirement failed: this version runs Python files (.py) only.")
        shown = msgspec.to_builtins(msgspec.structs.replace(request, proxy_user=None))
        if len(content.data) > MAX_FILE:
            raise BadInput(
                f"the file has {len(content.data)} bytes; the limit is {MAX_FILE}", hint="Pass data as inputs."
            )
        digest = hashlib.sha256(content.data).hexdigest()
        work = JobSpec(
            kind="batch",
            language="batch",
            inputs=await self._inputs_of(request.conf),
            conf=request.conf,
            resources=_resources(shown),
            file_name=Path(content.name).name[-200:],
            file_hash=digest,
            args=tuple(request.args),
        )
        shown = {**shown, "file_hash": digest}
        return await self._accept(
            caller, shown, work, request.name, request.queue, key, data=content.data, problem=problem
        )

    async def _accept(
        self,
        caller: Principal,
        shown: dict[str, Any],
        work: JobSpec,
        name: str | None,
        queue: str | None,
        key: str | None,
        *,
        data: bytes = b"",
        problem: str = "",
    ) -> JobRow:
        if refusal := refused_conf(work.conf):
            raise refusal
        if bad := requests.refused_keys(work.conf):
            raise rejected(f"Blacklisted configuration values in session config: {', '.join(bad)}")
        if key is not None and not 0 < len(key) <= _MAX_KEY:
            raise BadInput(f"an idempotency key must have 1 to {_MAX_KEY} characters")
        pin = self._membership.resolve(text) if (text := requests.pinned(queue)) else ""
        now = self._clock.wall()
        job = job_id(now, self._rng.bytes(10), self._trust.me)
        digest = core.request_hash(work.kind, shown)
        reattach = self._rng.bytes(16).hex()
        if len(codec.encode(work)) > MAX_CODE:
            raise BadInput("the settings and arguments are too large", hint="Put long arguments into a file.")

        def write(conn: sqlite3.Connection) -> tuple[JobRow, bool]:
            if key is not None and (earlier := store.repeated(conn, caller.user, key, digest)) is not None:
                return earlier, False
            if name and (holder := store.living_name(conn, work.kind, name, caller.user)) is not None:
                raise duplicate_name(name, holder)
            if store.living_of(conn, caller.user) >= (limit := self._config.jobs.live_limit(caller.user)):
                raise rejected(
                    f"{limit} sessions and batches of {caller.user} have not ended yet, the maximum"
                    " (jobs.max_live_per_user).",
                    hint="Close some of them; `island job ls` lists them.",
                )
            local = store.next_local(conn)
            store.insert(
                conn,
                job=job,
                kind=work.kind,
                local=local,
                user=caller.user,
                name=name,
                idempotency=key,
                request_hash=digest,
                request=shown,
                work=work,
                pin=pin,
                reattach=reattach,
                created=now,
            )
            if work.file_hash and not problem:
                batch_files.keep(conn, work.file_hash, data)
            inputs = [str(ref) for ref in work.inputs]
            store.first_log(conn, job, now, f"job {job}, inputs: {', '.join(inputs) or 'none'}")
            if problem:
                store.add_log(conn, job, now, [problem])
                store.end(conn, job, now, "dead", problem, released=True)
            journal.append(
                conn,
                at=now,
                who=self._trust.who(caller.user),
                act="job.accept",
                what=job,
                outcome="accepted",
                detail={"kind": work.kind, "inputs": inputs},
            )
            stored = store.get(conn, job)
            assert stored is not None
            return stored, not problem

        def then(stored: tuple[JobRow, bool]) -> None:
            accepted, is_new = stored
            self.changed.touch()
            if is_new:
                ACCEPTED.labels(work.kind).inc()
                self.forwarding.drive(accepted.id)

        accepted, _ = await self._state.write(write, then=then)
        return accepted

    async def _inputs_of(self, conf: dict[str, str]) -> tuple[InputRef, ...]:
        found: list[ResolvedDataset] = []
        for text in requests.named_inputs(conf):
            resolved = await self._catalog.resolve(DatasetName.parse(text))
            if all((r.owner, r.name) != (resolved.owner, resolved.name) for r in found):
                found.append(resolved)
        views = view_names([(resolved.owner_name, resolved.name) for resolved in found])
        return tuple(
            InputRef(owner=r.owner, owner_name=r.owner_name, name=r.name, snapshot=r.snapshot, views=names)
            for r, names in zip(found, views, strict=True)
        )

    # --- a batch's file --------------------------------------------------------------------------

    def _read_file(self, path: str) -> tuple[BatchFile, str]:
        """Read the file of a batch at a path of this machine. If it cannot be read, the job fails later, as in Livy.

        Returns the file, and the problem or "". Raises `LivyRefusal` for a path that is not allowed.
        """
        local = _local_path(path)
        real = Path(os.path.realpath(local))
        allowed = any(real.is_relative_to(os.path.realpath(folder)) for folder in self._config.jobs.allow_files)
        # The home folder has secrets, and files of all users, also if the administrator allows a folder around it.
        if not allowed or real.is_relative_to(os.path.realpath(self._home)):
            raise rejected(
                f"requirement failed: Local path {path[:1000]} cannot be added to user sessions.",
                hint="Use `island job submit FILE`, or have the administrator add the folder to jobs.allow_files.",
            )
        try:
            with open_regular(real, follow=False) as file:
                data = file.read(MAX_FILE + 1)
            if len(data) > MAX_FILE:
                raise rejected(f"the file {path[:1000]} has more than {MAX_FILE} bytes, which is the limit.")
            return BatchFile(real.name, data), ""
        except OSError as error:
            return BatchFile(real.name, b""), f"the file {path[:1000]} cannot be read: {error.strerror}"

    # --- look up ------------------------------------------------------------------------------------

    async def find(self, caller: Principal, kind: str, key: int | str) -> JobRow:
        """A job by local id or name, as Livy clients name it.

        Raises `LivyRefusal` with status 404, also for deleted jobs and jobs of other users.
        """
        job = await self._state.read(lambda conn: _named(conn, caller, kind, key))
        if job is None or job.deleted or not _may(caller, job):
            raise session_not_found(key)
        return job

    async def named(self, caller: Principal, text: str, kind: str | None = None) -> JobRow:
        """A job of this home by local id, public id, unique prefix of the public id, or name.

        Raises `NotFound`, or `Ambiguous` with the candidates.
        """
        user = None if caller.is_administrator else caller.user

        def read(conn: sqlite3.Connection) -> list[JobRow]:
            kinds = [kind] if kind else ["session", "batch"]
            found: list[JobRow | None] = []
            if text.isascii() and text.isdigit() and len(text) < 10 and str(int(text)) == text:
                found = [store.by_local(conn, each, int(text)) for each in kinds]
            elif len(text) >= 4:
                found = list(store.by_prefix(conn, text.lower(), user))
            jobs = [job for job in found if job is not None]
            return jobs or [j for j in (store.by_name(conn, each, text, user) for each in kinds) if j is not None]

        found = [job for job in await self._state.read(read) if _may(caller, job) and kind in (None, job.kind)]
        if not found:
            raise NotFound(
                f"you have no {kind or 'job'} '{text[:100]}' at {self._trust.name}",
                hint="`island job ls` lists your jobs. For a job of another home use --key-file.",
            )
        if len(found) > 1:
            listed = ", ".join(f"{job.id} ({job.kind} {job.local})" for job in found)
            raise Ambiguous(f"'{text}' matches several jobs", hint=f"Use more characters of one of these: {listed}")
        return found[0]

    async def page(self, caller: Principal, kind: str, start: int, size: int) -> tuple[int, list[JobRow]]:
        """The number of jobs of a kind that a Livy client sees, and a page of them."""
        user = None if caller.is_administrator else caller.user
        return await self._state.read(lambda conn: store.page(conn, kind, user, start, size))

    async def newest(self, caller: Principal, limit: int, *, live_only: bool = False) -> list[JobRow]:
        """The newest jobs of this home that the caller may see."""
        user = None if caller.is_administrator else caller.user
        return await self._state.read(lambda conn: store.newest(conn, user, limit, live_only=live_only))

    async def log(self, job: JobRow) -> list[str]:
        """The log as a Livy client sees it: the output streams of the engine, then the notes of island."""
        return (await self._state.read(lambda conn: _summary(conn, job))).log

    async def seen(self, jobs: Sequence[JobRow]) -> list[JobSummary]:
        """Jobs with their logs and states, in one read transaction."""
        return await self._state.read(lambda conn: [_summary(conn, job) for job in jobs])

    async def find_summary(self, caller: Principal, kind: str, key: int | str) -> JobSummary:
        """`find` with log and state, in one read transaction and cached, for polling Livy clients."""

        def read(conn: sqlite3.Connection) -> JobSummary | None:
            job = _named(conn, caller, kind, key)
            return None if job is None else _summary(conn, job)

        found: JobSummary | None = await self._polled((caller, kind, key), read, _summary_size)
        if found is None or found.job.deleted or not _may(caller, found.job):
            raise session_not_found(key)
        return found

    async def find_statement(
        self, caller: Principal, key: int | str, number: int
    ) -> tuple[JobRow, StatementRow, StatementReport]:
        """A statement by session and number, as Livy clients name it, in one read transaction and cached.

        Raises `LivyRefusal` with status 404.
        """

        def read(conn: sqlite3.Connection) -> tuple[JobRow | None, StatementRow | None]:
            job = _named(conn, caller, "session", key)
            return job, None if job is None else store.statement(conn, job.id, number)

        found: tuple[JobRow | None, StatementRow | None] = await self._polled(
            (caller, "session", key, number), read, _statement_size
        )
        job, statement = found
        if job is None or job.deleted or not _may(caller, job):
            raise session_not_found(key)
        if statement is None:
            raise statement_not_found()
        return job, statement, self._progress(job, statement)

    async def _polled(self, key: object, read: Callable[[sqlite3.Connection], T], size: Callable[[T], int]) -> T:
        """The result of `read`, cached until a row of any job changes, because clients repeat the same requests.

        Every write to the job tables of this home touches `changed` before its result is
        returned, and the version is taken before the read. A cached result is therefore never
        older than an earlier answer.
        """
        version = self.changed.version
        kept = self._kept.get(key)
        if kept is not None and kept[0] == version:
            found: T = kept[1]
            return found
        found = await self._state.read(read)
        if size(found) <= _KEPT_SIZE:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[key] = (version, found)
        return found

    async def state_of(self, job: JobRow) -> str:
        """The Livy state of a job. An idle session with unfinished statements is busy."""
        return await self._state.read(lambda conn: _state(conn, job))

    # --- statements ------------------------------------------------------------------------------------

    async def post(self, job: JobRow, code: str, language: str | None) -> StatementRow:
        """Accept and store a statement.

        Raises `BadInput` for code that is too long, and `LivyRefusal` if the session has ended, its
        queue is full, or the kind of the code is missing or not supported.
        """
        if len(code.encode("utf-8", "surrogatepass")) > MAX_CODE:
            raise BadInput(f"the code has more than {MAX_CODE} bytes", hint="Submit it as the file of a batch.")
        language = {"pyspark3": "pyspark"}.get(language or "", language or "")
        if language in ("spark", "sparkr") and not self._config.livy.url:
            raise rejected(f"the embedded engine does not support kind '{language}'; it supports pyspark and sql.")
        if not language and job.work.language == "shared":
            raise rejected("Code type should be specified if session kind is shared")
        limit = self._config.jobs.max_statements

        def write(conn: sqlite3.Connection) -> StatementRow:
            now = store.get(conn, job.id)
            if now is None or not now.live or now.stop or core.has_ended(now.state):
                raise not_active(now.state if now else "dead")
            number = store.add_statement(conn, job.id, code, language, limit)
            if number is None:
                raise rejected(f"{limit} statements are waiting in this session, the maximum (jobs.max_statements).")
            stored = store.statement(conn, job.id, number)
            assert stored is not None
            return stored

        def then(_: StatementRow) -> None:
            self._touched(job)
            STATEMENTS.inc()

        return await self._state.write(write, then=then)

    def _touched(self, job: JobRow) -> None:
        """Wake the driver of a job and all waiting requests after its rows have changed."""
        self.changed.touch()
        self.forwarding.poke(job.id)

    async def statement(self, job: JobRow, number: int) -> tuple[StatementRow, StatementReport]:
        """A statement and its progress. Raises `LivyRefusal` with status 404."""
        found = await self._state.read(lambda conn: store.statement(conn, job.id, number))
        if found is None:
            raise statement_not_found()
        return found, self._progress(job, found)

    async def statements(self, job: JobRow) -> list[tuple[StatementRow, StatementReport]]:
        """All statements of a session in order, with their progress."""
        found = await self._state.read(lambda conn: store.statements(conn, job.id))
        return [(statement, self._progress(job, statement)) for statement in found]

    def _progress(self, job: JobRow, statement: StatementRow) -> StatementReport:
        if statement.ended:
            return msgspec.structs.replace(statement.report(), progress=1.0)
        return self.forwarding.overlay(job.id, statement.number) or statement.report()

    async def cancel_statement(self, job: JobRow, number: int) -> None:
        """Cancel a statement. No effect if it has ended or does not exist."""
        sent, stored = not self.forwarding.withhold(job.id, number), False

        def then(_: object) -> None:
            nonlocal stored
            stored = True
            self._touched(job)

        try:
            await self._state.write(lambda conn: store.cancel_statement(conn, job.id, number, sent=sent), then=then)
        finally:
            if not stored:
                self.forwarding.unwithhold(job.id, number)

    async def cancel_open_statements(self, job: JobRow) -> None:
        """Cancel all waiting and running statements of a session. The session stays open."""
        for statement in await self._state.read(lambda conn: store.open_statements(conn, job.id)):
            await self.cancel_statement(job, statement.number)

    async def end(self, job: JobRow, *, deleted: bool) -> JobRow:
        """Request the end of a job; with `deleted`, Livy clients no longer see it either. Returns the current row."""

        def write(conn: sqlite3.Connection) -> JobRow | None:
            store.want_stop(conn, job.id, deleted=deleted)
            return store.get(conn, job.id)

        return await self._state.write(write, then=lambda _: self._touched(job)) or job

    async def settled(self, job: JobRow, timeout: float) -> JobRow:
        """Wait until a job has ended or, if it is a session, is idle without waiting statements.

        Returns the current row, after `timeout` seconds at the latest.
        """
        end = self._clock.monotonic() + timeout
        while True:
            version = self.changed.version
            now = await self._state.read(lambda conn: store.get(conn, job.id))
            left = end - self._clock.monotonic()
            if now is None or not now.live or left <= 0:
                return now or job
            if now.kind == "session" and await self.state_of(now) == "idle":
                return now
            await self.changed.after(version, timeout=left)

    async def finished_statement(
        self, job: JobRow, number: int, timeout: float
    ) -> tuple[StatementRow, StatementReport]:
        """Wait until a statement has ended. Returns its current state, after `timeout` seconds at the latest."""
        end = self._clock.monotonic() + timeout
        while True:
            version = self.changed.version
            found = await self.statement(job, number)
            left = end - self._clock.monotonic()
            if found[0].ended or left <= 0:
                return found
            await self.changed.after(version, timeout=left)

    async def complete(self, job: JobRow, code: str, language: str, cursor: int) -> list[str]:
        """Code completion candidates from the engine that runs a session; empty if it is not placed."""
        if job.phase != "placed":
            return []
        request = CodeCompletionRequest(job=job.id, epoch=job.epoch, code=code, language=language, cursor=cursor)
        answer = await self._exchange.ask(IslandId(job.executor), "complete", request, CodeCompletionAnswer)
        return list(answer.candidates)

    # --- rows for the operator API -----------------------------------------------------------------------

    async def row(self, job: JobRow) -> dict[str, Any]:
        """A job as a flat row with stable keys, as `island job ls` and `show` print it."""
        lost = self.forwarding.lost_since(job.id)
        return {
            "id": job.local,
            "job": job.id,
            "kind": job.kind,
            "state": "unknown" if lost is not None and job.live else await self.state_of(job),
            "island": self._membership.display(IslandId(job.executor)) if job.executor else "",
            "owner": self._trust.who(job.user),
            "inputs": [str(ref) for ref in job.work.inputs],
            "home": self._trust.name,
            "name": job.name or "",
            "language": job.work.language,
            "created": job.created,
            "ended": job.ended,
            "reason": job.reason,
            "silent_since": lost,
            "statements": job.statements,
            "bytes_moved": job.moved,
            "epoch": job.epoch,
            "phase": job.phase,
        }

    def run_row(self, run: JobRun) -> dict[str, Any]:
        """A run of another home at this island, as its administrator sees it in `island job ls`."""
        home = self._membership.display(IslandId(run.home))
        return {
            "id": None,
            "job": run.job,
            "kind": run.work.kind,
            "state": run.state,
            "island": self._trust.name,
            "owner": f"{run.user}@{home}",
            "inputs": [str(ref) for ref in run.work.inputs],
            "home": home,
            "name": "",
            "language": run.work.language,
            "created": run.accepted,
            "ended": None,
            "reason": run.reason,
            "silent_since": None,
            "statements": 0,
            "bytes_moved": run.moved,
            "epoch": run.epoch,
            "phase": run.phase,
        }

    async def listing(self, caller: Principal, limit: int, *, live_only: bool = False) -> list[dict[str, Any]]:
        """The jobs of this home, and for the administrator also the runs of other homes; newest first."""
        rows = [await self.row(job) for job in await self.newest(caller, limit, live_only=live_only)]
        if caller.is_administrator:
            foreign = [run for run in await self.executor.newest(limit) if run.home != self._trust.me]
            rows += [self.run_row(run) for run in foreign if not (live_only and run.ended)]
        return sorted(rows, key=lambda row: -row["created"])[:limit]

    async def guest(self, caller: Principal, text: str) -> JobRun | None:
        """A run of another home at this island, by the public id of its job or a unique prefix.

        None if there is none, or the caller is not the administrator. Raises `Ambiguous`.
        """
        if not caller.is_administrator or len(text) < 4:
            return None
        runs = await self.executor.newest(10_000)
        found = [run for run in runs if run.home != self._trust.me and run.job.startswith(text.lower())]
        if len({run.job for run in found}) > 1:
            listed = ", ".join(sorted({run.job for run in found})[:5])
            raise Ambiguous(f"'{text}' matches several jobs", hint=f"Use more characters of one of these: {listed}")
        return found[0] if found else None

    async def evict(self, caller: Principal, run: JobRun) -> dict[str, Any]:
        """End a run of another home at this island. Returns its current row."""

        def write(conn: sqlite3.Connection) -> None:
            journal.append(
                conn,
                at=self._clock.wall(),
                who=self._trust.who(caller.user),
                act="job.evict",
                what=run.job,
                outcome="accepted",
                detail={"home": run.home},
            )

        await self.executor.evict(run, write)
        return self.run_row(run)

    async def show(self, job: JobRow) -> dict[str, Any]:
        """A job as a row for its owner, with the key that gives access to it from another island."""
        return {**await self.row(job), "key": job.reattach}

    async def explain(self, job: JobRow) -> list[dict[str, Any]]:
        """All candidates of each routing decision, with the terms of their estimates, as flat rows."""
        stored = await self._state.read(lambda conn: store.decisions(conn, job.id))
        rows = []
        for attempt, (at, text) in enumerate(stored, 1):
            decision = msgspec.json.decode(text, type=RoutingDecision)
            replayed = router.decide(decision.wanted, decision.candidates) == decision
            rows += [{"job": job.id, "attempt": attempt, "at": at, **r, "replayed": replayed} for r in _rows(decision)]
        return rows

    # --- from another island -------------------------------------------------------------------------------

    async def elsewhere(self, text: str, key: str, what: str) -> Any:
        """Send a request about a job to its home, authorized by the key of the job. `text` is its full public id.

        Raises `BadInput`, `NotFound` for an unknown home, `Ambiguous` if several islands may be the home
        (the key is then sent to none of them), and `Denied` for a wrong key.
        """
        if not is_job_id(text):
            raise BadInput(
                f"'{text[:100]}' is not the full public id of a job", hint="`island job show` at its home shows it."
            )
        prefix = text.rpartition(".")[2]
        homes = [view.island for view in self._membership.views() if view.island.startswith(prefix)]
        if not homes:
            raise NotFound(
                f"no known island has a key that begins with {prefix}", hint="`island peer ls` lists all islands."
            )
        if len(homes) > 1:
            raise Ambiguous(
                f"{len(homes)} islands have keys that begin with {prefix}, so the home of the job is not certain",
                hint="Ask about the job at its home itself.",
            )
        request = ReattachRequest(job=text, key=key, what=what)
        try:
            answer = await self._exchange.ask(homes[0], "reattach", request, ReattachAnswer)
        except PeerRefused as error:
            if error.code == Denied.code:  # the key that the caller gave is wrong
                raise Denied(error.message, hint=error.hint) from error
            raise
        return _decode_answer(what, answer.body)

    async def _reattach(self, sender: IslandId, request: ReattachRequest) -> ReattachAnswer:
        job = await self._state.read(lambda conn: store.get(conn, request.job))
        known = job.reattach if job is not None else "0" * 32
        if not hmac.compare_digest(known.encode(), request.key.encode("utf-8", "replace")) or job is None:
            raise Denied(
                "the key is not the key of this job",
                hint="`island job show --show-key ID` at its home shows the key to its owner.",
            )
        log.info("jobs.reattached", job=job.id, island=self._membership.display(sender), what=request.what)
        if request.what == "cancel":
            job = await self.end(job, deleted=False)
        body: Any
        if request.what == "explain":
            body = await self.explain(job)
        elif request.what == "logs":
            body = await self.log(job)
        elif request.what == "statements":
            body = [statement_row(*pair) for pair in await self.statements(job)]
            while len(text := msgspec.json.encode(body)) > codec.BULK_LIMIT * 12:
                body = body[1:]  # drop the oldest statements if the answer is too large
            return ReattachAnswer(body=text.decode())
        else:
            body = await self.row(job)
        return ReattachAnswer(body=msgspec.json.encode(body).decode())


def statement_row(statement: StatementRow, progress: StatementReport) -> dict[str, Any]:
    """A statement as the operator API shows it."""
    output = progress.output or statement.output
    return {
        "id": statement.number,
        "code": statement.code,
        "state": progress.state,
        "progress": progress.progress,
        "output": msgspec.json.decode(output) if output else None,
        "started": progress.started or statement.started,
        "completed": progress.completed or statement.completed,
    }


_ANSWER_TYPES: dict[str, Any] = {"logs": list[str], "explain": list[dict[str, Any]], "statements": list[dict[str, Any]]}


def _decode_answer(what: str, text: str) -> Any:
    """Decode the answer of another home to a request. Raises `PeerMisbehaved` if it has another type."""
    try:
        return msgspec.json.decode(text, type=_ANSWER_TYPES.get(what, dict[str, Any]))
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise PeerMisbehaved(f"the home of the job sent an invalid answer to '{what}': {error}") from error


def _rows(decision: RoutingDecision) -> list[dict[str, Any]]:
    candidates = {candidate.island: candidate for candidate in decision.candidates}
    rows = []
    for verdict in decision.verdicts:
        candidate = candidates[verdict.island]
        seconds = {term.what: term.seconds for term in verdict.terms}
        rows.append(
            {
                "island": verdict.name,
                "key": verdict.island,
                "verdict": verdict.verdict,
                "chosen": verdict.verdict == "chosen",
                "reason": verdict.reason,
                "seconds": verdict.seconds,
                # The row of a rejected island has the same keys, without values.
                **{f"{what.replace(' ', '_')}_s": seconds.get(what) for what in router.TERMS},
                "terms": "; ".join(f"{t.what} {router.format_seconds(t.seconds)} ({t.why})" for t in verdict.terms),
                "round_trip_s": candidate.rtt,
                "bandwidth": candidate.bandwidth,
                "input_bytes": sum(part.bytes for part in candidate.parts),
                "missing_bytes": sum(part.missing for part in candidate.parts),
                "asked": candidate.offered or bool(candidate.refusal),
            }
        )
    return rows


def _named(conn: sqlite3.Connection, caller: Principal, kind: str, key: int | str) -> JobRow | None:
    if isinstance(key, int):
        return store.by_local(conn, kind, key)
    return store.by_name(conn, kind, key, None if caller.is_administrator else caller.user)


def _state(conn: sqlite3.Connection, job: JobRow) -> str:
    if job.live and job.stop:
        return "shutting_down"
    return views.session_state(job.state, job.state == "idle" and store.is_busy(conn, job.id))


def _summary(conn: sqlite3.Connection, job: JobRow) -> JobSummary:
    notes = [text for _, text in store.log_lines(conn, job.id)]
    return JobSummary(job, _state(conn, job), views.livy_log(job.engine_log, notes))


def _summary_size(summary: JobSummary | None) -> int:
    return 0 if summary is None else sum(map(len, summary.log))


def _statement_size(found: tuple[JobRow | None, StatementRow | None]) -> int:
    return 0 if found[1] is None else len(found[1].output) + len(found[1].code)


def _may(caller: Principal, job: JobRow) -> bool:
    return caller.is_administrator or job.user == caller.user


def _resources(shown: dict[str, Any]) -> dict[str, str | int]:
    """Livy's resource fields of a request. Raises `LivyRefusal` that names the field with a wrong value."""
    found = {name: shown[name] for name in core.RESOURCES if shown.get(name) is not None}
    if problem := core.resources_problem(found):
        raise rejected(f"requirement failed: {problem}.")
    return found


def _check_files(paths: list[str]) -> None:
    """Refuse further files, with Livy's message: this version does not send them to other islands."""
    if paths:
        _local_path(paths[0])
        raise rejected(
            f"requirement failed: Local path {paths[0][:1000]} cannot be added to user sessions.",
            hint="Pass data as inputs. This version does not send further files to other islands.",
        )


def _local_path(path: str) -> str:
    parts = urlsplit(path)
    if parts.scheme not in ("", "file"):
        raise rejected(f"requirement failed: {path[:1000]} is not a local path; this version reads local files only.")
    local = unquote(parts.path) if parts.scheme == "file" else path
    if not os.path.isabs(local) or "\0" in local:
        raise rejected(f"requirement failed: Path '{path[:1000]}' is not absolute.")
    return local
