"""Sessions, statements and batches in the operator API; Livy's REST API is in `net.gateway`.

Operations apply to the caller's own jobs; the administrator has access to all jobs. `ID` is
the local id, the public id, a unique prefix of it, or a name; `kind` selects among several
matches. With a job's key (`X-Island-Job-Key`), a request about a job of another home is sent
to that home.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from island.errors import BadInput, NotFound
from island.jobs.executor.run import JobRun
from island.jobs.home.local_files import BatchFile
from island.jobs.home.store import JobRow
from island.jobs.messages import MAX_FILE
from island.jobs.service import Jobs, statement_row
from island.livy.conf import INPUTS_KEY
from island.livy.messages import BatchRequest, SessionRequest
from island.net.api import base, statement_json

KEY_HEADER = "X-Island-Job-Key"
_WAIT = 60.0

InputNames = Annotated[list[Annotated[str, Meta(max_length=300)]], Meta(max_length=64)]


class NewSession(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/sessions`."""

    kind: Literal["pyspark", "sql", "shared", "spark", "sparkr"] = "pyspark"
    inputs: InputNames = []
    name: Annotated[str, Meta(max_length=256)] | None = None
    at: Annotated[str, Meta(max_length=100)] = ""
    conf: dict[str, str] = {}
    memory: Annotated[str, Meta(max_length=20)] | None = None


