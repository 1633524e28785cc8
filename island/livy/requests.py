"""Decoding of the requests of Livy clients, with Livy's error messages.

Livy reads JSON as Jackson does: unknown fields are refused, numbers and booleans are converted
to strings where a string is required, and null means absent. Parsing raises only `LivyRefusal`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import msgspec

from island.livy.messages import KINDS, BatchRequest, CompletionRequest, SessionRequest, StatementRequest
from island.livy.rest import INT_MAX, LivyRefusal, bad_body, rejected

MAX_BODY: Final = 16 * 1024 * 1024
MAX_LIST: Final = 10_000
MAX_NAME: Final = 256

_SESSION = "org.apache.livy.server.interactive.CreateInteractiveRequest"
_BATCH = "org.apache.livy.server.batch.CreateBatchRequest"
_STATEMENT = "org.apache.livy.ExecuteRequest"
_COMPLETION = "org.apache.livy.CompletionRequest"

_STRINGS = frozenset({"kind", "name", "proxyUser", "driverMemory", "executorMemory", "queue", "ttl", "idleTimeout"})
_LISTS = frozenset({"jars", "pyFiles", "files", "archives", "args"})
_INTEGERS = frozenset({"driverCores", "executorCores", "numExecutors", "heartbeatTimeoutInSecond", "cursor"})
_MAPS = frozenset({"conf"})
_UNITS = {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


def session_request(raw: bytes) -> SessionRequest:
    """Decode the body of `POST /sessions`. Checks kind, name and times, but not files and conf."""
    fields = _fields(raw, _SESSION, SessionRequest)
    _check_kind(fields.get("kind"), f'{_SESSION}["kind"]')
    request = msgspec.convert(fields, SessionRequest)
    _check_name(request.name)
    for text in (request.ttl, request.idle_timeout):
        if text is not None:
            milliseconds(text)
    return request


def batch_request(raw: bytes) -> BatchRequest:
    """Decode the body of `POST /batches`."""
    request = msgspec.convert(_fields(raw, _BATCH, BatchRequest), BatchRequest)
    if not request.file:
        raise rejected("requirement failed: File is required.")
    _check_name(request.name)
    return request


def statement_request(raw: bytes) -> StatementRequest:
    """Decode the body of a statement. Missing code gives status 400 (500 in Livy)."""
    fields = _fields(raw, _STATEMENT, StatementRequest, also=("msg_type",))
    _check_kind(fields.get("kind"), f'{_STATEMENT}["kind"]')
    _need_code(fields)
    return StatementRequest(code=fields["code"], kind=fields.get("kind"))


def completion_request(raw: bytes) -> CompletionRequest:
    """Decode the body of a completion. Missing code or kind gives status 400 (500 in Livy)."""
    fields = _fields(raw, _COMPLETION, CompletionRequest)
    _need_code(fields)
    if fields.get("kind") is None:
        raise bad_body("Invalid kind: null (the field 'kind' of a completion is required)")
    _check_kind(fields["kind"], f'{_COMPLETION}["kind"]')
    return CompletionRequest(code=fields["code"], kind=fields["kind"], cursor=fields.get("cursor"))


def milliseconds(text: str) -> int:
    """The milliseconds in a Livy time string (`90s`, `10m`, `1h`; milliseconds without unit). Raises `LivyRefusal`."""
    found = re.fullmatch(r"([0-9]{1,12})([a-z]*)", text.strip().lower())
    if not found or (found[2] or "ms") not in _UNITS:
        raise rejected(f"Invalid time string: {text[:100]}")
    return int(int(found[1]) * _UNITS[found[2] or "ms"])


def memory_bytes(text: str) -> int:
    """The bytes in a JVM memory string (`512m`, `2g`; MiB without unit, as in Spark). Raises `LivyRefusal`."""
    found = re.fullmatch(r"([0-9]{1,12})([kmgt]?)b?", text.strip().lower())
    if not found:
        raise rejected(f"Invalid memory string: {text[:100]}")
    return int(found[1]) << {"k": 10, "m": 20, "": 20, "g": 30, "t": 40}[found[2]]


def _need_code(fields: Mapping[str, Any]) -> None:
    if not isinstance(fields.get("code"), str):
        raise bad_body("The field 'code' is required and must be a string")


def _check_kind(kind: Any, where: str) -> None:
    if kind is not None and kind not in KINDS:
        raise bad_body(f"Invalid kind: {str(kind)[:100]} (through reference chain: {where})")


def _check_name(name: str | None) -> None:
    if name is None:
        return
    if re.fullmatch(r"[0-9]*", name) or len(name) > MAX_NAME or re.search(r"[/\x00-\x1f\x7f]", name):
        raise rejected(f"Invalid session name: {name[:MAX_NAME]}")


def _fields(raw: bytes, java: str, struct: type[msgspec.Struct], also: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON object in `raw` without null fields. Raises `LivyRefusal` for unknown fields and wrong types."""
    body = _decoded(raw, java)
    known = (*struct.__struct_encode_fields__, *also)
    for key in body:
        if key not in known:
            names = ", ".join(f'"{name}"' for name in known)
            raise bad_body(
                f'Unrecognized field "{key[:100]}" (class {java}), not marked as ignorable '
                f"({len(known)} known properties: {names}])"
            )
    return {key: _coerced(key, value) for key, value in body.items() if value is not None}


def _decoded(raw: bytes, java: str) -> dict[str, Any]:
    if len(raw) > MAX_BODY:
        raise LivyRefusal(413, f"The body has {len(raw)} bytes; the limit is {MAX_BODY}", code="too_large")
    if not raw.strip():
        raise bad_body("No content to map due to end-of-input")
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_body(f"Not JSON: {error}") from error
    if isinstance(body, dict):
        return body
    kind = "Array" if isinstance(body, list) else "String" if isinstance(body, str) else type(body).__name__
    raise bad_body(f"Cannot deserialize value of type `{java}` from {kind} value: an object is required")


def _coerced(key: str, value: Any) -> Any:
    """The value of a field, with scalars converted to strings as in Jackson. Raises `LivyRefusal` for a wrong type."""
    if key in _LISTS:
        if not isinstance(value, list):
            _wrong_type(key, value, "scala.collection.immutable.List<java.lang.String>")
        if len(value) > MAX_LIST:
            raise bad_body(f"The field '{key}' has {len(value)} items; the limit is {MAX_LIST}")
        return [_string(key, item) for item in value]
    if key in _MAPS:
        if not isinstance(value, dict):
            _wrong_type(key, value, "scala.collection.immutable.Map<java.lang.String,java.lang.String>")
        return {name: _string(key, item) for name, item in value.items()}
    if key in _INTEGERS:
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > INT_MAX:
            _wrong_type(key, value, "java.lang.Integer")
        return value
    return _string(key, value) if key != "code" else value


def _string(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        _wrong_type(key, value, "java.lang.String")
    return str(value)


def _wrong_type(key: str, value: Any, java: str) -> NoReturn:
    names = {dict: "Object", list: "Array", str: "String", bool: "Boolean", int: "Integer", float: "Floating-point"}
    raise bad_body(
        f"Cannot deserialize value of type `{java}` from {names.get(type(value), 'null')} value (field '{key}')"
    )
