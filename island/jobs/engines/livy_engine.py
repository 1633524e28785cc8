"""`EnginePort` over a `LivyClient`: for the embedded engine and for Livy servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from island.errors import BadInput, NotFound
from island.jobs.engines.files import EngineFiles
from island.jobs.engines.port import EngineLost, EngineRefused, RemoteJob, RemoteRef, lost
from island.livy.client import LivyClient
from island.livy.messages import (
    STATEMENT_ENDED,
    BatchRequest,
    BatchView,
    CompletionRequest,
    SessionRequest,
    SessionView,
)

T = TypeVar("T")

_FAST_S, _SLOW_S, _IDLE_S = 0.004, 0.5, 3.0


class LivyEngine:
    """`EnginePort` over a `LivyClient`.

    `client` returns the current client, because a restarted embedded engine may have another
    address. It may raise `EngineFailed` while no engine is running.
    """

    def __init__(
        self,
        client: Callable[[], LivyClient],
        files: EngineFiles,
        *,
        name: str = "livy",
        capacity: int = 4,
        kinds: tuple[str, ...] = (),
    ) -> None:
        self.name, self.capacity = name, capacity
        self._client, self._files, self._kinds = client, files, kinds
        self._seen, self._problem = "", ""

    @property
    def seen(self) -> str:
        return self._seen

    @property
    def problem(self) -> str:
        return self._problem

    def kinds(self) -> tuple[str, ...]:
        return self._kinds

    def free(self) -> int:
        return 0 if self._problem else self.capacity

    async def instance(self) -> str:
        await self._ask(lambda livy: livy.version())
        return self._seen

    async def create(self, kind: str, body: Mapping[str, Any]) -> RemoteJob:
        try:
            if kind == "session":
                session = msgspec.convert(dict(body), SessionRequest)
                return _remote(await self._ask(lambda livy: livy.create_session(session)))
            batch = msgspec.convert(dict(body), BatchRequest)
            return _remote(await self._ask(lambda livy: livy.create_batch(batch)))
        except BadInput as error:
            raise EngineRefused(error.message, hint=error.hint) from error

    async def find(self, kind: str, name: str) -> RemoteJob | None:
        try:
            return _remote(await self._view(kind, name))
        except NotFound:
            return None

    async def show(self, ref: RemoteRef) -> RemoteJob:
        with _Named(ref):
            found = _remote(await self._view(ref.kind, ref.name))
        if found.id != ref.id:
            raise EngineLost(f"the engine has another {ref.kind} with this name, {found.id} instead of {ref.id}")
        return found

    async def follow(self, ref: RemoteRef, known: RemoteJob | None) -> RemoteJob:
        while True:
            if (found := await self.show(ref)) != known:
                return found
            await asyncio.sleep(_IDLE_S)

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
        try:
            view = await self._ask(lambda livy: livy.statement(ref.name, number))
        except NotFound:
            await self.show(ref)  # raises `EngineLost` if it is the session that is gone
            return None
        plain: dict[str, Any] = msgspec.to_builtins(view)
        return plain

    async def follow_statement(
        self, ref: RemoteRef, number: int, known: Mapping[str, Any] | None
    ) -> dict[str, Any] | None:
        pause = _FAST_S
        while True:
            found = await self.statement(ref, number)
            if found is None or known is None or found["state"] in STATEMENT_ENDED or _differs(found, known):
                return found
            await asyncio.sleep(pause)
            pause = min(_SLOW_S, pause * 1.3)

    async def cancel(self, ref: RemoteRef, number: int) -> None:
        with _Named(ref):
            await self._ask(lambda livy: livy.cancel_statement(ref.name, number))

    async def end(self, ref: RemoteRef) -> None:
        def ask(livy: LivyClient) -> Awaitable[None]:
            return (livy.delete_session if ref.kind == "session" else livy.delete_batch)(ref.name)

        try:
            await self._ask(ask)
        except NotFound:
            return

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
            return await what(client)
        finally:
            self._seen = client.instance or ""


class _Named:
    """Turns the `NotFound` of a request about a session or batch into `EngineLost`."""

    def __init__(self, ref: RemoteRef) -> None:
        self._ref = ref

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, NotFound):
            raise lost(self._ref) from error


def _differs(found: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    return any(found.get(key) != known.get(key) for key in ("state", "progress"))


def _remote(view: SessionView | BatchView) -> RemoteJob:
    info = msgspec.to_builtins(view.app_info)
    plain = {key: str(value) for key, value in info.items() if isinstance(value, str)}
    return RemoteJob(view.id, view.state, view.name or "", view.app_id or "", plain, [line[:4096] for line in view.log])
