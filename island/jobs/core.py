"""Pure decisions about jobs that home and executor share.

No I/O, clock, randomness or logging. `router` chooses the island that runs a job.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from island.jobs.messages import MAX_INLINE, StatementReport
from island.livy.messages import SESSION_ENDED, STATEMENT_ENDED

EMBEDDED_LANGUAGES: Final = ("batch", "pyspark", "shared", "sql")


STOCK_LANGUAGES: Final = ("batch", "pyspark", "shared", "spark", "sparkr", "sql")


RESOURCES: Final = (
    "driverMemory",
    "driverCores",
    "executorMemory",
    "executorCores",
    "numExecutors",
    "ttl",
    "idleTimeout",
)
"""The fields of Livy's requests, besides `conf`, that are sent to the executor."""


_MEMORY: Final = re.compile(r"([0-9]{1,9})([kmgt]?)b?", re.IGNORECASE)
_TIME: Final = re.compile(r"[0-9]{1,9}(us|ms|s|m|min|h|d)?", re.IGNORECASE)
_MAX_MEMORY: Final = 1 << 44
_MAX_COUNT: Final = {"driverCores": 4096, "executorCores": 4096, "numExecutors": 100_000}


def request_hash(kind: str, request: Any) -> str:
    """The SHA-256 of the kind and canonical JSON of a request. Equal hashes mean equal requests."""
    text = json.dumps([kind, request], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def statement_hash(code: str, language: str) -> str:
    """The hash by which home and executor recognize that they mean the same statement by a number."""
    return request_hash("statement", [code, language])


def resources_problem(resources: Mapping[str, object]) -> str:
    """Why a value of Livy's resource fields cannot be used, naming its key; "" if all can."""
    for key, value in resources.items():
        if problem := _resource_problem(key, value):
            return f"{key} = {str(value)[:100]!r} {problem}"
    return ""


def _resource_problem(key: str, value: object) -> str:
    if key in ("driverMemory", "executorMemory"):
        found = _MEMORY.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            return "is not an amount of memory such as 512m or 2g"
        size = int(found[1]) << {"k": 10, "m": 20, "": 20, "g": 30, "t": 40}[found[2].lower()]
        return "" if 0 < size <= _MAX_MEMORY else "is not between 1k and 16t"
    if key in ("ttl", "idleTimeout"):
        right = isinstance(value, str) and _TIME.fullmatch(value) is not None
        return "" if right else "is not a time such as 30s, 10m or 1h"
    if key in _MAX_COUNT:
        most = _MAX_COUNT[key]
        right = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        return "" if right else f"is not a whole number from 1 to {most}"
    return "is not a resource that an island passes on"


def error_output(name: str, text: str) -> str:
    """A Livy output object for an error of island itself."""
    return compact_json(
        {"status": "error", "execution_count": 0, "ename": name, "evalue": text, "traceback": [text + "\n"]}
    )


class _Result(msgspec.Struct):
    """The keys of Livy's output object that clients rely on."""

    status: Literal["ok", "error"]
    data: dict[str, Any] = {}
    ename: str | None = None
    evalue: str | None = None
    traceback: list[str] | None = None


class _LargeResult(msgspec.Struct):
    """The same without its values, which are only skipped: as objects they may need a hundred times their size."""

    status: Literal["ok", "error"]
    data: msgspec.Raw = msgspec.Raw(b"{}")
    ename: msgspec.Raw = msgspec.Raw()
    evalue: msgspec.Raw = msgspec.Raw()
    traceback: msgspec.Raw = msgspec.Raw()


_RESULT: Final = msgspec.json.Decoder(_Result)
_LARGE_RESULT: Final = msgspec.json.Decoder(_LargeResult)


def output_problem(data: bytes) -> str:
    """Why JSON is not an output object of Livy, or "". Of a large one, only syntax and outer form are checked."""
    try:
        if len(data) <= MAX_INLINE:
            _RESULT.decode(data)
        elif not bytes(_LARGE_RESULT.decode(data).data).startswith((b"{", b"null")):
            return "it is not in Livy's format: `data` is not an object"
        else:
            _check_text(data)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        return f"it is not in Livy's format: {str(error)[:200]}"
    return ""


def _check_text(data: bytes) -> None:
    """Raise `UnicodeError` if bytes are not UTF-8. In steps, between which other threads can run."""
    decoder, step = codecs.getincrementaldecoder("utf-8")(), 1024 * 1024
    for start in range(0, len(data), step):
        decoder.decode(data[start : start + step])
    decoder.decode(b"", final=True)


def lost_statement(report: StatementReport, why: str) -> StatementReport:
    """The last report of a statement whose session is lost: `error` if it was running, `cancelled` if it waited."""
    if report.state in STATEMENT_ENDED:
        return report
    if report.state == "waiting":
        text = f"the statement was never run: {why}"
        return StatementReport(
            number=report.number, state="cancelled", output=error_output("NeverRun", text), progress=1.0
        )
    if report.state == "cancelling":
        return StatementReport(number=report.number, state="cancelled", progress=1.0, started=report.started)
    text = f"the statement was running when its session was lost; its result is lost: {why}"
    return StatementReport(
        number=report.number,
        state="error",
        output=error_output("SessionLost", text),
        progress=1.0,
        started=report.started,
    )


def has_ended(state: str) -> bool:
    """Whether this Livy state is final: the session or batch will not run code again."""
    return state in SESSION_ENDED and state != "shutting_down"


def compact_json(value: Any) -> str:
    """A value as JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
