"""protocols/openapi.yaml documents exactly what the daemon serves, and the daemon answers as documented."""

from __future__ import annotations

import inspect
import itertools
import json
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from openapi_spec_validator import validate

from island.cli.demo.demo_island import wait_for
from island.daemon import Daemon
from island.home import Home
from island.kernel.ports import SystemClock, SystemRng
from tests.contracts import document
from tests.servers.daemon import ServedIsland
from tests.servers.engine import until


class Caller:
    """Calls one daemon with a token and checks each answer against the document."""

    def __init__(self, url: str, token: str | None, *, basic: bool = False) -> None:
        self.url = url
        self._headers: dict[str, str] = {}
        if token is not None:
            self._headers["Authorization"] = (
                f"Basic {b64encode(f'any:{token}'.encode()).decode()}" if basic else f"Bearer {token}"
            )
        self.seen: set[tuple[str, str]] = set()

    def raw(
        self, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower-case names) and body; redirections are not followed."""
        request = urllib.request.Request(
            self.url + target, body, {**self._headers, **{k.replace("_", "-"): v for k, v in headers.items()}}
        )
        request.method = method
        try:
            with _OPENER.open(request, timeout=30) as answer:
                return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()

    def call(self, method: str, target: str, body: Any = None, *, status: int, **headers: str) -> Any:
        """The checked answer; `body` is bytes, or made JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        got, fields, content = self.raw(method, target, data, **headers)
        assert got == status, f"{method} {target}: {got} instead of {status}: {content[:500]!r}"
        self.seen.add((method, document.operation(method, target)[0]))
        return document.check_answer(method, target, got, fields.get("content-type", ""), content)


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay)


# --- the document itself ------------------------------------------------------------------------------


def test_the_document_is_valid() -> None:
    validate(document.document())


def test_answers_allow_no_undocumented_keys_and_always_have_the_documented_ones() -> None:
    schemas = document.document()["components"]["schemas"]
    for name in sorted(document.answer_schemas()):
        schema = schemas[name]
        if "properties" not in schema and "$ref" not in schema:
            continue
        is_part = name.endswith(("Common", "More"))
        closed = schema.get("additionalProperties") is False or schema.get("unevaluatedProperties") is False
        assert closed or is_part, f"{name} is open"
        if name not in ("LivyOutput", "ProgressLine"):
            assert schema.get("required", []) == list(schema.get("properties", {})), name


def _built(home: Path) -> tuple[Daemon, web.Application]:
    daemon = Daemon(Home(home), Home(home).config(), SystemClock(), SystemRng())
    application = daemon.server._runner.app
    assert isinstance(application, web.Application)
    return daemon, application


@pytest.fixture
async def routes(tmp_path: Path) -> list[web.AbstractRoute]:
    """The routes that the daemon registers."""
    daemon, application = _built(ServedIsland(tmp_path, "kiso").home)
    daemon.close()
    return [route for route in application.router.routes() if route.method != "HEAD"]


async def test_what_is_documented_is_what_is_served(routes: list[web.AbstractRoute]) -> None:
    served = {(route.method, route.resource.canonical) for route in routes if route.resource}
    assert served == set(document.operations())


async def test_every_handler_has_a_docstring(routes: list[web.AbstractRoute]) -> None:
    for route in routes:
        said = inspect.getdoc(route.handler)
        assert said and said.splitlines()[0].endswith((".", ":", "`.")), route


# --- a running daemon -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedIsland]:
    made = ServedIsland(tmp_path_factory.mktemp("openapi"), "kiso")
    made.add_silent_engine()
    made.configure("allow_files", json.dumps([str(made.home.parent)]))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def admin(place: ServedIsland) -> Caller:
    return Caller(place.url, (place.home / "token").read_text().strip())


@pytest.fixture(scope="module")
def user(place: ServedIsland) -> Caller:
    return Caller(place.url, place.user_token)


