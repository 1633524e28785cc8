"""`EnginePort` over a `LivyClient`: for the embedded engine and for Livy servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
import structlog

from island.errors import BadInput, Denied, EngineFailed, IslandError, NotFound, Unauthenticated
from island.jobs import core
from island.jobs.engines import kinds
from island.jobs.engines.clients import EngineClient
from island.jobs.engines.files import EngineFiles
from island.jobs.engines.poller import LATER_S, PREFIX, EnginePoller, Key
from island.jobs.engines.port import EngineFull, EngineLost, EngineRefused, RemoteJob, RemoteRef, lost
from island.jobs.messages import MAX_INLINE
from island.kernel.loops import Tasks
from island.kernel.ports import Rng
from island.livy.client import LivyClient
from island.livy.messages import (
    STATEMENT_ENDED,
    BatchPage,
    BatchRequest,
    BatchView,
    CompletionRequest,
    Output,
    RawStatementView,
    SessionPage,
    SessionRequest,
    SessionView,
)
from island.livy.rest import FULL

log = structlog.get_logger("island")

T = TypeVar("T")

FULL_S: Final = 5.0
"""Seconds for which an engine that refused for want of a place counts as full, unless something ends there."""

RETRY_S: Final = 5.0
"""The longest time, in seconds, between two requests to an engine that does not answer."""

PAGE: Final = 1000
MAX_PAGES: Final = 100
LONG_POLL_S: Final = 20.0
_FAST_S, _SLOW_S = 0.004, 0.5


class LivyEngine:
    """`EnginePort` over a `LivyClient`.

    `kinds` are the kinds of sessions
    that the engine runs; a Livy whose kinds are not given is asked.
    """

    def __init__(
        self,
        client: EngineClient,
        files: EngineFiles,
        *,
        rng: Rng,
        name: str = "livy",
        url: str = "",
        capacity: int = 4,
        kinds: tuple[str, ...] = (),
        down: Callable[[], str] = lambda: "",
    ) -> None:
        """`url` is for display, empty for the embedded engine. `down()` is why it cannot be asked at all, or ""."""
        self.name, self.url, self.capacity, self._down = name, url, capacity, down
        self.version = ""
        """The version of its API, once it has answered."""
        self.lacks: dict[str, str] = {}
        """The kinds of sessions that it was found to lack, with its reasons."""
        self._client, self._files, self._rng = client, files, rng
        self._configured = self._kinds = tuple(sorted({*kinds, "batch"})) if kinds else ()
        self._seen, self._problem = "", ""
        self._living: set[Key] = set()
        self._created: set[Key] = set()
        self._full_until = 0.0
        self._changes = -1
        self._poller = EnginePoller(self._listing, changes=self._changed, rng=rng)

    async def start(self, tasks: Tasks) -> None:
        """Begin to list the sessions and batches of the engine in the background."""
        tasks.forever(f"engines.poll {self.name}", self._step, rng=self._rng, cap=RETRY_S)

    async def stop(self) -> None:
        """Close the connections to the engine."""
        await self._client.close()

    @property
    def seen(self) -> str:
        return self._seen

    @property
    def problem(self) -> str:
        return self._down() or self._problem

    def kinds(self) -> tuple[str, ...]:
        return self._kinds

    def free(self) -> int:
        if self.problem or asyncio.get_running_loop().time() < self._full_until:
            return 0
        return max(0, self.capacity - len(self._living | self._created))

    # --- what the engine shows ---------------------------------------------------------------------

    async def _step(self) -> None:
        try:
            if not self.version:
                await self._meet()
            await self._poller.step()
        except IslandError as error:
            problem = "" if self._down() else error.message
            if problem and problem != self._problem:
                log.warning("engines.down", engine=self.name, reason=problem)
            self._problem, self.version = problem, ""
            self._poller.fail(error)
            raise

    async def _meet(self) -> None:
        """Ask an engine that has not answered before, or not for some time, what it is."""
        version = (await self._ask(lambda livy: livy.version())).version
        if not self._configured:
            if self._seen:
                self.lacks = {}
                self._kinds = core.EMBEDDED_LANGUAGES
            else:
                self.lacks = await self._ask(lambda livy: kinds.probe(livy, self._rng))
                self._kinds = tuple(sorted({"batch", *kinds.ALL} - self.lacks.keys()))
        self.version = version
        log.info("engines.up", engine=self.name, version=version, kinds=self._kinds)

    async def _listing(self) -> dict[Key, RemoteJob]:
        earlier = set(self._created)  # what is created from now on may be missing in the answers
        found: dict[Key, RemoteJob] = {}
        for kind in ("session", "batch"):
            for view in await self._pages(kind):
                if view.name:  # all others belong to other clients, or were refused
                    found[kind, view.name] = _remote(view)
        living = {key for key, job in found.items() if key[1].startswith(PREFIX) and not core.has_ended(job.state)}
        if self._living - living:
            self._full_until = 0.0
        self._living, self._problem = living, ""
        self._created -= earlier
        return found

    async def _pages(self, kind: str) -> list[SessionView | BatchView]:
        found: list[SessionView | BatchView] = []
        for _ in range(MAX_PAGES):
            page = await self._ask(partial(_page, kind, len(found)))
            found += page.sessions
            if not page.sessions or len(found) >= page.total:
                break
        return found

    async def _changed(self, seconds: float) -> bool:
        if not self._seen:
            return False
        known = self._changes
        # The log of a batch grows without a change of state.
        wait = seconds if seconds < LATER_S / 2 else LONG_POLL_S
        self._changes = await self._ask(lambda livy: livy.changes(known, wait))
        return True

    # --- EnginePort --------------------------------------------------------------------------------

    async def instance(self) -> str:
        await self._ask(lambda livy: livy.version())
        return self._seen

    async def create(self, kind: str, body: Mapping[str, Any]) -> RemoteJob:
        try:
            if kind == "session":
                session = msgspec.convert(dict(body), SessionRequest)
                found = _remote(await self._ask(lambda livy: livy.create_session(session)))
            else:
                batch = msgspec.convert(dict(body), BatchRequest)
                found = _remote(await self._ask(lambda livy: livy.create_batch(batch)))
        except BadInput as error:
            if error.code == FULL:
                self._full_until = asyncio.get_running_loop().time() + FULL_S
                raise EngineFull(error.message, hint=error.hint) from error
            raise EngineRefused(error.message, hint=error.hint) from error
        self._created.add((kind, str(body.get("name", ""))))
        return found

    async def find(self, kind: str, name: str) -> RemoteJob | None:
        try:
            return _remote(await self._view(kind, name))
        except NotFound:
            return None

    async def show(self, ref: RemoteRef) -> RemoteJob:
        with _Named(ref):
            found = _remote(await self._view(ref.kind, ref.name))
        return _checked(found, ref)

    async def follow(self, ref: RemoteRef, known: RemoteJob | None) -> RemoteJob:
        found = None
        while found is None:
            if known is not None and (found := await self._poller.follow(ref, known)) is not None:
                break
            # The listing does not have it: it is gone, or was created or deleted while the pages were asked for.
            if (shown := await self.show(ref)) != known:
                found = shown
        return _checked(found, ref)

    async def log(self, ref: RemoteRef) -> list[str]:
        def ask(livy: LivyClient) -> Awaitable[Any]:
            return (livy.session_log if ref.kind == "session" else livy.batch_log)(ref.name, size=-1)

        with _Named(ref):
            page = await self._ask(ask)
        return [line[:4096] for line in page.log[-250:]]

    async def post(self, ref: RemoteRef, code: str, language: str) -> int:
        with _Named(ref):
            try:
                return (await self._ask(lambda livy: livy.post_statement(ref.name, code, language or None))).id
            except BadInput as error:
                raise EngineRefused(error.message, hint=error.hint) from error

    async def statement(self, ref: RemoteRef, number: int) -> dict[str, Any] | None:
        return await self._statement(ref, number, "")

    async def follow_statement(
        self, ref: RemoteRef, number: int, known: Mapping[str, Any] | None
    ) -> dict[str, Any] | None:
        pause = _FAST_S
        while True:
            found = await self._statement(ref, number, "" if known is None else str(known["state"]))
            if found is None or known is None or found["state"] in STATEMENT_ENDED or _differs(found, known):
                return found
            if not self._seen:  # a stock Livy answers at once
                await asyncio.sleep(pause)
                pause = min(_SLOW_S, pause * 1.3)

    async def _statement(self, ref: RemoteRef, number: int, state: str) -> dict[str, Any] | None:
        def ask(livy: LivyClient) -> Awaitable[Any]:
            if state and self._seen:
                return livy.changed_statement(ref.name, number, state, LONG_POLL_S)
            return livy.raw_statement(ref.name, number)

        try:
            view = await self._ask(ask)
        except NotFound:
            await self.show(ref)  # raises `EngineLost` if it is the session that is gone
            return None
        return _plain(view)

    async def cancel(self, ref: RemoteRef, number: int) -> None:
        with _Named(ref):
            await self._ask(lambda livy: livy.cancel_statement(ref.name, number))

    async def end(self, ref: RemoteRef) -> None:
        def ask(livy: LivyClient) -> Awaitable[None]:
            return (livy.delete_session if ref.kind == "session" else livy.delete_batch)(ref.name)

        try:
            await self._ask(ask)
        except NotFound:
            pass
        for known in (self._living, self._created):
            known.discard((ref.kind, ref.name))
        self._full_until = 0.0

    async def complete(self, ref: RemoteRef, code: str, language: str, cursor: int) -> list[str]:
        request = CompletionRequest(code, language, cursor)
        with _Named(ref):
            return (await self._ask(lambda livy: livy.complete(ref.name, request))).candidates

    async def place(self, name: str, file_name: str, data: bytes) -> str:
        return await self._files.place(name, file_name, data)

    async def share(self, name: str, path: str) -> str:
        return await self._files.share(name, path)

    async def withdraw(self, name: str) -> None:
        await self._files.withdraw(name)

    async def _view(self, kind: str, key: int | str) -> SessionView | BatchView:
        if kind == "session":
            return await self._ask(lambda livy: livy.session(key))
        return await self._ask(lambda livy: livy.batch(key))

    async def _ask(self, what: Callable[[LivyClient], Awaitable[T]]) -> T:
        client = self._client()
        try:
            answer = await what(client)
        except EngineFailed:
            self._poller.hasten()
            raise
        except (Unauthenticated, Denied) as error:
            raise EngineFailed(
                f"engine '{self.name}' refuses this island: {error.message}",
                hint="Correct the user and password of the engine in island.toml.",
            ) from error
        finally:
            self._seen = client.instance or ""
        return answer


async def _page(kind: str, start: int, livy: LivyClient) -> SessionPage | BatchPage:
    return await (livy.sessions(start, PAGE) if kind == "session" else livy.batches(start, PAGE))


class _Named:
    """Turns the `NotFound` of a request about a session or batch into `EngineLost`."""

    def __init__(self, ref: RemoteRef) -> None:
        self._ref = ref

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, NotFound):
            raise lost(self._ref) from error


def _checked(found: RemoteJob, ref: RemoteRef) -> RemoteJob:
    """What the engine shows under a name. Raises `EngineLost` if that is not what was meant."""
    if (found.id, found.name) != (ref.id, ref.name):
        raise EngineLost(
            f"the engine has the {ref.kind} '{found.name}' with the id {found.id} instead of '{ref.name}' with {ref.id}"
        )
    return found


def _plain(view: RawStatementView) -> dict[str, Any]:
    """A statement as Livy shows it. A large output stays JSON, as `msgspec.Raw`."""
    output: Any = view.output
    if memoryview(output).nbytes <= MAX_INLINE:
        try:
            output = msgspec.to_builtins(msgspec.json.decode(output, type=Output | None))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineFailed(f"the output of a statement is not Livy's: {error}") from error
    others = {name: getattr(view, name) for name in view.__struct_fields__}
    return {**others, "output": output}


def _differs(found: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    return any(found.get(key) != known.get(key) for key in ("state", "progress"))


def _remote(view: SessionView | BatchView) -> RemoteJob:
    info = msgspec.to_builtins(view.app_info)
    plain = {key: str(value) for key, value in info.items() if isinstance(value, str)}
    return RemoteJob(view.id, view.state, view.name or "", view.app_id or "", plain, [line[:4096] for line in view.log])
