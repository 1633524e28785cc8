"""A small blocking client of the operator API, for the commands and `island://`.

It uses only the standard library, so that commands start fast. Answers are JSON; an error
answer is raised as `ApiError`.
"""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from island.errors import IslandError, Unreachable
from island.home import Endpoint, unreachable

STATUS_SECONDS = 5.0
"""Timeout for questions that a daemon answers at once if it works."""

_ERRORS = (OSError, http.client.HTTPException)


SILENT = "If it stays silent, see its log, and restart it."


class ApiError(IslandError):
    """An error answer of the daemon, with its code and HTTP status."""

    def __init__(self, status: int, answer: dict[str, Any]) -> None:
        super().__init__(str(answer.get("message", f"HTTP status {status}")), hint=str(answer.get("hint", "")))
        self.code = str(answer.get("error", "error"))
        self.status = status
        self.answer = answer


class NoAnswer(Unreachable):
    """The daemon did not answer in time; it may hang."""


class Api:
    """The operator API (and Livy's REST API) of one daemon. Not thread-safe. Each call opens a connection.

    `timeout` is in seconds, for each operation on the connection. All methods raise `Unreachable` if the
    daemon does not answer (`NoAnswer` if it does not in time), and `ApiError` for an error answer.
    """

    def __init__(self, endpoint: Endpoint, *, timeout: float = 120.0) -> None:
        self.endpoint = endpoint
        self._timeout = timeout
        parts = urllib.parse.urlsplit(endpoint.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise Unreachable(f"'{endpoint.url}' is not an HTTP URL", hint="Use a URL such as http://127.0.0.1:8990.")
        self._parts = parts

    def get(self, path: str, **query: Any) -> Any:
        """Send a GET request and return the JSON answer. Query arguments that are None are omitted."""
        return self._call("GET", _with_query(path, query))

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        """Send a POST request and return the JSON answer. A body of type bytes is sent unchanged, others as JSON."""
        return self._call("POST", _with_query(path, query), body)

    def delete(self, path: str, **query: Any) -> Any:
        """Send a DELETE request and return the JSON answer."""
        return self._call("DELETE", _with_query(path, query))

    def read(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        """Send a GET request and return status, headers (with lower-case names) and body."""
        connection, answer = self._send("GET", path, None, headers or {})
        data = self._received(connection, answer)
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, data

    def follow(self, method: str, path: str, body: Any, progress: Callable[[dict[str, Any]], None]) -> Any:
        """Run a long operation (answer in JSON lines): call `progress` for each progress line; return the result."""
        connection, answer = self._send(method, path, body, {})
        try:
            if answer.status >= 400:
                raise ApiError(answer.status, _json_object(answer.read()))
            for line in _lines(answer):
                if "progress" in line:
                    progress(line["progress"])
                elif "error" in line:
                    raise ApiError(int(line.get("status", 500)), line)
                elif "result" in line:
                    return line["result"]
        except _ERRORS as error:
            raise Unreachable(
                f"the connection to {self.endpoint.url} was lost: {error}",
                hint="Check with `island status` whether the daemon is running.",
            ) from error
        finally:
            connection.close()
        raise Unreachable(
            f"{self.endpoint.url} closed the connection before sending a result", hint="See the daemon's log."
        )

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = self._received(*self._send(method, path, body, {}))
        try:
            return json.loads(data) if data else None
        except ValueError as error:
            raise Unreachable(
                f"{self.endpoint.url} is not an island: its answer is not JSON", hint="Check the URL given with --url."
            ) from error

    def _received(self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> bytes:
        """Return the body of a successful answer; raise `ApiError` for an error, `Unreachable` if it is incomplete."""
        try:
            data = answer.read()
        except TimeoutError as error:
            raise self._silent() from error
        except _ERRORS as error:
            raise Unreachable(
                f"the answer from {self.endpoint.url} was interrupted: {error}", hint="Try again."
            ) from error
        finally:
            connection.close()
        if answer.status >= 400:
            raise ApiError(answer.status, _json_object(data))
        return data

    def _send(
        self, method: str, path: str, body: Any, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=self._timeout)
        headers = {"Authorization": f"Bearer {self.endpoint.token}", "Accept": "application/json", **headers}
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        if data is not None:
            headers.setdefault(
                "Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json"
            )
        try:
            connection.request(method, self._parts.path.rstrip("/") + path, data, headers)
            return connection, connection.getresponse()
        except TimeoutError as error:
            connection.close()
            raise self._silent() from error
        except _ERRORS as error:
            connection.close()
            raise unreachable(self.endpoint.url, error) from error

    def _silent(self) -> NoAnswer:
        return NoAnswer(f"{self.endpoint.url} does not answer within {self._timeout:g} s", hint=SILENT)


def quote(part: str) -> str:
    """Percent-encode one segment of a path."""
    return urllib.parse.quote(part, safe="")


def _with_query(path: str, query: dict[str, Any]) -> str:
    given = {k: v for k, v in query.items() if v is not None}
    return f"{path}?{urllib.parse.urlencode(given, doseq=True)}" if given else path


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {"message": data[:300].decode("utf-8", "replace")}
    if isinstance(value, dict):
        return value if "message" in value else {**value, "message": str(value.get("msg", value))}
    return {"message": str(value)[:1000]}


def _lines(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    while line := answer.readline():
        if line.strip():
            yield json.loads(line)