class NewStatement(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/v1/jobs/ID/statements`."""

    code: str
    kind: str | None = None


class JobKey(msgspec.Struct, forbid_unknown_fields=True):
    """The optional body of `POST /api/v1/jobs/ID/cancel`: the key of a job of another home."""

    key: Annotated[str, Meta(max_length=64)] = ""


def routes(jobs: Jobs) -> list[web.RouteDef]:
    """Return the routes for jobs."""
    api = JobsApi(jobs)
    job = "/api/v1/jobs/{id}"
    return [
        web.get("/api/v1/jobs", api.ls),
        web.post("/api/v1/sessions", api.open_session),
        web.post("/api/v1/batches", api.submit),
        web.get("/api/v1/routing/accuracy", api.accuracy),
        web.get(job, api.show),
        web.delete(job, api.close),
        web.get(job + "/explain", api.explain),
        web.get(job + "/log", api.log),
        web.get(job + "/wait", api.wait),
        web.post(job + "/cancel", api.cancel),
        web.get(job + "/statements", api.statements),
        web.post(job + "/statements", api.post),
        web.get(job + "/statements/{number}", api.statement),
        web.get(job + "/statements/{number}/result", api.result),
        web.post(job + "/statements/{number}/cancel", api.cancel_statement),
    ]


class JobsApi:
    """Handlers of the operations on jobs."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def _job(self, request: web.Request, kind: str | None = None) -> JobRow:
        kind = kind or request.query.get("kind")
        return await self._jobs.named(base.principal(request), request.match_info["id"], kind)

    async def _job_or_guest(self, request: web.Request) -> JobRow | JobRun:
        """Return a job of this home, or, for the administrator, a run of another home's job; raises `NotFound`."""
        try:
            return await self._job(request)
        except NotFound:
            run = await self._jobs.guest(base.principal(request), request.match_info["id"])
            if run is None:
                raise
            return run

    async def _elsewhere(self, request: web.Request, what: str) -> Any | None:
        """Return the answer of another home if the request has a job's key, else None."""
        key = request.headers.get(KEY_HEADER)
        if key is None:
            return None
        async with base.attended(request):
            return await self._jobs.elsewhere(request.match_info["id"], key, what)

    async def ls(self, request: web.Request) -> web.Response:
        """`GET /api/v1/jobs?kind=&live=&limit=`."""
        limit = _number(request, "limit", 1000)
        rows = await self._jobs.listing(base.principal(request), limit, live_only=request.query.get("live") == "1")
        kind = request.query.get("kind")
        return base.reply([_timed(row) for row in rows if kind in (None, row["kind"])])

    async def open_session(self, request: web.Request) -> web.Response:
        """`POST /api/v1/sessions`."""
        body = await base.body(request, NewSession)
        wanted = SessionRequest(
            kind=body.kind,
            name=body.name,
            conf=_conf(body.conf, body.inputs),
            queue=_queue(body.at),
            driver_memory=body.memory,
        )
        key = request.headers.get("Idempotency-Key")
        job = await self._jobs.open_session(base.principal(request), wanted, key=key)
        return base.reply(_timed(await self._jobs.row(job)), 201)

    async def submit(self, request: web.Request) -> web.Response:
        """`POST /api/v1/batches?file=NAME&input=...&arg=...&conf=KEY=VALUE&memory=`: the body is the file."""
        query = request.query
        data = await request.read()
        if len(data) > MAX_FILE:
            raise BadInput(
                f"the file has {len(data)} bytes; the limit is {MAX_FILE}",
                hint="Publish large data as a dataset and use it as an input.",
            )
        wanted = BatchRequest(
            file=query.get("file", "job.py"),
            args=query.getall("arg", []),
            name=query.get("name") or None,
            conf=_conf(_settings(query.getall("conf", [])), query.getall("input", [])),
            queue=_queue(query.get("at", "")),
            driver_memory=query.get("memory") or None,
        )
        file = BatchFile(query.get("file", "job.py"), data)
        key = request.headers.get("Idempotency-Key")
        job = await self._jobs.submit_batch(base.principal(request), wanted, file=file, key=key)
        return base.reply(_timed(await self._jobs.row(job)), 201)

    async def show(self, request: web.Request) -> web.Response:
        """`GET /api/v1/jobs/ID?key=1`: with `key=1` the answer includes the job's key."""
        if (row := await self._elsewhere(request, "show")) is not None:
            return base.reply(_timed(row))
        found = await self._job_or_guest(request)
        if isinstance(found, JobRun):
            return base.reply(_timed(self._jobs.run_row(found)))
        shown = self._jobs.show if request.query.get("key") == "1" else self._jobs.row
        return base.reply(_timed(await shown(found)))

    async def explain(self, request: web.Request) -> web.Response:
        """`GET /api/v1/jobs/ID/explain`: all islands that were considered, best first."""
        rows = await self._elsewhere(request, "explain")
        if rows is None:
            rows = await self._jobs.explain(await self._job(request))
        return base.reply([_timed(row) for row in rows])

    async def accuracy(self, _: web.Request) -> web.Response:
        """`GET /api/v1/routing/accuracy`: how good the predictions for the newest jobs were."""
        return base.reply(await self._jobs.accuracy())

    async def log(self, request: web.Request) -> web.Response:
        """`GET /api/v1/jobs/ID/log`."""
        lines = await self._elsewhere(request, "logs")
        if lines is None:
            lines = await self._jobs.log(await self._job(request))
        return base.reply({"job": request.match_info["id"], "log": lines})

    async def wait(self, request: web.Request) -> web.Response:
        """`GET /api/v1/jobs/ID/wait?timeout=`: wait until the job is idle or has ended, at most `timeout` seconds."""
        if (row := await self._elsewhere(request, "show")) is not None:
            return base.reply(_timed(row))
        job = await self._job(request)
        async with base.attended(request):
            job = await self._jobs.settled(job, _seconds(request))
        return base.reply(_timed(await self._jobs.row(job)))

    async def cancel(self, request: web.Request) -> web.Response:
        """`POST /api/v1/jobs/ID/cancel`: end a batch or a session; its results stay available."""
        key = (await base.body(request, JobKey)).key or request.headers.get(KEY_HEADER)
        if key:
            return base.reply(_timed(await self._jobs.elsewhere(request.match_info["id"], key, "cancel")))
        found = await self._job_or_guest(request)
        if isinstance(found, JobRun):
            return base.reply(_timed(await self._jobs.evict(base.administrator(request), found)))
        job = await self._jobs.end(found, deleted=False)
        return base.reply(_timed(await self._jobs.row(job)))

    async def close(self, request: web.Request) -> web.Response:
        """`DELETE /api/v1/jobs/ID`: end the job and hide it from Livy's REST API."""
        job = await self._jobs.end(await self._job(request), deleted=True)
        return base.reply(_timed(await self._jobs.row(job)))

    async def statements(self, request: web.Request) -> web.StreamResponse:
        """`GET /api/v1/jobs/ID/statements`."""
        rows = await self._elsewhere(request, "statements")
        if rows is not None:
            return base.reply([_statement(request.match_info["id"], row) for row in rows])
        job = await self._job(request, "session")

        async def parts() -> AsyncIterator[list[Any]]:
            async for part in self._jobs.statement_parts(job, range(job.statements)):
                yield [_statement(job.id, statement_row(*pair)) for pair in part]

        return await base.reply_in_parts(request, base.json_list(parts()), base.JSON_TYPE)

    async def post(self, request: web.Request) -> web.Response:
        """`POST /api/v1/jobs/ID/statements`."""
        body = await base.body(request, NewStatement)
        job = await self._job(request, "session")
        statement = await self._jobs.post(job, body.code, body.kind)
        return base.reply(_statement(job.id, statement_row(statement, statement.report())), 201)

    async def statement(self, request: web.Request) -> web.StreamResponse:
        """`GET /api/v1/jobs/ID/statements/N?timeout=`: wait until the statement ends, at most `timeout` seconds."""
        job = await self._job(request, "session")
        number = _path_number(request)
        async with base.attended(request):
            found, progress = await self._jobs.finished_statement(job, number, _seconds(request, 0.0))
        view = _statement(job.id, statement_row(found, progress))
        parts = statement_json.gathered(statement_json.with_output(view, self._jobs.output_of(progress)))
        return await base.reply_in_parts(request, parts, base.JSON_TYPE)

    async def result(self, request: web.Request) -> web.StreamResponse:
        """`GET /api/v1/jobs/ID/statements/N/result`: the output alone, byte for byte as it is stored."""
        job = await self._job(request, "session")
        number = _path_number(request)
        _, progress = await self._jobs.statement(job, number)
        if not progress.output and progress.result is None:
            raise NotFound(
                f"statement {number} of session {job.local} has no result: it is {progress.state}",
                hint=f"`island session results {job.local}` lists the results of the session.",
            )
        parts = statement_json.gathered(self._jobs.output_of(progress))
        return await base.reply_in_parts(request, parts, base.JSON_TYPE)

    async def cancel_statement(self, request: web.Request) -> web.Response:
        """`POST /api/v1/jobs/ID/statements/N/cancel`: cancel a statement; the answer is the statement."""
        job = await self._job(request, "session")
        number = _path_number(request)
        await self._jobs.cancel_statement(job, number)
        return base.reply(_statement(job.id, statement_row(*await self._jobs.statement(job, number))))


def _conf(conf: dict[str, str], inputs: list[str]) -> dict[str, str]:
    return {**conf, INPUTS_KEY: ",".join(inputs)} if inputs else conf


def _settings(lines: list[str]) -> dict[str, str]:
    """Return the Spark settings of a query, `KEY=VALUE` each; raises `BadInput`."""
    settings = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if not key or not equals:
            raise BadInput(f"conf = '{line[:100]}' is not KEY=VALUE", hint="For example spark.sql.ansi.enabled=true.")
        settings[key] = value
    return settings


def _queue(at: str) -> str | None:
    return f"island:{at}" if at else None


def _timed(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its times as ISO 8601."""
    times = ("created", "ended", "silent_since", "at")
    return {k: base.iso(v) if k in times and isinstance(v, int | float) else v for k, v in row.items()}


def _statement(job: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a statement with the public id of its session. Times in milliseconds become ISO 8601, 0 becomes null."""

    def time(value: Any) -> str | None:
        # The value may come from another home, so its type and range are checked.
        return base.iso(value / 1000) if isinstance(value, int) and 0 < value < 1e18 else None

    return {"job": job, **row, "started": time(row.get("started")), "completed": time(row.get("completed"))}


def _number(request: web.Request, name: str, default: int) -> int:
    return base.whole_number(request.query.get(name, str(default)), name, 10_000)


def _path_number(request: web.Request) -> int:
    text = request.match_info["number"]
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadInput(f"'{text[:50]}' is not the number of a statement")
    return int(text)


def _seconds(request: web.Request, default: float = _WAIT) -> float:
    text = request.query.get("timeout", str(default))
    try:
        seconds = float(text)
    except ValueError as error:
        raise BadInput(f"timeout = '{text[:50]}' is not a number of seconds") from error
    return min(max(0.0, seconds), _WAIT)  # NaN becomes 0
