"""The engine's REST API: Livy's API on aiohttp, with one token for all clients."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web

from island.engine.lifecycle import EngineJob
from island.engine.service import EngineService
from island.engine.sessions import EngineSession, EngineStatement
from island.errors import IslandError
from island.livy import requests
from island.livy.messages import (
    BatchPage,
    Changes,
    CompletionResponse,
    ResponseMessage,
    SessionPage,
    StatementPage,
    StateView,
)
from island.livy.rest import (
    CANCELED,
    CODE_HEADER,
    DELETED,
    ENGINE_HEADER,
    HTML_TYPE,
    INTERRUPTED,
    JSON_HEADERS,
    SECURITY_HEADERS,
    LivyRefusal,
    allow,
    bad_body,
    id_or_name,
    integer,
    log_page,
    not_active,
    page_bounds,
    requirement,
    session_not_found,
    slice_page,
    statement_page,
    version_view,
)

log = structlog.get_logger("island.engine")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
JOB_API: Final = "this engine does not support the job API (pickled functions); send statements or batches."
MAX_WAIT_S: Final = 30.0
UI: Final = (
    "<!doctype html><title>island engine</title><h1>island engine</h1><p>{sessions} sessions, {batches} batches.</p>"
)


def answer(body: Any, status: int = 200, location: str = "") -> web.Response:
    """A JSON answer with Livy's headers."""
    headers = {**JSON_HEADERS, "Location": location} if location else JSON_HEADERS
    return web.Response(status=status, body=msgspec.json.encode(body), headers=headers)


def empty(status: int, kind: str = JSON_HEADERS["Content-Type"], **headers: str) -> web.Response:
    """An answer without a body."""
    return web.Response(status=status, headers={**SECURITY_HEADERS, "Content-Type": kind, **headers})


