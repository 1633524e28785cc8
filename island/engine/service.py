"""The engine's service: starts, finds and ends sessions and batches, and enforces their time limits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Final, TypeVar

import structlog

from island.engine.admission import check_launch
from island.engine.batches import EngineBatch
from island.engine.lifecycle import EngineContext, EngineJob
from island.engine.sessions import EngineSession
from island.engine.store import EndedJob
from island.livy.messages import BatchRequest, BatchView, SessionRequest, SessionView
from island.livy.rest import FULL, duplicate_name, livy_log_lines, rejected, session_not_found

log = structlog.get_logger("island.engine")

TICK_S: Final = 0.5
J = TypeVar("J", bound=EngineJob)


class EngineService:
    """All sessions and batches of one engine. `run` enforces time limits; `close` ends all of them."""

    def __init__(self, place: EngineContext, group: asyncio.TaskGroup) -> None:
        self.place = place
        self.sessions: dict[int, EngineSession] = {}
        self.batches: dict[int, EngineBatch] = {}
        self._group = group
        self._closing = False

    # -- beginning ----------------------------------------------------------------------

    def open_session(self, request: SessionRequest) -> EngineSession:
        """Check and start a session. Its name and id are stored on return. Raises `LivyRefusal`."""
        self._check_name(request.name, self.sessions)
        admitted = check_launch(request, self.place.limits)
        self._check_room(self.sessions, self.place.limits.max_sessions, "sessions")
        number = self.place.store.begin("session", request.name, request.kind or "shared", self.place.instance)
        session = self.sessions[number] = EngineSession(self.place, number, request, admitted)
        self._start(session)
        return session

    def start_batch(self, request: BatchRequest) -> EngineBatch:
        """Check and start a batch. Its name and id are stored on return. Raises `LivyRefusal`."""
        self._check_name(request.name, self.batches)
        admitted = check_launch(request, self.place.limits)
        self._check_room(self.batches, self.place.limits.max_batches, "batches")
        number = self.place.store.begin("batch", request.name, "batch", self.place.instance)
        batch = self.batches[number] = EngineBatch(self.place, number, request, admitted)
        self._start(batch)
        return batch

    def _start(self, job: EngineJob) -> None:
        log.info("engine.started", what=job.what, id=job.id, name=job.name)
        self._group.create_task(job.live(), name=f"{job.what}-{job.id}")

    def _check_name(self, name: str | None, jobs: Mapping[int, EngineJob]) -> None:
        holder = next((job for job in jobs.values() if name is not None and job.name == name and not job.ended), None)
        if name is not None and holder is not None:
            raise duplicate_name(name, holder.id)

    def _check_room(self, jobs: Mapping[int, EngineJob], limit: int, what: str) -> None:
        if self._closing:
            raise rejected("the engine is shutting down.")
        # A job that is ending still uses memory.
        living = sum(not job.gone.is_set() for job in jobs.values())
        if living >= limit:
            raise rejected(
                f"too many {what}: {living} are live on this engine; the limit is {limit}.",
                hint=f"Delete {what} that are not needed, or wait for one to end.",
                code=FULL,
            )

    # -- finding ------------------------------------------------------------------------

    def session(self, key: int | str) -> EngineSession:
        """A session of this instance that is still in memory. Raises `LivyRefusal`."""
        return _find(self.sessions, key)

    def batch(self, key: int | str) -> EngineBatch:
        """A batch of this instance that is still in memory. Raises `LivyRefusal`."""
        return _find(self.batches, key)

    def past_session(self, key: int | str) -> SessionView:
        """A session that is only in the store; its state is dead. Raises `LivyRefusal`."""
        past = self._past("session", key)
        return SessionView(id=past.id, name=past.name, state="dead", kind=past.kind, log=past.log)

    def past_batch(self, key: int | str) -> BatchView:
        """A batch that is only in the store; dead if an earlier instance left it unfinished. Raises `LivyRefusal`."""
        past = self._past("batch", key)
        return BatchView(id=past.id, name=past.name, state=past.state, log=past.log)

    def _past(self, what: str, key: int | str) -> EndedJob:
        past = self.place.store.find("session" if what == "session" else "batch", key)
        if past is None:
            raise session_not_found(key)
        if past.state in ("starting", "running"):
            why = f"island: this {what} was lost: instance {past.instance} of the engine ended while it was running"
            return EndedJob(past.id, past.name, past.kind, past.instance, "dead", [*livy_log_lines([], []), why])
        return past

    # -- ending -------------------------------------------------------------------------

    async def delete(self, job: EngineJob) -> None:
        """End and delete a session or batch. On return all its processes are gone, or 30 s are over."""
        if not job.ended:
            if isinstance(job, EngineSession):
                job.state = "shutting_down"
            await job.end("deleted")
        jobs: dict[int, EngineSession] | dict[int, EngineBatch] = (
            self.sessions if isinstance(job, EngineSession) else self.batches
        )
        jobs.pop(job.id, None)
        self.place.store.forget(job.what, job.id)

    def forget_past(self, what: str, key: int | str) -> None:
        """Delete a job that is only in the store. Raises `LivyRefusal`."""
        past = self._past(what, key)
        self.place.store.forget("session" if what == "session" else "batch", past.id)

    async def run(self) -> None:
        """End overdue sessions, and remove jobs that ended long ago from memory. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for session in list(self.sessions.values()):
                if not session.ended and (why := session.overdue(now)) is not None:
                    session.order_end(why)
            for jobs in (self.sessions, self.batches):
                for number in [n for n, job in jobs.items() if _is_old(job, now, self.place.limits.retain_s)]:
                    del jobs[number]

    async def close(self) -> None:
        """End all sessions and batches at the same time, and wait up to 10 s until they are gone."""
        self._closing = True
        jobs: list[EngineJob] = [*self.sessions.values(), *self.batches.values()]
        for job in jobs:
            job.order_end("the engine ended")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.gather(*(job.gone.wait() for job in jobs))


def _is_old(job: EngineJob, now: float, retain_s: float) -> bool:
    return job.gone.is_set() and job.died is not None and now - job.died > retain_s


def _find(jobs: Mapping[int, J], key: int | str) -> J:
    """The job with this id; or the live job with this name, else the newest one. Raises `LivyRefusal`."""
    if isinstance(key, int):
        if key in jobs:
            return jobs[key]
        raise session_not_found(key)
    named = [job for job in jobs.values() if job.name == key]
    if not named:
        raise session_not_found(key)
    return next((job for job in named if not job.ended), named[-1])