@pytest.fixture(scope="module")
def script(place: ServedIsland) -> Path:
    """A script in a folder from which batches may name files."""
    path = place.home.parent / "script.py"
    path.write_text("print(1)\n")
    return path


@pytest.fixture(scope="module")
def small(admin: Caller, place: ServedIsland) -> dict[str, Any]:
    """The answer to the publication of a small dataset."""
    path = place.home.parent / "small.parquet"
    table = pa.table({"ra": [10.0, 187.0], "dec": [41.0, 12.0], "mag": [3.4, 8.6]})
    pq.write_table(table, path)
    body = {"path": str(path), "name": "small", "title": "Two galaxies", "licence": "CC0"}
    *_, last = admin.call("POST", "/api/v1/datasets", body, status=200)
    result: dict[str, Any] = last["result"]
    return result


def test_open_paths_and_tokens(place: ServedIsland, admin: Caller) -> None:
    nobody = Caller(place.url, None)
    nobody.call("GET", "/healthz", status=200)
    nobody.call("GET", "/readyz", status=200)
    for path in ("/", "/ui", "/metrics", "/version", "/sessions", "/api/v1/peers"):
        for who in (nobody, Caller(place.url, "wrong"), Caller(place.url, "wrong", basic=True)):
            assert who.call("GET", path, status=401)["error"] == "unauthenticated"
    basic = Caller(place.url, place.user_token, basic=True)
    assert basic.call("GET", "/version", status=200)["version"] == "0.9.0-incubating"
    assert b"jobs_accepted" in admin.call("GET", "/metrics", status=200)
    assert admin.raw("HEAD", "/api/v1/peers")[0] == 200


def test_peers(admin: Caller, user: Caller, place: ServedIsland) -> None:
    assert user.call("GET", "/api/v1/island", status=200)["island"] == "kiso"
    [me] = user.call("GET", "/api/v1/peers", status=200)
    assert me["island"] == "kiso" and me["state"] == "self" and not me["linked"]
    nearby = user.call("GET", "/api/v1/peers/nearby", status=200)
    assert nearby["state"] == "off" and nearby["islands"] == []
    made = admin.call("POST", "/api/v1/peers/invitations", status=201)
    assert made["founded"] and made["this_machine_only"] and Path(made["recovery_key"]).is_file()
    again = admin.call("POST", "/api/v1/peers/invitations", {"uses": 3, "valid_s": 60}, status=201)
    assert not again["founded"] and again["recovery_key"] is None and again["uses"] == 3
    for bad in ({"uses": 0}, {"uses": "3"}, {"valid": 3}, [1], "x", {"valid_s": 1e300}):
        assert admin.call("POST", "/api/v1/peers/invitations", bad, status=400)["error"] == "bad_input"
    for word in ("", "nonsense", made["invitation"][:-4] + "AAAA"):
        admin.call("POST", "/api/v1/peers/join", {"invitation": word}, status=400)
    assert admin.call("POST", "/api/v1/peers/check", status=200) == []
    for path in ("invitations", "join", "check"):
        denied = user.call("POST", f"/api/v1/peers/{path}", {"invitation": "x"}, status=403)
        assert denied["error"] == "denied" and "administrator" in denied["hint"]


def test_servers(admin: Caller, user: Caller) -> None:
    body = {"kind": "hdfs", "url": "hdfs://namenode:8020", "comment": "ours"}
    added = admin.call("POST", "/api/v1/servers", body, status=201)
    listed = user.call("GET", "/api/v1/servers", status=200)
    assert added in listed and {row["kind"] for row in listed} == {"livy", "hdfs"}
    user.call("POST", "/api/v1/servers", body, status=403)
    user.call("DELETE", f"/api/v1/servers/{added['id']}", status=403)
    admin.call("POST", "/api/v1/servers", {**body, "kind": "teapot"}, status=400)
    admin.call("POST", "/api/v1/servers", {**body, "url": "http://u:p@h/"}, status=400)
    admin.call("POST", "/api/v1/servers", {"kind": "hdfs"}, status=400)
    assert admin.call("DELETE", f"/api/v1/servers/{added['id']}", status=200) == added
    admin.call("DELETE", f"/api/v1/servers/{added['id']}", status=404)


