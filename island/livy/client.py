"""A typed client of Livy's REST API: for the embedded engine, a stock Livy 0.7 to 0.9, and island's gateway.

Every answer is limited in size and time and checked against its type. Only GET requests are
retried. If the answer to a POST request is lost, the request may have been accepted or not. The
client raises `EngineUncertain`, and the caller finds out, for example by the name of the session.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import aiohttp
import msgspec

from island.errors import BadInput, Conflict, Denied, EngineFailed, IslandError, NotFound, Unauthenticated
from island.kernel.host_resolver import HostResolver
from island.livy.authorization import authorization
from island.livy.messages import (
    SESSION_ENDED,
    SESSION_STARTING,
    STATEMENT_ENDED,
    BatchPage,
    BatchRequest,
    BatchView,
    Changes,
    CompletionRequest,
    CompletionResponse,
    LogPage,
    RawStatementView,
    SessionPage,
    SessionRequest,
    SessionView,
    StatementPage,
    StatementRequest,
    StatementView,
    Version,
)
from island.livy.resolver import WorkerResolver
from island.livy.rest import CODE_HEADER, ENGINE_HEADER, FULL

T = TypeVar("T")
Authorize = Callable[[], Awaitable[str]]
ATTEMPTS: Final = 3
PAUSE_S: Final = 0.2
MAX_ANSWER: Final = 128 * 1024 * 1024
REFUSALS: Final[dict[int, type[IslandError]]] = {
    400: BadInput,
    401: Unauthenticated,
    403: Denied,
    404: NotFound,
    409: Conflict,
    413: BadInput,
    429: BadInput,
}


UNREACHABLE: Final = "engine_unreachable"
"""The code of an `EngineFailed` for a request that was not sent."""

ANSWERED: Final = "engine_error"
"""The code of an `EngineFailed` for an answer with a status of 500 or more."""


class EngineUncertain(EngineFailed):
    """The request was sent but its answer was lost: it may or may not have been accepted."""

    code = "engine_uncertain"


class LivyClient:
    """A client of one Livy server.

    `auth` is a token (sent as Bearer), a pair of user and password, a function that makes the header
    `Authorization` for each request, or None. The URL may also contain user and password. `tls` checks
    the certificate of an https server; without it, the authorities of the system do. `timeout_s` is in
    seconds, `max_answer` in bytes. `resolver` resolves the host; without it, aiohttp does.

    `instance` is the instance id of an embedded engine in the latest answer; None for a stock Livy.
    All methods raise `IslandError`: `NotFound`, `BadInput` and others with Livy's own message,
    `EngineFailed` if Livy fails or cannot be reached, and `EngineUncertain` if an answer is lost.
    """

    def __init__(
        self,
        url: str,
        auth: str | tuple[str, str] | Authorize | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 60.0,
        max_answer: int = MAX_ANSWER,
        session: aiohttp.ClientSession | None = None,
        resolver: HostResolver | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput(f"{url!r} is not the URL of a Livy server", hint="Use a URL such as http://HOST:8998.")
        if auth is None and parts.password is not None:
            auth = (unquote(parts.username or ""), unquote(parts.password))
        netloc = parts.netloc.rpartition("@")[2]
        self.url = urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
        self.instance: str | None = None
        self._authorize = auth if callable(auth) else None
        self._headers = {} if callable(auth) else authorization(auth)
        self._tls = tls
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, connect=min(timeout_s, 10.0))
        self._max_answer = max_answer
        self._session = session
        self._own = session is None
        self._closed = False
        self._resolver = resolver

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections of this client, unless the HTTP session was passed to it.

        Calls that are made later raise `EngineFailed`.
        """
        self._closed = True
        if self._own and self._session is not None:
            session, self._session = self._session, None
            await session.close()

    # -- the server ---------------------------------------------------------------------

    async def version(self) -> Version:
        """The version of the Livy server."""
        return await self._get("/version", Version)

    async def changes(self, after: int, wait_s: float) -> int:
        """The number of changes at an embedded engine, once it is not `after` or `wait_s` have passed.

        Raises `NotFound` at a stock Livy.
        """
        return (await self._get(f"/changes?after={after}&wait={wait_s:.3f}", Changes)).changes

    # -- sessions -----------------------------------------------------------------------

    async def sessions(self, start: int = 0, size: int = 100) -> SessionPage:
        """A page of sessions."""
        return await self._get(f"/sessions?from={start}&size={size}", SessionPage)

    async def session(self, key: int | str) -> SessionView:
        """A session by id or name. Livy has names since 0.7."""
        return await self._get(f"/sessions/{quote(str(key), safe='')}", SessionView)

    async def create_session(self, request: SessionRequest) -> SessionView:
        """Open a session. Its first state is `starting`."""
        return await self._post("/sessions", request, SessionView)

    async def delete_session(self, key: int | str) -> None:
        """End and delete a session."""
        await self._call("DELETE", f"/sessions/{quote(str(key), safe='')}")

    async def session_log(self, key: int | str, start: int | None = None, size: int = 100) -> LogPage:
        """A page of a session's log; without `start`, the last lines."""
        return await self._get(_log_path("sessions", key, start, size), LogPage)

    async def interrupt(self, key: int | str) -> None:
        """Interrupt a session. In a stock Livy this ends the session."""
        await self._call("POST", f"/sessions/{quote(str(key), safe='')}/interrupt")

    async def wait_session(self, key: int | str, timeout_s: float = 300.0) -> SessionView:
        """Wait until a session has started. Raises `EngineFailed` if it ended, or did not start within `timeout_s`."""

        def has_started(view: SessionView) -> bool:
            return view.state not in SESSION_STARTING

        view = await self._wait(lambda: self.session(key), has_started, timeout_s, f"session {key} to start")
        if view.state in SESSION_ENDED:
            raise EngineFailed(f"session {key} is {view.state}: {_last_lines(view.log)}")
        return view

    # -- statements ---------------------------------------------------------------------

    async def statements(self, key: int | str) -> StatementPage:
        """The statements that a session still has."""
        return await self._get(f"/sessions/{quote(str(key), safe='')}/statements", StatementPage)

    async def statement(self, key: int | str, number: int) -> StatementView:
        """One statement."""
        return await self._get(_statement_path(key, number), StatementView)

    async def raw_statement(self, key: int | str, number: int) -> RawStatementView:
        """One statement, with its output as JSON."""
        return await self._get(_statement_path(key, number), RawStatementView)

    async def changed_statement(self, key: int | str, number: int, state: str, wait_s: float) -> RawStatementView:
        """One statement, once its state is not `state` or `wait_s` have passed. A stock Livy answers at once."""
        path = f"{_statement_path(key, number)}?state={quote(state, safe='')}&wait={wait_s:.3f}"
        return await self._get(path, RawStatementView)

    async def post_statement(self, key: int | str, code: str, kind: str | None = None) -> StatementView:
        """Post a statement. It is then waiting or running."""
        path = f"/sessions/{quote(str(key), safe='')}/statements"
        return await self._post(path, StatementRequest(code, kind), StatementView)

    async def cancel_statement(self, key: int | str, number: int) -> None:
        """Cancel a statement. Its state becomes `cancelled` some time later."""
        await self._call("POST", f"/sessions/{quote(str(key), safe='')}/statements/{number}/cancel")

    async def wait_statement(self, key: int | str, number: int, timeout_s: float = 3600.0) -> StatementView:
        """Wait until a statement has ended. Raises `EngineFailed` if it has not ended within `timeout_s`."""

        def has_ended(view: StatementView) -> bool:
            return view.state in STATEMENT_ENDED

        return await self._wait(
            lambda: self.statement(key, number), has_ended, timeout_s, f"statement {number} of session {key}"
        )

    async def complete(self, key: int | str, request: CompletionRequest) -> CompletionResponse:
        """Code completion candidates for the code before the cursor."""
        return await self._post(f"/sessions/{quote(str(key), safe='')}/completion", request, CompletionResponse)

    # -- batches ------------------------------------------------------------------------

    async def batches(self, start: int = 0, size: int = 100) -> BatchPage:
        """A page of batches."""
        return await self._get(f"/batches?from={start}&size={size}", BatchPage)

    async def batch(self, key: int | str) -> BatchView:
        """A batch by id or name."""
        return await self._get(f"/batches/{quote(str(key), safe='')}", BatchView)

    async def create_batch(self, request: BatchRequest) -> BatchView:
        """Start a batch."""
        return await self._post("/batches", request, BatchView)

    async def delete_batch(self, key: int | str) -> None:
        """End and delete a batch."""
        await self._call("DELETE", f"/batches/{quote(str(key), safe='')}")

    async def batch_log(self, key: int | str, start: int | None = None, size: int = 100) -> LogPage:
        """A page of a batch's log; without `start`, the last lines."""
        return await self._get(_log_path("batches", key, start, size), LogPage)

    # -- HTTP ---------------------------------------------------------------------------

    async def _get(self, path: str, kind: type[T]) -> T:
        for attempt in range(ATTEMPTS):
            try:
                return _typed(await self._call("GET", path), kind, self.url)
            except EngineFailed:
                if attempt + 1 == ATTEMPTS:
                    raise
                await asyncio.sleep(PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt either returned or raised")

    async def _post(self, path: str, body: Any, kind: type[T]) -> T:
        data = await self._call("POST", path, msgspec.json.encode(body))
        try:
            return _typed(data, kind, self.url)
        except EngineFailed as error:
            raise EngineUncertain(error.message, hint=error.hint) from error

    async def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Send one request and return the body of its answer. Raises `IslandError` for any status other than 2xx."""
        headers = {**self._headers, "Content-Type": "application/json", "X-Requested-By": "island"}
        if self._closed:
            # While the daemon stops, the drivers of jobs may still ask. They must not take this for the end of a job.
            raise EngineFailed(f"the client of Livy at {self.url} is closed")
        if self._authorize is not None:
            headers["Authorization"] = await self._authorize()
        if self._session is None:
            resolver = WorkerResolver(self._resolver) if self._resolver else None
            connector = aiohttp.TCPConnector(resolver=resolver, ssl=self._tls or True)
            self._session = aiohttp.ClientSession(timeout=self._timeout, connector=connector)
        try:
            async with self._session.request(
                method, self.url + path, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                data = await self._bounded(response)
                self.instance = response.headers.get(ENGINE_HEADER)
                status, code = response.status, response.headers.get(CODE_HEADER, "")
        except aiohttp.ClientConnectorError as error:
            raise EngineFailed(
                f"Livy at {self.url} cannot be reached: {error.strerror or error}",
                hint="Check that it is running, and its url in island.toml.",
                code=UNREACHABLE,
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = EngineFailed if method in ("GET", "HEAD") else EngineUncertain
            raise failure(
                f"Livy at {self.url} did not answer {method} {path}: {error or type(error).__name__}"
            ) from error
        if not 200 <= status < 300:
            raise _refusal(status, data, f"{method} {path}", code[:100])
        return data

    async def _bounded(self, response: aiohttp.ClientResponse) -> bytes:
        """The body of an answer. Raises `EngineFailed` if it is larger than the limit."""
        parts, size = [], 0
        async for part in response.content.iter_any():
            size += len(part)
            if size > self._max_answer:
                raise EngineFailed(f"Livy at {self.url} answered with more than {self._max_answer} bytes")
            parts.append(part)
        return b"".join(parts)

    async def _wait(self, ask: Callable[[], Awaitable[T]], ends: Callable[[T], bool], timeout_s: float, what: str) -> T:
        """Repeat `ask` with growing pauses (5 ms to 0.5 s) until `ends` returns True."""
        pause = 0.005
        try:
            async with asyncio.timeout(timeout_s):
                while not ends(view := await ask()):
                    await asyncio.sleep(pause)
                    pause = min(0.5, pause * 1.3)
                return view
        except TimeoutError as error:
            raise EngineFailed(f"waited {timeout_s:.0f} s for {what} at {self.url}") from error


def _statement_path(key: int | str, number: int) -> str:
    return f"/sessions/{quote(str(key), safe='')}/statements/{number}"


def _log_path(what: str, key: int | str, start: int | None, size: int) -> str:
    begin = "" if start is None else f"from={start}&"
    return f"/{what}/{quote(str(key), safe='')}/log?{begin}size={size}"


def _typed(data: bytes, kind: type[T], url: str) -> T:
    """The answer decoded as `kind`. Raises `EngineFailed` if it has another type."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineFailed(
            f"the answer of {url} is not Livy's {kind.__name__}: {error}",
            hint="Check that this is the URL of a Livy server.",
        ) from error


def _refusal(status: int, data: bytes, what: str, code: str) -> IslandError:
    """An `IslandError` for Livy's refusal, with Livy's message.

    Its code is `FULL` if there is no place for a session or batch. Livy says this in words only.
    """
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = data[:500].decode("utf-8", "replace").strip()
    text = body.get("msg") if isinstance(body, dict) else body
    kind = REFUSALS.get(status, EngineFailed)
    message = str(text).strip()[:2000] if text else f"Livy answered {status} to {what}"
    if kind is EngineFailed:
        return EngineFailed(f"Livy answered {status} to {what}: {message}", code=ANSWERED)
    if code == FULL or "too many sessions are being created" in message:
        return kind(message, code=FULL)
    return kind(message)


def _last_lines(log: list[str]) -> str:
    """The last three lines of a log that are neither empty nor headings, for an error message."""
    lines = [line for line in log if line.strip() and line not in ("stdout: ", "\nstderr: ")]
    return " / ".join(lines[-3:]) or "its log is empty"
