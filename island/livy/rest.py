"""The rules of Livy's REST API: headers, Allow lists, paging, refusals with their bodies, and path segments.

The source of each rule is the recording of Livy 0.9.0 that the contract test replays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from island.errors import BadInput
from island.livy.messages import LogPage, ResponseMessage

VERSION: Final = "0.9.0-incubating"
JSON_TYPE: Final = "application/json;charset=utf-8"
HTML_TYPE: Final = "text/html;charset=utf-8"
SECURITY_HEADERS: Final = {
    "X-Frame-Options": "SAMEORIGIN",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; img-src 'self'; frame-src 'self';"
    ),
}
JSON_HEADERS: Final = {"Content-Type": JSON_TYPE, **SECURITY_HEADERS}
"""Headers of every JSON answer."""

ENGINE_HEADER: Final = "X-Island-Engine"
"""Header with the instance id of an embedded engine. A stock Livy does not send it."""

CODE_HEADER: Final = "X-Island-Code"
"""Header with the code of a refusal by an embedded engine. A stock Livy does not send it."""

FULL: Final = "engine_full"
"""The code of the refusal of a session or batch for which there is no place now."""

PAGE_SIZE: Final = 100
SHORT_LOG_LINES: Final = 10
KEPT_STATEMENTS: Final = 100
KEPT_ROWS: Final = 1000
KEPT_LOG_LINES: Final = 200
INT_MAX: Final = 2**31 - 1

DELETED: Final = ResponseMessage("deleted")
CANCELED: Final = ResponseMessage("canceled")
INTERRUPTED: Final = ResponseMessage("interrupted")

T = TypeVar("T")


class LivyRefusal(BadInput):
    """A refusal with Livy's status and message. `body` is sent: a string, a `ResponseMessage`, or None for no body."""

    def __init__(
        self, status: int, body: str | ResponseMessage | None, *, hint: str = "", code: str = "refused"
    ) -> None:
        super().__init__(
            body.msg if isinstance(body, ResponseMessage) else body or f"HTTP {status}", hint=hint, code=code
        )
        self.status = status
        self.body = body

    def json(self) -> bytes:
        """The encoded body; empty if Livy sends none."""
        return b"" if self.body is None else msgspec.json.encode(self.body)


def bad_body(text: str) -> LivyRefusal:
    """Refusal of a body that cannot be parsed: status 400 with a plain JSON string."""
    return LivyRefusal(400, text, code="bad_body")


def rejected(reason: str, *, hint: str = "", code: str = "rejected") -> LivyRefusal:
    """Refusal of a well-formed request: status 400 with `{"msg": "Rejected, Reason: ..."}`."""
    return LivyRefusal(400, ResponseMessage(f"Rejected, Reason: {reason}"), hint=hint, code=code)


def requirement(text: str) -> LivyRefusal:
    """Refusal because a precondition is not met: status 400 with `{"msg": "requirement failed: ..."}`."""
    return LivyRefusal(400, ResponseMessage(f"requirement failed: {text}"), code="requirement")


def session_not_found(name: int | str) -> LivyRefusal:
    """There is no session or batch with this id or name: status 404."""
    return LivyRefusal(404, ResponseMessage(f"Session '{name}' not found."), code="not_found")


def statement_not_found() -> LivyRefusal:
    """There is no statement with this id, or it is no longer kept: status 404 with a plain JSON string."""
    return LivyRefusal(404, "Statement not found", code="not_found")


def duplicate_name(name: str, holder: int) -> LivyRefusal:
    """A live session or batch already has this name: status 400."""
    return rejected(f"Duplicate session name: Some({name}) for session {holder}")


def not_active(state: str = "") -> LivyRefusal:
    """The request requires a live session: status 400. Livy sends 500 for some of these."""
    return requirement("Session isn't active." if not state else f"Session isn't active: its state is {state}.")


def integer(text: str) -> int:
    """Parse an integer as Java's Integer does. Raises `LivyRefusal` with Livy's message."""
    if re.fullmatch(r"[+-]?[0-9]{1,10}", text):
        value = int(text)
        if -INT_MAX - 1 <= value <= INT_MAX:
            return value
    raise LivyRefusal(400, ResponseMessage(f'For input string: "{text[:200]}"'), code="bad_number")


def id_or_name(segment: str) -> int | str:
    """The id or name in a path segment. Digits are always an id. Raises `LivyRefusal` if the id exceeds 32 bits."""
    return integer(segment) if re.fullmatch(r"-?[0-9]+", segment) else segment


def page_bounds(query: Mapping[str, str], *, size: int = PAGE_SIZE) -> tuple[int, int]:
    """The parameters `from` and `size` of a listing. Raises `LivyRefusal` if they are not integers."""
    return integer(query.get("from", "0")), integer(query.get("size", str(size)))


def slice_page(items: Sequence[T], start: int, size: int) -> list[T]:
    """At most `size` items from `start`. An empty list if the range is invalid or empty; never an error."""
    end = start + size
    return list(items[max(start, 0) : end]) if end > 0 and size > 0 else []


def statement_page(ids: Sequence[T], query: Mapping[str, str]) -> list[T]:
    """A page of the statements of a session, which are in order; `order=desc` reverses them first."""
    start, size = page_bounds(query, size=INT_MAX)
    return slice_page(list(reversed(ids)) if query.get("order", "").lower() == "desc" else ids, start, size)


def log_page(number: int, lines: Sequence[str], query: Mapping[str, str]) -> LogPage:
    """A page of a log. Without `from` it is the last lines; a negative size means all lines."""
    size = integer(query.get("size", str(PAGE_SIZE)))
    start = integer(query.get("from", "-1"))
    if size < 0:
        start, size = max(start, 0), len(lines)
    elif start < 0:
        start = max(0, len(lines) - size)
    return LogPage(number, start, len(lines), slice_page(lines, start, size))


def livy_log_lines(stdout: Iterable[str], stderr: Iterable[str]) -> list[str]:
    """The two output streams as one log, with Livy's headings."""
    return ["stdout: ", *stdout, "\nstderr: ", *stderr]


def allow(methods: Iterable[str]) -> str:
    """The value of the header `Allow`, in Livy's order."""
    order = ("POST", "GET", "HEAD", "DELETE")
    known = set(methods)
    return ", ".join([m for m in order if m in known] + sorted(known.difference(order)))


def version_view(url: str, revision: str) -> dict[str, Any]:
    """The answer to `GET /version`, with Livy's keys."""
    return {"url": url, "branch": "main", "revision": revision, "version": VERSION, "date": "", "user": "island"}