def test_datasets(admin: Caller, user: Caller, small: dict[str, Any], place: ServedIsland) -> None:
    assert small["rows"] == 2 and small["audience"]
    assert [row["dataset"] for row in user.call("GET", "/api/v1/datasets", status=200)] == ["kiso/small"]
    for query, hits in (
        ("words=galaxies", 1),
        ("region=circle+187+12+1", 1),
        ("region=circle+100+-60+1", 0),
        ("column=mag&format=parquet", 1),
        ("words=nothing&limit=1", 0),
        ("time=2026-01-01..", 0),
    ):
        assert len(user.call("GET", f"/api/v1/datasets/search?{query}", status=200)) == hits, query
    for query in ("region=square", "time=noon", "limit=0", "limit=x", "wrods=x", "region=circle+1+2+nan"):
        assert user.call("GET", f"/api/v1/datasets/search?{query}", status=400)["hint"], query
    shown = user.call("GET", "/api/v1/datasets/kiso/small", status=200)
    assert {**shown, "audience": small["audience"]} == small
    assert user.call("GET", f"/api/v1/datasets/kiso/small@{small['snapshot']}", status=200) == shown
    assert "small" in user.call("GET", "/api/v1/datasets/kiso/smell", status=404)["hint"]
    user.call("GET", "/api/v1/datasets/nobody/small", status=404)
    user.call("GET", "/api/v1/datasets/kiso/sm%2fall", status=400)
    user.call("GET", f"/api/v1/datasets/kiso/small@{'0' * 64}", status=404)

    path = str(place.home.parent / "small.parquet")
    user.call("POST", "/api/v1/datasets", {"path": path, "name": "mine"}, status=403)
    admin.call("POST", "/api/v1/datasets", {"path": path}, status=400)
    for bad in ({"path": path, "name": "a/b"}, {"path": "/nonexistent", "name": "gone"}, {"path": "/", "name": "all"}):
        [*_, last] = admin.call("POST", "/api/v1/datasets", bad, status=200)
        assert last["error"] and last["status"] >= 400 and last["hint"], bad
    *_, last = admin.call("POST", "/api/v1/datasets", {"path": path, "name": "other"}, status=200)
    user.call("DELETE", "/api/v1/datasets/other", status=403)
    assert admin.call("DELETE", "/api/v1/datasets/other", status=200) == {"name": "other", "state": "withdrawn"}
    admin.call("DELETE", "/api/v1/datasets/other", status=404)


def test_files(admin: Caller, user: Caller, small: dict[str, Any], place: ServedIsland) -> None:
    [entry] = user.call("GET", "/api/v1/files", status=200)
    assert entry["snapshot"] == small["snapshot"]
    about = user.call("GET", "/api/v1/files/kiso/small", status=200)
    assert about["bytes"] == about["bytes_local"] == small["bytes"] and about["bytes_moved"] == 0
    base = f"/api/v1/files/kiso/small/{small['snapshot']}"
    page = user.call("GET", f"{base}/list", status=200)
    assert [file["path"] for file in page["files"]] == ["small.parquet"] and page["next"] is None
    user.call("GET", f"{base}/list?limit=0", status=400)
    content = (place.home.parent / "small.parquet").read_bytes()
    where = f"{base}/data/small.parquet"
    assert user.call("GET", where, status=200) == content
    assert user.call("GET", where, status=206, Range="bytes=4-11") == content[4:12]
    assert user.call("GET", where, status=206, Range="bytes=-8") == content[-8:]
    assert user.call("GET", f"{where}?align=chunk", status=206, Range="bytes=4-11") in content
    user.call("GET", where, status=416, Range=f"bytes={len(content)}-")
    etag = user.raw("HEAD", where)[1]["etag"]
    user.call("GET", where, status=304, If_None_Match=etag)
    user.call("GET", f"{base}/data/none.parquet", status=404)
    user.call("GET", f"{base}/data/..%2fkey", status=404)
    user.call("GET", "/api/v1/files/kiso/small/xyz/list", status=400)
    user.call("GET", "/api/v1/files/kiso/nothing", status=404)
    [own] = user.call("POST", "/api/v1/files/kiso/small/fetch", status=200)
    assert own["error"] == "conflict"
    user.call("DELETE", "/api/v1/files/kiso/small", status=403)
    admin.call("DELETE", "/api/v1/files/kiso/small", status=404)


