"""The gateway: Livy's REST API at the root of the user port, for the jobs of the archipelago.

Unmodified Livy clients can open sessions here; they run at the island where their inputs are.
Answers are made from the data that this home stores. Bodies, errors and headers are those of
Livy (`island.livy`), except that errors in requests for which Livy answers 500 are answered
with 400.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import structlog
from aiohttp import web

from island.errors import DiskFailed, Full, IslandError, Unauthenticated
from island.jobs.home import views
from island.jobs.home.service import JobSummary
from island.jobs.home.store import JobRow, StatementRow
from island.jobs.messages import StatementReport
from island.jobs.service import Jobs
from island.livy import requests
from island.livy.messages import (
    AppInfo,
    BatchPage,
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
    INTERRUPTED,
    JSON_HEADERS,
    SECURITY_HEADERS,
    LivyRefusal,
    allow,
    id_or_name,
    integer,
    log_page,
    not_active,
    page_bounds,
    rejected,
    requirement,
    session_not_found,
    statement_page,
    version_view,
)
from island.net.api import base, statement_json

log = structlog.get_logger("island")

JOB_API = "the job API (pickled functions) is not supported; use statements or batches."
IDEMPOTENCY_HEADER = "Idempotency-Key"
_LISTED = 1000
_STOP_S = 20.0
_ROOTS = ("/sessions", "/batches", "/version", "/ui")


def is_livy(path: str) -> bool:
    """Return whether a path of the user port belongs to Livy's REST API."""
    return path == "/" or path.startswith(_ROOTS)


@web.middleware
async def livy_errors(request: web.Request, handler: base.Handler) -> web.StreamResponse:
    """Convert errors below Livy's paths to Livy's format. A 401 is not converted."""
    if request.path.startswith("/api/"):
        return await handler(request)
    try:
        return await handler(request)
    except LivyRefusal as refusal:
        return web.Response(status=refusal.status, body=refusal.json(), headers=JSON_HEADERS)
    except Unauthenticated:
        raise
    except IslandError as error:
        if not is_livy(request.path):
            raise
        # Clients display `msg`. Some clients repeat a request without limit after a 5xx status, which only a disk that
        # is full or fails deserves: nothing was accepted then.
        passing = isinstance(error, Full | DiskFailed) or request.method == "GET"
        status = error.status if error.status < 500 or passing else 400
        refused = answer(ResponseMessage(f"Rejected, Reason: {error.line}"), 400 if status == 404 else status)
        refused.headers.update(base.retry_after(error))
        return refused
    except web.HTTPMethodNotAllowed as refusal:
        if not is_livy(request.path):
            raise
        return empty(405, Allow=allow(refusal.allowed_methods))
    except web.HTTPNotFound:
        return empty(404, JSON_HEADERS["Content-Type"] if request.path.startswith(_ROOTS[:2]) else HTML_TYPE)
    except web.RequestPayloadError as error:
        return answer(f"The body cannot be read: {error}", 400)
    except web.HTTPRequestEntityTooLarge as error:
        return answer(f"The body is too large: {error.text}", 413)


def answer(body: Any, status: int = 200, location: str = "") -> web.Response:
    """Return a JSON response with Livy's headers."""
    headers = {**JSON_HEADERS, "Location": location} if location else JSON_HEADERS
    return web.Response(status=status, body=msgspec.json.encode(body), headers=headers)


def empty(status: int, kind: str = JSON_HEADERS["Content-Type"], **headers: str) -> web.Response:
    """Return a response without a body."""
    return web.Response(status=status, headers={**SECURITY_HEADERS, "Content-Type": kind, **headers})


