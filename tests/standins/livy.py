"""A Livy server without Spark, as strict as a real one: `test_livy_standin` plays the recording of Livy 0.9.0 to it.

Sessions are idle and statements end at once, unless a test says otherwise. The statement `stay` runs until it is
cancelled, `fail` fails, `table` gives a table, and `rows COUNT SIZE` one with COUNT texts of SIZE characters. `1+1`
gives 2, and other code gives its own text, so that a result shows which statement it belongs to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from island.livy import requests
from island.livy.messages import (
    SESSION_ALIVE,
    BatchPage,
    BatchRequest,
    BatchView,
    CompletionResponse,
    ResponseMessage,
    SessionPage,
    SessionRequest,
    SessionView,
    StateView,
)
from island.livy.rest import (
    CANCELED,
    DELETED,
    HTML_TYPE,
    JSON_HEADERS,
    SECURITY_HEADERS,
    LivyRefusal,
    allow,
    bad_body,
    duplicate_name,
    id_or_name,
    integer,
    livy_log_lines,
    log_page,
    not_active,
    page_bounds,
    rejected,
    session_not_found,
    slice_page,
    statement_not_found,
    statement_page,
    version_view,
)

TABLE = {
    "schema": {"type": "struct", "fields": [{"name": "n", "type": "long", "nullable": False, "metadata": {}}]},
    "data": [[7]],
}
ERROR = {"status": "error", "execution_count": 0, "ename": "ValueError", "evalue": "boom", "traceback": ["boom\n"]}
KINDS = ("pyspark", "shared", "spark", "sparkr", "sql")

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


def output_of(code: str, number: int) -> dict[str, Any]:
    """Livy's output object for the statement `number` with this code."""
    if code == "fail":
        return {**ERROR, "execution_count": number}
    if found := re.fullmatch(r"rows ([0-9]+) ([0-9]+)", code):
        field = {"name": "text", "type": "string", "nullable": False, "metadata": {}}
        rows = [[f"{row:08d}".ljust(int(found[2]), "é")] for row in range(int(found[1]))]
        table = {"schema": {"type": "struct", "fields": [field]}, "data": rows}
        return {"status": "ok", "execution_count": number, "data": {"application/json": table}}
    data = {"application/json": TABLE} if code == "table" else {"text/plain": "2" if code == "1+1" else f"ran {code}"}
    return {"status": "ok", "execution_count": number, "data": data}


@dataclass
class LivyStatement:
    """A statement of the stand-in."""

    id: int
    code: str
    cancelled: bool = False

    def view(self) -> dict[str, Any]:
        running = self.code == "stay" and not self.cancelled
        state = "cancelled" if self.cancelled else "running" if running else "available"
        output = output_of(self.code, self.id) if state == "available" else None
        view = {"id": self.id, "code": self.code, "state": state, "output": output, "progress": 0.0 if running else 1.0}
        return {**view, "started": 0, "completed": 0}


@dataclass
class LivyJob:
    """A session or batch of the stand-in."""

    id: int
    what: str
    request: SessionRequest | BatchRequest
    state: str
    refused: bool = False
    """A batch that was refused. Livy 0.9 lists it as starting until it is deleted."""
    statements: list[LivyStatement] = field(default_factory=list)
    log: list[str] = field(default_factory=lambda: livy_log_lines([], []))

    @property
    def name(self) -> str | None:
        return None if self.refused else self.request.name

    @property
    def living(self) -> bool:
        return self.state in SESSION_ALIVE and not self.refused

    def view(self) -> SessionView | BatchView:
        if isinstance(self.request, BatchRequest):
            return BatchView(id=self.id, name=self.name, state=self.state, log=[] if self.refused else self.log)
        plain = msgspec.to_builtins(msgspec.structs.replace(self.request, proxy_user=None))
        given = {"kind": "shared", **plain}
        return msgspec.convert({**given, "id": self.id, "state": self.state, "log": self.log}, SessionView)