def test_streams(admin: Caller, user: Caller, place: ServedIsland) -> None:
    folder = place.home.parent / "incoming"
    folder.mkdir()
    body = {"kind": "folder", "path": str(folder), "name": "incoming"}
    user.call("POST", "/api/v1/sources", body, status=403)
    admin.call("POST", "/api/v1/sources", {**body, "kind": "kafka"}, status=400)
    admin.call("POST", "/api/v1/sources", {**body, "path": "relative"}, status=400)
    made = admin.call("POST", "/api/v1/sources", body, status=201)
    assert made["source"] == "kiso/incoming" and made["state"] == "empty"
    admin.call("POST", "/api/v1/sources", body, status=409)
    assert [row["name"] for row in user.call("GET", "/api/v1/sources", status=200)] == ["incoming"]

    wanted = {"source": "kiso/incoming", "into": "bright"}
    refused = user.call("POST", "/api/v1/subscriptions", {**wanted, "where": "mag <"}, status=400)
    assert "SQL" in refused["message"]
    user.call("POST", "/api/v1/subscriptions", {**wanted, "region": "circle 1"}, status=400)
    user.call("POST", "/api/v1/subscriptions", {**wanted, "source": "kiso/none"}, status=404)
    user.call("POST", "/api/v1/subscriptions", {**wanted, "from": "then"}, status=400)
    standing = user.call("POST", "/api/v1/subscriptions", {**wanted, "where": "mag < 18"}, status=201)
    assert standing["into"] == "kiso/bright" and standing["from"] == "now"
    assert [row["id"] for row in user.call("GET", "/api/v1/subscriptions", status=200)] == [standing["id"]]
    assert {row["into"] for row in user.call("GET", "/api/v1/channels", status=200)} <= {"kiso/bright"}
    user.call("DELETE", "/api/v1/subscriptions/nothing", status=404)
    ended = user.call("DELETE", f"/api/v1/subscriptions/{standing['id']}", status=200)
    assert ended["id"] == standing["id"]
    user.call("DELETE", "/api/v1/sources/incoming", status=403)
    assert admin.call("DELETE", "/api/v1/sources/incoming", status=200) == {"name": "incoming", "state": "removed"}
    admin.call("DELETE", "/api/v1/sources/incoming", status=404)