def routes(jobs: Jobs, *, ui: bool = True) -> list[web.RouteDef]:
    """Return the routes of Livy's REST API; with `ui=False` without `/` and `/ui`."""
    gate = Gateway(jobs)
    session, batch = "/sessions/{key}", "/batches/{key}"
    found = [
        web.get("/version", gate.version),
        *(web.get(path, gate.list_sessions) for path in ("/sessions", "/sessions/")),
        *(web.post(path, gate.create_session) for path in ("/sessions", "/sessions/")),
        web.get(session, gate.show_session),
        web.delete(session, gate.delete_session),
        web.get(session + "/state", gate.session_state),
        web.get(session + "/log", gate.session_log),
        web.post(session + "/connect", gate.connect),
        web.post(session + "/interrupt", gate.interrupt),
        web.post(session + "/stop", gate.stop),
        web.post(session + "/completion", gate.complete),
        web.get(session + "/statements", gate.list_statements),
        web.post(session + "/statements", gate.post_statement),
        web.get(session + "/statements/{statement}", gate.show_statement),
        web.post(session + "/statements/{statement}/cancel", gate.cancel_statement),
        *(web.post(f"{session}/{name}", gate.submit_job) for name in ("submit-job", "run-job")),
        *(
            web.post(f"{session}/{name}", gate.upload)
            for name in ("upload-jar", "upload-pyfile", "upload-file", "add-jar", "add-pyfile", "add-file")
        ),
        web.get(session + "/jobs/{job}", gate.show_job),
        *(web.get(path, gate.list_batches) for path in ("/batches", "/batches/")),
        *(web.post(path, gate.create_batch) for path in ("/batches", "/batches/")),
        web.get(batch, gate.show_batch),
        web.delete(batch, gate.delete_batch),
        web.get(batch + "/state", gate.batch_state),
        web.get(batch + "/log", gate.batch_log),
    ]
    return found + ([web.get("/", gate.root), web.get("/ui", gate.ui)] if ui else [])


