"""What every operation of the user port shares: who asks, bounded bodies, errors as JSON, progress.

A handler takes a request and returns a response; it raises `IslandError`, and the middleware
turns that into `{"error": code, "message": ..., "hint": ...}` with the error's status.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
import structlog
from aiohttp import HttpVersion11, web

from island.errors import BadInput, Denied, IslandError, Unauthenticated
from island.net.same_origin import SameOrigin, is_browser
from island.trust.users import Principal, Tokens

log = structlog.get_logger("island")

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Progress = Callable[[int, int, str], None]
"""`progress(done, total, what)`: bytes or items, and a few words for people."""

BODY_LIMIT = 1024 * 1024
ATTENDANCE_S = 0.5
"""Seconds between two looks whether the client of a long request is still connected."""
TOKENS: web.AppKey[Tokens] = web.AppKey("tokens", Tokens)
PRINCIPAL = web.RequestKey("principal", Principal)
SAME_ORIGIN: web.AppKey[SameOrigin] = web.AppKey("same_origin", SameOrigin)
BUG = {
    "error": "bug",
    "message": "the island failed at this request",
    "hint": "Its log says where.",
    "status": 500,
}
OPEN_PATHS = frozenset({"/healthz", "/readyz"})

_CYCLE_S = 146_097 * 86_400
_FIRST, _LAST = -62_135_596_800, 253_402_300_800  # from the year 1 to before 10000
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def principal(request: web.Request) -> Principal:
    """Who asks; every request but those for `OPEN_PATHS` has one."""
    return request[PRINCIPAL]


def administrator(request: web.Request) -> Principal:
    """Who asks, if it is the administrator; raises `Denied` for a user."""
    caller = principal(request)
    if caller.role != "administrator":
        raise Denied(
            "this operation needs the administrator's token",
            hint="Use the administrator's token: HOME/token, by --token-file or ISLAND_TOKEN.",
        )
    return caller


async def body(request: web.Request, kind: type[T]) -> T:
    """The JSON body as `kind`, at most `BODY_LIMIT` bytes; raises `BadInput` that says what is wrong with it."""
    data = await request.read()
    try:
        return msgspec.json.decode(data or b"{}", type=kind, strict=True)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(
            f"the body is not what this operation takes: {error}", hint="See protocols/openapi.yaml."
        ) from error


def reply(value: Any, status: int = 200) -> web.Response:
    """A JSON answer from structs, dicts and lists."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def iso(at: float | None) -> str | None:
    """Unix seconds as ISO 8601 in UTC, to the millisecond; None stays None, as does what is no time.

    Years outside 1 to 9999, as simulations have them, are written with a sign and six digits or more.
    """
    if at is None or not abs(at) < 1e15:  # nor what is not a number
        return None
    # The calendar repeats after 400 years, so a far time is written as a near one with another year.
    cycles = 0 if _FIRST <= at < _LAST else math.floor((at - _FIRST) / _CYCLE_S)
    near = datetime.fromtimestamp(at - cycles * _CYCLE_S, UTC)
    text = near.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return text if cycles == 0 else f"{near.year + 400 * cycles:+07d}{text[4:]}"


def problem(error: IslandError) -> dict[str, Any]:
    """An error as the API shows it."""
    return {"error": error.code, "message": error.message, "hint": error.hint, "status": error.status}


@contextlib.asynccontextmanager
async def attended(request: web.Request) -> AsyncIterator[None]:
    """Cancel what runs in this block when the client closes its connection; raises `ConnectionResetError` then.

    For work that changes nothing, or that undoes itself when it is cancelled: other handlers run to their end.
    """
    loop, scope = asyncio.get_running_loop(), asyncio.timeout(None)
    next_look: asyncio.TimerHandle

    def look() -> None:
        nonlocal next_look
        if request.transport is None or request.transport.is_closing():
            scope.reschedule(loop.time())
        else:
            next_look = loop.call_later(ATTENDANCE_S, look)

    next_look = loop.call_later(ATTENDANCE_S, look)
    try:
        async with scope:
            yield
    except TimeoutError as error:
        if scope.expired():
            raise ConnectionResetError("the client closed its connection") from error
        raise
    finally:
        next_look.cancel()