def test_jobs(admin: Caller, user: Caller, small: dict[str, Any]) -> None:
    """The part that needs no Spark: the session is pinned to the only island, and ended again."""
    user.call("POST", "/api/v1/sessions", {"inputs": ["kiso/nothing"]}, status=404)
    user.call("POST", "/api/v1/sessions", {"inputs": ["nonsense"]}, status=400)
    user.call("POST", "/api/v1/sessions", {"at": "nowhere"}, status=404)
    user.call("POST", "/api/v1/sessions", {"kind": "cobol"}, status=400)
    opened = user.call(
        "POST", "/api/v1/sessions", {"inputs": ["kiso/small"], "name": "trial"}, status=201, Idempotency_Key="k1"
    )
    again = user.call(
        "POST", "/api/v1/sessions", {"inputs": ["kiso/small"], "name": "trial"}, status=201, Idempotency_Key="k1"
    )
    assert again["job"] == opened["job"]
    user.call("POST", "/api/v1/sessions", {"name": "other"}, status=409, Idempotency_Key="k1")
    one = f"/api/v1/jobs/{opened['job']}"
    assert [row["job"] for row in admin.call("GET", "/api/v1/jobs?live=1&kind=session", status=200)] == [opened["job"]]
    assert user.call("GET", f"{one}?kind=session&key=1", status=200)["key"]
    user.call("GET", f"{one}?kind=batch", status=404)
    statement = user.call("POST", f"{one}/statements", {"code": "1 + 1"}, status=201)
    assert statement["id"] == 0 and statement["completed"] is None
    user.call("GET", f"{one}/statements", status=200)
    user.call("POST", f"{one}/statements/0/cancel", status=200)
    done = user.call("GET", f"{one}/statements/0?timeout=20", status=200)
    assert done["state"] in ("cancelled", "available") and done["job"] == opened["job"]
    user.call("GET", f"{one}/statements/9", status=404)
    user.call("GET", f"{one}/statements/0/result", status=404 if done["output"] is None else 200)
    user.call("GET", f"{one}/statements/x", status=400)
    user.call("POST", f"{one}/statements", {"kode": "1"}, status=400)

    user.call("GET", f"{one}/wait?timeout=0", status=200)
    user.call("GET", f"{one}/wait?timeout=soon", status=400)
    until(lambda: bool(user.call("GET", f"{one}/explain", status=200)), 30)  # the engine is asked first, in vain
    [row] = user.call("GET", f"{one}/explain", status=200)
    assert row["island"] == "kiso" and row["verdict"] == "chosen" and row["replayed"]
    terms = [row["term"] for row in user.call("GET", "/api/v1/routing/accuracy", status=200)]
    assert terms == ["wait", "fetch", "start", "compute", "output"]
    assert any("kiso/small" in line for line in user.call("GET", f"{one}/log", status=200)["log"])
    user.call("GET", one, status=403, X_Island_Job_Key="0" * 32)

    for path in ("", "/explain", "/log", "/wait", "/statements", "/statements/0", "/statements/0/result"):
        user.call("GET", f"/api/v1/jobs/nothing{path}", status=404)
    user.call("POST", "/api/v1/jobs/nothing/cancel", status=404)
    user.call("DELETE", "/api/v1/jobs/nothing", status=404)
    user.call("POST", f"{one}/cancel", status=200)
    closed = user.call("DELETE", one, status=200)
    assert closed["job"] == opened["job"]

    # The user may not see the administrator's job.
    batch = admin.call("POST", "/api/v1/batches?file=a.py&arg=1&arg=2", b"print(1)", status=201)
    assert batch["kind"] == "batch"
    user.call("GET", f"/api/v1/jobs/{batch['job']}", status=404)
    admin.call("POST", f"/api/v1/jobs/{batch['job']}/cancel", status=200)
    admin.call("POST", "/api/v1/batches?file=a.jar", b"PK", status=400)
    admin.call("POST", "/api/v1/batches?file=a.py", b"#" * (1024 * 1024 + 1), status=413)


