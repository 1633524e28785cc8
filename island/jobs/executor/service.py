"""The executor: offers places, accepts commits, and answers requests of homes about their runs.

A run is stored in the database before the engine gets a request for it. `run_driver` then runs it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog

from island.catalog.messages import ResolvedDataset
from island.errors import Conflict, Denied, EngineFailed, IslandError, NotFound
from island.jobs import batch_files, core
from island.jobs.dependencies import JobsDependencies
from island.jobs.executor import policy
from island.jobs.executor import store as run_store
from island.jobs.executor.driver import LiveRun, RunDriver
from island.jobs.executor.store import JobRun, RunStatement
from island.jobs.messages import (
    DIVERGED,
    RESERVATION_S,
    CodeCompletionAnswer,
    CodeCompletionRequest,
    CommitAnswer,
    CommitRequest,
    EmptyAnswer,
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
from island.kernel import codec
from island.kernel.ids import DatasetName, IslandId
from island.kernel.loops import Tasks
from island.kernel.units import format_bytes
from island.trust import journal
from island.trust.signing import verify

log = structlog.get_logger("island")

MAX_WAITING = 100
"""Maximum number of runs that wait for a place at this island."""

WAIT_S = 60.0
"""Seconds for which a place is assumed to stay occupied; used for the estimated wait in offers."""

_ENDED_VERSION = 2**52


@dataclass(slots=True)
class Reservation:
    """A place that is kept for a job until `expires` (seconds on the monotonic clock)."""

    id: str
    job: str
    home: IslandId
    expires: float


class Executor:
    """Runs jobs at this island's engine, for this island as home and for other homes that the administrator allows."""

    def __init__(self, needs: JobsDependencies, *, changed: Callable[[IslandId, str, int], None]) -> None:
        self._state, self._catalog, self._inputs = needs.state, needs.catalog, needs.inputs
        self._membership, self._trust, self._peers = needs.membership, needs.trust, needs.peers
        self._config, self._engine, self._clock, self._rng = needs.config, needs.livy, needs.clock, needs.rng
        self._reservations: dict[str, Reservation] = {}
        self._driver = RunDriver(needs, changed=changed, policy=self._policy, account=self._account)

    async def start(self, tasks: Tasks) -> None:
        """Resume every run that has not ended."""
        await self._driver.start(tasks)

    # --- offers -----------------------------------------------------------------------------

    async def offer(self, sender: IslandId, request: OfferRequest) -> Offer:
        """Answer a request for an offer: a reservation with this island's own estimates, or a refusal with a reason."""
        if refusal := self._refusal(sender, request):
            return Offer(refusal=refusal)
        if refusal := self._capacity_refusal(sender):
            return Offer(refusal=refusal, code="full" if self._engine else "no_engine")
        languages = await self._languages()
        if request.language not in languages:
            return Offer(refusal=f"its engine does not run '{request.language}'" if languages else "it has no engine")
        parts = []
        for ref in request.inputs:
            part, problem = await self._part(ref)
            if problem:
                return Offer(refusal=problem)
            parts.append(part)
        wait = self._wait(request.envelope.job)
        return Offer(
            reservation=self._reserve(request.envelope.job, sender).id,
            wait=wait,
            languages=languages,
            parts=tuple(parts),
        )

    def decline(self, sender: IslandId, reservation: str) -> None:
        """Cancel a reservation that its home does not use."""
        place = self._reservations.get(reservation)
        if place is not None and place.home == sender:
            del self._reservations[reservation]

    def _refusal(self, sender: IslandId, request: OfferRequest) -> str:
        if problem := policy.envelope_problem(request.envelope, sender, self._trust.me):
            return problem
        return self._policy(sender, request.envelope.user)

    def _policy(self, home: IslandId, user: str | None) -> str:
        return policy.policy_refusal(
            self._config.jobs,
            self._membership.display(home),
            user,
            is_home=home == self._trust.me,
            means=lambda text: self._means(text, home),
        )

    def _account(self, run: JobRun) -> str | None:
        """The local account under which the site's own Livy runs a job; None for Livy's own choice."""
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

    def _capacity_refusal(self, sender: IslandId) -> str:
        if self._engine is None:
            return "it has no Spark engine (no [livy] url, and the extra `spark` is not installed)"
        foreign = [live for live in self._driver.live.values() if live.run.home != self._trust.me]
        limit = self._config.jobs.max_foreign
        if sender != self._trust.me and len(foreign) >= limit:
            return f"it runs {len(foreign)} foreign jobs already (jobs.max_foreign = {limit} in its island.toml)"
        if len(self._driver.live) >= self._config.livy.max_sessions + MAX_WAITING:
            return f"{len(self._driver.live)} jobs run or wait there already"
        return ""

    async def _languages(self) -> tuple[str, ...]:
        assert self._engine is not None
        try:
            return core.EMBEDDED_LANGUAGES if await self._engine.instance() else core.STOCK_LANGUAGES
        except EngineFailed as error:
            if error.code == "no_engine":
                return ()
            # An engine that is still starting will run the job later. If it never starts, the job ends with the reason.
            log.info("jobs.engine_unavailable", error=error.message)
            return core.EMBEDDED_LANGUAGES if not self._config.livy.url else core.STOCK_LANGUAGES

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

    def _wait(self, job: str) -> float:
        now = self._clock.monotonic()
        for key in [key for key, place in self._reservations.items() if place.expires <= now]:
            del self._reservations[key]
        taken = len(self._driver.live) + sum(1 for place in self._reservations.values() if place.job != job)
        return max(0, taken + 1 - self._config.livy.max_sessions) * WAIT_S

    def _reserve(self, job: str, home: IslandId) -> Reservation:
        for key in [key for key, place in self._reservations.items() if place.job == job and place.home == home]:
            del self._reservations[key]
        if len(self._reservations) >= 1000 or sum(place.home == home for place in self._reservations.values()) >= 200:
            raise Conflict("too many places are reserved at this island", hint="Reservations expire after 30 s.")
        place = Reservation(self._rng.bytes(8).hex(), job, home, self._clock.monotonic() + RESERVATION_S)
        self._reservations[place.id] = place
        return place

    # --- commits ----------------------------------------------------------------------------

    async def commit(self, sender: IslandId, request: CommitRequest) -> CommitAnswer:
        """Accept a job and store it, or refuse it for this epoch. Repeating the request gives the same answer."""
        problem = self._commit_problem(sender, request)
        place = self._reservations.get(request.reservation)
        reserved = place is not None and place.home == sender and place.job == request.envelope.job
        fresh = reserved and place is not None and place.expires > self._clock.monotonic()

        def then(accepted: tuple[CommitAnswer, JobRun | None]) -> None:
            _, run = accepted
            if reserved:
                self._reservations.pop(request.reservation, None)
            if run is not None and not run.ended and (run.job, run.epoch) not in self._driver.live:
                self._driver.begin(run)
                log.info("jobs.accepted", job=run.job, epoch=run.epoch, home=self._membership.display(sender))

        answer, _ = await self._state.write(lambda conn: self._accept(conn, sender, request, problem, fresh), then=then)
        return answer

    def _commit_problem(self, sender: IslandId, request: CommitRequest) -> str:
        envelope = request.envelope
        problem = policy.envelope_problem(envelope, sender, self._trust.me) or self._policy(sender, envelope.user)
        if problem:
            return problem
        if request.work.file_hash and hashlib.sha256(request.file).hexdigest() != request.work.file_hash:
            return "the file of the batch does not match its hash"
        if sender == self._trust.me:
            return ""
        if problem := policy.work_problem(request.work):
            return problem
        network = self._trust.network
        payload = codec.encode(envelope.on_behalf())
        if network is None or not verify(sender, "on-behalf", network, payload, envelope.signature):
            return "the signature of its home on behalf of the user is invalid"
        return ""

    def _accept(
        self, conn: sqlite3.Connection, sender: IslandId, request: CommitRequest, problem: str, fresh: bool
    ) -> tuple[CommitAnswer, JobRun | None]:
        envelope = request.envelope
        if (run := run_store.get(conn, envelope.job, envelope.epoch)) is not None:
            if run.home != sender:
                raise Denied(f"job {envelope.job} does not belong to this island")
            if not run.request_hash:
                return CommitAnswer(accepted=False, reason="the job was stopped before it began", code="stopped"), None
            if run.request_hash != envelope.request_hash:
                raise Conflict(f"another request was committed for job {envelope.job} and this epoch")
            return CommitAnswer(accepted=True), run
        if problem:
            return CommitAnswer(accepted=False, reason=problem), None
        if run_store.newest_epoch(conn, envelope.job) > envelope.epoch:
            return CommitAnswer(
                accepted=False, reason="a later epoch of this job was already committed", code="stopped"
            ), None
        if not fresh:
            return CommitAnswer(accepted=False, reason="the reservation has expired", code="reservation_expired"), None
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

    # --- requests of home --------------------------------------------------------------------

    async def statement(self, sender: IslandId, request: RunStatementRequest) -> EmptyAnswer:
        """Accept and store a statement. Repeating the request has no effect.

        Raises `Conflict` with the code `diverged` if this island has another statement with the number.
        """
        live = self._mine(sender, request.job, request.epoch)
        live.renewed = self._clock.boottime()
        async with live.accepting:
            if request.number <= live.last_number:
                await self._check_repeated(live.run, request)
                return EmptyAnswer()
            if live.current is not None:
                raise Conflict(f"statement {live.current.number} is still running; they are sent one at a time")
            if live.ending or live.run.step != "running" or live.run.state != "idle":
                raise Conflict(f"the session is {live.run.state}", code="not_ready")
            fresh = RunStatement(request.number, request.code, request.language, live.next_remote)

            def then(_: None) -> None:
                live.current, live.last_number, live.cancel_sent = fresh, fresh.number, False
                live.next_remote += 1
                live.signal.set()

            await self._state.write(lambda conn: run_store.add_statement(conn, live.run, fresh), then=then)
        return EmptyAnswer()

    async def _check_repeated(self, run: JobRun, request: RunStatementRequest) -> None:
        # Only the newest statement is stored, and home repeats no other: it sends one at a time.
        stored = await self._state.read(lambda conn: run_store.statements(conn, run.job, run.epoch, request.number))
        if not any(
            (each.number, each.code, each.language) == (request.number, request.code, request.language)
            for each in stored
        ):
            raise Conflict(
                f"another statement {request.number} was run in this session",
                hint="This happens if the home of the job was restored from a backup. Open a new session.",
                code=DIVERGED,
            )

    async def status(self, sender: IslandId, request: StatusRequest) -> JobReport:
        """Report the current state of the run, and renew its lease."""
        live = self._driver.live.get((request.job, request.epoch))
        run = live.run if live else await self._state.read(lambda conn: run_store.get(conn, request.job, request.epoch))
        if run is None:
            raise NotFound(f"this island has no run of {request.job} with epoch {request.epoch}")
        self._check_home(run, sender)
        version = live.version if live else _ENDED_VERSION
        statements: list[StatementReport] = []
        if live is not None:
            live.renewed = self._clock.boottime()
        if live is None or live.last_number >= request.acknowledged:
            stored = await self._state.read(
                lambda conn: run_store.statements(conn, request.job, request.epoch, request.acknowledged)
            )
            current = live.current if live else None
            statements = [
                _reported(current if current and current.number == each.number and not each.ended else each)
                for each in stored
            ]
        return JobReport(
            job=run.job,
            epoch=run.epoch,
            version=version,
            state="busy" if live and live.current and run.state == "idle" else run.state,
            ended=run.ended,
            reason=run.reason,
            app_id=run.app_id,
            app_info=run.app_info,
            notes=tuple(run.notes),
            log=None if request.seen == version else tuple(run.log),
            statements=tuple(statements),
            moved=run.moved,
        )

    async def stop(self, sender: IslandId, request: StopRequest) -> EmptyAnswer:
        """Cancel a statement or end the run. A run that has not begun is recorded as ended and will not begin."""
        live = self._driver.live.get((request.job, request.epoch))
        if live is None:
            if problem := policy.job_problem(request.job, sender):
                raise Denied(f"{problem}; only its home may stop a job")
            if self._policy(sender, None):
                return EmptyAnswer()  # a commit of that home would be refused, so there is nothing to prevent
            await self._state.write(
                lambda conn: run_store.insert_refused(
                    conn, request.job, request.epoch, sender, "stopped before it began", self._clock.wall()
                )
            )
            return EmptyAnswer()
        self._check_home(live.run, sender)
        live.renewed = self._clock.boottime()
        if request.number is None:
            await self._state.write(
                lambda conn: run_store.set_stop(conn, request.job, request.epoch),
                then=lambda _: self._driver.stop(live),
            )
        elif (current := live.current) is not None and current.number == request.number:
            current.cancel = True
            await self._state.write(
                lambda conn: run_store.save_statement(conn, live.run, current), then=lambda _: self._driver.stir(live)
            )
        return EmptyAnswer()

    async def release(self, sender: IslandId, request: ReleaseRequest) -> EmptyAnswer:
        """Delete the results of a run, which its home has stored. The row of the run itself is kept."""
        run = await self._state.read(lambda conn: run_store.get(conn, request.job, request.epoch))
        if run is not None:
            self._check_home(run, sender)
            await self._state.write(lambda conn: run_store.release(conn, request.job, request.epoch))
        return EmptyAnswer()

    async def complete(self, sender: IslandId, request: CodeCompletionRequest) -> CodeCompletionAnswer:
        """Ask the engine for code completion candidates."""
        live = self._mine(sender, request.job, request.epoch)
        if live.run.remote is None or self._engine is None:
            return CodeCompletionAnswer()
        found = await self._engine.complete(live.run.remote, request.code, request.language, request.cursor)
        return CodeCompletionAnswer(candidates=tuple(text[:4096] for text in found[:1000]))

    def live_runs(self) -> dict[str, int]:
        """The number of runs that have not ended, by kind."""
        counts = {"session": 0, "batch": 0}
        for live in self._driver.live.values():
            counts[live.run.work.kind] += 1
        return counts

    async def newest(self, limit: int) -> list[JobRun]:
        """The newest runs at this island."""
        return await self._state.read(lambda conn: run_store.newest(conn, limit))

    async def evict(self, run: JobRun, record: Callable[[sqlite3.Connection], None]) -> None:
        """End a run of another home at the request of this island's administrator; the report to its home says so.

        `record(conn)` writes the journal entry, in the same transaction.
        """
        live = self._driver.live.get((run.job, run.epoch))
        if live is None:
            await self._state.write(record)
            return

        def write(conn: sqlite3.Connection) -> None:
            record(conn)
            run_store.set_stop(conn, run.job, run.epoch)

        await self._state.write(write, then=lambda _: self._driver.stop(live, evicted=True))

    def _mine(self, sender: IslandId, job: str, epoch: int) -> LiveRun:
        live = self._driver.live.get((job, epoch))
        if live is None:
            raise NotFound(f"no run of {job} with epoch {epoch} is alive at this island")
        self._check_home(live.run, sender)
        if problem := self._policy(sender, live.run.user):
            live.forbidden = True
            self._driver.stir(live)
            raise Denied(f"{self._trust.name} no longer runs this job: {problem}")
        return live

    @staticmethod
    def _check_home(run: JobRun, sender: IslandId) -> None:
        if run.home != sender:
            raise Denied(f"job {run.job} does not belong to this island")


def _reported(statement: RunStatement) -> StatementReport:
    code_hash = core.statement_hash(statement.code, statement.language)
    return msgspec.structs.replace(statement.report(), code_hash=code_hash)
