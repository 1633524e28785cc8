"""The jobs service of an island: its home's jobs and its executor's runs, with the rows of the operator API."""

from __future__ import annotations

import hmac
import sqlite3
from dataclasses import asdict
from typing import Any

import msgspec
import structlog

from island.errors import Ambiguous, BadInput, Denied, NotFound, PeerMisbehaved, PeerRefused
from island.jobs import accuracy, batch_files, router
from island.jobs.dependencies import JobsDependencies
from island.jobs.exchange import JobExchange
from island.jobs.executor.run import JobRun
from island.jobs.executor.service import Executor
from island.jobs.home import observation_store, store
from island.jobs.home.driver import DECLINE, HomeDriver
from island.jobs.home.observation_store import StoredObservation
from island.jobs.home.result_fetching import RESULT_BULK
from island.jobs.home.retention import Retention
from island.jobs.home.service import HomeJobs
from island.jobs.home.store import JobRow, StatementRow
from island.jobs.messages import (
    CodeCompletionRequest,
    CommitRequest,
    Decline,
    JobChanged,
    OfferRequest,
    ReattachAnswer,
    ReattachRequest,
    ReleaseRequest,
    RunStatementRequest,
    StatementReport,
    StatusRequest,
    StopRequest,
)
from island.jobs.results import ResultStore
from island.jobs.router import RoutingDecision
from island.kernel import codec
from island.kernel.ids import IslandId, is_job_id
from island.kernel.loops import Tasks
from island.kernel.units import format_bytes
from island.trust import journal
from island.trust.users import Principal

log = structlog.get_logger("island")

CHANGED = "job.changed"


class Jobs(HomeJobs):
    """Sessions, statements and batches of this home, and runs of other homes at this island."""

    def __init__(self, needs: JobsDependencies) -> None:
        exchange = JobExchange(needs.peers)
        self.results = ResultStore(needs.home, needs.workers, needs.state)
        self.executor = Executor(needs, self.results, changed=self._tell_home)
        self.driver = HomeDriver(needs, exchange, self.results, decline=self.executor.decline)
        super().__init__(needs, exchange, self.driver, self.results)
        self._peers = needs.peers
        self._retention = Retention(needs.state, needs.config.jobs, needs.clock, needs.rng)
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
        self._peers.on_bulk(RESULT_BULK, executor.result_server.serve)
        self._peers.on_push(CHANGED, self._on_changed)
        self._peers.on_push(DECLINE, self._on_decline)

    async def start(self, tasks: Tasks) -> None:
        """Resume unfinished runs, then unfinished jobs, whose drivers ask for their runs."""
        await self._state.write(batch_files.drop_unused)
        await self.executor.start(tasks)
        await self.driver.start(tasks)
        self._retention.start(tasks)
        self.results.start(tasks, self._rng)

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
            self.driver.news(home, job, epoch)
        else:
            self._peers.push(home, CHANGED, codec.encode(JobChanged(job=job, epoch=epoch)))

    async def _on_changed(self, sender: IslandId, body: bytes) -> None:
        news = codec.decode(body, JobChanged)
        self.driver.news(sender, news.job, news.epoch)

    async def _on_decline(self, sender: IslandId, body: bytes) -> None:
        self.executor.decline(sender, codec.decode(body, Decline).reservation)

    # --- rows for the operator API -----------------------------------------------------------------------

    async def row(self, job: JobRow) -> dict[str, Any]:
        """A job as a flat row with stable keys, as `island job ls` and `show` print it."""
        lost = self.driver.lost_since(job.id)
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
        stored, seen = await self._state.read(
            lambda conn: (store.decisions(conn, job.id), observation_store.of_job(conn, job.id))
        )
        rows, epoch = [], 0
        for attempt, (at, text) in enumerate(stored, 1):
            decision = msgspec.json.decode(text, type=RoutingDecision)
            epoch += bool(decision.chosen)  # each chosen place is a new epoch
            replayed = router.decide(decision.wanted, decision.candidates) == decision
            shown = _rows(decision, seen.get(epoch))
            rows += [{"job": job.id, "attempt": attempt, "at": at, **r, "replayed": replayed} for r in shown]
        return rows

    async def accuracy(self) -> list[dict[str, Any]]:
        """How good the predictions for the newest jobs of this home were, one row for each term."""
        stored = await self._state.read(lambda conn: observation_store.after(conn, 0))
        terms = accuracy.accuracy((row.predicted, row.observed) for row in stored)
        return [{"island": self._trust.name, **asdict(term)} for term in terms]

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
            return ReattachAnswer(body=await self._newest_statements(job))
        else:
            body = await self.row(job)
        return ReattachAnswer(body=msgspec.json.encode(body).decode())

    async def _newest_statements(self, job: JobRow) -> str:
        """The newest statements of a session that fit into one answer, as a JSON list in their order."""
        room, rows = codec.BULK_LIMIT * 12, list[bytes]()
        async for part in self.statement_parts(job, range(job.statements)[::-1]):
            for pair in part:
                row = msgspec.json.encode(statement_row(*pair))
                room -= len(row) + 1
                if room < 0:
                    return _json_list(rows)
                rows.append(row)
        return _json_list(rows)


def _json_list(newest_first: list[bytes]) -> str:
    return f"[{b','.join(reversed(newest_first)).decode()}]"


def statement_row(statement: StatementRow, progress: StatementReport) -> dict[str, Any]:
    """A statement as the operator API shows it."""
    output = progress.output or statement.output
    return {
        "id": statement.number,
        "code": statement.code,
        "state": progress.state,
        "progress": progress.progress,
        # The stored JSON is sent unchanged.
        "output": msgspec.Raw(output.encode("utf-8", "surrogatepass")) if output else None,
        # A large output is not part of listings.
        "result": None if progress.result is None else {"sha256": progress.result.hash, "size": progress.result.size},
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


def _observed(seen: StoredObservation | None) -> dict[str, Any]:
    """What a job has cost, beside what was expected, as keys of its row."""
    found: dict[str, Any] = {}
    words = []
    for term, unit in accuracy.TERMS.items():
        value = None if seen is None else accuracy.observed(seen.observed, term)
        found[f"observed_{term}_{unit}"] = value
        if seen is not None and value is not None:
            written = router.format_seconds if unit == "s" else format_bytes
            expected = accuracy.predicted(seen.predicted, term)
            words.append(f"{term} {written(value)} (expected {written(expected)})")
    return {**found, "observed": "; ".join(words)}


def _rows(decision: RoutingDecision, seen: StoredObservation | None) -> list[dict[str, Any]]:
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
                **_observed(seen if verdict.verdict == "chosen" else None),
            }
        )
    return rows