async def stream(request: web.Request, work: Callable[[Progress], Awaitable[Any]]) -> web.StreamResponse:
    """Run a long operation and answer in JSON lines: `progress` objects, then one `result` or `error`.

    An operation whose client goes away is cancelled, also while it has nothing to tell.
    """
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    def progress(done: int, total: int, what: str) -> None:
        lines.put_nowait({"progress": {"done": done, "total": total, "what": what}})

    async def run() -> None:
        try:
            lines.put_nowait({"result": await work(progress)})
        except IslandError as error:
            lines.put_nowait(problem(error))
        except Exception:  # as in `errors`: the answer has begun, so its last line must say so
            log.exception("api.bug", method=request.method, path=request.path)
            lines.put_nowait(BUG)
        finally:
            lines.put_nowait(None)

    await response.prepare(request)
    try:
        async with attended(request), asyncio.TaskGroup() as group:
            task = group.create_task(run())
            try:
                while (line := await lines.get()) is not None:
                    # Only the newest of several waiting progress lines is worth sending.
                    if "progress" in line and not lines.empty():
                        continue
                    await response.write(msgspec.json.encode(line) + b"\n")
            except ConnectionError:
                task.cancel()  # nobody is there to be told
                return response
            except asyncio.CancelledError:
                task.cancel()
                raise
    except ConnectionResetError:
        return response
    with contextlib.suppress(ConnectionError):  # a client that has its result may hang up first
        await response.write_eof()
    return response


def given_token(request: web.Request) -> str:
    """The token of a request, as Bearer or as the password of HTTP Basic; raises `Unauthenticated`."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value:
        return value.strip()
    if scheme.lower() == "basic" and len(value) <= 4096:
        try:
            return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except ValueError as error:  # not base64, or not UTF-8 in it
            raise Unauthenticated("the Authorization header is not valid HTTP Basic") from error
    raise Unauthenticated(
        "a token is required", hint="Send it as Bearer, or as the password of HTTP Basic: http://any:TOKEN@HOST:PORT."
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@web.middleware
async def refuse_foreign_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a web page of somebody else may have caused, on every path and before anything else is done."""
    # A target such as `http://HOST/PATH`, as proxies get it, counts for more than Host.
    absolute = re.match(r"[^/]*://([^/?#]*)", request.raw_path)
    request.app[SAME_ORIGIN].check(
        [*request.headers.getall("Host", ()), *(absolute.groups() if absolute else ())],
        request.headers.getall("Origin", ()),
        request.headers.getall("Sec-Fetch-Site", ()),
        http_1_0=request.version < HttpVersion11,
    )
    return await handler(request)


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Put the `Principal` of the token into the request, or answer 401."""
    if request.path not in OPEN_PATHS:
        request[PRINCIPAL] = request.app[TOKENS].principal(given_token(request))
    return await handler(request)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every `IslandError` as JSON; a bug is logged whole and answered without its traceback."""
    try:
        return await handler(request)
    except Unauthenticated as error:
        response = reply(problem(error), error.status)
        if not is_browser(request.headers):
            response.headers["WWW-Authenticate"] = 'Basic realm="island"'
        return response
    except IslandError as error:
        return reply(problem(error), error.status)
    except web.HTTPException as error:
        if error.status < 400 or error.content_type == "application/json":
            raise
        refused = BadInput(f"{request.method} {request.path[:1000]}: {error.reason}", code=_CODES.get(error.status, ""))
        answer = reply(problem(refused) | {"status": error.status}, error.status)
        if isinstance(error, web.HTTPMethodNotAllowed):
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except web.RequestPayloadError as error:
        return reply(problem(BadInput(f"the body cannot be read: {_one_line(error)}")), 400)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:  # the one place where a bug in a handler must become an answer; it is logged whole
        log.exception("api.bug", method=request.method, path=request.path)
        return reply(BUG, 500)
