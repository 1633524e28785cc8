"""Web pages of other origins cannot use the user port, but unmodified Livy clients and curl can."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.contracts import document
from tests.missing import missing
from tests.servers.daemon import ServedIsland

pytestmark = pytest.mark.e2e

ALLOWED = "island.kiso.example"
"""The name under which a reverse proxy serves this island."""
CREATE = b'{"kind": "pyspark"}'
BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedIsland]:
    """An island whose Livy is down: sessions are accepted and listed, but do not start Spark."""
    made = ServedIsland(tmp_path_factory.mktemp("browsers"), "kiso")
    made.configure("allowed_hosts", json.dumps([ALLOWED]))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def port(place: ServedIsland) -> int:
    return urlsplit(place.url).port or 0


def basic(place: ServedIsland) -> str:
    """The credentials that a browser has cached and adds to every request to this port."""
    return "Basic " + base64.b64encode(f"any:{place.user_token}".encode()).decode()


def send(
    place: ServedIsland,
    method: str,
    target: str,
    headers: dict[str, str],
    body: bytes | None = None,
    *,
    cached: bool = True,
) -> tuple[int, dict[str, str], Any]:
    """Send a request with exactly these headers and the cached credentials. Returns status, headers and JSON body."""
    connection = http.client.HTTPConnection("127.0.0.1", port(place), timeout=60)
    try:
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        given = {"Host": f"127.0.0.1:{port(place)}", **headers}
        if cached:
            given["Authorization"] = basic(place)
        if body is not None:
            given["Content-Length"] = str(len(body))
        for name, value in given.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, fields, json.loads(data) if data[:1] in (b"{", b"[", b'"') else data
    finally:
        connection.close()


def sessions(place: ServedIsland) -> int:
    """The number of sessions."""
    status, _, found = send(place, "GET", "/sessions", {})
    assert status == 200
    total: int = found["total"]
    return total


ATTACKS = {
    "a name that was rebound": {"Host": "rebind.evil.example", "Origin": "http://rebind.evil.example"},
    "the same, with the port": {"Host": "rebind.evil.example:8990"},
    "a foreign origin": {"Origin": "https://evil.example"},
    "a page without an origin": {"Origin": "null"},
    "another port of this machine": {"Origin": "http://localhost:3000"},
    "a request across sites": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    "a request from a sibling": {"Sec-Fetch-Site": "same-site"},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_foreign_page_creates_no_session(place: ServedIsland, attack: str) -> None:
    before = sessions(place)
    headers = {**BROWSER, "Content-Type": "text/plain;charset=UTF-8", **ATTACKS[attack]}
    status, fields, body = send(place, "POST", "/sessions", headers, CREATE)
    assert status == 403, body
    assert fields["content-type"].startswith("application/json") and set(body) == {"msg"}
    status, fields, body = send(place, "POST", "/api/v1/sessions", headers, CREATE)
    assert (status, set(body), body["status"]) == (403, {"error", "message", "hint", "status"}, 403)
    assert "www-authenticate" not in fields
    assert sessions(place) == before


def test_the_refusal_says_what_to_configure(place: ServedIsland) -> None:
    livy = send(place, "GET", "/sessions", {"Host": "island.example"})[2]["msg"]
    api = send(place, "GET", "/api/v1/island", {"Host": "island.example"})[2]
    assert "listen.allowed_hosts" in livy and "island.example" in livy
    assert api["error"] == "foreign_host" and "listen.allowed_hosts" in api["hint"]
    api = send(place, "GET", "/api/v1/island", {"Origin": "https://hub.example"})[2]
    assert api["error"] == "foreign_origin" and "listen.allowed_hosts" in api["hint"]
    api = send(place, "GET", "/api/v1/island", {"Sec-Fetch-Site": "cross-site"})[2]
    assert api["error"] == "foreign_origin" and api["hint"]


def test_every_route_refuses(place: ServedIsland) -> None:
    before = sessions(place)
    for method, path in document.operations():
        target = path.replace("{", "").replace("}", "")
        for attack in ATTACKS.values():
            status, _, body = send(place, method, target, attack, b"{}")
            assert status == 403, f"{method} {target} {attack}: {status} {body!r:.300}"
    for target in ("/", "/nothing", "/api/v1/nothing", "/healthz"):
        assert send(place, "GET", target, {"Host": "rebind.evil.example"})[0] == 403
    assert sessions(place) == before


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost.", "LocalHost:9000", "localhost:9000", "127.0.0.1", "127.4.5.6:80", "[::1]", "[::1]:9000",
     ALLOWED, ALLOWED.upper(), f"{ALLOWED}.", f"{ALLOWED}:443"],
)  # fmt: skip
def test_hosts_that_mean_this_island(place: ServedIsland, host: str) -> None:
    """With a tunnel (`ssh -L 9000:127.0.0.1:8990`) the client uses another port than the listener's."""
    for origin in (f"http://{host}", f"https://{host}"):
        headers = {**BROWSER, "Host": host, "Origin": origin, "Sec-Fetch-Site": "same-origin"}
        assert send(place, "GET", "/sessions", headers)[0] == 200
    assert send(place, "GET", "/sessions", {"Host": host, "Sec-Fetch-Site": "none"})[0] == 200


