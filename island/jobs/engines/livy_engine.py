"""The port by which an executor uses a Livy server, and its implementation over `island.livy`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec

from island.errors import EngineFailed, NotFound
from island.livy.client import LivyClient
from island.livy.messages import BatchRequest, BatchView, CompletionRequest, SessionRequest, SessionView

T = TypeVar("T")


class EngineLost(EngineFailed):
    """The session, batch or statement is lost: the engine was restarted, or no longer knows it."""

    code = "engine_lost"


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """A session or batch as the engine shows it."""

    id: int
    state: str
    app_id: str = ""
    app_info: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


class EnginePort(Protocol):
    """One Livy server. `kind` is `session` or `batch`; `remote` is the id at the engine.

    Every method raises `EngineFailed` when the engine does not answer (the request may or may
    not have been carried out), `EngineLost` when the session or batch is gone, and `BadInput`
    when the engine refuses the request.
    """

    @property
    def seen(self) -> str:
        """The instance id in the latest answer; "" for a stock Livy, or before the first answer."""

    async def instance(self) -> str:
        """Request and return the instance id of an embedded engine; "" for a stock Livy."""

    async def create(self, kind: str, body: Mapping[str, Any]) -> RemoteJob:
        """Start a session or batch. `body` is Livy's request; its name must be unique."""

    async def find(self, kind: str, name: str) -> RemoteJob | None:
        """The session or batch with this name, or None if the engine does not show one."""

    async def show(self, kind: str, remote: int) -> RemoteJob:
        """The current state of a session or batch."""

    async def log(self, kind: str, remote: int) -> list[str]:
        """All log lines of a session or batch that the engine keeps."""

    async def post(self, remote: int, code: str, language: str) -> int:
        """Post a statement to a session, and return its id at the engine."""

    async def statement(self, remote: int, number: int) -> dict[str, Any] | None:
        """A statement as Livy shows it, or None if the session has no statement with this id."""

    async def cancel(self, remote: int, number: int) -> None:
        """Cancel a statement."""

    async def end(self, kind: str, remote: int) -> None:
        """End a session or batch in any state. It is not an error if it is already gone."""

    async def complete(self, remote: int, code: str, language: str, cursor: int) -> list[str]:
        """Code completion candidates at the offset `cursor` of `code`."""


class LivyEngine:
    """`EnginePort` over a `LivyClient`.

    `client` returns the current client, because a restarted embedded engine may have another
    address. It may raise `EngineFailed` while no engine is running.
    """

    def __init__(self, client: Callable[[], LivyClient]) -> None:
        self._client = client
        self._seen = ""

    @property
    def seen(self) -> str:
        return self._seen

    async def instance(self) -> str:
        await self._ask(lambda livy: livy.version())
        return self._seen

    async def create(self, kind: str, body: Mapping[str, Any]) -> RemoteJob:
        if kind == "session":
            session = msgspec.convert(dict(body), SessionRequest)
            return _remote(await self._ask(lambda livy: livy.create_session(session)))
        batch = msgspec.convert(dict(body), BatchRequest)
        return _remote(await self._ask(lambda livy: livy.create_batch(batch)))

    async def find(self, kind: str, name: str) -> RemoteJob | None:
        try:
            return _remote(await self._view(kind, name))
        except NotFound:
            return None

    async def show(self, kind: str, remote: int) -> RemoteJob:
        try:
            return _remote(await self._view(kind, remote))
        except NotFound as error:
            raise EngineLost(f"the engine no longer knows the {kind}") from error

    async def log(self, kind: str, remote: int) -> list[str]:
        try:
            page = await self._ask(
                lambda livy: livy.session_log(remote, size=-1) if kind == "session" else livy.batch_log(remote, size=-1)
            )
        except NotFound as error:
            raise EngineLost(f"the engine no longer knows the {kind}") from error
        return [line[:4096] for line in page.log[-250:]]

    async def post(self, remote: int, code: str, language: str) -> int:
        return (await self._ask(lambda livy: livy.post_statement(remote, code, language or None))).id

    async def statement(self, remote: int, number: int) -> dict[str, Any] | None:
        try:
            view = await self._ask(lambda livy: livy.statement(remote, number))
        except NotFound:
            return None
        plain: dict[str, Any] = msgspec.to_builtins(view)
        return plain

    async def cancel(self, remote: int, number: int) -> None:
        await self._ask(lambda livy: livy.cancel_statement(remote, number))

    async def end(self, kind: str, remote: int) -> None:
        try:
            await self._ask(
                lambda livy: livy.delete_session(remote) if kind == "session" else livy.delete_batch(remote)
            )
        except NotFound:
            return

    async def complete(self, remote: int, code: str, language: str, cursor: int) -> list[str]:
        request = CompletionRequest(code, language, cursor)
        return (await self._ask(lambda livy: livy.complete(remote, request))).candidates

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


def _remote(view: SessionView | BatchView) -> RemoteJob:
    info = msgspec.to_builtins(view.app_info)
    plain = {key: str(value) for key, value in info.items() if isinstance(value, str)}
    return RemoteJob(view.id, view.state, view.app_id or "", plain, [line[:4096] for line in view.log])
