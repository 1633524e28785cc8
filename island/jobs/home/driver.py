"""Home's side of a job: find a place, commit, send statements, fetch and store results.

Each unfinished job has one driver. It does what the stored phase requires, and it stores each
decision before it acts on it:

    routing ──(decision stored)──► committing ──(accepted)──► placed ──(last report stored)──► ended
       ▲                               │                                                        │
       └────────────(refused)──────────┘                                      released ◄────────┘

After a crash, a new driver continues from the stored phase. Every request that it may repeat
is idempotent at the executor.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec
import structlog

from island.catalog.messages import ResolvedDataset
from island.errors import IslandError, PeerMisbehaved, PeerRefused, Unreachable
from island.jobs import batch_files, core, router
from island.jobs.dependencies import JobsDependencies
from island.jobs.exchange import JobExchange
from island.jobs.home import hints, reports, store
from island.jobs.home.store import JobRow, StatementRow
from island.jobs.messages import (
    DIVERGED,
    MAX_HOPS,
    CommitAnswer,
    CommitRequest,
    Decline,
    EmptyAnswer,
    Envelope,
    InputRef,
    JobReport,
    Offer,
    OfferRequest,
    ReleaseRequest,
    RunStatementRequest,
    StatementReport,
    StatusRequest,
    StopRequest,
)
from island.jobs.router import Candidate, InputTransfer, JobRequirements, RoutingDecision
from island.kernel import codec
from island.kernel.ids import DatasetName, IslandId
from island.kernel.loops import Tasks, backoff, is_transient
from island.kernel.ports import Signal, Topic
from island.livy.messages import STATEMENT_ENDED
from island.trust import journal

log = structlog.get_logger("island")

ASKED = 3
"""Maximum number of islands, besides home, that are asked for an offer at a time."""

POLL_S = 20.0
"""Average seconds between status requests for a job without news; executors push changes."""

PATIENCE_S = 30.0
"""Seconds for which a job waits for an island that was up recently, when no other island can run it."""

MAX_EPOCHS = 20
"""Maximum number of attempts to place a job; then it fails."""

DECLINE = "job.decline"


@dataclass(slots=True)
class TrackedJob:
    """The state of an unfinished job that home keeps in memory only."""

    id: str
    executor: str = ""
    signal: Signal = field(default_factory=Signal)
    dirty: bool = True
    """The executor may have news, so its status must be requested. True at the start."""
    confirmed: bool = False
    """The executor has reported which statements it has."""
    lost_since: float | None = None
    """Unix time since which the executor does not answer; None while it answers."""
    sent: int = -1
    """Number of the last statement that was sent or is being sent."""
    stop_sent: bool = False
    cancels: set[int] = field(default_factory=set)
    withheld: set[int] = field(default_factory=set)
    """Numbers of the statements that are being cancelled before they are sent."""
    overlay: dict[int, StatementReport] = field(default_factory=dict)
    """Progress of unfinished statements. Results are read from the database."""
    last_version: int = 0
    """Version of the last report that was stored."""
    state: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    """Keys of islands that refused a commit, with their reasons."""
    failures: int = 0
    faults: int = 0
    """Consecutive rounds that failed because of an error at this island."""
    patience: float | None = None
    """Monotonic time until which the job waits for islands that are not linked yet."""
    logged_waiting: bool = False
    logged_asking: str = ""
    last: JobReport | None = None


class JobForwarder:
    """Runs the drivers of the jobs of this home."""

    def __init__(
        self, needs: JobsDependencies, exchange: JobExchange, *, decline: Callable[[IslandId, str], None]
    ) -> None:
        self._decline_here = decline
        self._state, self._exchange, self._catalog, self._inputs = needs.state, exchange, needs.catalog, needs.inputs
        self._membership, self._trust, self._peers = needs.membership, needs.trust, needs.peers
        self._clock, self._rng = needs.clock, needs.rng
        self._tracked: dict[str, TrackedJob] = {}
        self._tasks: Tasks | None = None
        self.changed = Topic()
        """Touched when the rows of any job have changed."""
        needs.peers.on_link(self._on_link)

    async def start(self, tasks: Tasks) -> None:
        """Start a driver for every unfinished job."""
        self._tasks = tasks
        for job in await self._state.read(store.unfinished):
            self.drive(job.id)

    def drive(self, job: str) -> None:
        """Start the driver of a job that was just stored."""
        assert self._tasks is not None
        if job not in self._tracked:
            driven = self._tracked[job] = TrackedJob(job)
            self._tasks.spawn(f"job {job}", self._drive(driven))

    def poke(self, job: str) -> None:
        """Wake the driver of a job: its owner has posted or cancelled a statement, or ended the job."""
        if (driven := self._tracked.get(job)) is not None:
            driven.signal.set()

    def news(self, sender: IslandId, job: str, epoch: int) -> None:
        """Handle the push of an executor that a job has changed. It is a hint: the status request checks the epoch."""
        if (driven := self._tracked.get(job)) is not None and driven.executor == sender:
            driven.dirty = True
            driven.signal.set()

    def lost_since(self, job: str) -> float | None:
        """Unix time since which the executor of a job does not answer; None while it answers."""
        driven = self._tracked.get(job)
        return driven.lost_since if driven else None

    def overlay(self, job: str, number: int) -> StatementReport | None:
        """Progress of an unfinished statement; None if the database has the newest state."""
        driven = self._tracked.get(job)
        if driven is None:
            return None
        if (report := driven.overlay.get(number)) is not None:
            return report
        return StatementReport(number=number, state="running") if number == driven.sent else None

    def withhold(self, job: str, number: int) -> bool:
        """Prevent a statement from being sent. False if the executor may already have it.

        Called before the cancel is stored. Otherwise the driver could send the statement while
        the cancel is being written, and a statement would run that home shows as cancelled.
        """
        driven = self._tracked.get(job)
        if driven is None:
            return True
        if not driven.confirmed or number <= driven.sent:
            return False
        driven.withheld.add(number)
        return True

    def unwithhold(self, job: str, number: int) -> None:
        """Undo `withhold` after the cancel could not be stored: the statement may be sent."""
        if (driven := self._tracked.get(job)) is not None:
            driven.withheld.discard(number)
            driven.signal.set()

    # --- the driver ---------------------------------------------------------------------------

    async def _drive(self, driven: TrackedJob) -> None:
        """Run the step of the stored phase repeatedly until the job is released. Errors do not end the driver early."""
        while True:
            job: JobRow | None = None
            try:
                job = await self._state.read(lambda conn: store.get(conn, driven.id))
                if job is None or (job.phase == "ended" and job.released):
                    break
                driven.executor = job.executor
                await self._do_step(driven, job)
                driven.faults = 0
            except Exception as error:  # noqa: BLE001 - `_survive` logs it
                if not await self._survive(driven, job, error):
                    break
        self._tracked.pop(driven.id, None)
        self.changed.touch()

    async def _do_step(self, driven: TrackedJob, job: JobRow) -> None:
        steps: dict[str, Callable[[TrackedJob, JobRow], Awaitable[None]]] = {
            "routing": self._route,
            "committing": self._commit,
            "placed": self._follow,
            "ended": self._release,
        }
        try:
            await steps[job.phase](driven, job)
            await self._found_again(driven, job)
        except (Unreachable, PeerMisbehaved) as error:
            # An invalid answer of an executor counts as no answer. The job continues.
            await self._lost(driven, job, error)
        except PeerRefused as error:
            await self._refused(driven, job, error)

    async def _survive(self, driven: TrackedJob, job: JobRow | None, error: Exception) -> bool:
        """Handle an unexpected error. Returns whether the driver must continue.

        After a transient error (disk, database) the driver waits and tries again. After a bug in
        island the job ends, with the error in its log, instead of hanging.
        """
        driven.faults += 1
        driven.dirty = True
        if is_transient(error):
            log.warning("jobs.driver_retry", job=driven.id, error=str(error), failures=driven.faults)
        else:
            log.error("jobs.driver_bug", job=driven.id, exc_info=error)
            if job is not None and job.phase == "ended":
                return False  # the results are stored at home; the executor is released after the next start
            if job is not None and await self._give_up(job, error):
                return True
        await driven.signal.wait(backoff(driven.faults, self._rng))
        return True

    async def _give_up(self, job: JobRow, error: Exception) -> bool:
        """End a job at home and at its executor. False if home could not store the end."""
        try:
            if job.executor:
                request = StopRequest(job=job.id, epoch=job.epoch)
                await self._exchange.ask(IslandId(job.executor), "stop", request, EmptyAnswer)
        except Exception as stop_error:  # noqa: BLE001 - logged; the run ends when its lease expires
            log.warning("jobs.not_stopped", job=job.id, error=str(stop_error))
        try:
            await self._end(job, "error", f"internal error in island: {type(error).__name__}: {error}")
        except Exception as end_error:  # noqa: BLE001 - logged; the driver tries again
            log.warning("jobs.not_ended", job=job.id, error=str(end_error))
            return False
        return True

    async def _lost(self, driven: TrackedJob, job: JobRow, error: IslandError) -> None:
        driven.failures += 1
        driven.dirty = True
        if driven.lost_since is None:
            driven.lost_since = self._clock.wall()
            name = self._membership.display(IslandId(job.executor))
            await self._add_log(
                job, f"{name} does not answer ({error.message}); the job may still be running there; retrying"
            )
        # A new session with the executor wakes the driver, so the wait may be long while there is none.
        linked = job.executor == self._trust.me or self._peers.link(IslandId(job.executor)) is not None
        await driven.signal.wait(backoff(driven.failures, self._rng, cap=15.0 if linked else 300.0))

    async def _found_again(self, driven: TrackedJob, job: JobRow) -> None:
        driven.failures = 0
        if driven.lost_since is not None:
            driven.lost_since = None
            await self._add_log(job, f"{self._membership.display(IslandId(job.executor))} answers again")

    async def _refused(self, driven: TrackedJob, job: JobRow, error: PeerRefused) -> None:
        name = self._membership.display(IslandId(job.executor))
        if error.code == "not_ready":
            driven.dirty = True
            await driven.signal.wait(0.2)
        elif job.phase == "placed" and error.code == "not_found":
            await self._end(job, "dead", f"{name} no longer knows this job: {error.message}")
        elif job.phase == "placed" and error.code == DIVERGED:
            await self._end_diverged(job)
        elif job.phase == "committing":
            await self._back_to_routing(driven, job, error.message)
        else:
            driven.failures += 1
            log.warning("jobs.refused", job=job.id, island=name, error=error.message)
            await driven.signal.wait(backoff(driven.failures, self._rng))

    # --- routing --------------------------------------------------------------------------------

    async def _route(self, driven: TrackedJob, job: JobRow) -> None:
        if job.stop:
            await self._end(job, "killed", f"ended by its owner ({job.user}) before it was placed")
            return
        if job.epoch >= MAX_EPOCHS:
            await self._end(job, "error", f"the job was refused at all {job.epoch} places that were tried")
            return
        try:
            guesses = await self._guesses(driven, job)
        except IslandError as error:
            if is_transient(error):
                raise
            await self._end(job, "error", error.line)
            return
        wanted = JobRequirements(home=self._trust.me, language=job.work.language, pin=job.pin)
        decision, reservations = await self._choose(driven, job, wanted, guesses)
        if not decision.chosen:
            if not await self._wait_for_links(driven, job, guesses):
                await self._nowhere(job, decision)
            return
        await self._place(job, decision, reservations.pop(decision.chosen))
        for island, reservation in reservations.items():
            self._decline(IslandId(island), reservation)

    async def _wait_for_links(self, driven: TrackedJob, job: JobRow, guesses: list[Candidate]) -> bool:
        """Wait for islands that were up recently. False if there are none, or `PATIENCE_S` is over."""
        now = self._clock.monotonic()
        if driven.patience is None:
            driven.patience = now + PATIENCE_S
        absent = [g for g in guesses if not g.up and job.pin in ("", g.island) and self._is_new(IslandId(g.island))]
        if not absent or now >= driven.patience:
            return False
        if not driven.logged_waiting:
            driven.logged_waiting = True
            names = ", ".join(guess.name for guess in absent)
            await self._add_log(
                job, f"no island can run the job yet; waiting up to {PATIENCE_S:.0f} s for a session with {names}"
            )
        await driven.signal.wait(min(2.0, driven.patience - now))
        return True

    def _is_new(self, island: IslandId) -> bool:
        """Whether an island is not down, or has been down for less than `2 * PATIENCE_S` seconds."""
        view = next((view for view in self._membership.views() if view.island == island), None)
        return view is not None and (view.state != "down" or self._clock.wall() - view.since < 2 * PATIENCE_S)

    async def _choose(
        self, driven: TrackedJob, job: JobRow, wanted: JobRequirements, guesses: list[Candidate]
    ) -> tuple[RoutingDecision, dict[str, str]]:
        """Ask the best candidates and home for offers, and the next best ones until a place is offered.

        Returns the decision, and the reservations by the key of the island.
        """
        known = {guess.island: guess for guess in guesses}
        reservations: dict[str, str] = {}
        while True:
            decision = router.decide(wanted, list(known.values()))
            unasked = [i for i in router.ranking(decision) if not known[i].offered]
            if reservations or not unasked:
                return decision, reservations
            asked = unasked[:ASKED]
            if wanted.home in unasked and wanted.home not in asked:
                asked.append(wanted.home)
            names = ", ".join(known[island].name for island in asked)
            if names != driven.logged_asking:  # one log line, however often the same islands are asked
                driven.logged_asking = names
                await self._add_log(job, f"asking {names} for an offer")
            answers = await asyncio.gather(*(self._ask_offer(job, known[island]) for island in asked))
            for candidate, reservation in answers:
                known[candidate.island] = candidate
                if reservation:
                    reservations[candidate.island] = reservation

    async def _guesses(self, driven: TrackedJob, job: JobRow) -> list[Candidate]:
        """All known islands as candidates, with estimates from what home knows before it asks them."""
        inputs = [(ref, await self._resolved(ref)) for ref in job.work.inputs]
        candidates = []
        for view in self._membership.views():
            here = view.island == self._trust.me
            link = None if here else self._peers.link(view.island)
            up = here or link is not None
            candidates.append(
                Candidate(
                    island=view.island,
                    name=view.display,
                    up=up,
                    state="" if up else await self._why_down(view.state, view.since),
                    rtt=0.0 if here else (link.rtt if link else None),
                    bandwidth=link.bandwidth if link else None,
                    parts=tuple([await self._part(ref, resolved, view.island) for ref, resolved in inputs]),
                    refusal=driven.refused.get(view.island, ""),
                    draw=self._rng.random(),
                )
            )
        return candidates

    async def _resolved(self, ref: InputRef) -> ResolvedDataset:
        return await self._catalog.resolve(DatasetName(ref.owner, ref.name, ref.snapshot))

    async def _why_down(self, state: str, since: float) -> str:
        if state == "up":
            return "there is no session with it at the moment"
        return f"it has been {state} for {router.format_seconds(max(0.0, self._clock.wall() - since))}"

    async def _part(self, ref: InputRef, resolved: ResolvedDataset, island: IslandId) -> InputTransfer:
        holders = self._catalog.holders(resolved.owner, resolved.name, resolved.snapshot)
        size, files = resolved.record.size, resolved.record.files
        if island == self._trust.me:
            missing = await self._inputs.missing(resolved)
        else:
            missing = 0 if island in holders else size
        if not missing:
            return InputTransfer(str(ref), size, 0, files)
        source = next((holder for holder in holders if holder != island), resolved.owner)
        link = self._peers.link(source) if island == self._trust.me else None
        return InputTransfer(
            dataset=str(ref),
            bytes=size,
            missing=missing,
            files=files,
            source=self._membership.display(source),
            rtt=link.rtt if link else None,
            bandwidth=link.bandwidth if link else None,
        )

    async def _ask_offer(self, job: JobRow, guess: Candidate) -> tuple[Candidate, str]:
        request = OfferRequest(
            envelope=self._envelope(job, job.epoch + 1, guess.island),
            kind=job.kind,
            language=job.work.language,
            inputs=job.work.inputs,
        )
        try:
            offer = await self._exchange.ask(IslandId(guess.island), "offer", request, Offer)
        except IslandError as error:
            return msgspec.structs.replace(guess, up=False, state=f"it did not answer: {error.message}"), ""
        if offer.refusal:
            return msgspec.structs.replace(guess, refusal=offer.refusal), ""
        parts = tuple(
            InputTransfer(p.dataset, p.bytes, p.missing, p.files, p.source, p.rtt, p.bandwidth) for p in offer.parts
        )
        offered = msgspec.structs.replace(
            guess, offered=True, wait=max(0.0, offer.wait), languages=offer.languages, parts=parts
        )
        return offered, offer.reservation

    def _envelope(self, job: JobRow, epoch: int, to: str) -> Envelope:
        me = self._trust.me
        envelope = Envelope(
            job=job.id,
            epoch=epoch,
            home=me,
            user=job.user,
            request_hash=job.request_hash,
            path=(me,),
            hops=MAX_HOPS - 1,
        )
        if to == me:
            return envelope
        signature = self._trust.sign("on-behalf", codec.encode(envelope.on_behalf()))
        return msgspec.structs.replace(envelope, signature=signature)

    async def _place(self, job: JobRow, decision: RoutingDecision, reservation: str) -> None:
        chosen = next(v for v in decision.verdicts if v.verdict == "chosen")
        others = [f"{v.name}: {v.reason}" for v in decision.verdicts if v.verdict != "chosen"]

        def write(conn: sqlite3.Connection) -> None:
            now = self._clock.wall()
            store.place(conn, job.id, decision.chosen, reservation)
            store.add_decision(conn, job.id, now, msgspec.json.encode(decision).decode())
            store.add_log(conn, job.id, now, [f"runs at {chosen.name}: {chosen.reason}", *others[:20]])

        await self._state.write(write)
        self.changed.touch()

    async def _nowhere(self, job: JobRow, decision: RoutingDecision) -> None:
        reasons = "; ".join(f"{v.name}: {v.reason}" for v in decision.verdicts)

        def write(conn: sqlite3.Connection) -> None:
            store.add_decision(conn, job.id, self._clock.wall(), msgspec.json.encode(decision).decode())

        await self._state.write(write)
        await self._end(job, "error", f"no island can run this job. {reasons}")

    def _decline(self, island: IslandId, reservation: str) -> None:
        body = codec.encode(Decline(reservation=reservation))
        if island == self._trust.me:
            self._decline_here(island, reservation)
        else:
            self._peers.push(island, DECLINE, body)

    # --- commit ---------------------------------------------------------------------------------

    async def _commit(self, driven: TrackedJob, job: JobRow) -> None:
        to = IslandId(job.executor)
        if job.stop:
            await self._exchange.ask(to, "stop", StopRequest(job=job.id, epoch=job.epoch), EmptyAnswer)
        request = CommitRequest(
            envelope=self._envelope(job, job.epoch, to),
            reservation=job.reservation,
            work=job.work,
            file=await self._state.read(lambda conn: batch_files.read(conn, job.work.file_hash)),
        )
        answer = await self._exchange.ask(to, "commit", request, CommitAnswer, timeout=15.0)
        if not answer.accepted:
            await self._back_to_routing(driven, job, answer.reason)
            return
        await self._state.write(lambda conn: store.set_phase(conn, job.id, job.epoch, "placed"))
        driven.dirty = True
        self.changed.touch()

    async def _back_to_routing(self, driven: TrackedJob, job: JobRow, reason: str) -> None:
        name = self._membership.display(IslandId(job.executor))
        if "reservation has expired" not in reason:
            driven.refused[job.executor] = reason

        def write(conn: sqlite3.Connection) -> None:
            store.set_phase(conn, job.id, job.epoch, "routing")
            store.add_log(conn, job.id, self._clock.wall(), [f"{name} refused: {reason}; looking for another place"])

        await self._state.write(write)
        self.changed.touch()

    # --- following --------------------------------------------------------------------------------

    async def _follow(self, driven: TrackedJob, job: JobRow) -> None:
        """One round: get the executor's report, forward stop and cancels, send the next statement; or wait."""
        if driven.dirty:
            driven.dirty = False
            try:
                ended = await self._refresh(driven, job)
            except BaseException:
                driven.dirty = True
                raise
            if ended:
                return
        pending, stop = await self._state.read(
            lambda conn: (store.open_statements(conn, job.id), store.wants_stop(conn, job.id))
        )
        to = IslandId(job.executor)
        if stop and not driven.stop_sent:
            await self._exchange.ask(to, "stop", StopRequest(job=job.id, epoch=job.epoch), EmptyAnswer)
            driven.stop_sent = True
        await self._send_cancels(driven, job, pending)
        pending = [statement for statement in pending if statement.number not in driven.withheld]
        if pending and pending[0].number > driven.sent and driven.state == "idle" and not stop:
            await self._send(driven, job, pending[0])
            return
        if not driven.dirty and not await driven.signal.wait(POLL_S * (0.75 + 0.5 * self._rng.random())):
            driven.dirty = True

    async def _send_cancels(self, driven: TrackedJob, job: JobRow, pending: list[StatementRow]) -> None:
        for statement in pending:
            if not statement.cancel or statement.number in driven.cancels:
                continue
            if statement.number > driven.sent:
                cancelled = StatementReport(number=statement.number, state="cancelled", progress=1.0)
                await self._state.write(partial(store.apply_statement, job=job.id, report=cancelled))
                self.changed.touch()
                driven.signal.set()
            else:
                request = StopRequest(job=job.id, epoch=job.epoch, number=statement.number)
                await self._exchange.ask(IslandId(job.executor), "stop", request, EmptyAnswer)
            driven.cancels.add(statement.number)

    async def _send(self, driven: TrackedJob, job: JobRow, statement: StatementRow) -> None:
        request = RunStatementRequest(
            job=job.id,
            epoch=job.epoch,
            number=statement.number,
            code=statement.code,
            language=statement.language,
        )
        before, driven.sent = driven.sent, statement.number
        try:
            await self._exchange.ask(IslandId(job.executor), "statement", request, EmptyAnswer)
        except PeerRefused:
            driven.sent, driven.dirty = before, True
            raise

    async def _refresh(self, driven: TrackedJob, job: JobRow) -> bool:
        """Request the executor's report and store the changes. True when the job has ended."""
        waiting = await self._state.read(lambda conn: store.first_open(conn, job.id))
        request = StatusRequest(job=job.id, epoch=job.epoch, acknowledged=waiting, seen=driven.last_version)
        answer = await self._exchange.ask(IslandId(job.executor), "status", request, JobReport)
        report = reports.checked_report(answer, job.id, job.epoch)
        if await self._is_foreign(job, report):
            await self._end_diverged(job)
            return True
        # A statement that the executor does not have did not arrive, and may be sent again.
        driven.sent = max((statement.number for statement in report.statements), default=waiting - 1)
        if report.statements:
            report = msgspec.structs.replace(report, statements=await self._hinted(job, report))
        driven.confirmed = True
        driven.overlay = {s.number: s for s in report.statements if s.state not in STATEMENT_ENDED}
        if report.ended:
            await self._finish(job, report)
            return True
        driven.state = report.state
        stored = msgspec.structs.replace(
            report,
            state="idle" if report.state == "busy" and job.kind == "session" else report.state,
            statements=tuple(s for s in report.statements if s.state in STATEMENT_ENDED),
        )
        if stored.statements or _differs(driven.last, stored):
            now = self._clock.wall()
            await self._state.write(lambda conn: store.apply_report(conn, job.id, job.epoch, stored, now))
            self.changed.touch()
        driven.last, driven.last_version = stored, report.version
        return False

    async def _is_foreign(self, job: JobRow, report: JobReport) -> bool:
        """Whether the executor has run a statement that this home did not send, or that has another code here."""
        if not report.statements:
            return False
        numbers = [statement.number for statement in report.statements]
        stored = await self._state.read(lambda conn: store.statements(conn, job.id, numbers))
        own = {statement.number: (statement.code, statement.language) for statement in stored}
        return any(reports.is_foreign_statement(each, own.get(each.number)) for each in report.statements)

    async def _end_diverged(self, job: JobRow) -> None:
        """End a session whose statements at the executor are not those of home, at both."""
        name = self._membership.display(IslandId(job.executor))
        await self._exchange.ask(IslandId(job.executor), "stop", StopRequest(job=job.id, epoch=job.epoch), EmptyAnswer)
        log.warning("jobs.diverged", job=job.id, island=name)
        await self._end(
            job,
            "dead",
            f"{name} has run statements in this session that {self._trust.name} does not know: {self._trust.name} was"
            " probably restored from a backup. Open a new session",
        )

    async def _hinted(self, job: JobRow, report: JobReport) -> tuple[StatementReport, ...]:
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

    async def _finish(self, job: JobRow, report: JobReport) -> None:
        ended = msgspec.structs.replace(
            report, statements=tuple(s for s in report.statements if s.state in STATEMENT_ENDED)
        )

        def write(conn: sqlite3.Connection) -> None:
            now = self._clock.wall()
            if store.apply_report(conn, job.id, job.epoch, ended, now):
                self._end_in(conn, job, now, report.state, report.reason, released=False)

        await self._state.write(write)
        log.info("jobs.ended", job=job.id, state=report.state, reason=report.reason)
        self.changed.touch()

    async def _release(self, driven: TrackedJob, job: JobRow) -> None:
        if job.executor:
            request = ReleaseRequest(job=job.id, epoch=job.epoch)
            try:
                await self._exchange.ask(IslandId(job.executor), "release", request, EmptyAnswer)
            except PeerRefused as error:
                log.info("jobs.release_refused", job=job.id, error=error.message)

        def write(conn: sqlite3.Connection) -> None:
            store.set_released(conn, job.id)
            if job.work.file_hash:
                batch_files.drop_unused(conn)

        await self._state.write(write)

    async def _end(self, job: JobRow, state: str, reason: str) -> None:
        """Give a job its last state without a report of an executor."""

        def write(conn: sqlite3.Connection) -> None:
            now = self._clock.wall()
            store.add_log(conn, job.id, now, [reason])
            self._end_in(conn, job, now, state, reason, released=job.phase == "routing")

        await self._state.write(write)
        log.info("jobs.ended", job=job.id, state=state, reason=reason)
        self.changed.touch()

    def _end_in(
        self, conn: sqlite3.Connection, job: JobRow, now: float, state: str, reason: str, *, released: bool
    ) -> None:
        if not store.end(conn, job.id, now, state, reason, released=released):
            return
        driven = self._tracked.get(job.id)
        for statement in store.open_statements(conn, job.id):
            report = statement.report()
            if driven is not None and statement.number <= driven.sent:
                report = msgspec.structs.replace(report, state="running")
            why = reason or f"its session is {state}"
            store.apply_statement(conn, job.id, core.lost_statement(report, why))
        journal.append(
            conn,
            at=now,
            who=self._trust.who(job.user),
            act="job.end",
            what=job.id,
            outcome=state,
            detail={"reason": reason[:500]},
        )

    async def _add_log(self, job: JobRow, line: str) -> None:
        await self._state.write(lambda conn: store.add_log(conn, job.id, self._clock.wall(), [line]))
        self.changed.touch()

    def _on_link(self, island: IslandId, _made: bool) -> None:
        # A new session may bring results that are waiting there; after a loss, the status request detects the silence.
        for driven in self._tracked.values():
            if driven.executor in (island, ""):
                driven.dirty = True
                driven.signal.set()


def _differs(last: JobReport | None, now: JobReport) -> bool:
    """Whether a report has anything that is not stored yet."""
    if last is None:
        return True
    keep = ("state", "reason", "app_id", "app_info", "moved")
    if any(getattr(last, name) != getattr(now, name) for name in keep) or len(last.notes) != len(now.notes):
        return True
    return now.log is not None and now.log != last.log
