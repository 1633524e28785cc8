"""Functions shared by all operations of the user port: authentication, request bodies, errors, progress.

A handler takes a request and returns a response. If it raises `IslandError`, the middleware answers
`{"error": code, "message": ..., "hint": ...}` with the status of the error.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
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
"""`progress(done, total, what)`: bytes or items, and a short description for display."""

BODY_LIMIT = 1024 * 1024
"""Maximum size of a request body, in bytes."""
ATTENDANCE_S = 0.5
"""Seconds between two checks whether the client of a long request is still connected."""
TOKENS: web.AppKey[Tokens] = web.AppKey("tokens", Tokens)
PRINCIPAL = web.RequestKey("principal", Principal)
SAME_ORIGIN: web.AppKey[SameOrigin] = web.AppKey("same_origin", SameOrigin)
BUG = {
    "error": "bug",
    "message": "the island failed with an unexpected error",
    "hint": "The error is in the island's log: event api.unexpected_error.",
    "status": 500,
}
JSON_TYPE = {"Content-Type": "application/json"}
OPEN_PATHS = frozenset({"/healthz", "/readyz"})

_CYCLE_S = 146_097 * 86_400
_FIRST, _LAST = -62_135_596_800, 253_402_300_800  # start of the year 1, end of the year 9999
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def principal(request: web.Request) -> Principal:
    """Return the authenticated caller. Requests for `OPEN_PATHS` have none."""
    return request[PRINCIPAL]


def administrator(request: web.Request) -> Principal:
    """Return the caller if it is the administrator; raises `Denied` for a user."""
    caller = principal(request)
    if caller.role != "administrator":
        raise Denied(
            "this operation needs the administrator's token",
            hint="Use the administrator's token (HOME/token), with --token-file or ISLAND_TOKEN.",
        )
    return caller


async def body(request: web.Request, kind: type[T]) -> T:
    """Decode the JSON body as `kind`, at most `BODY_LIMIT` bytes; raises `BadInput` if it is not valid."""
    data = await request.read()
    try:
        return msgspec.json.decode(data or b"{}", type=kind, strict=True)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(
            f"the request body is not valid for this operation: {error}", hint="See protocols/openapi.yaml."
        ) from error


def reply(value: Any, status: int = 200) -> web.Response:
    """Return a JSON response; `value` consists of structs, dicts and lists."""
    return web.Response(body=msgspec.json.encode(value), status=status, headers=JSON_TYPE)


def whole_number(text: str, name: str, most: int) -> int:
    """Parse a whole number from 1 to `most`, the value of the query parameter `name`; raises `BadInput`."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= most):
        raise BadInput(f"{name} = '{text[:50]}' is not valid", hint=f"Use a number from 1 to {most}.")
    return int(text)


def iso(at: float | None) -> str | None:
    """Format Unix seconds as ISO 8601 in UTC, to the millisecond.

    Returns None for None, NaN and values beyond ±1e15. Years outside 1 to 9999, which occur in
    simulations, are written with a sign and at least six digits.
    """
    if at is None or not abs(at) < 1e15:  # also true for NaN
        return None
    # The calendar repeats after 400 years: format an equivalent time within `datetime`'s range, then replace the year.
    cycles = 0 if _FIRST <= at < _LAST else math.floor((at - _FIRST) / _CYCLE_S)
    near = datetime.fromtimestamp(at - cycles * _CYCLE_S, UTC)
    text = near.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return text if cycles == 0 else f"{near.year + 400 * cycles:+07d}{text[4:]}"


def problem(error: IslandError) -> dict[str, Any]:
    """Return an error as a JSON object of the API."""
    return {"error": error.code, "message": error.message, "hint": error.hint, "status": error.status}