def is_allowed(header: str, token: str) -> bool:
    """Whether an Authorization header has the token, as Bearer or as the password of Basic."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(value.strip().encode(), token.encode())


def _seconds(request: web.Request) -> float:
    """The parameter `wait`: for how long an answer may wait for a change. Raises `LivyRefusal`."""
    text = request.query.get("wait", "0")
    try:
        return min(max(float(text), 0.0), MAX_WAIT_S)
    except ValueError as error:
        raise bad_body(f"Invalid number of seconds: {text[:100]}") from error


class EngineApi:
    """The HTTP resources of Livy for one engine."""

    def __init__(self, engine: EngineService, token: str) -> None:
        self.engine = engine
        self.token = token

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._errors, self._authorised], client_max_size=requests.MAX_BODY + 1024)
        app.on_response_prepare.append(self._sign)
        route = app.router
        route.add_get("/", self.root)
        route.add_get("/ui", self.ui)
        route.add_get("/version", self.version)
        route.add_get("/changes", self.changes)
        for path in ("/sessions", "/sessions/"):
            route.add_get(path, self.list_sessions)
            route.add_post(path, self.create_session)
        one = "/sessions/{key}"
        route.add_get(one, self.show_session)
        route.add_delete(one, self.delete_session)
        route.add_get(one + "/state", self.session_state)
        route.add_get(one + "/log", self.session_log)
        route.add_post(one + "/connect", self.connect)
        route.add_post(one + "/interrupt", self.interrupt)
        route.add_post(one + "/stop", self.stop)
        route.add_post(one + "/completion", self.complete)
        route.add_get(one + "/statements", self.list_statements)
        route.add_post(one + "/statements", self.post_statement)
        route.add_get(one + "/statements/{statement}", self.show_statement)
        route.add_post(one + "/statements/{statement}/cancel", self.cancel_statement)
        for name in ("submit-job", "run-job"):
            route.add_post(f"{one}/{name}", self.submit_job)
        for name in ("upload-jar", "upload-pyfile", "upload-file", "add-jar", "add-pyfile", "add-file"):
            route.add_post(f"{one}/{name}", self.upload)
        route.add_get(one + "/jobs/{job}", self.show_job)
        for path in ("/batches", "/batches/"):
            route.add_get(path, self.list_batches)
            route.add_post(path, self.create_batch)
        one = "/batches/{key}"
        route.add_get(one, self.show_batch)
        route.add_delete(one, self.delete_batch)
        route.add_get(one + "/state", self.batch_state)
        route.add_get(one + "/log", self.batch_log)
        return app

    # -- for every answer ---------------------------------------------------------------

    async def _sign(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers[ENGINE_HEADER] = self.engine.place.instance
        response.headers.pop("Server", None)

    @web.middleware
    async def _authorised(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_allowed(request.headers.get("Authorization", ""), self.token):
            response = answer(ResponseMessage("A token is required, as Bearer or as the password of HTTP Basic."), 401)
            response.headers["WWW-Authenticate"] = 'Basic realm="island engine"'
            return response
        return await handler(request)

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except LivyRefusal as refusal:
            headers = {**JSON_HEADERS, CODE_HEADER: refusal.code}
            return web.Response(status=refusal.status, body=refusal.json(), headers=headers)
        except web.HTTPMethodNotAllowed as refusal:
            return empty(405, Allow=allow(refusal.allowed_methods))
        except web.HTTPNotFound:
            inside = request.path.startswith(("/sessions", "/batches"))
            return empty(404, JSON_HEADERS["Content-Type"] if inside else HTML_TYPE)
        except web.HTTPRequestEntityTooLarge:
            return answer(f"The body has more than {requests.MAX_BODY} bytes", 413)
        except sqlite3.Error as error:
            log.error("engine.store_failed", path=request.path, error=str(error))
            return answer(
                ResponseMessage(f"The engine cannot write to its directory: {error}. Nothing was started."), 507
            )
        except IslandError as error:
            log.warning("engine.failed", path=request.path, error=str(error))
            return answer(ResponseMessage(str(error)), error.status)

    # -- the root -----------------------------------------------------------------------

    async def root(self, request: web.Request) -> web.Response:
        """Redirect to the HTML page, as Livy does."""
        return empty(302, HTML_TYPE, Location=f"{request.scheme}://{request.host}/ui")

    async def ui(self, _request: web.Request) -> web.Response:
        """A short HTML page for browsers."""
        text = UI.format(sessions=len(self.engine.sessions), batches=len(self.engine.batches))
        return web.Response(text=text, headers={"Content-Type": HTML_TYPE, **SECURITY_HEADERS})

    async def version(self, _request: web.Request) -> web.Response:
        """`GET /version`: the version of Livy's API."""
        return answer(version_view("astrolab-island", self.engine.place.instance))

    async def changes(self, request: web.Request) -> web.Response:
        """`GET /changes?after=N&wait=S`: the number of changes, once it is not N or S seconds have passed."""
        topic, after = self.engine.place.changes, integer(request.query.get("after", "-1"))
        if topic.version == after:
            await topic.after(after, _seconds(request))
        return answer(Changes(topic.version))

    # -- sessions -----------------------------------------------------------------------

    def _session(self, request: web.Request) -> EngineSession:
        """The session in the path. Every request for it counts as a heartbeat of its client."""
        session = self.engine.session(id_or_name(request.match_info["key"]))
        session.beaten = time.monotonic()
        return session

    def _live_session(self, request: web.Request) -> EngineSession:
        """The session in the path, for requests about its statements.

        A session of an earlier instance has no statements: status 400, as for an ended one in Livy.
        """
        try:
            session = self._session(request)
        except LivyRefusal:
            self.engine.past_session(id_or_name(request.match_info["key"]))
            raise not_active() from None
        if session.ended and not session.was_idle:
            raise not_active()
        return session

    async def list_sessions(self, request: web.Request) -> web.Response:
        """`GET /sessions`."""
        start, size = page_bounds(request.query)
        known = list(self.engine.sessions.values())
        return answer(SessionPage(start, len(known), [session.view() for session in slice_page(known, start, size)]))

    async def create_session(self, request: web.Request) -> web.Response:
        """`POST /sessions`."""
        session = self.engine.open_session(requests.session_request(await request.read()))
        return answer(session.view(), 201, f"/sessions/{session.id}")

    async def show_session(self, request: web.Request) -> web.Response:
        """`GET /sessions/N`, also for sessions of earlier instances."""
        try:
            return answer(self._session(request).view())
        except LivyRefusal:
            return answer(self.engine.past_session(id_or_name(request.match_info["key"])))

    async def session_state(self, request: web.Request) -> web.Response:
        """`GET /sessions/N/state`."""
        try:
            session = self._session(request)
        except LivyRefusal:
            past = self.engine.past_session(id_or_name(request.match_info["key"]))
            return answer(StateView(past.id, past.state))
        return answer(StateView(session.id, session.state))

    async def session_log(self, request: web.Request) -> web.Response:
        """`GET /sessions/N/log`."""
        try:
            session = self._session(request)
        except LivyRefusal:
            past = self.engine.past_session(id_or_name(request.match_info["key"]))
            return answer(log_page(past.id, past.log, request.query))
        return answer(log_page(session.id, session.log.lines(), request.query))

    async def delete_session(self, request: web.Request) -> web.Response:
        """`DELETE /sessions/N`. The answer is sent when all its processes are gone."""
        return await self._delete(request, "session", self.engine.session)

    async def _delete(self, request: web.Request, what: str, find: Callable[[int | str], EngineJob]) -> web.Response:
        key = id_or_name(request.match_info["key"])
        try:
            job = find(key)
        except LivyRefusal:
            self.engine.forget_past(what, key)
        else:
            await self.engine.delete(job)
        return answer(DELETED)

    async def connect(self, request: web.Request) -> web.Response:
        """`POST /sessions/N/connect`: restarts the idle timeout."""
        session = self._session(request)
        session.touched = time.monotonic()
        return answer(session.view())

    async def interrupt(self, request: web.Request) -> web.Response:
        """`POST /sessions/N/interrupt`: cancels its statements. The session stays open."""
        self._session(request).interrupt()
        return answer(INTERRUPTED)

    async def stop(self, request: web.Request) -> web.Response:
        """`POST /sessions/N/stop`: ends the session, which remains listed for `retain_s` seconds."""
        session = self._session(request)
        if not session.ended:
            session.state = "shutting_down"
            await session.end("stopped")
        return empty(204)

    async def complete(self, request: web.Request) -> web.Response:
        """`POST /sessions/N/completion`."""
        session = self._session(request)
        wanted = requests.completion_request(await request.read())
        return answer(CompletionResponse(await session.complete(wanted.code, wanted.kind, wanted.cursor)))

    # -- statements ---------------------------------------------------------------------

    async def list_statements(self, request: web.Request) -> web.Response:
        """`GET /sessions/N/statements`."""
        kept = list(self._live_session(request).statements.values())
        shown: list[EngineStatement] = statement_page(kept, request.query)
        return answer(StatementPage(len(kept), [statement.view() for statement in shown]))

    async def post_statement(self, request: web.Request) -> web.Response:
        """`POST /sessions/N/statements`. The answer is sent before the statement runs."""
        session = self._live_session(request)
        statement = session.post(requests.statement_request(await request.read()))
        return answer(statement.view(), 201, f"/sessions/{session.id}/statements/{statement.id}")

    async def show_statement(self, request: web.Request) -> web.Response:
        """`GET /sessions/N/statements/M`. With `?state=S&wait=S`: once its state is not S, or the time is over."""
        session = self._live_session(request)
        statement = session.statement(integer(request.match_info["statement"]))
        if "wait" in request.query:
            known, topic, loop = request.query.get("state", ""), self.engine.place.changes, asyncio.get_running_loop()
            until = loop.time() + _seconds(request)
            while statement.state == known and (left := until - loop.time()) > 0:
                await topic.after(topic.version, left)
        return answer(statement.view())

    async def cancel_statement(self, request: web.Request) -> web.Response:
        """`POST /sessions/N/statements/M/cancel`."""
        session = self._live_session(request)
        session.cancel(integer(request.match_info["statement"]))
        return answer(CANCELED)

    # -- the job API: not supported -----------------------------------------------------

    async def submit_job(self, request: web.Request) -> web.Response:
        """`POST .../submit-job` and `run-job`: refused, with Livy's message if the job is missing."""
        self._session(request)
        try:
            body = msgspec.json.decode(await request.read() or b"{}")
        except (msgspec.DecodeError, RecursionError) as error:
            raise LivyRefusal(400, f"Not JSON: {error}") from error
        raise requirement(JOB_API if isinstance(body, dict) and body.get("job") else "no job provided.")

    async def upload(self, request: web.Request) -> web.Response:
        """`POST .../upload-*` and `add-*`: refused, with Livy's message if the file is missing."""
        self._session(request)
        if request.content_type.startswith("multipart/") or await request.read():
            raise requirement(JOB_API)
        raise LivyRefusal(400, "No file sent!")

    async def show_job(self, request: web.Request) -> web.Response:
        """`GET /sessions/N/jobs/M`: always status 404, or 400 if the session has ended."""
        if self._session(request).ended:
            raise not_active()
        raise session_not_found(request.match_info["job"])

    # -- batches ------------------------------------------------------------------------

    async def list_batches(self, request: web.Request) -> web.Response:
        """`GET /batches`."""
        start, size = page_bounds(request.query)
        known = list(self.engine.batches.values())
        return answer(BatchPage(start, len(known), [batch.view() for batch in slice_page(known, start, size)]))

    async def create_batch(self, request: web.Request) -> web.Response:
        """`POST /batches`."""
        batch = self.engine.start_batch(requests.batch_request(await request.read()))
        return answer(batch.view(), 201, f"/batches/{batch.id}")

    async def show_batch(self, request: web.Request) -> web.Response:
        """`GET /batches/N`, also for batches of earlier instances."""
        key = id_or_name(request.match_info["key"])
        try:
            return answer(self.engine.batch(key).view())
        except LivyRefusal:
            return answer(self.engine.past_batch(key))

    async def batch_state(self, request: web.Request) -> web.Response:
        """`GET /batches/N/state`."""
        key = id_or_name(request.match_info["key"])
        try:
            batch = self.engine.batch(key)
        except LivyRefusal:
            past = self.engine.past_batch(key)
            return answer(StateView(past.id, past.state))
        return answer(StateView(batch.id, batch.state))

    async def batch_log(self, request: web.Request) -> web.Response:
        """`GET /batches/N/log`."""
        key = id_or_name(request.match_info["key"])
        try:
            batch = self.engine.batch(key)
        except LivyRefusal:
            past = self.engine.past_batch(key)
            return answer(log_page(past.id, past.log, request.query))
        return answer(log_page(batch.id, batch.log.lines(), request.query))

    async def delete_batch(self, request: web.Request) -> web.Response:
        """`DELETE /batches/N`. The answer is sent when all its processes are gone."""
        return await self._delete(request, "batch", self.engine.batch)