def test_livy(user: Caller, small: dict[str, Any], script: Path) -> None:
    """Livy's paths and messages. The replay of the recording tests its behaviour."""
    user.call("GET", "/", status=302)
    user.call("GET", "/ui", status=200)
    for path in ("/sessions", "/sessions/", "/batches", "/batches/"):
        user.call("GET", f"{path}?from=0&size=2", status=200)
        user.call("GET", f"{path}?from=x", status=400)
        user.call("POST", path, b"{", status=400)
    for path in ("", "/state", "/log", "/statements", "/statements/0", "/jobs/1"):
        user.call("GET", f"/sessions/99{path}", status=404)
    for path in ("", "/state", "/log"):
        user.call("GET", f"/batches/99{path}", status=404)
    user.call("DELETE", "/batches/99", status=404)
    for path in ("connect", "interrupt", "stop", "submit-job", "run-job", "statements/0/cancel"):
        user.call("POST", f"/sessions/99/{path}", status=404)

    opened = user.call(
        "POST", "/sessions", {"kind": "pyspark", "conf": {"spark.island.inputs": "kiso/small"}}, status=201
    )
    one = f"/sessions/{opened['id']}"
    assert opened["conf"]["spark.island.inputs"] == "kiso/small"
    posted = user.call("POST", f"{one}/statements", {"code": "1"}, status=201)
    user.call("POST", f"{one}/statements", {"code": 1}, status=400)
    for path in ("", "/state", "/log", "/statements?order=desc", f"/statements/{posted['id']}"):
        user.call("GET", one + path, status=200)
    user.call("GET", f"{one}/jobs/1", status=404)
    user.call("POST", f"{one}/connect", status=200)
    user.call("POST", f"{one}/completion", {"code": "sp", "kind": "pyspark"}, status=200)
    for kind in ("jar", "pyfile", "file"):
        user.call("POST", f"{one}/upload-{kind}", b"x", status=400)
        user.call("POST", f"{one}/add-{kind}", {"uri": "x"}, status=400)
    for kind in ("submit", "run"):
        user.call("POST", f"{one}/{kind}-job", {"job": "eA=="}, status=400)
    user.call("POST", f"{one}/statements/{posted['id']}/cancel", status=200)
    user.call("POST", f"{one}/interrupt", status=200)
    user.call("POST", f"{one}/stop", status=204)
    user.call("DELETE", one, status=200)
    user.call("GET", one, status=404)

    user.call("POST", "/batches", {}, status=400)
    user.call("POST", "/batches", {"file": "/nonexistent/a.py"}, status=400)
    batch = user.call("POST", "/batches", {"file": str(script)}, status=201)
    where = f"/batches/{batch['id']}"
    for path in ("", "/state", "/log"):
        user.call("GET", where + path, status=200)
    user.call("DELETE", where, status=200)


