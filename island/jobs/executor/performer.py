"""Performs what the machine of one run wants: at its engine, with its inputs, in the database.

The result of each effect is an event for the machine, and so is its failure, which is sorted into kinds here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import structlog

from island.errors import BadInput, EngineFailed, IslandError
from island.jobs import batch_files, core
from island.jobs.dependencies import JobsDependencies
from island.jobs.engines.port import EngineFull, EngineLost, EnginePort
from island.jobs.executor import events as happened
from island.jobs.executor import machine
from island.jobs.executor import store as run_store
from island.jobs.executor.events import EffectFailed, FailureKind
from island.jobs.executor.outputs import StatementOutputs
from island.jobs.executor.places import Places, RunKey
from island.jobs.executor.run import JobRun
from island.jobs.messages import InputRef
from island.jobs.results import ResultStore
from island.kernel.actor import Actor
from island.kernel.ids import DatasetName, IslandId
from island.kernel.loops import is_database, is_transient
from island.kernel.machine import Effect, Write
from island.kernel.units import format_bytes
from island.livy.client import ANSWERED

log = structlog.get_logger("island")

PROGRESS_S = 2.0
"""Minimum number of seconds between two lines about the progress of an input."""

_NOT_SENT = ("engine_unreachable", "no_engine")
"""Codes of an `EngineFailed` that say that the engine did not get the request."""


class RunPerformer:
    """Performs the effects of one run. `actor` is set before the first."""

    actor: Actor[JobRun]

    def __init__(
        self,
        needs: JobsDependencies,
        places: Places,
        *,
        policy: Callable[[IslandId, str], str],
        account: Callable[[JobRun], str | None],
        changed: Callable[[IslandId, str, int], None],
        is_used: Callable[[InputRef, RunKey], bool],
        results: ResultStore,
        outputs: StatementOutputs,
    ) -> None:
        """`is_used(input, run)`: whether another run than `run` uses an input."""
        self._state, self._catalog, self._inputs = needs.state, needs.catalog, needs.inputs
        self._engines, self._clock, self._places = needs.engines, needs.clock, places
        self._policy, self._changed, self._is_used, self._account = policy, changed, is_used, account
        self._results, self._outputs = results, outputs

    @property
    def _run(self) -> JobRun:
        return self.actor.state

    @property
    def _key(self) -> RunKey:
        return self._run.job, self._run.epoch

    async def save(self, old: JobRun, new: JobRun, writes: Sequence[Write]) -> None:
        """Store a step of the machine in one transaction."""
        assert not writes, "the machine of a run has no writes besides its state"
        if run_store.kept(old) == run_store.kept(new):
            return
        await self._state.write(lambda conn: run_store.save_step(conn, old, new))
        if (earlier := _result(old)) != _result(new):
            self._results.unpin(new.name)
            await self._results.drop([earlier])
        if new.ended and not old.ended:
            log.info("jobs.run_ended", job=new.job, epoch=new.epoch, state=new.state, reason=new.reason)

    async def perform(self, effect: Effect) -> object:
        """Do one effect, and return the event that it leads to, or None."""
        try:
            return await self._do(effect)
        except Exception as error:  # noqa: BLE001 - every failure is an event for the machine
            failed = self._failure(effect, error)
            level = log.error if failed.kind is FailureKind.BUG else log.info
            level(
                "jobs.run_effect_failed",
                job=self._run.job,
                epoch=self._run.epoch,
                effect=type(effect).__name__,
                kind=failed.kind.value,
                error=failed.text,
                exc_info=error if failed.kind is FailureKind.BUG else None,
            )
            return failed

    async def _do(self, effect: Effect) -> object:
        run = self._run
        match effect:
            case happened.TakePlace(bound, refused):
                return await self._take_place(bound, dict(refused))
            case happened.FreePlace(full):
                self._places.free(self._key, full=full)
                return None
            case happened.TellHome():
                self._changed(IslandId(run.home), run.job, run.epoch)
                return None
            case happened.FetchInputs():
                return await self._fetch(effect)
            case happened.ClearRemote():
                return happened.RemoteCleared(await self._clear())
            case happened.CleanUp():
                await self._clean_up()
                return happened.RunCleaned()
            case _:
                return await self._ask_engine(self._engine(), effect)

    def _proxy_user(self) -> dict[str, str]:
        """Livy's `proxyUser`: the local account of the job's user. The embedded engine, with an instance, has none."""
        account = None if self._run.instance else self._account(self._run)
        return {} if account is None else {"proxyUser": account}

    async def _ask_engine(self, engine: EnginePort, effect: Effect) -> object:
        """Effects that are one request to the engine."""
        run = self._run
        match effect:
            case happened.AskInstance():
                return happened.InstanceSeen(await engine.instance(), self._policy(IslandId(run.home), run.user))
            case happened.FindRemote():
                return happened.RemoteFound(await engine.find(run.work.kind, run.name))
            case happened.CreateRemote(body):
                created = await engine.create(run.work.kind, {**body, **self._proxy_user()})
                self._places.works(engine.name)
                return happened.RemoteCreated(created)
            case happened.FollowRemote(known):
                return happened.RemoteShown(await engine.follow(run.ref, known), engine.seen)
            case happened.ReadRemoteLog():
                return happened.RemoteLog(tuple(await engine.log(run.ref)))
            case happened.FollowStatement(remote, known):
                view = await engine.follow_statement(run.ref, remote, known)
                seen = engine.seen
                shown, result = await self._outputs.kept(run.name, view)
                return happened.RemoteStatement(remote, shown, seen, result)
            case happened.PostCode(expected, code, language):
                return happened.CodePosted(expected, await engine.post(run.ref, code, language))
            case happened.CancelRemote(remote):
                await engine.cancel(run.ref, remote)
                return None
        raise AssertionError(f"unknown effect {effect}")

    def _engine(self) -> EnginePort:
        """The engine of the run. Raises `EngineFailed` if the administrator has removed it from the configuration."""
        name = self._run.engine
        engine = self._engines.get(name)
        if engine is None:
            raise EngineFailed(f"the engine '{name}' is not in island.toml any more", code="no_engine")
        return engine

    def _failure(self, effect: Effect, error: Exception) -> EffectFailed:
        text = error.line if isinstance(error, IslandError) else f"{type(error).__name__}: {error}"
        if isinstance(error, EngineFailed | BadInput) and not isinstance(effect, happened.FetchInputs):
            text = error.message
        kind = failure_kind(error)
        if kind is FailureKind.LOST and (engine := self._engines.get(self._run.engine)) is not None:
            # The engine forgets its sessions when it is restarted, which explains the loss better.
            text = text if engine.seen == self._run.instance else machine.restarted(self._run)
        return EffectFailed(effect, kind, text)

    # --- places and inputs --------------------------------------------------------------------

    async def _take_place(self, bound: str, refused: dict[str, str]) -> object:
        def waits(text: str) -> None:
            self.actor.tell(happened.RunNoted(text))

        work, since = self._run.work, self._run.accepted
        engine = await self._places.take(self._key, since, work.language, bound, refused, waits)
        if engine:
            return happened.PlaceGranted(engine)
        problem = "; ".join(each.problem for each in self._engines.all() if each.problem)
        return happened.NoPlace(problem or f"no engine of this island runs '{work.language}'")

    async def _fetch(self, effect: happened.FetchInputs) -> happened.InputsFetched:
        """Bring and verify all inputs and the file, and make them readable for the engine."""
        run, engine = self._run, self._engine()
        paths, moved = [], 0
        for ref in run.work.inputs:
            resolved = await self._catalog.resolve(DatasetName(ref.owner, ref.name, ref.snapshot))
            missing = await self._inputs.missing(resolved)
            if missing:
                self._note(f"fetching {format_bytes(missing)} of {ref}")
            local = await self._inputs.materialise(resolved, self._progress(ref))
            if missing:
                moved += missing
                self._note(f"{ref} is complete: {format_bytes(missing)} fetched and verified")
            paths.append(await engine.share(run.name, local.path))
        file = ""
        if run.work.kind == "batch":
            data = await self._state.read(lambda conn: batch_files.read(conn, run.work.file_hash))
            file = await engine.place(run.name, run.work.file_name, data)
        return happened.InputsFetched(tuple(paths), file, moved)

    def _note(self, text: str) -> None:
        self.actor.tell(happened.RunNoted(text))

    def _progress(self, ref: InputRef) -> Callable[[int, int, str], None]:
        noted = -PROGRESS_S

        def progress(done: int, total: int, what: str) -> None:
            nonlocal noted
            now = self._clock.monotonic()
            if now - noted >= PROGRESS_S and done < total:
                noted = now
                self._note(f"{ref}: {format_bytes(done)} of {format_bytes(total)} ({what})")

        return progress

    # --- clearing -----------------------------------------------------------------------------

    async def _clear(self) -> bool:
        """End the session or batch at the engine. Returns whether there was one. Raises `EngineFailed` if it stays."""
        run, engine = self._run, self._engine()
        if run.remote is None or await engine.instance() != run.instance:
            # An engine that was restarted does not have it, unless a request whose answer was lost came after that.
            found = await engine.find(run.work.kind, run.name)
            if found is None:
                return run.remote is not None
            run = replace(run, remote=found.id)
        await engine.end(run.ref)
        left = await engine.find(run.work.kind, run.name)
        if left is not None and not core.has_ended(left.state):
            raise EngineFailed(f"the engine still shows it as {left.state}")
        return True

    async def _clean_up(self) -> None:
        """Remove the files of the run, and release the inputs that no other run uses."""
        run = self._run
        for engine in self._engines.all():
            await engine.withdraw(run.name)
        for ref in run.work.inputs:
            if not self._is_used(ref, self._key):
                await self._inputs.release(IslandId(ref.owner), ref.name, ref.snapshot)


def _result(run: JobRun) -> str:
    return "" if run.statement is None or run.statement.result is None else run.statement.result.hash


def failure_kind(error: Exception) -> FailureKind:
    """What an exception means for the run."""
    if isinstance(error, EngineLost):
        return FailureKind.LOST
    if isinstance(error, EngineFull):
        return FailureKind.FULL
    if isinstance(error, BadInput | msgspec.ValidationError):
        return FailureKind.REFUSED
    if isinstance(error, EngineFailed):
        if error.code in _NOT_SENT:
            return FailureKind.UNREACHABLE
        return FailureKind.ERROR if error.code == ANSWERED else FailureKind.SILENT
    if is_transient(error):
        return FailureKind.DATABASE if is_database(error) else FailureKind.DISK
    return FailureKind.ERROR if isinstance(error, IslandError) else FailureKind.BUG