class Gateway:
    """Handlers of Livy's REST API."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    # -- the root -------------------------------------------------------------------------------

    async def root(self, request: web.Request) -> web.Response:
        """`GET /`: redirects to the web page, as in Livy."""
        return empty(302, HTML_TYPE, Location=f"{request.scheme}://{request.host}/ui")

    async def ui(self, _request: web.Request) -> web.Response:
        """`GET /ui`: a short page for browsers."""
        text = "<!doctype html><title>island</title><h1>island</h1><p>This port serves Livy's REST API.</p>"
        return web.Response(text=text, headers={"Content-Type": HTML_TYPE, **SECURITY_HEADERS})

    async def version(self, _request: web.Request) -> web.Response:
        """`GET /version`: the version of Livy whose REST API this is."""
        return answer(version_view("astrolab-island", "gateway"))

    # -- sessions -------------------------------------------------------------------------------

    async def _job(self, request: web.Request, kind: str = "session") -> JobRow:
        return await self._jobs.find(base.principal(request), kind, id_or_name(request.match_info["key"]))

    async def list_sessions(self, request: web.Request) -> web.Response:
        """`GET /sessions`."""
        start, size = page_bounds(request.query)
        total, found = await self._jobs.page(base.principal(request), "session", start, min(size, _LISTED))
        views = [session_view(summary) for summary in await self._jobs.seen(found)]
        return answer(SessionPage(start, total, views))

    async def create_session(self, request: web.Request) -> web.Response:
        """`POST /sessions`: the session is stored before the answer is sent, and placed afterwards."""
        wanted = requests.session_request(await request.read())
        try:
            job = await self._jobs.open_session(base.principal(request), wanted, key=_key(request))
        except IslandError as error:
            raise _refused(error) from error
        return answer(session_view(self._jobs.as_accepted(job)), 201, f"/sessions/{job.local}")

    async def _summary(self, request: web.Request, kind: str = "session") -> JobSummary:
        return await self._jobs.find_summary(base.principal(request), kind, id_or_name(request.match_info["key"]))

    async def show_session(self, request: web.Request) -> web.Response:
        """`GET /sessions/N`."""
        return answer(session_view(await self._summary(request)))

    async def session_state(self, request: web.Request) -> web.Response:
        """`GET /sessions/N/state`."""
        summary = await self._summary(request)
        return answer(StateView(summary.job.local, summary.state))

    async def session_log(self, request: web.Request) -> web.Response:
        """`GET /sessions/N/log`."""
        summary = await self._summary(request)
        return answer(log_page(summary.job.local, summary.log, request.query))

    async def delete_session(self, request: web.Request) -> web.Response:
        """`DELETE /sessions/N`: the session is hidden at once, and ended at its executor."""
        await self._jobs.end(await self._job(request), deleted=True)
        return answer(DELETED)

    async def connect(self, request: web.Request) -> web.Response:
        """`POST /sessions/N/connect`."""
        return await self.show_session(request)

    async def interrupt(self, request: web.Request) -> web.Response:
        """`POST /sessions/N/interrupt`: cancels the statements of the session; the session continues."""
        await self._jobs.cancel_open_statements(await self._job(request))
        return answer(INTERRUPTED)

    async def stop(self, request: web.Request) -> web.Response:
        """`POST /sessions/N/stop`: ends the session, which remains listed; waits up to `_STOP_S` for its end."""
        job = await self._job(request)
        await self._jobs.end(job, deleted=False)
        await self._jobs.settled(job, _STOP_S)
        return empty(204)

    async def complete(self, request: web.Request) -> web.Response:
        """`POST /sessions/N/completion`."""
        job = await self._job(request)
        wanted = requests.completion_request(await request.read())
        cursor = len(wanted.code) if wanted.cursor is None else wanted.cursor
        return answer(CompletionResponse(await self._jobs.complete(job, wanted.code, wanted.kind, cursor)))

    # -- statements -----------------------------------------------------------------------------

    async def list_statements(self, request: web.Request) -> web.StreamResponse:
        """`GET /sessions/N/statements`: results stay available after the session has ended."""
        job = await self._job(request)
        numbers: list[int] = statement_page(range(job.statements), request.query)

        async def views() -> AsyncIterator[AsyncIterator[bytes]]:
            async for part in self._jobs.statement_parts(job, numbers):
                for pair in part:
                    yield self._statement_json(*pair)

        head = b'{"total_statements":%d,"statements":[' % job.statements
        parts = statement_json.joined(views(), head, b"]}")
        return await base.reply_in_parts(request, statement_json.gathered(parts), JSON_HEADERS)

    def _statement_json(self, statement: StatementRow, progress: StatementReport) -> AsyncIterator[bytes]:
        return statement_json.with_output(statement_view(statement, progress), self._jobs.output_of(progress))

    async def post_statement(self, request: web.Request) -> web.Response:
        """`POST /sessions/N/statements`: the statement is stored before the answer is sent."""
        job = await self._job(request)
        wanted = requests.statement_request(await request.read())
        statement = await self._jobs.post(job, wanted.code, wanted.kind)
        location = f"/sessions/{job.local}/statements/{statement.number}"
        return answer(statement_view(statement, statement.report()), 201, location)

    async def show_statement(self, request: web.Request) -> web.StreamResponse:
        """`GET /sessions/N/statements/M`."""
        number = integer(request.match_info["statement"])
        key = id_or_name(request.match_info["key"])
        _, statement, progress = await self._jobs.find_statement(base.principal(request), key, number)
        parts = statement_json.gathered(self._statement_json(statement, progress))
        return await base.reply_in_parts(request, parts, JSON_HEADERS)

    async def cancel_statement(self, request: web.Request) -> web.Response:
        """`POST /sessions/N/statements/M/cancel`."""
        job = await self._job(request)
        await self._jobs.cancel_statement(job, integer(request.match_info["statement"]))
        return answer(CANCELED)

    # -- the job API: not supported -------------------------------------------------------------

    async def submit_job(self, request: web.Request) -> web.Response:
        """Refuse a job of the job API; without a job in the request, with the error that Livy has for that."""
        await self._job(request)
        try:
            body = msgspec.json.decode(await request.read() or b"{}")
        except (msgspec.DecodeError, RecursionError) as error:
            raise LivyRefusal(400, f"Not JSON: {error}") from error
        raise requirement(JOB_API if isinstance(body, dict) and body.get("job") else "no job provided.")

    async def upload(self, request: web.Request) -> web.Response:
        """Refuse an upload for the job API; without a file in the request, with the error that Livy has for that."""
        await self._job(request)
        if request.content_type.startswith("multipart/") or await request.read():
            raise requirement(JOB_API)
        raise LivyRefusal(400, "No file sent!")

    async def show_job(self, request: web.Request) -> web.Response:
        """Answer that the job does not exist, because none can be submitted."""
        job = await self._job(request)
        if not job.live:
            raise not_active()
        raise session_not_found(request.match_info["job"])

    # -- batches --------------------------------------------------------------------------------

    async def list_batches(self, request: web.Request) -> web.Response:
        """`GET /batches`."""
        start, size = page_bounds(request.query)
        total, found = await self._jobs.page(base.principal(request), "batch", start, min(size, _LISTED))
        views = [batch_view(summary) for summary in await self._jobs.seen(found)]
        return answer(BatchPage(start, total, views))

    async def create_batch(self, request: web.Request) -> web.Response:
        """`POST /batches`: the batch and its file are stored before the answer is sent."""
        wanted = requests.batch_request(await request.read())
        try:
            job = await self._jobs.submit_batch(base.principal(request), wanted, key=_key(request))
        except IslandError as error:
            raise _refused(error) from error
        return answer(batch_view(self._jobs.as_accepted(job)), 201, f"/batches/{job.local}")

    async def show_batch(self, request: web.Request) -> web.Response:
        """`GET /batches/N`."""
        return answer(batch_view(await self._summary(request, "batch")))

    async def batch_state(self, request: web.Request) -> web.Response:
        """`GET /batches/N/state`."""
        summary = await self._summary(request, "batch")
        return answer(StateView(summary.job.local, summary.state))

    async def batch_log(self, request: web.Request) -> web.Response:
        """`GET /batches/N/log`."""
        summary = await self._summary(request, "batch")
        return answer(log_page(summary.job.local, summary.log, request.query))

    async def delete_batch(self, request: web.Request) -> web.Response:
        """`DELETE /batches/N`."""
        await self._jobs.end(await self._job(request, "batch"), deleted=True)
        return answer(DELETED)


def session_view(summary: JobSummary) -> SessionView:
    """Return a session as Livy shows it, with its 23 keys."""
    job = summary.job
    request = msgspec.convert(job.request, SessionRequest)
    return SessionView(
        id=job.local,
        name=job.name,
        app_id=job.app_id or None,
        state=summary.state,
        kind=job.work.language,
        app_info=_app_info(job),
        log=views.short_log(summary.log),
        ttl=request.ttl,
        idle_timeout=request.idle_timeout,
        driver_memory=request.driver_memory,
        driver_cores=request.driver_cores or 0,
        executor_memory=request.executor_memory,
        executor_cores=request.executor_cores or 0,
        conf=request.conf,
        heartbeat_timeout_in_second=request.heartbeat_timeout_in_second,
        num_executors=request.num_executors or 0,
        queue=request.queue,
    )


def batch_view(summary: JobSummary) -> BatchView:
    """Return a batch as Livy shows it."""
    job = summary.job
    return BatchView(
        id=job.local,
        name=job.name,
        state=summary.state,
        app_id=job.app_id or None,
        app_info=_app_info(job),
        log=views.short_log(summary.log),
    )


def statement_view(statement: StatementRow, progress: StatementReport) -> dict[str, Any]:
    """Return a statement as Livy shows it, without its output, which is sent unchanged from where it is stored."""
    return {
        "id": statement.number,
        "code": statement.code,
        "state": progress.state,
        "output": None,
        "progress": progress.progress,
        "started": progress.started,
        "completed": progress.completed,
    }


def _app_info(job: JobRow) -> AppInfo:
    info = job.app_info
    return AppInfo(driver_log_url=info.get("driverLogUrl"), spark_ui_url=info.get("sparkUiUrl"))


def _key(request: web.Request) -> str | None:
    return request.headers.get(IDEMPOTENCY_HEADER)


def _refused(error: IslandError) -> IslandError:
    """Convert an error of the caller in a request that creates a session or batch to Livy's 400 answer."""
    if isinstance(error, LivyRefusal) or error.blame != "caller":
        return error
    return rejected(error.line)
