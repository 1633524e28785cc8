"""The actors of the runs at this island: their start, their places, and what the island shows of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from island.jobs.dependencies import JobsDependencies
from island.jobs.executor import machine
from island.jobs.executor import store as run_store
from island.jobs.executor.events import RunResumed
from island.jobs.executor.outputs import StatementOutputs
from island.jobs.executor.performer import RunPerformer
from island.jobs.executor.places import Places, RunKey
from island.jobs.executor.run import JobRun
from island.jobs.messages import InputRef
from island.jobs.results import ResultStore
from island.kernel.actor import Actor
from island.kernel.ids import IslandId
from island.kernel.loops import Tasks

SHOWN_FAILURES = 3
"""Failed attempts to clear a run after which it is a problem of the island."""


class RunDriver:
    """The actors of the runs at this island."""

    def __init__(
        self,
        needs: JobsDependencies,
        *,
        changed: Callable[[IslandId, str, int], None],
        policy: Callable[[IslandId, str], str],
        account: Callable[[JobRun], str | None],
        results: ResultStore,
        outputs: StatementOutputs,
    ) -> None:
        """`policy(home, user)` is the reason why this island does not run jobs of a user of `home` now, or "".

        `account(run)` is the local account under which a Livy of the site runs a job, or None.
        """
        self._results, self._outputs = results, outputs
        self._needs, self._changed, self._policy, self._account = needs, changed, policy, account
        self._state, self._trust, self._engines = needs.state, needs.trust, needs.engines
        self.actors: dict[RunKey, Actor[JobRun]] = {}
        """The runs that are not cleared, in the order in which they were accepted."""
        self.places = Places(needs.engines, needs.clock)
        self._tasks: Tasks | None = None

    @property
    def alive(self) -> list[JobRun]:
        """The runs that have not ended for their homes."""
        return [actor.state for actor in self.actors.values() if not actor.state.ended]

    def living(self, job: str, epoch: int) -> Actor[JobRun] | None:
        """The actor of a run that has not ended for its home."""
        actor = self.actors.get((job, epoch))
        return None if actor is None or actor.state.ended else actor

    def problems(self) -> list[str]:
        """The sessions and batches that cannot be ended at their engines, as sentences for the status."""
        stuck = [actor.state for actor in self.actors.values() if actor.state.memory.clear_failures >= SHOWN_FAILURES]
        return [
            f"the {run.work.kind} {run.name} has ended but cannot be removed from the engine {run.engine}, and keeps a"
            f" place there: {run.memory.problem}. Island tries again; if that does not help, remove it in the engine"
            for run in stuck
            if run.memory.problem
        ]

    async def start(self, tasks: Tasks) -> None:
        """Go on with every run that is not cleared."""
        self._tasks = tasks
        runs = [self._bound(run) for run in await self._state.read(run_store.unfinished)]
        for run in runs:  # before any place is given to those in line
            if run.needs_place:
                self.places.hold((run.job, run.epoch), run.engine)
        for run in runs:
            self.begin(run)

    def begin(self, run: JobRun, *, since: float | None = None) -> None:
        """Start the actor of a stored run. `since`: seconds since boot when it was accepted, if that was just now."""
        assert self._tasks is not None
        memory = replace(
            run.memory,
            here=self._trust.name,
            foreign=run.home != self._trust.me,
            version=int(self._needs.clock.wall() * 1000),
            part_since=since,
        )
        performer = RunPerformer(
            self._needs,
            self.places,
            policy=self._policy,
            account=self._account,
            changed=self._changed,
            is_used=self._is_used,
            results=self._results,
            outputs=self._outputs,
        )
        actor = self.actors[run.job, run.epoch] = Actor(
            f"run {run.job} {run.epoch}",
            replace(run, memory=memory),
            handle=machine.handle,
            save=performer.save,
            perform=performer.perform,
            broken=machine.broken,
            clock=self._needs.clock,
            rng=self._needs.rng,
        )
        performer.actor = actor
        actor.tell(RunResumed(self._policy(IslandId(run.home), run.user)))
        self._tasks.spawn(f"run {run.job} {run.epoch}", self._carry(actor))

    async def _carry(self, actor: Actor[JobRun]) -> None:
        run = actor.state
        await actor.run()
        self._results.unpin(run.name)
        del self.actors[run.job, run.epoch]

    def _bound(self, run: JobRun) -> JobRun:
        """The run of an earlier version, which knew only one engine, with the name of this engine."""
        submitted = run.doubt or run.remote is not None or run.phase == "submitting"
        if run.engine or not submitted or not self._engines.all():
            return run
        return replace(run, engine=self._engines.all()[0].name)

    def _is_used(self, ref: InputRef, key: RunKey) -> bool:
        """Whether another run than `key` uses an input, or may still use it at its engine."""
        same = (ref.owner, ref.name, ref.snapshot)
        others = (actor.state.work.inputs for found, actor in self.actors.items() if found != key)
        return any((each.owner, each.name, each.snapshot) == same for inputs in others for each in inputs)