@pytest.mark.parametrize(
    "host",
    ["", "localhost@evil.example", "evil.example#localhost", "localhost.evil.example", "localhost:port", "localhost:",
     "localhost..", "localhost:99999", "127.0.0.1.evil.example", "127.1", "0.0.0.0:8990", "2130706433", "::1",
     "[::1", "[::1]x", "[fe80::1]", "192.0.2.1", f"x{ALLOWED}", f"sub.{ALLOWED}", "a b", "localhost, evil.example"],
)  # fmt: skip
def test_hosts_that_do_not(place: ServedIsland, host: str) -> None:
    status, _, body = send(place, "GET", "/api/v1/island", {"Host": host})
    assert (status, body["error"]) == (403, "foreign_host"), body


def raw(place: ServedIsland, head: str) -> int:
    """Send the head of a request unchanged, over a connection that is closed afterwards. Returns the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port(place), timeout=60)
    try:
        connection.connect()
        connection.sock.sendall(head.encode().replace(b"\n", b"\r\n") + b"\r\n\r\n")
        answer = http.client.HTTPResponse(connection.sock)
        answer.begin()
        return answer.status
    finally:
        connection.close()


def test_a_request_without_a_host(place: ServedIsland) -> None:
    """HTTP/1.0 has no Host and is not used by browsers; HTTP/1.1 requires it."""
    login = f"Authorization: Bearer {place.user_token}"
    assert raw(place, f"GET /sessions HTTP/1.0\n{login}") == 200
    assert raw(place, f"GET /sessions HTTP/1.0\n{login}\nOrigin: http://evil.example") == 403
    assert raw(place, f"GET /sessions HTTP/1.0\n{login}\nHost: evil.example") == 403
    assert raw(place, f"GET /sessions HTTP/1.1\n{login}\nConnection: close") == 400


def test_two_hosts_and_a_host_in_the_target(place: ServedIsland) -> None:
    login = f"Authorization: Bearer {place.user_token}\nConnection: close"
    status = raw(place, f"GET /sessions HTTP/1.1\nHost: localhost\nHost: evil.example\n{login}")
    assert status in (400, 403)
    assert raw(place, f"GET http://evil.example/sessions HTTP/1.1\nHost: localhost\n{login}") == 403
    assert raw(place, f"GET http://localhost/sessions HTTP/1.1\nHost: localhost\n{login}") == 200
    status = raw(place, f"GET /sessions HTTP/1.1\nHost: localhost\nOrigin: x\nOrigin: http://localhost\n{login}")
    assert status in (400, 403)


def test_a_browser_is_not_asked_for_a_password(place: ServedIsland) -> None:
    """A browser caches credentials for which it is asked, and adds them to the requests of every page."""
    plain = send(place, "GET", "/sessions", {"Accept": "*/*", "User-Agent": "Apache-HttpClient/4.5"}, cached=False)
    assert plain[0] == 401 and plain[1]["www-authenticate"] == 'Basic realm="island"'
    for mark in (
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Mode": "navigate"},
        {"Origin": f"http://127.0.0.1:{port(place)}"},
        {"User-Agent": BROWSER["User-Agent"]},
    ):
        for target in ("/sessions", "/api/v1/island"):
            status, fields, body = send(place, "GET", target, mark, cached=False)
            assert status == 401 and "www-authenticate" not in fields and body["error"] == "unauthenticated"


def test_pylivy_works_unmodified(place: ServedIsland) -> None:
    from livy import SessionKind
    from livy.client import LivyClient

    with_login = f"http://any:{place.user_token}@127.0.0.1:{port(place)}"
    for url, auth in ((place.url, ("any", place.user_token)), (with_login, None)):
        client = LivyClient(url, auth=auth)
        try:
            made = client.create_session(SessionKind.PYSPARK)
            assert made.session_id in [each.session_id for each in client.list_sessions()]
            client.delete_session(made.session_id)
            assert client.get_session(made.session_id) is None
        finally:
            client.close()


def test_sparkmagic_works_unmodified(place: ServedIsland) -> None:
    """Its requests have JSON, X-Requested-By and credentials from the start, and no Origin."""
    import requests

    headers = {"Content-Type": "application/json", "X-Requested-By": "any"}
    for host in ("127.0.0.1", "localhost"):
        with requests.Session() as session:
            session.trust_env = False
            answer = session.post(
                f"http://{host}:{port(place)}/sessions",
                headers=headers,
                auth=("any", place.user_token),
                data=CREATE,
                timeout=60,
            )
            assert answer.status_code == 201, answer.text


@pytest.fixture
def curl() -> str:
    """The real curl. If it is missing, the test fails in CI and is skipped elsewhere."""
    found = shutil.which("curl")
    if found is None:
        reason = "curl is not installed: install it to run this test"
        missing(reason)
    return found


@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
def test_curl_works_unmodified(place: ServedIsland, curl: str, version: str) -> None:
    """`curl -d` declares its body as a form; the server decodes the body regardless."""
    for options in (
        ["-u", f"any:{place.user_token}"],
        ["--anyauth", "-u", f"any:{place.user_token}"],
        ["-H", f"Authorization: Bearer {place.user_token}"],
    ):
        done = subprocess.run(
            [curl, "-sS", "-q", "--noproxy", "*", version, *options, "-d", CREATE.decode(), f"{place.url}/sessions"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout)["state"] == "starting", done.stdout
