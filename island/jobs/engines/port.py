"""The port by which an executor uses an engine: the embedded one, or a Livy server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from island.errors import BadInput, EngineFailed

if TYPE_CHECKING:  # pure modules import the types of this one
    from island.kernel.loops import Tasks


class EngineLost(EngineFailed):
    """The session, batch or statement is lost: the engine was restarted, or no longer knows it under its name."""

    code = "engine_lost"


class EngineFull(EngineFailed):
    """The engine has no place for another session or batch now. The same request may succeed later."""

    code = "engine_full"


class EngineRefused(BadInput):
    """The engine refuses this request, with its own message. Repeating it would not help at this engine."""

    code = "engine_refused"


@dataclass(frozen=True, slots=True)
class RemoteRef:
    """Which session or batch at an engine is meant.

    A Livy that was restarted gives its ids again, so an id alone may mean the session of a stranger. The name is
    unique, and every method of the engine finds the session or batch by it.
    """

    kind: str
    """`session` or `batch`."""
    id: int
    name: str


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """A session or batch as the engine shows it."""

    id: int
    state: str
    name: str = ""
    app_id: str = ""
    app_info: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


def lost(ref: RemoteRef) -> EngineLost:
    """The error for a session or batch that the engine does not have."""
    return EngineLost(f"the engine no longer knows the {ref.kind}: it was restarted, or the {ref.kind} was deleted")


class EnginePort(Protocol):
    """One engine. Sessions and batches of other clients in it are never shown, changed or ended.

    Methods that send a request raise

    - `EngineFailed` if the engine does not answer. `EngineUncertain`, one of its subclasses, says that the request
      may have been carried out; with the code `engine_unreachable` or `no_engine` it certainly was not.
    - `EngineLost` if the engine does not have the session or batch, or shows another name under its id.
    - `EngineFull` (only `create`) if the engine has no place now.
    - `EngineRefused` if the engine refuses the request.
    """

    @property
    def name(self) -> str:
        """The name of the engine in the configuration of this island. A run is bound to it."""

    @property
    def url(self) -> str:
        """The URL of a Livy server of the site, without credentials; "" for the embedded engine."""

    @property
    def version(self) -> str:
        """The version of Livy's API, as last observed; "" while the engine does not answer."""

    @property
    def capacity(self) -> int:
        """The maximum number of sessions and batches of this island that run at the same time."""

    @property
    def problem(self) -> str:
        """Why the engine cannot run anything now, or "". It is not a reason to refuse a job for good."""

    @property
    def seen(self) -> str:
        """The instance id in the latest answer; "" for a stock Livy, or before the first answer."""

    def kinds(self) -> tuple[str, ...]:
        """What the engine runs, as last observed: `batch` and kinds of sessions, sorted. Empty if unknown so far."""

    def free(self) -> int:
        """The places that are free, as last observed: `capacity` without the living sessions and batches of this
        island. 0 while the engine does not answer, and shortly after it raised `EngineFull`."""

    async def start(self, tasks: Tasks) -> None:
        """Begin to watch the engine in the background."""

    async def stop(self) -> None:
        """Close the connections to the engine."""

    async def instance(self) -> str:
        """Request and return the instance id of an embedded engine; "" for a stock Livy."""

    async def create(self, kind: str, body: Mapping[str, Any]) -> RemoteJob:
        """Start a session or batch. `body` is Livy's request; its name must be unique."""

    async def find(self, kind: str, name: str) -> RemoteJob | None:
        """The session or batch with this name, or None if the engine does not show one."""

    async def show(self, ref: RemoteRef) -> RemoteJob:
        """The current state of a session or batch."""

    async def follow(self, ref: RemoteRef, known: RemoteJob | None) -> RemoteJob:
        """Wait until the engine shows a session or batch differently from `known`, and return what it shows.

        With None it returns at once. It sends no request of its own while others are followed at the same engine.
        Raises `EngineFailed` as soon as the engine does not answer.
        """

    async def log(self, ref: RemoteRef) -> list[str]:
        """All log lines of a session or batch that the engine keeps."""

    async def post(self, ref: RemoteRef, code: str, language: str) -> int:
        """Post a statement to a session, and return its id at the engine."""

    async def statement(self, ref: RemoteRef, number: int) -> dict[str, Any] | None:
        """A statement as Livy shows it, or None if the session has no statement with this id."""

    async def follow_statement(
        self, ref: RemoteRef, number: int, known: Mapping[str, Any] | None
    ) -> dict[str, Any] | None:
        """Wait until a statement has another state or progress than `known`, and return it as `statement` does."""

    async def cancel(self, ref: RemoteRef, number: int) -> None:
        """Cancel a statement."""

    async def end(self, ref: RemoteRef) -> None:
        """End a session or batch in any state. It is not an error if it is already gone."""

    async def complete(self, ref: RemoteRef, code: str, language: str, cursor: int) -> list[str]:
        """Code completion candidates at the offset `cursor` of `code`."""

    async def place(self, name: str, file_name: str, data: bytes) -> str:
        """Write a file for the session or batch `name`, and return the path at which the engine reads it.

        Raises `OSError` and `Full` for errors of the disk.
        """

    async def share(self, name: str, path: str) -> str:
        """Make an input readable for the engine, and return the path at which the engine reads it.

        `path` is a local file or folder, or a JSON list of them; the answer has the same form.
        """

    async def withdraw(self, name: str) -> None:
        """Remove everything that `place` and `share` made for the session or batch `name`."""
