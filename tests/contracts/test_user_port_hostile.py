"""Any request to the user port is answered in time without an internal error, and the island keeps running."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import socket
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.contracts import document
from tests.servers.daemon import ServedIsland

pytestmark = pytest.mark.e2e

SECONDS = 15.0
"""Duration of the random attack in seconds."""
ANSWER_S = 60.0
"""Seconds within which every request must be answered."""

NASTY = st.sampled_from(
    ["", " ", "0", "1", "-1", "+1", "00", "٣", "²", "9" * 9, "9" * 19, "9" * 5000, "1e9", "nan", "inf", "-0", "0x1",
     "kiso", "small", "kiso/small", "kiso/fold", "trial", ".", "..", "../../key", "/etc/passwd", "a/b", "a\\b", "@",
     "small@", "small@" + "0" * 64, "@" * 65, "\0", "a\0b", "\n", "\r\nX: y", "\x7f", "\u2028", "é", "🔭", "\U000e0001",
     "A" * 300, "A" * 5000, "'; DROP TABLE jobs; --", "%", "%00", "%s%n", "{}", "${x}", "*", "?", "#", "NULL", "true",
     "2026-01-01..", "..", "1..2", "9999999-01-01..", "circle 1 2 3", "circle 1e308 -1e308 1", "circle nan 0 1",
     "polygon 1 2 3 4 5 6", "mag < 18", "(" * 200, "a AND " * 500 + "a", "x IN (SELECT 1)", "1d", "99999999999d",
     "session", "chunk",
     "island:kiso", "island:", "spark.island.inputs", "pyspark", "sql", "isl-1-1"]
)  # fmt: skip
TEXT = NASTY | st.text(max_size=40)
SCALAR = (
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from([2**63, -(2**63) - 1, 10**400])
)
VALUE = st.recursive(SCALAR, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3), max_leaves=6)
RAW = st.sampled_from(
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{}", b'{"a":1}x', b"[" * 50_000, b'{"a":' * 20_000,
     b"{}" + b" " * 100_000,
     b'{"name":"\\ud800","code":"\\udfff"}', b'{"code":"1","code":2}', b'{"kind":"pyspark","conf":{"a":"\\u0000"}}',
     b"\0" * 100, b'{"uses":1e999}', b'{"uses":' + b"9" * 10_000 + b"}",
     b'--x\r\nContent-Disposition: form-data\r\n']
) | st.binary(max_size=60)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from(
        ["Range", "If-Range", "If-None-Match", "Idempotency-Key", "X-Island-Job-Key", "Content-Type", "Accept",
         "Content-Encoding", "Cookie", "X-Requested-By"]
    ),
    st.sampled_from(
        ["", "x", "bytes=0-0", "bytes=-5", "bytes=5-1", "bytes=" + "9" * 60 + "-", "bytes=0-1,3-4", "bytes=²-",
         '"x"', "0" * 32,
         "A" * 201, "gzip", "deflate", "br", "multipart/form-data", "multipart/form-data; boundary=x",
         "application/json; charset=utf-16", "application/json; charset=nope", "a=b; " * 200, "é"]
    ),
    max_size=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedIsland]:
    """An island whose Livy is down, so sessions that an attack opens do not start Spark."""
    made = ServedIsland(tmp_path_factory.mktemp("hostile"), "kiso")
    try:
        made.start()
        table = pa.table({"ra": [10.0, 187.0], "dec": [41.0, 12.0], "mag": [3.4, 8.6]})
        pq.write_table(table, made.home.parent / "small.parquet")
        made.command("dataset", "publish", str(made.home.parent / "small.parquet"), "--name", "small")
        (made.home.parent / "fold").mkdir()
        pq.write_table(table, made.home.parent / "fold" / "a.parquet")
        made.command("source", "add", "folder", str(made.home.parent / "fold"), "--name", "fold")
        yield made
    finally:
        made.stop()


def token(place: ServedIsland) -> str:
    return (place.home / "token").read_text().strip()


def send(
    place: ServedIsland, method: str, target: str, body: bytes | None, headers: dict[str, str]
) -> tuple[int, bytes]:
    """Send one request on its own connection. Fails if there is no answer within `ANSWER_S`."""
    parts = urlsplit(place.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_S)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in {"Authorization": f"Bearer {token(place)}", **headers}.items():
            connection.putheader(name, value.encode("utf-8"))
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def check(what: str, status: int, data: bytes) -> None:
    assert b"Traceback" not in data and b'"bug"' not in data, f"{what}: {data[:1000]!r}"
    if status >= 500:
        # A failure of the engine or of a peer may give a 5xx, in the form of the API.
        answer = json.loads(data)
        assert status != 500 and answer["error"] in ("engine_failed", "unreachable", "peer_refused"), (
            f"{what}: {data!r}"
        )


@st.composite
def bodies(draw: st.DrawFn, operation: dict[str, Any]) -> bytes | None:
    """An empty body, an invalid one, or an object with the documented keys and any values."""
    content = operation.get("requestBody", {}).get("content", {})
    schema = document.resolved(content.get("application/json", {}).get("schema", {}))
    kind = draw(st.integers(0, 5))
    if kind == 0 or not content:
        return draw(st.none() | RAW)
    value: dict[str, Any] = {}
    for key, part in schema.get("properties", {}).items():
        if key in schema.get("required", ()) or draw(st.booleans()):
            right = st.sampled_from(part["enum"]) if "enum" in part else TEXT
            if part.get("type") == "array":
                right = st.lists(TEXT, max_size=3)
            elif part.get("type") == "object" or key == "conf":
                right = st.dictionaries(TEXT, TEXT, max_size=3)
            elif part.get("type") in ("integer", "number"):
                right = st.integers(-2, 2000)
            value[key] = draw(VALUE if draw(st.integers(0, 3)) == 0 else right)
    if kind == 1:
        value[draw(TEXT)] = draw(VALUE)
    return json.dumps(value).encode()


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, bytes | None, dict[str, str]]:
    """A documented operation with nasty values in its path, query, headers and body."""
    (method, path), operation = draw(st.sampled_from(sorted(document.operations().items(), key=lambda pair: pair[0])))
    for part in ("owner", "name", "snapshot", "path", "id", "number", "key", "statement", "job"):
        while f"{{{part}}}" in path:
            text = draw(NASTY.filter(bool) | st.text(min_size=1, max_size=20))
            raw = draw(
                st.sampled_from([quote(text, safe=""), quote(text, safe=""), "%ff%fe", "%00", "%2e%2e", "%ed%a0%80"])
            )
            path = path.replace(f"{{{part}}}", raw, 1)
    known = [p["name"] for p in map(document.resolved, operation.get("parameters", [])) if p["in"] == "query"]
    pairs = draw(st.lists(st.tuples(st.sampled_from([*known, "kind", "timeout", "x"]), TEXT), max_size=3))
    if path.endswith("/wait") or "/statements/" in path:
        pairs = [("timeout", "0"), *pairs]  # these operations wait; the first value is used
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
    return method, path + ("?" + query if query else ""), draw(bodies(operation)), draw(HEADERS)


def is_printable(request: tuple[str, str, bytes | None, dict[str, str]]) -> bool:
    return all(" " < char < "\x7f" for char in request[1])


def test_random_requests(place: ServedIsland) -> None:
    counts: Counter[int] = Counter()

    def attack(request: tuple[str, str, bytes | None, dict[str, str]]) -> None:
        method, target, body, headers = request
        status, data = send(place, method, target, body, headers)
        counts[status] += 1
        check(f"{method} {target} {headers} {body!r:.500}", status, data)

    rounds = settings(
        max_examples=100, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    end = time.monotonic() + SECONDS
    for number in itertools.count():
        rounds(seed(number)(given(requests().filter(is_printable))(attack)))()
        if time.monotonic() > end:
            break
    assert {200, 400, 404} <= set(counts), counts
    still_whole(place)


def still_whole(place: ServedIsland) -> None:
    """Check that the daemon answers and has logged no bug."""
    assert send(place, "GET", "/readyz", None, {})[0] == 200
    said = place.log.read_text("utf-8", "replace")
    assert "api.unexpected_error" not in said and "Traceback" not in said, said[said.find("Traceback") - 500 :][:4000]


def test_only_regular_files_are_published(place: ServedIsland) -> None:
    """Devices, pipes and circular links give an error at once."""
    root = place.home.parent
    os.mkfifo(root / "pipe.parquet")
    (root / "loop").symlink_to(root / "loop")
    (root / "circle").mkdir()
    (root / "circle" / "again").symlink_to(root / "circle")
    for path in (
        "/dev/zero",
        "/dev/stdin",
        root / "pipe.parquet",
        root / "loop",
        root / "circle",
        "/proc/self/mem",
        ".",
        "~",
    ):
        body = json.dumps({"path": str(path), "name": "odd"}).encode()
        status, data = send(place, "POST", "/api/v1/datasets", body, {})
        last = json.loads(data.splitlines()[-1])
        assert "error" in last and last["error"] != "bug", f"{path}: {status} {data!r}"
    still_whole(place)


@pytest.mark.parametrize("target", ["/api/v1/sessions", "/sessions", "/api/v1/batches?file=a.py"])
def test_a_body_that_grows_when_it_is_unpacked_is_refused(place: ServedIsland, target: str) -> None:
    bomb = zlib.compress(b" " * (256 * 1024 * 1024), 9)
    status, data = send(place, "POST", target, bomb, {"Content-Encoding": "deflate"})
    assert status in (400, 413), (status, data)
    still_whole(place)


def raw(place: ServedIsland, data: bytes) -> bytes:
    """Send any bytes, and return the answer until the daemon closes. Fails after `ANSWER_S` of silence."""
    parts = urlsplit(place.url)
    got = b""
    with socket.create_connection((parts.hostname, parts.port), timeout=ANSWER_S) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while block := connection.recv(65536):
            got += block
    return got


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"\0" * 1000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"POST /sessions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /sessions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET //..//../key HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://other/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic \xff\xfe\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic " + b"A" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xc3\xa9\r\n\r\n",
    ],
)
def test_invalid_requests_end_only_their_connection(place: ServedIsland, data: bytes) -> None:
    got = raw(place, data)
    assert b"Traceback" not in got and b" 500 " not in got.partition(b"\r\n")[0]
    assert not got or got.startswith((b"HTTP/1.", b"HTTP/9")), got[:300]
    still_whole(place)
