"""Performs what the machines of unfinished jobs want to be done: offers, commits, statements, reports, waits.

Each unfinished job has one actor. `machine` decides; this module stores and sends.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import structlog

from island.config import size_in_bytes
from island.errors import IslandError, PeerMisbehaved, PeerRefused, Unreachable
from island.jobs import batch_files, core
from island.jobs.cost_model import CostModel
from island.jobs.dependencies import JobsDependencies
from island.jobs.exchange import JobExchange
from island.jobs.foreign_conf import refused_foreign_keys
from island.jobs.home import hints, machine, observation_store, reports, store
from island.jobs.home.envelopes import envelope
from island.jobs.home.events import (
    AskReport,
    AwaitTurn,
    BehindOthers,
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
    KeepEnd,
    KeepObservation,
    KeepReport,
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
from island.jobs.home.line import PlaceLine
from island.jobs.home.machine import ExecutorContact, HomeJob, JobFacts, OpenStatement
from island.jobs.home.observation_store import StoredObservation
from island.jobs.home.placement import Placement
from island.jobs.home.result_fetching import ResultFetcher
from island.jobs.home.store import JobRow, StatementRow
from island.jobs.messages import (
    CommitAnswer,
    CommitRequest,
    Decline,
    EmptyAnswer,
    JobReport,
    ReleaseRequest,
    RunStatementRequest,
    StatementReport,
    StatusRequest,
    StopRequest,
)
from island.jobs.results import ResultStore
from island.kernel import codec
from island.kernel.actor import Actor, ActorEnded
from island.kernel.ids import IslandId
from island.kernel.loops import Tasks, is_transient
from island.kernel.machine import Effect, Write
from island.kernel.ports import Topic
from island.livy.messages import STATEMENT_ENDED
from island.trust import journal

log = structlog.get_logger("island")

DECLINE = "job.decline"

_SHORT = 64 * 1024
"""Maximum number of characters of a statement that is kept in memory until it is sent."""

Exchanges = FindPlace | SendCommit | AskReport | SendStatement | SendStop | SendRelease
"""The effects that ask other islands, or this island as an executor."""


class HomeDriver:
    """The actors of the unfinished jobs of this home."""

    def __init__(
        self,
        needs: JobsDependencies,
        exchange: JobExchange,
        results: ResultStore,
        *,
        decline: Callable[[IslandId, str], None],
    ) -> None:
        self._decline_here = decline
        self._state, self._exchange, self._catalog = needs.state, exchange, needs.catalog
        self._membership, self._trust, self._peers = needs.membership, needs.trust, needs.peers
        self._clock, self._rng = needs.clock, needs.rng
        self._costs = CostModel()
        self._learned = 0
        """The number of the newest observation that the cost model has."""
        self._placement = Placement(needs, exchange, self._costs)
        self._results = results
        self._fetcher = ResultFetcher(needs.peers, results, size_in_bytes(needs.config.jobs.max_result))
        self._line = PlaceLine(needs.rng)
        self._actors: dict[str, Actor[HomeJob]] = {}
        self._topics: dict[str, Topic] = {}
        self._locals: dict[tuple[str, int | str], str] = {}
        self._heard: dict[str, float] = {}
        self._unsent: dict[str, dict[int, StatementRow]] = {}
        """Short statements that were just accepted, by job and number, so that they are sent without a read."""
        self._tasks: Tasks | None = None
        needs.peers.on_link(self._on_link)

    async def start(self, tasks: Tasks) -> None:
        """Take up every unfinished job."""
        self._tasks = tasks
        self._learn(await self._state.read(lambda conn: observation_store.after(conn, 0)))
        for job, statements in await self._state.read(store.unfinished):
            self.drive(job, statements)

    def drive(self, row: JobRow, statements: Sequence[StatementRow] = ()) -> None:
        """Take up a stored job. `statements`: its unfinished statements."""
        assert self._tasks is not None
        if row.id in self._actors:
            return
        job = _as_home_job(row, statements, self._membership.display(IslandId(row.executor)) if row.executor else "")
        actor = self._actors[row.id] = Actor(
            f"job {row.id}",
            job,
            handle=machine.handle,
            broken=machine.broken,
            save=self._save,
            perform=partial(self._perform, job.facts),
            clock=self._clock,
            rng=self._rng,
        )
        self._topics[row.id] = Topic()
        self._locals[row.kind, row.local] = row.id
        self.heard(row.id)
        actor.tell(JobTakenUp())
        self._tasks.spawn(actor.name, self._run(actor, row))

    async def _run(self, actor: Actor[HomeJob], row: JobRow) -> None:
        try:
            await actor.run()
        finally:
            del self._actors[row.id]
            del self._locals[row.kind, row.local]
            self._heard.pop(row.id, None)
            self._unsent.pop(row.id, None)
            self._line.leave(row.id)
            self._results.unpin(row.id)
            self._topics.pop(row.id).touch()

    # --- what other parts ask and tell -----------------------------------------------------------------

    def topic(self, job: str) -> Topic | None:
        """Touched whenever the rows of the job or its progress change; None if the job is finished."""
        return self._topics.get(job)

    def topic_of_local(self, kind: str, local: int | str) -> Topic | None:
        """The topic of an unfinished job by its local id; None for a name."""
        return self._topics.get(self._locals.get((kind, local), ""))

    def touch(self, job: str) -> None:
        """Wake those who wait for a change of the job, after its rows were changed."""
        if (topic := self._topics.get(job)) is not None:
            topic.touch()

    def lost_since(self, job: str) -> float | None:
        """Unix time since which the executor of a job does not answer; None while it answers."""
        actor = self._actors.get(job)
        return actor.state.contact.lost_since if actor else None

    def progress(self, job: str, number: int) -> StatementReport | None:
        """Progress of an unfinished statement; None if the database has the newest state."""
        actor = self._actors.get(job)
        return actor.state.progress(number) if actor else None

    def heard(self, job: str) -> None:
        """Note that a client has asked about a job."""
        if job in self._actors:
            self._heard[job] = self._clock.boottime()

    def accepted(self, job: str, statement: StatementRow) -> None:
        """A statement was stored."""
        code_hash = core.statement_hash(statement.code, statement.language)
        if job in self._actors and len(statement.code) <= _SHORT:
            self._unsent.setdefault(job, {})[statement.number] = statement
        self._tell(job, StatementAccepted(statement.number, code_hash))

    def stop(self, job: str) -> None:
        """The owner's wish to end a job was stored."""
        self._tell(job, StopWanted())

    def cancel(self, job: str, numbers: Sequence[int]) -> None:
        """The owner's wish to cancel statements was stored."""
        for number in numbers:
            self._unsent.get(job, {}).pop(number, None)
        self._tell(job, CancelWanted(tuple(numbers)))

    async def handled(self, job: str) -> None:
        """Wait until the driver has stored what follows from everything that it was told so far."""
        if (actor := self._actors.get(job)) is not None:
            try:
                await actor.ask(StoredSoFar)
            except ActorEnded:
                return  # everything that follows is stored

    def news(self, sender: IslandId, job: str, epoch: int) -> None:
        """Handle the push of an executor that a job has changed. It is a hint: the report is asked for."""
        actor = self._actors.get(job)
        if actor is not None and (actor.state.executor, actor.state.epoch) == (sender, epoch):
            actor.tell(ExecutorNews())

    def _tell(self, job: str, event: Any) -> None:
        if (actor := self._actors.get(job)) is not None:
            actor.tell(event)
        self.touch(job)

    def _on_link(self, island: IslandId, _made: bool) -> None:
        # A new session may bring results that wait there; after a loss, a request detects the silence.
        for actor in self._actors.values():
            if actor.state.executor == island:
                actor.tell(ExecutorNews())
            elif not actor.state.executor:
                actor.tell(IslandsChanged())
        self._line.call()

    # --- storing -----------------------------------------------------------------------------------

    async def _save(self, old: HomeJob, new: HomeJob, writes: Sequence[Write]) -> None:
        if writes or store.is_changed(old, new):
            await self._state.write(lambda conn: self._store(conn, old, new, writes), then=self._learn)
            if any(isinstance(write, KeepReport) for write in writes):
                self._results.unpin(new.facts.id)
        for write in writes:
            if isinstance(write, KeepEnd):
                log.info("jobs.ended", job=new.facts.id, state=write.state, reason=write.reason)
        if writes or _shown(old) != _shown(new):
            self.touch(new.facts.id)

    def _store(
        self, conn: sqlite3.Connection, old: HomeJob, new: HomeJob, writes: Sequence[Write]
    ) -> list[StoredObservation]:
        """Store a step in a transaction. Returns the observations that the cost model does not have yet."""
        now = self._clock.wall()
        store.save(conn, old, new, writes, now)
        for end in writes:
            if isinstance(end, KeepEnd):
                journal.append(
                    conn,
                    at=now,
                    who=self._trust.who(new.facts.user),
                    act="job.end",
                    what=new.facts.id,
                    outcome=end.state,
                    detail={"reason": end.reason[:500]},
                )
        is_news = any(isinstance(write, KeepObservation) for write in writes)
        return observation_store.after(conn, self._learned) if is_news else []

    def _learn(self, stored: Sequence[StoredObservation]) -> None:
        for row in stored:
            if row.number > self._learned:
                self._learned = row.number
                self._costs.learn(row.observed)

    # --- effects -----------------------------------------------------------------------------------

    async def _perform(self, job: JobFacts, effect: Effect) -> Any:
        match effect:
            case FindPlace() | SendCommit() | AskReport() | SendStatement() | SendStop() | SendRelease():
                return await self._exchanged(job, effect)
            case AwaitTurn():
                await self._line.turn(job.id, _requirements(job, effect))
                return TurnCame(effect)
            case LeaveLine():
                self._line.leave(job.id)
            case DeclinePlaces():
                for island, reservation in effect.reservations:
                    self._decline(IslandId(island), reservation)
            case WatchClients():
                return await self._watch(job, effect)
            case _:
                raise TypeError(f"no such effect: {effect}")
        return None

    async def _exchanged(self, job: JobFacts, effect: Exchanges) -> Any:
        """Do an effect that may fail because of other islands or this island's disk; the failure is its answer."""
        performers: dict[type[Effect], Callable[[JobFacts, Any], Awaitable[Any]]] = {
            FindPlace: self._find_place,
            SendCommit: self._commit,
            AskReport: self._ask_report,
            SendStatement: self._send_statement,
            SendStop: self._send_stop,
            SendRelease: self._send_release,
        }
        try:
            return await performers[type(effect)](job, effect)
        except PeerRefused as error:
            return ExecutorRefused(effect, error.code, error.message)
        except (Unreachable, PeerMisbehaved) as error:
            # An invalid answer of an executor counts as no answer.
            return ExecutorSilent(effect, error.message, self._is_linked(effect))
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("jobs.disk_trouble", job=job.id, error=str(error))
            return DiskTrouble(effect, str(error))

    def _is_linked(self, effect: Exchanges) -> bool:
        to = "" if isinstance(effect, FindPlace) else effect.to
        return to == self._trust.me or self._peers.link(IslandId(to)) is not None

    async def _find_place(self, job: JobFacts, effect: FindPlace) -> Any:
        if ahead := self._line.ahead(job.id, _requirements(job, effect)):
            return BehindOthers(effect, ahead)
        try:
            found = await self._placement.find(job, effect.epoch + 1, dict(effect.refused))
        except IslandError as error:
            if is_transient(error):
                raise
            return NoRoute(effect, error.line)
        return PlaceFound(
            effect,
            decision=found.decision,
            reservations=tuple(found.reservations.items()),
            asked=found.asked,
            full=found.full,
            absent=found.absent,
        )

    def _decline(self, island: IslandId, reservation: str) -> None:
        if island == self._trust.me:
            self._decline_here(island, reservation)
        else:
            self._peers.push(island, DECLINE, codec.encode(Decline(reservation=reservation)))

    async def _commit(self, job: JobFacts, effect: SendCommit) -> CommitAnswered:
        file = b""
        if job.work.file_hash:
            file = await self._state.read(lambda conn: batch_files.read(conn, job.work.file_hash))
        request = CommitRequest(
            envelope=envelope(self._trust, job, effect.epoch, effect.to),
            reservation=effect.reservation,
            work=job.work,
            file=file,
        )
        answer = await self._exchange.ask(IslandId(effect.to), "commit", request, CommitAnswer, timeout=15.0)
        return CommitAnswered(effect, answer)

    async def _ask_report(self, job: JobFacts, effect: AskReport) -> Reported:
        request = StatusRequest(
            job=job.id, epoch=effect.epoch, acknowledged=effect.acknowledged, seen=effect.seen, references=True
        )
        answer = await self._exchange.ask(IslandId(effect.to), "status", request, JobReport)
        report = reports.checked_report(answer, job.id, effect.epoch)
        if report.statements:
            report = await self._fetcher.collected(IslandId(effect.to), report)
            report = msgspec.structs.replace(report, statements=await self._hinted(job, report))
        return Reported(effect, report)

    async def _send_statement(self, job: JobFacts, effect: SendStatement) -> ExecutorDid:
        statement = self._unsent.get(job.id, {}).pop(effect.number, None)
        if statement is None:
            statement = await self._state.read(lambda conn: store.statement(conn, job.id, effect.number))
        assert statement is not None
        request = RunStatementRequest(
            job=job.id,
            epoch=effect.epoch,
            number=statement.number,
            code=statement.code,
            language=statement.language,
        )
        await self._exchange.ask(IslandId(effect.to), "statement", request, EmptyAnswer)
        return ExecutorDid(effect)

    async def _send_stop(self, job: JobFacts, effect: SendStop) -> ExecutorDid:
        request = StopRequest(job=job.id, epoch=effect.epoch, number=effect.number)
        await self._exchange.ask(IslandId(effect.to), "stop", request, EmptyAnswer)
        return ExecutorDid(effect)

    async def _send_release(self, job: JobFacts, effect: SendRelease) -> ExecutorDid:
        await self._exchange.ask(
            IslandId(effect.to), "release", ReleaseRequest(job=job.id, epoch=effect.epoch), EmptyAnswer
        )
        return ExecutorDid(effect)

    async def _hinted(self, job: JobFacts, report: JobReport) -> tuple[StatementReport, ...]:
        """The statements of a report. A message is added to those that failed because a table is missing."""
        out = []
        for statement in report.statements:
            table = hints.missing_table(statement.output) if statement.state in STATEMENT_ENDED else ""
            if views := hints.views_meant(table, job.work.inputs):
                statement = msgspec.structs.replace(statement, output=hints.with_views(statement.output, table, views))
            elif table:
                datasets = [(view.island, view.name) for view in await self._catalog.datasets()]
                dataset, exact = hints.suggest(table, datasets)
                if dataset and dataset not in [str(ref) for ref in job.work.inputs]:
                    inputs = [str(ref) for ref in job.work.inputs]
                    output = hints.with_hint(statement.output, table, dataset, exact, inputs)
                    statement = msgspec.structs.replace(statement, output=output)
            out.append(statement)
        return tuple(out)

    async def _watch(self, job: JobFacts, effect: WatchClients) -> ClientsSilent:
        while True:
            silent = self._clock.boottime() - self._heard.get(job.id, 0.0)
            if silent >= effect.seconds:
                return ClientsSilent(silent)
            await asyncio.sleep(max(1.0, effect.seconds - silent))