@contextlib.asynccontextmanager
async def attended(request: web.Request) -> AsyncIterator[None]:
    """Cancel this block when the client closes its connection, and raise `ConnectionResetError`.

    Use it for work that changes nothing, or that is undone when it is cancelled. Handlers that do not use it
    run to their end.
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


async def json_list(
    batches: AsyncIterator[Sequence[Any]], head: bytes = b"[", tail: bytes = b"]"
) -> AsyncIterator[bytes]:
    """Encode a JSON list part by part; `head` and `tail` surround its values. One batch gives one part."""
    pending, separator = head, b""
    async for batch in batches:
        encoded = b",".join(map(msgspec.json.encode, batch))
        if separator:
            yield pending
            pending = separator + encoded
        else:
            pending, separator = pending + encoded, b","
    yield pending + tail


async def reply_in_parts(
    request: web.Request, parts: AsyncIterator[bytes], headers: Mapping[str, str]
) -> web.StreamResponse:
    """Answer with a body whose parts are made while it is sent; a body of one part is sent at once.

    After an error the connection is closed, so that the client does not take the body for complete.
    """
    first, second = await anext(parts), await anext(parts, None)
    if second is None:
        return web.Response(body=first, headers=headers)
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    try:
        await response.write(first)
        await response.write(second)
        async for part in parts:
            await response.write(part)
    except IslandError as error:
        log.warning("api.answer_cut", path=request.path, error=str(error))
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response


async def stream(request: web.Request, work: Callable[[Progress], Awaitable[Any]]) -> web.StreamResponse:
    """Run a long operation and answer in JSON lines: `progress` objects, then one `result` or `error`.

    The operation is cancelled if the client disconnects, even if there is no progress to send.
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
        except Exception:  # as in `errors`; the status was already sent, so the error is reported in the last line
            log.exception("api.unexpected_error", method=request.method, path=request.path)
            lines.put_nowait(BUG)
        finally:
            lines.put_nowait(None)

    await response.prepare(request)
    try:
        async with attended(request), asyncio.TaskGroup() as group:
            task = group.create_task(run())
            try:
                while (line := await lines.get()) is not None:
                    # Skip a progress line if newer lines are waiting.
                    if "progress" in line and not lines.empty():
                        continue
                    await response.write(msgspec.json.encode(line) + b"\n")
            except ConnectionError:
                task.cancel()  # the client has disconnected
                return response
            except asyncio.CancelledError:
                task.cancel()
                raise
    except ConnectionResetError:
        return response
    with contextlib.suppress(ConnectionError):  # a client may disconnect as soon as it has the result
        await response.write_eof()
    return response


def given_token(request: web.Request) -> str:
    """Return the token of a request: a Bearer token, or the password of HTTP Basic. Raises `Unauthenticated`."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value:
        return value.strip()
    if scheme.lower() == "basic" and len(value) <= 4096:
        try:
            return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except ValueError as error:  # not base64, or its content is not UTF-8
            raise Unauthenticated(
                "the Authorization header is not valid HTTP Basic", hint="Send base64 of USER:TOKEN in UTF-8."
            ) from error
    raise Unauthenticated(
        "a token is required",
        hint="Send it as a Bearer token, or as the password of HTTP Basic: http://any:TOKEN@HOST:PORT.",
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@web.middleware
async def refuse_foreign_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse cross-site requests of browsers, on every path and before the token is checked."""
    # A request target such as `http://HOST/PATH`, as proxies receive it, overrides the Host header (RFC 9112, 3.2.2).
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


def retry_after(error: IslandError) -> dict[str, str]:
    """Return the header that tells a client when to repeat a request that was refused for a passing reason."""
    seconds = {429: "1", 503: "5", 507: "30"}.get(error.status)
    return {} if seconds is None else {"Retry-After": seconds}


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every `IslandError` as JSON. Other exceptions are logged with a traceback and answered with 500."""
    try:
        return await handler(request)
    except Unauthenticated as error:
        response = reply(problem(error), error.status)
        if not is_browser(request.headers):
            response.headers["WWW-Authenticate"] = 'Basic realm="island"'
        return response
    except IslandError as error:
        response = reply(problem(error), error.status)
        response.headers.update(retry_after(error))
        return response
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
    except Exception:  # the client needs an answer, and one faulty handler must not affect other requests
        log.exception("api.unexpected_error", method=request.method, path=request.path)
        return reply(BUG, 500)
