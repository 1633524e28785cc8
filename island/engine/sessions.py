"""Interactive sessions. Their statements are queued and run one at a time."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from island.engine.admission import LaunchSpec, statement_kind
from island.engine.lifecycle import EngineContext, EngineJob
from island.engine.protocol import (
    CancelStatement,
    CodeCandidates,
    CompleteCode,
    ExecuteStatement,
    FromChild,
    Ready,
    StatementDone,
)
from island.engine.shell import size_of
from island.livy.messages import (
    SESSION_STARTING,
    STATEMENT_ENDED,
    Output,
    SessionRequest,
    SessionView,
    StatementRequest,
    StatementView,
)
from island.livy.requests import milliseconds
from island.livy.rest import KEPT_STATEMENTS, LivyRefusal, not_active, statement_not_found

COMPLETION_S = 2.0
"""Seconds after which a completion without an answer has no candidates: user code may block it."""


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class EngineStatement:
    """One statement of a session. Times are milliseconds since 1970, 0 if not reached; `size` is in characters."""

    def __init__(self, number: int, code: str, kind: str) -> None:
        self.id, self.code, self.kind = number, code, kind
        self.state = "waiting"
        self.output: Output | None = None
        self.started = self.completed = self.size = 0

    def finish(self, state: str, output: Output | None) -> None:
        """Record the end of the statement."""
        self.state, self.output, self.completed = state, output, now_ms()
        self.size = len(self.code) + (size_of(output) if output is not None else 0)

    def view(self) -> StatementView:
        """The statement as Livy shows it."""
        progress = 1.0 if self.state in STATEMENT_ENDED else 0.0
        return StatementView(self.id, self.code, self.state, self.output, progress, self.started, self.completed)


class EngineSession(EngineJob):
    """One session. Its states are starting, idle, busy, shutting_down and dead."""

    what = "session"
    module = "island.engine.session_child"

    def __init__(self, place: EngineContext, number: int, request: SessionRequest, admitted: LaunchSpec) -> None:
        super().__init__(place, number, request.name, admitted)
        self.request = request
        self.kind = request.kind or "shared"
        self.statements: dict[int, EngineStatement] = {}
        self.was_idle = False
        self._next = 0
        self._queue: deque[EngineStatement] = deque()
        self._current: EngineStatement | None = None
        self._completions: dict[int, asyncio.Future[list[str]]] = {}
        self._completed = 0
        self._ttl_s = milliseconds(request.ttl) / 1000 if request.ttl else None
        idle = milliseconds(request.idle_timeout) / 1000 if request.idle_timeout else place.limits.idle_timeout_s
        self._idle_s = idle if idle > 0 else None

    # -- statements ---------------------------------------------------------------------

    def post(self, request: StatementRequest) -> EngineStatement:
        """Queue a statement. Raises `LivyRefusal` if the session has ended or its queue is full."""
        if self.ended:
            raise not_active(self.state)
        kind = statement_kind(request.kind, self.kind)
        if len(self._queue) >= self.place.limits.max_queued:
            raise LivyRefusal(
                429,
                f"session {self.id} has {len(self._queue)} waiting statements;"
                f" the limit is {self.place.limits.max_queued}",
            )
        statement = EngineStatement(self._next, request.code, kind)
        self._next += 1
        self.statements[statement.id] = statement
        self._queue.append(statement)
        self.touched = time.monotonic()
        self._pump()
        self.place.changes.touch()
        return statement

    def statement(self, number: int) -> EngineStatement:
        """The statement with this number. Raises `LivyRefusal` if it is unknown or no longer kept."""
        if number not in self.statements:
            raise statement_not_found()
        return self.statements[number]

    def cancel(self, number: int) -> None:
        """Cancel a waiting statement at once, or interrupt a running one. No effect on a statement that has ended."""
        statement = self.statement(number)
        if statement.state == "waiting":
            self._queue.remove(statement)
            statement.finish("cancelled", None)
        elif statement.state == "running" and self._process is not None:
            statement.state = "cancelling"
            self._process.send(CancelStatement(number))
        self.place.changes.touch()

    async def complete(self, code: str, kind: str, cursor: int | None) -> list[str]:
        """The candidates for the code before `cursor`; empty while Spark starts, and for kinds that do not run here."""
        if kind not in ("pyspark", "sql"):
            return []
        self.touched = time.monotonic()
        if self._process is None or self.state not in ("idle", "busy") or len(self._completions) >= 8:
            return []
        self._completed += 1
        number = self._completed
        future: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._completions[number] = future
        self._process.send(CompleteCode(number, code if cursor is None else code[: max(0, cursor)], kind))
        try:
            async with asyncio.timeout(COMPLETION_S):
                return await future
        except TimeoutError:
            return []
        finally:
            del self._completions[number]

    def interrupt(self) -> None:
        """Cancel all statements. The session stays open; in Livy it ends."""
        for number in [s.id for s in self.statements.values() if s.state in ("waiting", "running")]:
            self.cancel(number)

    def _pump(self) -> None:
        """Send the next statement to the process if none is running."""
        if self._current is None and self._queue and self.state in ("idle", "busy") and self._process is not None:
            statement = self._current = self._queue.popleft()
            statement.state, statement.started = "running", now_ms()
            self.state = "busy"
            self._process.send(ExecuteStatement(statement.id, statement.code, statement.kind))

    def _forget_old(self) -> None:
        """Delete the oldest statements that have ended, beyond the limits of number and size; keep at least one."""
        total = sum(statement.size for statement in self.statements.values())
        for number, statement in list(self.statements.items()):
            if len(self.statements) <= KEPT_STATEMENTS and total <= self.place.limits.max_kept_output:
                return
            if statement.state in STATEMENT_ENDED and len(self.statements) > 1:
                total -= statement.size
                del self.statements[number]

    # -- life cycle ---------------------------------------------------------------------

    def take(self, message: FromChild) -> None:
        """Handle a frame from the session's process."""
        super().take(message)
        if isinstance(message, Ready) and self.state in SESSION_STARTING:
            self.state, self.was_idle = "idle", True
            self.touched = time.monotonic()
            self._pump()
        elif isinstance(message, StatementDone) and self._current is not None and message.id == self._current.id:
            self._current.finish("available" if message.output is not None else "cancelled", message.output)
            self._current = None
            self.touched = time.monotonic()
            self.state = "idle"
            self._forget_old()
            self._pump()
        elif isinstance(message, CodeCandidates):
            future = self._completions.get(message.id)
            if future is not None and not future.done():
                future.set_result([name[:200] for name in message.names[:500]])

    def finish(self, code: int) -> str:
        """After the end of the processes, end the running statement with an error and cancel the waiting ones."""
        for statement in self._queue:
            statement.finish("cancelled", None)
        self._queue.clear()
        if (current := self._current) is not None:
            self._current = None
            if current.state == "cancelling" or self._ending is not None:
                current.finish("cancelled", None)
            else:
                why = f"killed by signal {code - 128}" if code > 128 else f"exit code {code}"
                text = f"the session's process ended while this statement ran ({why}); see the session's log"
                current.finish("error", Output("error", current.id, ename="SessionDied", evalue=text, traceback=[]))
        return "dead"

    def overdue(self, now: float) -> str | None:
        """Why the session must end (ttl, start, idle or heartbeat timeout), or None. `now` is monotonic seconds."""
        limits = self.place.limits
        if self._ttl_s is not None and now - self.born > self._ttl_s:
            return f"its ttl of {self.request.ttl} has expired"
        if self.state == "starting" and now - self.born > limits.start_timeout_s:
            return f"Spark did not start within {limits.start_timeout_s:.0f} s"
        if self.state == "idle" and self._idle_s is not None and now - self.touched > self._idle_s:
            return f"idle for {self._idle_s:.0f} s"
        beat = self.request.heartbeat_timeout_in_second
        if beat > 0 and now - self.beaten > beat:
            return f"its client sent no request for {beat} s (heartbeatTimeoutInSecond)"
        return None

    def view(self) -> SessionView:
        """The session as Livy shows it."""
        r = self.request
        return SessionView(
            id=self.id,
            name=r.name,
            state=self.state,
            kind=self.kind,
            log=self.short_log(),
            ttl=r.ttl,
            idle_timeout=r.idle_timeout,
            driver_memory=r.driver_memory,
            driver_cores=r.driver_cores or 0,
            executor_memory=r.executor_memory,
            executor_cores=r.executor_cores or 0,
            conf=r.conf,
            archives=r.archives,
            files=r.files,
            heartbeat_timeout_in_second=r.heartbeat_timeout_in_second,
            jars=r.jars,
            num_executors=r.num_executors or 0,
            py_files=r.py_files,
            queue=r.queue,
        )