def test_users(admin: Caller, user: Caller, place: ServedIsland) -> None:
    made = admin.call("POST", "/api/v1/users", {"name": "alice", "valid_s": 86400}, status=201)
    assert (made["name"], made["role"], made["state"], made["island"]) == ("alice", "user", "active", "kiso")
    alice = Caller(place.url, made["token"])
    assert alice.call("GET", "/api/v1/user", status=200) == {k: v for k, v in made.items() if k != "token"}
    assert Caller(place.url, made["token"], basic=True).call("GET", "/api/v1/user", status=200)["name"] == "alice"
    assert user.call("GET", "/api/v1/user", status=200)["state"] == "shared"
    assert admin.call("GET", "/api/v1/user", status=200)["role"] == "administrator"
    carol = admin.call("POST", "/api/v1/users", {"name": "carol", "role": "administrator"}, status=201)
    assert carol["expires"] is None and carol["token"].startswith("isl_a_")

    assert [row["name"] for row in admin.call("GET", "/api/v1/users", status=200)] == ["alice", "carol"]
    assert [row["name"] for row in alice.call("GET", "/api/v1/users", status=200)] == ["alice"]
    assert user.call("GET", "/api/v1/users", status=200) == []
    for name in ("carol", "nobody"):
        alice.call("GET", f"/api/v1/users/{name}", status=404)
        alice.call("DELETE", f"/api/v1/users/{name}", status=404)
        alice.call("POST", f"/api/v1/users/{name}/rotate", status=404)
    assert admin.call("GET", "/api/v1/users/alice", status=200)["issued"] == made["issued"]
    user.call("POST", "/api/v1/users", {"name": "eve", "role": "administrator"}, status=403)
    for body in ({"name": "Eve"}, {"name": "user"}, {"name": "eve", "role": "root"}, {"name": "eve", "valid_s": -1}):
        admin.call("POST", "/api/v1/users", body, status=400)
    admin.call("POST", "/api/v1/users", {"name": "alice"}, status=409)

    alice.call("POST", "/api/v1/users/alice/rotate", {"valid_s": 0}, status=403)
    again = alice.call("POST", "/api/v1/users/alice/rotate", status=200)
    assert again["expires"] == made["expires"] and again["token"] != made["token"]
    unknown = alice.call("GET", "/api/v1/user", status=401)
    assert unknown == Caller(place.url, "isl_u_" + "A" * 32).call("GET", "/api/v1/user", status=401)
    alice = Caller(place.url, again["token"])
    assert alice.call("GET", "/api/v1/journal", status=200)[-1]["act"] == "user.rotate"
    assert {row["who"] for row in alice.call("GET", "/api/v1/journal", status=200)} == {"alice@kiso"}
    assert admin.call("DELETE", "/api/v1/users/alice", status=200)["state"] == "revoked"
    alice.call("GET", "/api/v1/user", status=401)
    admin.call("POST", "/api/v1/users/alice/rotate", status=400)
    fresh = admin.call("POST", "/api/v1/users/alice/rotate", {"valid_s": 0}, status=200)
    assert fresh["state"] == "active"

    # The gateway and the operator API show each user her own.
    alice, root = Caller(place.url, fresh["token"]), Caller(place.url, carol["token"])
    hers = alice.call("POST", "/sessions", {"kind": "sql", "name": "mine"}, status=201)["id"]
    theirs = user.call("POST", "/sessions", {"kind": "sql", "name": "mine"}, status=201)["id"]
    assert [view["id"] for view in alice.call("GET", "/sessions", status=200)["sessions"]] == [hers]
    assert [row["id"] for row in alice.call("GET", "/api/v1/jobs", status=200)] == [hers]
    assert alice.call("GET", "/sessions/mine", status=200)["id"] == hers
    assert user.call("GET", "/sessions/mine", status=200)["id"] == theirs
    for key in (theirs, f"{theirs}/statements", f"{theirs}/state", f"{theirs}/log"):
        alice.call("GET", f"/sessions/{key}", status=404)
    alice.call("DELETE", f"/sessions/{theirs}", status=404)
    alice.call("POST", f"/api/v1/jobs/{theirs}/cancel", status=404)
    assert {hers, theirs} <= {row["id"] for row in root.call("GET", "/api/v1/jobs", status=200)}
    assert root.call("DELETE", f"/sessions/{theirs}", status=200) == {"msg": "deleted"}
    alice.call("DELETE", f"/sessions/{hers}", status=200)


