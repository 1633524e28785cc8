"""The common life cycle of sessions and batches: processes, log, and the stored end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from island.engine.admission import LaunchSpec
from island.engine.class_archive import ClassArchive
from island.engine.limits import EngineLimits
from island.engine.process import JobProcess, ProcessLog, environment
from island.engine.protocol import EXIT_STARTING, FromChild, LogNote, StartChild
from island.engine.store import EngineStore, Table
from island.errors import IslandError
from island.kernel.ports import Topic
from island.livy.messages import SESSION_ENDED
from island.livy.rest import SHORT_LOG_LINES

log = structlog.get_logger("island.engine")

SIGNALLED: Final = 128


class EngineContext(msgspec.Struct, frozen=True):
    """What all jobs of an engine share: folder, instance id, Java, environment, limits, store, class-data archive."""

    directory: Path
    instance: str
    java_home: str
    environ: dict[str, str]
    limits: EngineLimits
    store: EngineStore
    archive: ClassArchive | None
    changes: Topic = msgspec.field(default_factory=Topic)
    """Touched when the state of a session, batch or statement has changed."""

    def archive_options(self) -> list[str]:
        """Java's options for the class-data archive; none while there is no archive."""
        return [] if self.archive is None else self.archive.java_options()


class EngineJob:
    """One session or batch. `live` runs it, as a task; `end` ends it.

    `born`, `touched` (last use), `beaten` (last request of the client) and `died` are monotonic seconds.
    """

    what: Table
    module: str

    def __init__(self, place: EngineContext, number: int, name: str | None, admitted: LaunchSpec) -> None:
        self.place, self.id, self.name, self.admitted = place, number, name, admitted
        self.log = ProcessLog()
        self.state = "starting"
        self.born = self.touched = self.beaten = time.monotonic()
        self.died: float | None = None
        self.gone = asyncio.Event()
        self._ending: str | None = None
        self._end = asyncio.Event()
        self._process: JobProcess | None = None
        self.scratch = place.directory / "scratch" / f"{self.what}-{number}-{place.instance}"

    @property
    def ended(self) -> bool:
        """Whether the session or batch has ended or is shutting down."""
        return self.state in SESSION_ENDED

    def short_log(self) -> list[str]:
        """The short log, for Livy's view of the job."""
        return self.log.short(SHORT_LOG_LINES)

    def start_frame(self) -> StartChild:
        """The first frame to the job's process."""
        limits, admitted = self.place.limits, self.admitted
        return StartChild(
            str(self.scratch),
            self.place.java_home,
            [*self.place.archive_options(), *limits.java_options],
            admitted.memory,
            limits.cores,
            {"spark.app.name": self.name or f"island-{self.what}-{self.id}", **admitted.conf},
            admitted.views,
            admitted.aliases,
            admitted.py_files,
            limits.max_output,
            limits.rows,
        )

    def first_frames(self) -> list[Any]:
        """The frames that are sent to the process when it starts."""
        return [self.start_frame()]

    def started(self) -> None:
        """Called when the process has started."""

    def take(self, message: FromChild) -> None:
        """Handle a frame from the process."""
        if isinstance(message, LogNote):
            self.log.note(message.text)

    def finish(self, code: int) -> str:
        """The last state, after all processes have ended. `code` is the exit code."""
        raise NotImplementedError

    async def live(self) -> None:
        """Start the process, serve until it ends, and clean up. Raises only if cancelled, also after cleaning up.

        An exception that nobody expected ends this job only: in the task group it would end the engine with all
        other sessions.
        """
        code = EXIT_STARTING
        try:
            if not self._end.is_set():
                code = await self._run()
        except* (OSError, IslandError) as group:
            self.log.note(f"{self.what} {self.id} failed: {'; '.join(str(error) for error in group.exceptions)}")
        except* Exception as group:
            log.error("engine.job_bug", what=self.what, id=self.id, exc_info=group)
            self.log.note(f"internal error of the engine: {'; '.join(map(repr, group.exceptions))}")
        finally:
            self._record_end(code)

    async def _run(self) -> int:
        self.scratch.mkdir(mode=0o700, parents=True)
        (self.scratch / "tmp").mkdir(mode=0o700)
        limits = self.place.limits
        env = environment(self.scratch, self.place.java_home, self.place.environ, limits.pass_env)
        process = self._process = await JobProcess.start(self.module, self.scratch, env, self.log, *self.first_frames())
        try:
            self.started()
            self.place.changes.touch()
            async with asyncio.TaskGroup() as group:
                group.create_task(process.keep_log())
                killer = group.create_task(self._kill_on_end(process))
                try:
                    async for message in process.frames():
                        self.take(message)
                        self.place.changes.touch()
                    code = await process.wait()
                finally:
                    killer.cancel()
        finally:
            await asyncio.shield(process.end())
        return code

    async def _kill_on_end(self, process: JobProcess) -> None:
        await self._end.wait()
        process.kill()

    def _record_end(self, code: int) -> None:
        if self._ending is not None:
            self.log.note(self._ending)
        elif code > SIGNALLED:
            self.log.note(f"the process was killed by signal {code - SIGNALLED} (signal 9 often means out of memory)")
        elif code:
            self.log.note(f"the process exited with code {code}")
        self.state = self.finish(code)
        self.died = time.monotonic()
        try:
            self.place.store.end(self.what, self.id, self.state, self.log.lines())
        except sqlite3.Error as error:
            # The job has ended nevertheless. A later instance will show it as lost.
            log.error("engine.end_not_stored", what=self.what, id=self.id, error=str(error))
        shutil.rmtree(self.scratch, ignore_errors=True)
        log.info("engine.ended", what=self.what, id=self.id, name=self.name, state=self.state, code=code)
        self.gone.set()
        self.place.changes.touch()

    def order_end(self, why: str) -> None:
        """Request the end of the job. `why` is added to its log."""
        if not self._end.is_set():
            self._ending = why
            self._end.set()

    async def end(self, why: str) -> None:
        """End the job, and wait up to 30 s until all its processes are gone."""
        self.order_end(why)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                await self.gone.wait()
