"""The jobs of this home, for the gateway and the operator API: accept, look up, statements, waits.

What a client was told is on disk: every acceptance is a transaction of its own, and the actor of the job is told
after the commit.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from island.catalog.messages import ResolvedDataset
from island.catalog.view_names import view_names
from island.errors import Ambiguous, BadInput, NotFound
from island.jobs import batch_files, core
from island.jobs.dependencies import JobsDependencies
from island.jobs.exchange import JobExchange
from island.jobs.foreign_conf import refused_foreign_keys
from island.jobs.home import requests, store, views
from island.jobs.home.driver import HomeDriver
from island.jobs.home.local_files import BatchFile, check_no_further_files, read_batch_file
from island.jobs.home.store import JobRow, StatementRow
from island.jobs.messages import (
    MAX_CODE,
    MAX_FILE,
    CodeCompletionAnswer,
    CodeCompletionRequest,
    InputRef,
    JobSpec,
    StatementReport,
)
from island.jobs.results import ResultStore
from island.kernel import codec
from island.kernel.ids import DatasetName, IslandId, job_id
from island.kernel.ports import Topic
from island.kernel.telemetry import counter
from island.livy.conf import refused_conf
from island.livy.messages import BatchRequest, SessionRequest
from island.livy.rest import duplicate_name, not_active, rejected, session_not_found, statement_not_found
from island.trust import journal
from island.trust.users import Principal

ACCEPTED = counter("jobs_accepted", "Sessions and batches accepted by this island as home", ("kind",))
STATEMENTS = counter("job_statements_accepted", "Statements accepted by this island as home")

LISTED_S = 600.0
"""Seconds for which Livy's listings show a job after its end, as Livy's `session.state-retain.sec`."""

_MAX_KEY = 200
_KEPT, _KEPT_SIZE = 1000, 32 * 1024
"""Cache of answers to polling clients: maximum number of entries, and maximum characters of each."""

_PART = 4 * 1024 * 1024
"""Characters of codes and outputs of statements that are read at a time."""

T = TypeVar("T")
_PollKey = tuple[str, int | str] | tuple[str, int | str, int]


@dataclass(frozen=True, slots=True)
class JobSummary:
    """A job with its current Livy state and its log, as a Livy client sees them."""

    job: JobRow
    state: str
    log: list[str]


class HomeJobs:
    """Sessions, statements and batches of this home."""

    def __init__(
        self, needs: JobsDependencies, exchange: JobExchange, driver: HomeDriver, results: ResultStore
    ) -> None:
        self._results = results
        self._state, self._catalog, self._membership = needs.state, needs.catalog, needs.membership
        self._trust, self._config = needs.trust, needs.config
        self._clock, self._rng, self._workers, self._home = needs.clock, needs.rng, needs.workers, needs.home
        self._exchange, self._driver, self._engines = exchange, driver, needs.engines
        self._kept: dict[_PollKey, tuple[Topic, int, Any]] = {}

    async def count(self) -> list[tuple[str, str, int]]:
        """The kind and Livy's state of the stored jobs of this home, and the number of jobs with both."""
        return await self._state.read(store.count_by_state)

    # --- accept -------------------------------------------------------------------------------

    async def open_session(self, caller: Principal, request: SessionRequest, *, key: str | None = None) -> JobRow:
        """Accept a session. It is stored and journaled on return, then placed and started in the background.

        `key` is an idempotency key: a repeated request returns the job of the first one.
        Raises `LivyRefusal` with Livy's message, `NotFound` for an unknown input with similar names,
        `BadInput` for a request that is too large, and `Conflict` for an idempotency key that was used
        for another request.
        """
        check_no_further_files([*request.jars, *request.py_files, *request.files, *request.archives])
        kind = {"pyspark3": "pyspark"}.get(request.kind or "shared", request.kind or "shared")
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
        check_no_further_files([*request.jars, *request.py_files, *request.files, *request.archives])
        if request.class_name:
            raise rejected("requirement failed: this version runs Python files (.py) only.")
        problem = ""
        if file is None:
            allowed = self._config.jobs.allow_files
            content, problem = await self._workers.folder(
                "jobs.allow_files", read_batch_file, request.file or "", allowed, self._home
            )
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
        self._check_kind(work.language, pin)
        self._check_conf(work.conf, pin)
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
                store.insert_ended(conn, job, now, "dead", problem)
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
            if is_new:
                ACCEPTED.labels(work.kind).inc()
                self._driver.drive(accepted)

        accepted, _ = await self._state.write(write, then=then)
        return accepted

    def _is_at_home(self, island: str) -> bool:
        """Whether a job that must run at `island`, or anywhere if "", can run at this island only."""
        return island == self._trust.me or (not island and len(self._membership.views()) == 1)

    def _check_kind(self, kind: str, island: str) -> None:
        """Refuse a kind that no engine runs where the job can run. The kinds of other islands are not known here."""
        known = [engine.kinds() for engine in self._engines.all()]
        kinds = sorted({each for found in known for each in found})
        if self._is_at_home(island) and all(known) and kinds and kind not in kinds:
            runs = ", ".join(each for each in kinds if each != "batch")
            raise rejected(
                f"no engine of {self._trust.name} supports kind '{kind}'; they support {runs}.",
                hint="Open a session of another kind, or one at an island with a Livy that supports it.",
            )

    def _check_conf(self, conf: Mapping[str, str], island: str) -> None:
        """Refuse settings that no island allows where the job can run. Raises `LivyRefusal` with their names."""
        elsewhere = island != self._trust.me if island else not self._engines.all()
        if elsewhere and (bad := refused_foreign_keys(conf)):
            raise rejected(
                f"a job at another island may not set {', '.join(bad)[:500]}",
                hint="Leave these keys out. At an engine of your own island you may set them.",
            )

    async def _inputs_of(self, conf: dict[str, str]) -> tuple[InputRef, ...]:
        found: list[ResolvedDataset] = []
        for text in requests.named_inputs(conf):
            resolved = await self._catalog.resolve(DatasetName.parse(text))
            if all((r.owner, r.name) != (resolved.owner, resolved.name) for r in found):
                found.append(resolved)
        names = view_names([(resolved.owner_name, resolved.name) for resolved in found])
        return tuple(
            InputRef(owner=r.owner, owner_name=r.owner_name, name=r.name, snapshot=r.snapshot, views=each)
            for r, each in zip(found, names, strict=True)
        )

    # --- look up ------------------------------------------------------------------------------------

    async def find(self, caller: Principal, kind: str, key: int | str) -> JobRow:
        """A job by local id or name, as Livy clients name it.

        Raises `LivyRefusal` with status 404, also for deleted jobs and jobs of other users.
        """
        return self._seen_by(caller, key, await self._state.read(lambda conn: _named(conn, caller, kind, key)))

    def _seen_by(self, caller: Principal, key: int | str, job: JobRow | None) -> JobRow:
        if job is None or job.deleted or not _may(caller, job):
            raise session_not_found(key)
        self._driver.heard(job.id)
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
        self._driver.heard(found[0].id)
        return found[0]

    async def page(self, caller: Principal, kind: str, start: int, size: int) -> tuple[int, list[JobRow]]:
        """The number of jobs of a kind that Livy's listing shows, and a page of them, live ones first.

        As in Livy, jobs are listed for ten minutes after their end. Each is found by its id for as long as it is kept.
        """
        user = None if caller.is_administrator else caller.user
        since = self._clock.wall() - LISTED_S
        return await self._state.read(lambda conn: store.page(conn, kind, user, start, size, since))

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

    @staticmethod
    def as_accepted(job: JobRow) -> JobSummary:
        """A job that was just accepted. It is not read again: after the acceptance, no disk may fail the answer."""
        return JobSummary(job, job.state, views.livy_log(job.engine_log, [f"job {job.id}"]))

    async def find_summary(self, caller: Principal, kind: str, key: int | str) -> JobSummary:
        """`find` with log and state, in one read transaction and cached, for polling Livy clients."""

        def read(conn: sqlite3.Connection) -> JobSummary | None:
            job = _named(conn, caller, kind, key)
            return None if job is None else _summary(conn, job)

        summary = await self._polled((kind, key), read, _summary_size)
        if summary is None:
            raise session_not_found(key)
        self._seen_by(caller, key, summary.job)
        return summary

    async def find_statement(
        self, caller: Principal, key: int | str, number: int
    ) -> tuple[JobRow, StatementRow, StatementReport]:
        """A statement by session and number, as Livy clients name it, in one read transaction and cached.

        Raises `LivyRefusal` with status 404.
        """

        def read(conn: sqlite3.Connection) -> tuple[JobRow | None, StatementRow | None]:
            job = _named(conn, caller, "session", key)
            return job, None if job is None else store.statement(conn, job.id, number)

        found, statement = await self._polled(("session", key, number), read, _statement_size)
        job = self._seen_by(caller, key, found)
        if statement is None:
            raise statement_not_found()
        return job, statement, self._progress(job, statement)

    async def _polled(self, key: _PollKey, read: Callable[[sqlite3.Connection], T], size: Callable[[T], int]) -> T:
        """The result of `read`, cached until something of the job changes, because clients repeat the same requests.

        `key` begins with the kind and the id or name of a job. Every write to the rows of an unfinished job touches its
        topic before its result is returned, and the version is taken before the read, so a cached result is never
        older than an earlier answer. Finished jobs, and jobs asked for by name, are not cached.
        """
        topic = self._driver.topic_of_local(*key[:2])
        if topic is None:
            return await self._state.read(read)
        version = topic.version
        kept = self._kept.get(key)
        if kept is not None and kept[:2] == (topic, version):
            earlier: T = kept[2]
            return earlier
        found = await self._state.read(read)
        if size(found) <= _KEPT_SIZE:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[key] = (topic, version, found)
        return found

    async def state_of(self, job: JobRow) -> str:
        """The Livy state of a job. An idle session with unfinished statements is busy."""
        if not job.live or job.stop or job.state != "idle":
            return _state_of(job, has_open_statements=False)
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
        if language:
            self._check_kind(language, job.executor or job.pin)
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

        def then(stored: StatementRow) -> None:
            self._driver.accepted(job.id, stored)
            STATEMENTS.inc()

        return await self._state.write(write, then=then)

    async def statement(self, job: JobRow, number: int) -> tuple[StatementRow, StatementReport]:
        """A statement and its progress. Raises `LivyRefusal` with status 404."""
        found = await self._state.read(lambda conn: store.statement(conn, job.id, number))
        if found is None:
            raise statement_not_found()
        return found, self._progress(job, found)

    async def statement_parts(
        self, job: JobRow, numbers: Sequence[int]
    ) -> AsyncIterator[list[tuple[StatementRow, StatementReport]]]:
        """Statements of a session with their progress, in parts of a few MiB: outputs may be larger than memory."""
        while numbers:
            found = await self._state.read(partial(store.statements, job=job.id, numbers=numbers, room=_PART))
            if not found:
                return
            yield [(statement, self._progress(job, statement)) for statement in found]
            numbers = numbers[numbers.index(found[-1].number) + 1 :]

    def _progress(self, job: JobRow, statement: StatementRow) -> StatementReport:
        if statement.ended:
            return msgspec.structs.replace(statement.report(), progress=1.0)
        return self._driver.progress(job.id, statement.number) or statement.report()

    async def output_of(self, report: StatementReport) -> AsyncIterator[bytes]:
        """The output of a statement as JSON, in blocks; `null` if it has none. Raises `DiskFailed`."""
        if report.result is None:
            yield report.output.encode("utf-8", "surrogatepass") or b"null"
        elif not await self._results.has(report.result):
            text = "the file of the result is missing in HOME/results at the home of this job"
            yield core.error_output("ResultLost", text).encode()
        else:
            async for block in self._results.blocks(report.result):
                yield block

    async def cancel_statement(self, job: JobRow, number: int) -> None:
        """Cancel a statement. No effect if it has ended or does not exist."""
        await self._cancel(job, number)

    async def cancel_open_statements(self, job: JobRow) -> None:
        """Cancel all waiting and running statements of a session. The session stays open."""
        await self._cancel(job, None)

    async def _cancel(self, job: JobRow, number: int | None) -> None:
        def then(numbers: list[int]) -> None:
            self._driver.cancel(job.id, numbers)

        if await self._state.write(lambda conn: store.want_cancel(conn, job.id, number), then=then):
            await self._driver.handled(job.id)

    async def end(self, job: JobRow, *, deleted: bool) -> JobRow:
        """Request the end of a job; with `deleted`, Livy clients no longer see it either. Returns the current row."""

        def write(conn: sqlite3.Connection) -> JobRow | None:
            store.want_stop(conn, job.id, deleted=deleted)
            return store.get(conn, job.id)

        return await self._state.write(write, then=lambda _: self._driver.stop(job.id)) or job

    async def settled(self, job: JobRow, timeout: float) -> JobRow:
        """Wait until a job has ended or, if it is a session, is idle without waiting statements.

        Returns the current row, after `timeout` seconds at the latest.
        """

        async def look() -> tuple[JobRow, bool]:
            now = await self._state.read(lambda conn: store.get(conn, job.id)) or job
            return now, not now.live or (now.kind == "session" and await self.state_of(now) == "idle")

        return await self._awaited(job.id, look, timeout)

    async def finished_statement(
        self, job: JobRow, number: int, timeout: float
    ) -> tuple[StatementRow, StatementReport]:
        """Wait until a statement has ended. Returns its current state, after `timeout` seconds at the latest."""

        async def look() -> tuple[tuple[StatementRow, StatementReport], bool]:
            found = await self.statement(job, number)
            return found, found[0].ended

        return await self._awaited(job.id, look, timeout)

    async def _awaited(self, job: str, look: Callable[[], Awaitable[tuple[T, bool]]], timeout: float) -> T:
        """Look at a job after each of its changes, until `look` returns True or `timeout` seconds have passed."""
        end = self._clock.monotonic() + timeout
        while True:
            topic = self._driver.topic(job)
            version = topic.version if topic else 0
            found, is_it = await look()
            left = end - self._clock.monotonic()
            if is_it or topic is None or left <= 0:
                return found
            await topic.after(version, timeout=left)
            self._driver.heard(job)

    async def complete(self, job: JobRow, code: str, language: str, cursor: int) -> list[str]:
        """Code completion candidates from the engine that runs a session; empty if it is not placed."""
        if job.phase != "placed":
            return []
        request = CodeCompletionRequest(job=job.id, epoch=job.epoch, code=code, language=language, cursor=cursor)
        answer = await self._exchange.ask(IslandId(job.executor), "complete", request, CodeCompletionAnswer)
        return list(answer.candidates)


def _named(conn: sqlite3.Connection, caller: Principal, kind: str, key: int | str) -> JobRow | None:
    if isinstance(key, int):
        return store.by_local(conn, kind, key)
    return store.by_name(conn, kind, key, None if caller.is_administrator else caller.user)


def _state(conn: sqlite3.Connection, job: JobRow) -> str:
    return _state_of(job, has_open_statements=job.state == "idle" and store.is_busy(conn, job.id))


def _state_of(job: JobRow, *, has_open_statements: bool) -> str:
    return "shutting_down" if job.live and job.stop else views.session_state(job.state, has_open_statements)


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
