"""Livy's wire types: requests and answers between a Livy client and a Livy server.

The field names are Livy's (camelCase on the wire). The types follow Livy 0.9.0; answers of Livy
0.7 and 0.8, which omit some keys, decode as well. `island.livy.requests` decodes requests and
refuses invalid ones. `island.livy.rest` has paging, headers and error bodies.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

KINDS: Final = ("spark", "pyspark", "pyspark3", "sparkr", "sql", "shared")
"""The kinds of sessions in Livy. A statement may have each of them except `shared`."""

SESSION_STARTING: Final = frozenset({"not_started", "starting", "recovering"})
SESSION_ALIVE: Final = frozenset({"not_started", "starting", "recovering", "idle", "running", "busy"})
SESSION_ENDED: Final = frozenset({"shutting_down", "error", "dead", "killed", "success"})
STATEMENT_ENDED: Final = frozenset({"available", "cancelled", "error"})


class AppInfo(msgspec.Struct, frozen=True, rename="camel"):
    """URLs of the Spark application; None if there is none."""

    driver_log_url: str | None = None
    spark_ui_url: str | None = None
    executor_log_urls: dict[str, str] | None = None


class SessionView(msgspec.Struct, frozen=True, rename="camel"):
    """One interactive session as in `GET /sessions/N`: 23 keys, in Livy's order.

    Unset cores and executors are 0. `log` is the short log, at most ten lines of each stream.
    """

    id: int
    name: str | None = None
    app_id: str | None = None
    owner: str | None = None
    proxy_user: str | None = None
    state: str = "starting"
    kind: str = "shared"
    app_info: AppInfo = AppInfo()
    log: list[str] = []
    ttl: str | None = None
    idle_timeout: str | None = None
    driver_memory: str | None = None
    driver_cores: int = 0
    executor_memory: str | None = None
    executor_cores: int = 0
    conf: dict[str, str] = {}
    archives: list[str] = []
    files: list[str] = []
    heartbeat_timeout_in_second: int = 0
    jars: list[str] = []
    num_executors: int = 0
    py_files: list[str] = []
    queue: str | None = None


class BatchView(msgspec.Struct, frozen=True, rename="camel"):
    """One batch as in `GET /batches/N`."""

    id: int
    name: str | None = None
    owner: str | None = None
    proxy_user: str | None = None
    state: str = "starting"
    app_id: str | None = None
    app_info: AppInfo = AppInfo()
    log: list[str] = []


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """The output of a statement: `data` by MIME type if `status` is ok, else the three keys of the error."""

    status: str
    execution_count: int
    data: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    ename: str | msgspec.UnsetType = msgspec.UNSET
    evalue: str | msgspec.UnsetType = msgspec.UNSET
    traceback: list[str] | msgspec.UnsetType = msgspec.UNSET

    @property
    def text(self) -> str:
        """The output as plain text: the result, or the error and its traceback."""
        if self.status == "ok":
            data = self.data or {}
            plain = data.get("text/plain")
            if plain is None and data:
                return msgspec.json.encode(data).decode()
            return "" if plain is None else str(plain)
        return f"{self.ename or 'Error'}: {self.evalue or ''}\n{''.join(self.traceback or [])}"


class StatementView(msgspec.Struct, frozen=True):
    """One statement. Times are milliseconds since 1970, 0 if not reached; progress is from 0 to 1."""

    id: int
    code: str = ""
    state: str = "waiting"
    output: Output | None = None
    progress: float = 0.0
    started: int = 0
    completed: int = 0


class RawStatementView(msgspec.Struct, frozen=True):
    """One statement with its output as JSON: a large table as Python objects would need a hundred times its size."""

    id: int
    code: str = ""
    state: str = "waiting"
    output: msgspec.Raw = msgspec.Raw(b"null")
    progress: float = 0.0
    started: int = 0
    completed: int = 0


class SessionPage(msgspec.Struct, frozen=True, rename={"start": "from"}):
    """A page of sessions. `total` is the number of all sessions."""

    start: int
    total: int
    sessions: list[SessionView]


class BatchPage(msgspec.Struct, frozen=True, rename={"start": "from"}):
    """A page of batches. Livy calls this list `sessions` as well."""

    start: int
    total: int
    sessions: list[BatchView]


class StatementPage(msgspec.Struct, frozen=True):
    """The statements that a session still has."""

    total_statements: int
    statements: list[StatementView]


class LogPage(msgspec.Struct, frozen=True, rename={"start": "from"}):
    """Lines of a log from `start`. `total` is the number of lines that are kept."""

    id: int
    start: int
    total: int
    log: list[str]


class StateView(msgspec.Struct, frozen=True):
    """`GET /sessions/N/state`."""

    id: int
    state: str


class ResponseMessage(msgspec.Struct, frozen=True):
    """Livy's answer `{"msg": ...}`."""

    msg: str


class Version(msgspec.Struct, frozen=True):
    """`GET /version`."""

    version: str
    url: str = ""
    branch: str = ""
    revision: str = ""
    date: str = ""
    user: str = ""


class Changes(msgspec.Struct, frozen=True):
    """`GET /changes` of an embedded engine: how many changes there were. It only tells whether there was one."""

    changes: int


class CompletionResponse(msgspec.Struct, frozen=True):
    """`POST /sessions/N/completion`."""

    candidates: list[str] = []


class SessionRequest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The body of `POST /sessions`. `ttl` and `idle_timeout` are Livy's time strings (`30s`, `10m`, `1h`)."""

    kind: str | None = None
    name: str | None = None
    proxy_user: str | None = None
    jars: list[str] = []
    py_files: list[str] = []
    files: list[str] = []
    archives: list[str] = []
    driver_memory: str | None = None
    driver_cores: int | None = None
    executor_memory: str | None = None
    executor_cores: int | None = None
    num_executors: int | None = None
    queue: str | None = None
    conf: dict[str, str] = {}
    heartbeat_timeout_in_second: int = 0
    ttl: str | None = None
    idle_timeout: str | None = None


class BatchRequest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The body of `POST /batches`. `file` is required, but Livy checks this only after parsing."""

    file: str | None = None
    args: list[str] = []
    class_name: str | None = None
    name: str | None = None
    proxy_user: str | None = None
    jars: list[str] = []
    py_files: list[str] = []
    files: list[str] = []
    archives: list[str] = []
    driver_memory: str | None = None
    driver_cores: int | None = None
    executor_memory: str | None = None
    executor_cores: int | None = None
    num_executors: int | None = None
    queue: str | None = None
    conf: dict[str, str] = {}


class StatementRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of `POST /sessions/N/statements`. The default kind is that of the session."""

    code: str
    kind: str | None = None


class CompletionRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of `POST /sessions/N/completion`. `cursor` is an offset in characters."""

    code: str
    kind: str
    cursor: int | None = None