class PlayedLivy:
    """A Livy server whose behaviour the test sets.

    `version` is 0.9.0 or 0.7.1: they differ in the words of refusals. `kinds` are the kinds of sessions that it can
    run; without kinds it is a Livy without its REPL. `places` is `livy.server.session.max-creation`: the number of
    living sessions and batches after which it refuses more. Local files must be below `files`.
    """

    def __init__(
        self,
        version: str = "0.9.0",
        *,
        kinds: tuple[str, ...] = KINDS,
        places: int = 100,
        files: Path | None = None,
        numbers_are_names: bool = False,
    ) -> None:
        self.version, self.kinds, self.places, self.files = version, kinds, places, files
        self.numbers_are_names = numbers_are_names
        """A session may have a name of digits, by which it is then not found."""
        self.starting = False
        """New sessions stay in the state `starting`, and batches do not end, until the test sets their state."""
        self.requests: list[str] = []
        """`METHOD path` of every request."""
        self.posted: list[str] = []
        """The code of every statement."""
        self.fault: Fault | None = None
        """Called before each request. It may wait, and answer instead of Livy."""
        self.lose: Callable[[web.Request], bool] | None = None
        """Which requests are carried out, but lose their answer: the connection is closed."""
        self.jobs: dict[tuple[str, int], LivyJob] = {}
        self._next = {"session": 0, "batch": 0}

    def restart(self) -> None:
        """Forget everything, as Livy without recovery does at a restart. Ids begin at 0 again."""
        self.jobs.clear()
        self._next = {"session": 0, "batch": 0}

    def stranger(self, name: str | None = None, what: str = "session") -> LivyJob:
        """Add a living session or batch of another client."""
        request = SessionRequest(kind="pyspark", name=name) if what == "session" else BatchRequest(file="x", name=name)
        return self._add(what, request, "idle" if what == "session" else "running")

    def living(self) -> list[LivyJob]:
        """The sessions and batches that have not ended."""
        return [job for job in self.jobs.values() if job.living]

    def named(self, name: str) -> LivyJob:
        """The session or batch with this name."""
        return next(job for job in self.jobs.values() if job.name == name)

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._answers], client_max_size=requests.MAX_BODY + 1024)
        route = app.router
        route.add_get("/", self._root)
        route.add_get("/ui", self._ui)
        route.add_get("/version", self._version)
        for what, path in (("session", "/sessions"), ("batch", "/batches")):
            for root in (path, path + "/"):
                route.add_get(root, self._for(self._list, what))
                route.add_post(root, self._for(self._create, what))
            route.add_get(path + "/{key}", self._for(self._show, what))
            route.add_delete(path + "/{key}", self._for(self._delete, what))
            route.add_get(path + "/{key}/state", self._for(self._state, what))
            route.add_get(path + "/{key}/log", self._for(self._log, what))
        route.add_get("/sessions/{key}/statements", self._statements)
        route.add_post("/sessions/{key}/statements", self._post)
        route.add_get("/sessions/{key}/statements/{number}", self._statement)
        route.add_post("/sessions/{key}/statements/{number}/cancel", self._cancel)
        route.add_post("/sessions/{key}/completion", self._complete)
        return app

    @staticmethod
    def _for(handler: Callable[[web.Request, str], Awaitable[web.Response]], what: str) -> Any:
        async def handle(request: web.Request) -> web.Response:
            return await handler(request, what)

        return handle

    @web.middleware
    async def _answers(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        if self.fault is not None and (answer := await self.fault(request)) is not None:
            return answer
        try:
            response: web.StreamResponse = await handler(request)
        except LivyRefusal as refusal:
            return web.Response(status=refusal.status, body=self._body(refusal), headers=JSON_HEADERS)
        except web.HTTPMethodNotAllowed as refusal:
            return web.Response(status=405, headers={**JSON_HEADERS, "Allow": allow(refusal.allowed_methods)})
        except web.HTTPNotFound:
            inside = request.path.startswith(("/sessions", "/batches"))
            return web.Response(status=404, headers=JSON_HEADERS if inside else _html())
        if self.lose is not None and self.lose(request) and request.transport is not None:
            request.transport.close()
        return response

    def _body(self, refusal: LivyRefusal) -> bytes:
        if self.version.startswith("0.7") and isinstance(refusal.body, ResponseMessage):
            # The older version does not say that it rejects.
            return msgspec.json.encode(ResponseMessage(refusal.body.msg.removeprefix("Rejected, Reason: ")))
        return refusal.json()

    # --- the root ----------------------------------------------------------------------------------

    async def _root(self, request: web.Request) -> web.Response:
        return web.Response(status=302, headers={**_html(), "Location": f"http://{request.host}/ui"})

    async def _ui(self, _: web.Request) -> web.Response:
        return web.Response(text="<html></html>", headers=_html())

    async def _version(self, _: web.Request) -> web.Response:
        return _reply({**version_view("a stand-in", "0"), "version": f"{self.version}-incubating"})

    # --- sessions and batches ----------------------------------------------------------------------

    def _add(self, what: str, request: SessionRequest | BatchRequest, state: str) -> LivyJob:
        number = self._next[what]
        self._next[what] += 1
        job = self.jobs[what, number] = LivyJob(number, what, request, state)
        return job

    def _of(self, what: str) -> list[LivyJob]:
        return [job for job in self.jobs.values() if job.what == what]

    def _job(self, request: web.Request, what: str) -> LivyJob:
        key = id_or_name(request.match_info["key"])
        for job in self._of(what):
            if key in (job.id, job.name):
                return job
        raise session_not_found(key)

    async def _list(self, request: web.Request, what: str) -> web.Response:
        start, size = page_bounds(request.query)
        jobs = self._of(what)
        page: Any = SessionPage if what == "session" else BatchPage
        return _reply(page(start, len(jobs), [job.view() for job in slice_page(jobs, start, size)]))

    async def _create(self, http: web.Request, what: str) -> web.Response:
        raw = await http.read()
        request = self._session_request(raw) if what == "session" else requests.batch_request(raw)
        if self.version.startswith("0.7") and isinstance(request, SessionRequest) and request.ttl is not None:
            raise bad_body('Unrecognized field "ttl"')
        if len(self.living()) >= self.places:
            raise LivyRefusal(400, ResponseMessage("Rejected, too many sessions are being created!"))
        job = self._admitted(what, request)
        first = job.view()
        self._begin(job)
        return _reply(first, 201, Location=f"/{http.path.strip('/')}/{job.id}")

    def _session_request(self, raw: bytes) -> SessionRequest:
        try:
            return requests.session_request(raw)
        except LivyRefusal as refusal:
            if "Invalid session name" not in refusal.message:
                raise
            request = msgspec.json.decode(raw, type=SessionRequest)
            self._check_kind(request.kind or "shared")
            if self.numbers_are_names:
                return request
            raise

    def _admitted(self, what: str, request: SessionRequest | BatchRequest) -> LivyJob:
        """Check a request in the order in which Livy does. Raises `LivyRefusal`."""
        if isinstance(request, SessionRequest):
            self._check_kind(request.kind or "shared")
        try:
            if isinstance(request, BatchRequest):
                self._check_file(request.file or "")
            for path in (*request.jars, *request.py_files, *request.files, *request.archives):
                self._check_file(path)
            holder = next((job for job in self._of(what) if job.name == request.name and job.name is not None), None)
            if holder is not None and request.name is not None:
                raise duplicate_name(request.name, holder.id)
        except LivyRefusal:
            if what == "batch" and not self.version.startswith("0.7"):
                self._add(what, request, "starting").refused = True
            raise
        return self._add(what, request, "starting")

    def _check_kind(self, kind: str) -> None:
        kind = "pyspark" if kind == "pyspark3" else kind
        if not self.kinds:
            raise rejected("requirement failed: Cannot find Livy REPL jars.")
        if kind not in self.kinds:
            if kind == "pyspark":
                raise rejected("requirement failed: pyspark.zip not found; cannot start pyspark application.")
            raise LivyRefusal(500, f"java.lang.RuntimeException: {kind}.zip not found; cannot run the application.")

    def _check_file(self, path: str) -> None:
        local = path.removeprefix("file://")
        if not os.path.isabs(local):
            raise rejected(f"requirement failed: Path '{path}' is not absolute.")
        if self.files is None or not Path(os.path.realpath(local)).is_relative_to(os.path.realpath(self.files)):
            raise rejected(f"requirement failed: Local path {path} cannot be added to user sessions.")

    def _begin(self, job: LivyJob) -> None:
        """Start a session or batch: a session is idle or dead at once. A batch ends at once, unless it sleeps."""
        if isinstance(job.request, SessionRequest):
            if not self.starting:
                job.state = "dead" if job.request.conf.get("spark.driver.memory") == "1k" else "idle"
            return
        try:
            with open((job.request.file or "").removeprefix("file://"), "rb") as file:
                script = file.read()
        except OSError as error:
            job.state, job.log = "dead", livy_log_lines([], [str(error)])
            return
        job.state = "running" if self.starting or b"sleep(" in script else "dead" if b"exit(" in script else "success"

    async def _show(self, request: web.Request, what: str) -> web.Response:
        return _reply(self._job(request, what).view())

    async def _delete(self, request: web.Request, what: str) -> web.Response:
        job = self._job(request, what)
        del self.jobs[what, job.id]
        return _reply(DELETED)

    async def _state(self, request: web.Request, what: str) -> web.Response:
        job = self._job(request, what)
        return _reply(StateView(job.id, job.state))

    async def _log(self, request: web.Request, what: str) -> web.Response:
        job = self._job(request, what)
        return _reply(log_page(job.id, job.log, request.query))

    # --- statements --------------------------------------------------------------------------------

    def _session(self, request: web.Request) -> LivyJob:
        job = self._job(request, "session")
        if not job.living:
            raise not_active()
        return job

    def _one(self, request: web.Request) -> LivyStatement:
        statements, number = self._session(request).statements, integer(request.match_info["number"])
        if not 0 <= number < len(statements):
            raise statement_not_found()
        return statements[number]

    async def _statements(self, request: web.Request) -> web.Response:
        kept = [statement.view() for statement in self._session(request).statements]
        return _reply({"total_statements": len(kept), "statements": statement_page(kept, request.query)})

    async def _post(self, request: web.Request) -> web.Response:
        job = self._job(request, "session")
        if job.state not in ("idle", "busy"):
            raise LivyRefusal(500, f"java.lang.IllegalStateException: Session is in state {job.state}")
        code = requests.statement_request(await request.read()).code
        statement = LivyStatement(len(job.statements), code)
        job.statements.append(statement)
        self.posted.append(code)
        return _reply(statement.view(), 201, Location=f"/sessions/{job.id}/statements/{statement.id}")

    async def _statement(self, request: web.Request) -> web.Response:
        return _reply(self._one(request).view())

    async def _cancel(self, request: web.Request) -> web.Response:
        statement = self._one(request)
        statement.cancelled = statement.cancelled or statement.code == "stay"
        return _reply(CANCELED)

    async def _complete(self, request: web.Request) -> web.Response:
        self._session(request)
        requests.completion_request(await request.read())
        return _reply(CompletionResponse())


def _html() -> dict[str, str]:
    return {"Content-Type": HTML_TYPE, **SECURITY_HEADERS}


def _reply(body: Any, status: int = 200, **headers: str) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, headers={**JSON_HEADERS, **headers})


def upstream() -> web.Application:
    """The application of a Livy server without Spark."""
    return PlayedLivy().app()