def test_journal(admin: Caller, user: Caller, small: dict[str, Any]) -> None:
    rows = admin.call("GET", "/api/v1/journal?contains=dataset.publish&limit=5", status=200)
    assert rows and rows[0]["act"] == "dataset.publish" and rows[0]["island"] == "kiso"
    assert rows[0]["who"].endswith("@kiso") and json.loads(rows[0]["detail"] or "{}") is not None
    assert admin.call("GET", "/api/v1/journal?since=2999-01-01", status=200) == []
    for query in ("since=then", "limit=0", "limit=10001", "limit=x"):
        admin.call("GET", f"/api/v1/journal?{query}", status=400)
    verified = admin.call("GET", "/api/v1/journal/verify", status=200)
    assert verified["whole"] and verified["asked"] == 0
    where = "/api/v1/journal/acknowledge"
    admin.call("POST", where, {"reason": "nothing is missing"}, status=409)
    admin.call("POST", where, {"reason": ""}, status=400)
    user.call("POST", where, {"reason": "not an administrator"}, status=403)


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff\xfe", b'{"name": "\\ud800"}', b"[" * 100_000, b"null"])
def test_malformed_bodies_are_refused(admin: Caller, body: bytes) -> None:
    for method, path in document.operations():
        if method == "POST" and path.startswith("/api/v1/") and path.rpartition("/")[2] not in ("batches", "fetch"):
            target = path.replace("{id}", "nothing").replace("{number}", "0").replace("{name}", "alice")
            if target.endswith("/statements/0/cancel"):
                continue  # the operation has no body
            assert admin.call(method, target, body, status=400)["error"] == "bad_input", target


def test_unknown_paths_and_methods(admin: Caller) -> None:
    for method, path, status, code in (
        ("GET", "/api/v1/nothing", 404, "not_found"),
        ("PUT", "/api/v1/peers", 405, "method_not_allowed"),
        ("DELETE", "/api/v1/journal", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
    ):
        got, headers, data = admin.raw(method, path, b"{}" if method == "PUT" else None)
        assert got == status, path
        document.check({"$ref": "#/components/schemas/Error"}, answer := json.loads(data), path)
        assert answer["error"] == code and answer["status"] == status
        assert ("allow" in headers) == (status == 405)


def test_with_another_island(admin: Caller, small: dict[str, Any], place: ServedIsland, tmp_path: Path) -> None:
    """Joining, fetching, reading and dropping, which need a second island."""
    other = ServedIsland(tmp_path, "nanten", dialled=False)
    try:
        other.start()
        there = Caller(other.url, (other.home / "token").read_text().strip())
        word = admin.call("POST", "/api/v1/peers/invitations", status=201)["invitation"]
        joined = there.call("POST", "/api/v1/peers/join", {"invitation": word}, status=200)
        assert joined["island"] == "kiso" and joined["key"] == small["key"]
        wait_for("the dataset", lambda: there.call("GET", "/api/v1/datasets", status=200) or None)
        assert {row["state"] for row in there.call("GET", "/api/v1/peers", status=200)} == {"self", "up"}
        before = there.call("GET", "/api/v1/datasets/kiso/small", status=200)
        assert before["bytes_local"] == 0 and [holder["role"] for holder in before["holders"]] == ["owner"]
        *_, last = there.call("POST", "/api/v1/files/kiso/small/fetch", status=200)
        assert last["result"]["fetched"] == last["result"]["bytes_local"] == small["bytes"]
        assert admin.call("GET", "/api/v1/files/kiso/small", status=200)["bytes_sent"] == small["bytes"]
        there.call("GET", f"/api/v1/files/kiso/small/{small['snapshot']}/data/small.parquet", status=200)
        there.call("DELETE", "/api/v1/datasets/small", status=404)
        assert there.call("DELETE", "/api/v1/files/kiso/small", status=200)["freed"] >= small["bytes"]

        # Pinned to an island that refuses foreign jobs: its row has the reason and all keys.
        job = there.call("POST", "/api/v1/sessions", {"inputs": ["kiso/small"], "at": "kiso"}, status=201)["job"]

        def considered() -> Any:
            rows = there.call("GET", f"/api/v1/jobs/{job}/explain", status=200)
            return next((row for row in rows if row["island"] == "kiso" and "accept_from" in row["reason"]), None)

        row = wait_for("kiso's refusal", considered)
        assert row["verdict"] == "rejected" and row["seconds"] is None and row["wait_s"] is None
        there.call("DELETE", f"/api/v1/jobs/{job}", status=200)
    finally:
        other.stop()


def test_every_operation_was_called(admin: Caller, user: Caller) -> None:
    """Runs last in this file: every documented operation was called."""
    tried = admin.seen | user.seen | {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/version")}
    if len(tried) < 20:
        pytest.skip("only a part of this file ran")
    missing = sorted(set(document.operations()) - tried)
    assert not missing, f"never called: {missing}"


def test_listings_have_flat_rows_with_their_island() -> None:
    schemas = document.document()["components"]["schemas"]
    for (_, path), operation in document.operations().items():
        for response in operation["responses"].values():
            content = document.resolved(response).get("content", {}).get("application/json", {}).get("schema", {})
            if content.get("type") == "array" and path.startswith("/api/"):
                name = content["items"]["$ref"].rpartition("/")[2]
                if name == "JobStatement":
                    continue
                assert "island" in document.keys(name), path
                parts = itertools.chain(
                    *(schemas[n].get("properties", {}).values() for n in (name, f"{name}Common") if n in schemas)
                )
                assert all(document.resolved(part).get("type") != "object" for part in parts), path
