"""The executor: offers places, accepts commits, and answers requests of homes about their runs.

A run is stored in the database before an engine gets a request for it. Its machine then runs it (`driver`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog

from island.catalog.messages import ResolvedDataset
from island.config import size_in_bytes
from island.errors import Conflict, Denied, EngineFailed, IslandError, NotFound
from island.jobs import batch_files, core
from island.jobs.core import resources_problem
from island.jobs.dependencies import JobsDependencies
from island.jobs.engines.port import EnginePort
from island.jobs.executor import policy
from island.jobs.executor import store as run_store
from island.jobs.executor.driver import RunDriver
from island.jobs.executor.events import (
    HomeHeard,
    RunForbidden,
    RunStopAsked,
    StatementCancelAsked,
    StatementOffered,
)
from island.jobs.executor.outputs import ResultServer, StatementOutputs
from island.jobs.executor.run import JobRun, RunStatement
from island.jobs.messages import (
    FULL,
    INVALID_JOB,
    NO_ENGINE,
    NO_INPUT,
    POLICY,
    RESERVATION_EXPIRED,
    RESERVATION_S,
    STOPPED,
    UNSUPPORTED_KIND,
    CodeCompletionAnswer,
    CodeCompletionRequest,
    CommitAnswer,
    CommitRequest,
    EmptyAnswer,
    Envelope,
    InputRef,
    JobReport,
    Offer,
    OfferedInput,
    OfferRequest,
    ReleaseRequest,
    RunStatementRequest,
    StatementReport,
    StatusRequest,
    StopRequest,
)
from island.jobs.results import ResultStore
from island.kernel import codec
from island.kernel.actor import Actor, ActorEnded
from island.kernel.ids import DatasetName, IslandId
from island.kernel.loops import Tasks
from island.kernel.units import format_bytes
from island.trust import journal
from island.trust.signing import verify

log = structlog.get_logger("island")

MAX_WAITING = 100
"""Maximum number of runs that wait for a place at this island."""

MAX_RESERVED, MAX_RESERVED_BY_ONE = 1000, 200
"""Maximum number of places that are reserved at a time, by all homes and by one of them."""

ENGINE_S = 5.0
"""Seconds for the answer of one engine to a request for an offer, if this island has several."""

_ENDED_VERSION = 2**52


@dataclass(slots=True)
class Reservation:
    """A place that is kept for a job until `expires` (seconds on the monotonic clock)."""

    id: str
    job: str
    home: IslandId
    expires: float


@dataclass(frozen=True, slots=True)
class JobRefusal:
    """Why a job is not accepted: a code for its home, and a reason for people."""

    code: str
    reason: str

    def offer(self) -> Offer:
        """The refusal as the answer to a request for an offer."""
        return Offer(refusal=self.reason, code=self.code)

    def answer(self) -> CommitAnswer:
        """The refusal as the answer to a commit."""
        return CommitAnswer(accepted=False, reason=self.reason, code=self.code)


class Executor:
    """Runs jobs at this island's engines, for this island as home and for other homes that the administrator allows."""

    def __init__(
        self, needs: JobsDependencies, results: ResultStore, *, changed: Callable[[IslandId, str, int], None]
    ) -> None:
        self._state, self._catalog, self._inputs = needs.state, needs.catalog, needs.inputs
        self._membership, self._trust, self._peers = needs.membership, needs.trust, needs.peers
        self._config, self._clock, self._rng, self._engines = needs.config, needs.clock, needs.rng, needs.engines
        self._reservations: dict[str, Reservation] = {}
        limit = size_in_bytes(needs.config.jobs.max_result)
        self._results, self._outputs = results, StatementOutputs(results, needs.workers, limit)
        self._driver = RunDriver(
            needs,
            changed=changed,
            policy=self._policy,
            account=self._account,
            results=results,
            outputs=self._outputs,
        )
        self.result_server = ResultServer(needs.state, results, self._heard)

    async def start(self, tasks: Tasks) -> None:
        """Go on with every run that is not cleared."""
        await self._driver.start(tasks)

    def problems(self) -> list[str]:
        """What an administrator should know about the runs, as sentences for the status."""
        return self._driver.problems()

    # --- offers -----------------------------------------------------------------------------

    async def offer(self, sender: IslandId, request: OfferRequest) -> Offer:
        """Answer a request for an offer: a reservation with this island's own estimates, or a refusal with a reason."""
        if refusal := self._refusal(sender, request.envelope) or self._no_room(sender, request.envelope.job):
            return refusal.offer()
        kinds = await self._kinds()
        able = [engine for engine in self._engines.all() if request.language in kinds.get(engine.name, ())]
        if not able:
            return self._unable(request.language, any(kinds.values())).offer()
        parts = []
        for ref in request.inputs:
            part, problem = await self._part(ref)
            if problem:
                return JobRefusal(NO_INPUT, problem).offer()
            parts.append(part)
        wait = self._wait(request.envelope.job, able)
        if self._reserves_too_many(sender, request.envelope.job):
            return JobRefusal(FULL, f"too many places are reserved there, for up to {RESERVATION_S:.0f} s").offer()
        return Offer(
            reservation=self._reserve(request.envelope.job, sender).id,
            wait=wait,
            languages=tuple(sorted({kind for found in kinds.values() for kind in found})),
            parts=tuple(parts),
        )

    def decline(self, sender: IslandId, reservation: str) -> None:
        """Cancel a reservation that its home does not use."""
        place = self._reservations.get(reservation)
        if place is not None and place.home == sender:
            del self._reservations[reservation]

    def _refusal(self, sender: IslandId, envelope: Envelope) -> JobRefusal | None:
        if problem := policy.envelope_problem(envelope, sender, self._trust.me):
            return JobRefusal(INVALID_JOB, problem)
        if problem := self._policy(sender, envelope.user):
            return JobRefusal(POLICY, problem)
        return None

    def _policy(self, home: IslandId, user: str | None) -> str:
        return policy.policy_refusal(
            self._config.jobs,
            self._membership.display(home),
            user,
            is_home=home == self._trust.me,
            means=lambda text: self._means(text, home),
        )

    def _account(self, run: JobRun) -> str | None:
        """The local account under which a Livy of the site runs a job; None for Livy's own choice."""
        home = IslandId(run.home)
        return policy.account_of(
            self._config.jobs.accounts,
            run.user,
            is_home=home == self._trust.me,
            means=lambda text: self._means(text, home),
        )

    def _means(self, entry: str, home: IslandId) -> bool:
        try:
            return self._membership.resolve(entry) == home
        except IslandError:
            return False  # the name is unknown or ambiguous

    def _no_room(self, sender: IslandId, job: str) -> JobRefusal | None:
        if not self._engines.all():
            return self._unable("", False)
        alive = self._driver.alive
        foreign = sum(run.home != self._trust.me for run in alive)
        # Only the reservations of the same home count: one home must not be able to keep the others out with them.
        return self._over_limit(sender, len(alive), foreign, self._reserved(sender, job))

    def _over_limit(self, sender: IslandId, alive: int, foreign: int, reserved: int = 0) -> JobRefusal | None:
        """The refusal if this island runs, or has in line, as many jobs as it may.

        `foreign` are the jobs of others; `reserved` places are kept for other jobs of the sender.
        """
        limit, kept = self._config.jobs.max_foreign, f", and {reserved} places are reserved" if reserved else ""
        if sender != self._trust.me and foreign + reserved >= limit:
            reason = f"it runs {foreign} foreign jobs already{kept} (jobs.max_foreign = {limit} in its island.toml)"
            return JobRefusal(FULL, reason)
        if alive + reserved >= sum(engine.capacity for engine in self._engines.all()) + MAX_WAITING:
            return JobRefusal(FULL, f"{alive} jobs run or wait there already{kept}")
        return None

    @staticmethod
    def _unable(language: str, has_engine: bool) -> JobRefusal:
        if not has_engine:
            reason = "it has no Spark engine (no [livy] url, and the extra `spark` is not installed)"
            return JobRefusal(NO_ENGINE, reason)
        return JobRefusal(UNSUPPORTED_KIND, f"its engine does not run '{language}'")

    async def _kinds(self) -> dict[str, tuple[str, ...]]:
        """The kinds of sessions that each engine runs; those that have not answered yet are asked."""
        engines = self._engines.all()
        limit = None if len(engines) == 1 else ENGINE_S
        answers = await asyncio.gather(*(self._asked_kinds(engine, limit) for engine in engines))
        return {engine.name: found for engine, found in zip(engines, answers, strict=True)}

    async def _asked_kinds(self, engine: EnginePort, limit: float | None) -> tuple[str, ...]:
        try:
            async with asyncio.timeout(limit):
                instance = await engine.instance()
        except (EngineFailed, TimeoutError) as error:
            if isinstance(error, EngineFailed) and error.code == "no_engine":
                return ()
            # An engine that is still starting will run the job later.
            log.info("jobs.engine_unavailable", engine=engine.name, error=str(error))
            return engine.kinds() or (core.STOCK_LANGUAGES if self._config.livy.url else core.EMBEDDED_LANGUAGES)
        return engine.kinds() or (core.EMBEDDED_LANGUAGES if instance else core.STOCK_LANGUAGES)

    async def _part(self, ref: InputRef) -> tuple[OfferedInput, str]:
        try:
            resolved = await self._catalog.resolve(DatasetName(ref.owner, ref.name, ref.snapshot))
        except IslandError as error:
            return OfferedInput(
                dataset=str(ref), bytes=0, missing=0
            ), f"it does not know the input {ref}: {error.message}"
        missing = await self._inputs.missing(resolved)
        part = OfferedInput(dataset=str(ref), bytes=resolved.record.size, missing=missing, files=resolved.record.files)
        if not missing:
            return part, ""
        return self._from_best_holder(part, ref, resolved)

    def _from_best_holder(
        self, part: OfferedInput, ref: InputRef, resolved: ResolvedDataset
    ) -> tuple[OfferedInput, str]:
        me = self._trust.me
        holders = [h for h in self._catalog.holders(resolved.owner, resolved.name, resolved.snapshot) if h != me]
        up = [holder for holder in holders if self._membership.is_up(holder)]
        if not up:
            names = ", ".join(self._membership.display(h) for h in holders) or "nobody"
            return part, f"it lacks {format_bytes(part.missing)} of {ref}, and no holder ({names}) is up"
        links = [(self._peers.link(holder), holder) for holder in up]
        link, source = max(links, key=lambda pair: (pair[0] is not None, (pair[0] and pair[0].bandwidth) or 0.0))
        return (
            OfferedInput(
                dataset=part.dataset,
                bytes=part.bytes,
                missing=part.missing,
                files=part.files,
                source=self._membership.display(source),
                rtt=link.rtt if link else None,
                bandwidth=link.bandwidth if link else None,
            ),
            "",
        )

    def _wait(self, job: str, able: list[EnginePort]) -> float:
        """Estimated seconds until one of these engines has a place for a job."""
        self._forget_expired()
        reserved = sum(1 for place in self._reservations.values() if place.job != job)
        return self._driver.places.expected_wait(able, reserved)

    def _forget_expired(self) -> None:
        now = self._clock.monotonic()
        for key in [key for key, place in self._reservations.items() if place.expires <= now]:
            del self._reservations[key]

    def _reserved(self, home: IslandId, but: str) -> int:
        """The number of places that are kept for other jobs of a home than `but`."""
        self._forget_expired()
        return sum(place.home == home and place.job != but for place in self._reservations.values())

    def _reserves_too_many(self, home: IslandId, job: str) -> bool:
        return self._reserved(home, job) >= MAX_RESERVED_BY_ONE or len(self._reservations) >= MAX_RESERVED

    def _reserve(self, job: str, home: IslandId) -> Reservation:
        for key in [key for key, place in self._reservations.items() if place.job == job and place.home == home]:
            del self._reservations[key]
        place = Reservation(self._rng.bytes(8).hex(), job, home, self._clock.monotonic() + RESERVATION_S)
        self._reservations[place.id] = place
        return place

    # --- commits ----------------------------------------------------------------------------

    async def commit(self, sender: IslandId, request: CommitRequest) -> CommitAnswer:
        """Accept a job and store it, or refuse it for this epoch. Repeating the request gives the same answer."""
        refusal = self._commit_refusal(sender, request)
        place = self._reservations.get(request.reservation)
        reserved = place is not None and place.home == sender and place.job == request.envelope.job
        if refusal is None and not (reserved and place is not None and place.expires > self._clock.monotonic()):
            refusal = JobRefusal(RESERVATION_EXPIRED, "the reservation has expired")

        def then(accepted: tuple[CommitAnswer, JobRun | None]) -> None:
            _, run = accepted
            if reserved:
                self._reservations.pop(request.reservation, None)
            if run is not None and not run.ended and (run.job, run.epoch) not in self._driver.actors:
                self._driver.begin(run, since=self._clock.boottime())
                log.info("jobs.accepted", job=run.job, epoch=run.epoch, home=self._membership.display(sender))

        answer, _ = await self._state.write(lambda conn: self._accept(conn, sender, request, refusal), then=then)
        return answer

    def _commit_refusal(self, sender: IslandId, request: CommitRequest) -> JobRefusal | None:
        envelope, work = request.envelope, request.work
        if refusal := self._refusal(sender, envelope):
            return refusal
        if work.file_hash and hashlib.sha256(request.file).hexdigest() != work.file_hash:
            return JobRefusal(INVALID_JOB, "the file of the batch does not match its hash")
        if problem := resources_problem(work.resources):
            return JobRefusal(INVALID_JOB, problem)
        if sender == self._trust.me:
            return None
        if problem := policy.work_problem(work):
            return JobRefusal(INVALID_JOB, problem)
        network = self._trust.network
        payload = codec.encode(envelope.on_behalf())
        if network is None or not verify(sender, "on-behalf", network, payload, envelope.signature):
            return JobRefusal(INVALID_JOB, "the signature of its home on behalf of the user is invalid")
        return None

    def _accept(
        self, conn: sqlite3.Connection, sender: IslandId, request: CommitRequest, refusal: JobRefusal | None
    ) -> tuple[CommitAnswer, JobRun | None]:
        envelope = request.envelope
        if (run := run_store.get(conn, envelope.job, envelope.epoch)) is not None:
            return self._repeated(run, sender, envelope)
        if refusal is None and run_store.newest_epoch(conn, envelope.job) > envelope.epoch:
            refusal = JobRefusal(STOPPED, "a later epoch of this job was already committed")
        if refusal is None:
            # Offers at the same time do not count each other, so that many may pass the limits: they hold here.
            foreign = run_store.count_alive(conn, without_home=self._trust.me)
            refusal = self._over_limit(sender, run_store.count_alive(conn), foreign)
        if refusal is not None:
            return refusal.answer(), None
        now = self._clock.wall()
        run_store.insert(conn, request, now)
        if request.work.file_hash:
            batch_files.keep(conn, request.work.file_hash, request.file)
        journal.append(
            conn,
            at=now,
            who=f"{envelope.user}@{self._membership.display(IslandId(envelope.home))}",
            act="job.run",
            what=envelope.job,
            outcome="accepted",
            detail={
                "kind": request.work.kind,
                "epoch": envelope.epoch,
                "inputs": [str(i) for i in request.work.inputs],
            },
        )
        return CommitAnswer(accepted=True), run_store.get(conn, envelope.job, envelope.epoch)

    def _repeated(self, run: JobRun, sender: IslandId, envelope: Envelope) -> tuple[CommitAnswer, JobRun | None]:
        """The answer to a commit of an epoch that is known."""
        self._check_home(run, sender)
        if not run.request_hash:
            return JobRefusal(STOPPED, "the job was stopped before it began").answer(), None
        if run.request_hash != envelope.request_hash:
            raise Conflict(f"another request was committed for job {envelope.job} and this epoch")
        return CommitAnswer(accepted=True), run

    # --- requests of home --------------------------------------------------------------------

    async def statement(self, sender: IslandId, request: RunStatementRequest) -> EmptyAnswer:
        """Accept and store a statement. Repeating the request has no effect.

        Raises `Conflict` with the code `diverged` if this island has another statement with the number.
        """
        actor = self._mine(sender, request.job, request.epoch)
        actor.tell(HomeHeard())
        try:
            await actor.ask(
                lambda reply: StatementOffered(reply, request.number, request.code, request.language),
            )
        except ActorEnded as error:
            raise _not_alive(request.job, request.epoch) from error
        return EmptyAnswer()

    async def status(self, sender: IslandId, request: StatusRequest) -> JobReport:
        """Report the current state of the run, and renew its lease.

        Raises `Conflict` with the code `not_ready` while it is open whether the run has a statement.
        """
        if (actor := self._driver.living(request.job, request.epoch)) is not None:
            actor.tell(HomeHeard())
            if actor.is_deciding(StatementOffered):
                # A report without the statement would tell home that it will not run.
                raise Conflict(f"a statement of {request.job} is being stored", code="not_ready")
            run, version = actor.state, actor.state.memory.version
        else:
            found = await self._state.read(lambda conn: run_store.get(conn, request.job, request.epoch))
            if found is None:
                raise NotFound(f"this island has no run of {request.job} with epoch {request.epoch}")
            run, version = found, _ENDED_VERSION
        self._check_home(run, sender)
        shown = await self._reported(run, request)
        return JobReport(
            job=run.job,
            epoch=run.epoch,
            version=version,
            state="busy" if not run.ended and run.open_statement and run.state == "idle" else run.state,
            ended=run.ended,
            reason=run.reason,
            code=run.code,
            app_id=run.app_id,
            app_info=dict(run.app_info),
            notes=run.notes,
            log=None if request.seen == version else run.log,
            statements=shown,
            moved=run.moved,
            times=run.times,
        )

    async def _reported(self, run: JobRun, request: StatusRequest) -> tuple[StatementReport, ...]:
        newest = run.statement
        if newest is None or newest.number < request.acknowledged:
            return ()
        report = _reported(newest)
        return (report if request.references else await self._outputs.inlined(report),)

    def _heard(self, job: str, epoch: int) -> None:
        if (actor := self._driver.living(job, epoch)) is not None:
            actor.tell(HomeHeard())

    async def stop(self, sender: IslandId, request: StopRequest) -> EmptyAnswer:
        """Cancel a statement or end the run. A run that has not begun is recorded as ended and will not begin."""
        actor = self._driver.living(request.job, request.epoch)
        if actor is None:
            await self._prevent(sender, request)
            return EmptyAnswer()
        self._check_home(actor.state, sender)
        actor.tell(HomeHeard())
        number = request.number
        with contextlib.suppress(ActorEnded):  # what was to be ended has ended
            if number is None:
                await actor.ask(lambda reply: RunStopAsked("owner", reply))
            else:
                await actor.ask(lambda reply: StatementCancelAsked(reply, number))
        return EmptyAnswer()

    async def _prevent(self, sender: IslandId, request: StopRequest) -> None:
        """Record that a run which has not begun must not begin."""
        if problem := policy.job_problem(request.job, sender):
            raise Denied(f"{problem}; only its home may stop a job")
        if self._policy(sender, None):
            return  # a commit of that home would be refused, so there is nothing to prevent
        await self._state.write(
            lambda conn: run_store.insert_refused(
                conn, request.job, request.epoch, sender, "stopped before it began", self._clock.wall()
            )
        )

    async def release(self, sender: IslandId, request: ReleaseRequest) -> EmptyAnswer:
        """Delete the results of a run, which its home has stored. The row of the run itself is kept."""
        run = await self._state.read(lambda conn: run_store.get(conn, request.job, request.epoch))
        if run is not None:
            self._check_home(run, sender)
            await self._state.write(lambda conn: run_store.release(conn, request.job, request.epoch))
            if run.statement is not None and run.statement.result is not None:
                await self._results.drop([run.statement.result.hash])
        return EmptyAnswer()

    async def complete(self, sender: IslandId, request: CodeCompletionRequest) -> CodeCompletionAnswer:
        """Ask the engine for code completion candidates."""
        run = self._mine(sender, request.job, request.epoch).state
        engine = self._engines.get(run.engine)
        if run.remote is None or engine is None:
            return CodeCompletionAnswer()
        found = await engine.complete(run.ref, request.code, request.language, request.cursor)
        return CodeCompletionAnswer(candidates=tuple(text[:4096] for text in found[:1000]))

    def live_runs(self) -> dict[str, int]:
        """The number of runs that have not ended, by kind."""
        counts = {"session": 0, "batch": 0}
        for run in self._driver.alive:
            counts[run.work.kind] += 1
        return counts

    async def newest(self, limit: int) -> list[JobRun]:
        """The newest runs at this island."""
        return await self._state.read(lambda conn: run_store.newest(conn, limit))

    async def evict(self, run: JobRun, record: Callable[[sqlite3.Connection], None]) -> None:
        """End a run of another home at the request of this island's administrator; the report to its home says so.

        `record(conn)` writes the journal entry, in the same transaction.
        """
        actor = self._driver.living(run.job, run.epoch)

        def write(conn: sqlite3.Connection) -> None:
            record(conn)
            run_store.set_stop(conn, run.job, run.epoch, "administrator")

        def then(_: None) -> None:
            if actor is not None:
                actor.tell(RunStopAsked("administrator"))

        await self._state.write(write, then=then)

    def _mine(self, sender: IslandId, job: str, epoch: int) -> Actor[JobRun]:
        """The actor of a run that has not ended, for its home."""
        actor = self._driver.living(job, epoch)
        if actor is None:
            raise _not_alive(job, epoch)
        self._check_home(actor.state, sender)
        if problem := self._policy(sender, actor.state.user):
            actor.tell(RunForbidden(problem))
            raise Denied(f"{self._trust.name} no longer runs this job: {problem}")
        return actor

    @staticmethod
    def _check_home(run: JobRun, sender: IslandId) -> None:
        if run.home != sender:
            raise Denied(f"job {run.job} does not belong to this island")


def _not_alive(job: str, epoch: int) -> NotFound:
    return NotFound(f"no run of {job} with epoch {epoch} is alive at this island")


def _reported(statement: RunStatement) -> StatementReport:
    code_hash = core.statement_hash(statement.code, statement.language)
    return msgspec.structs.replace(statement.report(), code_hash=code_hash)