def _shown(job: HomeJob) -> tuple[object, ...]:
    """What clients see of a job besides its rows."""
    return job.phase, job.open, job.contact.sent, job.contact.lost_since


def _requirements(job: JobFacts, search: FindPlace | AwaitTurn) -> str:
    """What jobs have in common that may run at the same islands, as text.

    Of the conf it is only whether other islands accept its keys. An island that refuses a job for other settings of
    it becomes one of those that have refused the job.
    """
    work = job.work
    inputs = [(ref.owner, ref.name, ref.snapshot) for ref in work.inputs]
    only_here = bool(refused_foreign_keys(work.conf))
    refused = sorted(island for island, _ in search.refused)
    return core.compact_json([job.pin, work.kind, work.language, inputs, only_here, refused])


def _as_home_job(row: JobRow, statements: Sequence[StatementRow], executor_name: str) -> HomeJob:
    phase = "released" if row.phase == "ended" and row.released else row.phase
    return HomeJob(
        facts=JobFacts(
            id=row.id,
            kind=row.kind,
            user=row.user,
            request_hash=row.request_hash,
            work=row.work,
            pin=row.pin,
            heartbeat=max(0.0, row.request.get("heartbeatTimeoutInSecond") or 0) if row.kind == "session" else 0.0,
        ),
        phase=phase,
        epoch=row.epoch,
        executor=row.executor,
        executor_name=executor_name,
        reservation=row.reservation,
        stop=row.stop,
        statements=row.statements,
        open=tuple(
            OpenStatement(
                number=each.number, code_hash=core.statement_hash(each.code, each.language), cancel=each.cancel
            )
            for each in statements
        ),
        contact=ExecutorContact.after_restart(phase),
    )
