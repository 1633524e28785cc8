"""Nothing that the user port offers to a user gives her a secret of the island or of another user."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.contracts import document
from tests.contracts.test_openapi import Caller
from tests.islands.user_port import livy_in_thread
from tests.servers.daemon import ServedIsland, running

pytestmark = pytest.mark.e2e

FILES = ("key", "token", "token.user", "island.toml", "state.db", "livy-password")
PASSWORD = "a-password-of-the-sites-own-livy"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedIsland]:
    """An island beside a Livy without Spark. Its administrator has allowed every folder."""
    made = ServedIsland(tmp_path_factory.mktemp("role"), "kiso")
    made.configure("allow_files", '["/"]')
    made.configure("password_file", '"livy-password"')
    (made.home / "livy-password").write_text(PASSWORD)
    (made.home / "livy-password").chmod(0o600)
    with livy_in_thread() as livy:
        made.configure("url", json.dumps(livy))
        with running(made):
            yield made


@pytest.fixture(scope="module")
def tokens(place: ServedIsland) -> dict[str, str]:
    """The tokens of two users."""
    table = place.home.parent / "small.parquet"
    pq.write_table(pa.table({"n": [1, 2]}), table)
    place.command("dataset", "publish", str(table), "--name", "small")
    return {name: place.command("user", "add", name).strip() for name in ("alice", "bob")}


@pytest.fixture(scope="module")
def secrets(place: ServedIsland, tokens: dict[str, str]) -> list[bytes]:
    """What no answer to alice may contain."""
    key = (place.home / "key").read_text().splitlines()
    shared = [(place.home / name).read_text().strip() for name in ("token", "token.user")]
    return [text.encode() for text in (*key[1:-1], *shared, tokens["bob"], PASSWORD)]


def links(place: ServedIsland) -> list[str]:
    """Paths outside of the home folder that lead to its secrets."""
    folder = place.home.parent / "links"
    folder.mkdir(exist_ok=True)
    (folder / "token.py").symlink_to(place.home / "token")
    (folder / "home").symlink_to(place.home)
    (place.home / "inside.py").write_text("print('inside')")
    return [str(folder / "token.py"), str(folder / "home" / "inside.py"), str(place.home / "inside.py")]


def bodies(place: ServedIsland, path: str) -> Iterator[bytes | None]:
    """Bodies for a POST, among them requests for files of the home folder."""
    yield None
    if path.rstrip("/") in ("/batches", "/sessions"):
        wanted = [*(str(place.home / name) for name in FILES), *links_of(place)]
        for file, key in itertools.product(wanted, ("file", "pyFiles", "files", "jars", "archives")):
            for text in (file, f"file://{file}"):
                body: dict[str, Any] = {"file": "/x.py", key: text if key == "file" else [text]}
                yield json.dumps(body if "batches" in path else {**body, "kind": "sql"}).encode()
        yield json.dumps({"kind": "sql", "proxyUser": "administrator"}).encode()
    if path == "/api/v1/users":
        yield json.dumps({"name": "eve", "role": "administrator"}).encode()
    if path.endswith("/rotate"):
        yield json.dumps({"valid_s": 1e6}).encode()
    if path in ("/api/v1/datasets", "/api/v1/sources"):
        yield json.dumps({"path": str(place.home), "name": "home", "kind": "folder"}).encode()


_LINKS: dict[Path, list[str]] = {}


def links_of(place: ServedIsland) -> list[str]:
    if place.home not in _LINKS:
        _LINKS[place.home] = links(place)
    return _LINKS[place.home]


VALUES = {
    "owner": ("kiso", ".."),
    "name": ("small", "alice", "bob", "administrator", "user"),
    "id": ("0", "bobs", "..%2ftoken"),
    "key": ("0", "bobs", "..%2ftoken"),
    "number": ("0",),
    "statement": ("0",),
    "job": ("0",),
    "path": ("small.parquet", "..%2ftoken", "%2e%2e%2ftoken"),
}


def targets(place: ServedIsland, path: str, snapshot: str) -> Iterator[str]:
    """The targets of an operation, with each combination of values for the parts of its path."""
    values = {**VALUES, "snapshot": (snapshot,)}
    parts = re.findall(r"{(\w+)}", path)
    for chosen in itertools.product(*(values[part] for part in parts)):
        target = path
        for part, value in zip(parts, chosen, strict=True):
            target = target.replace(f"{{{part}}}", value)
        yield target
    if path == "/api/v1/files/{owner}/{name}/{snapshot}/data/{path}":
        yield f"/api/v1/files/kiso/small/{snapshot}/data/{quote(str(place.home / 'token'))}"


def test_a_user_gets_no_secret_from_any_operation(
    place: ServedIsland, tokens: dict[str, str], secrets: list[bytes]
) -> None:
    bob, alice = Caller(place.url, tokens["bob"]), Caller(place.url, tokens["alice"])
    bob.call("POST", "/sessions", {"kind": "sql", "name": "bobs"}, status=201)
    posted = bob.call("POST", "/sessions/0/statements", {"code": "-- only for bob"}, status=201)
    snapshot = bob.call("GET", "/api/v1/files/kiso/small", status=200)["snapshot"]
    hidden = [*secrets, b"only for bob", b"bob@kiso", b'"bobs"']
    for (method, path), operation in document.operations().items():
        if path.endswith("/rotate") or (method, path) == ("DELETE", "/api/v1/users/{name}"):
            continue  # the next test: they change the token of alice
        denied = operation["summary"].endswith("(administrator)")
        for target in targets(place, path, snapshot):
            for body in bodies(place, path) if method == "POST" else [None]:
                status, headers, content = alice.raw(method, target, body)
                shown = content + json.dumps(headers).encode()
                where = f"{method} {target} {body!r}"
                assert not [secret for secret in hidden if secret in shown], where
                assert status != 401 and (status == 403 or not denied), where
    assert bob.call("GET", f"/sessions/0/statements/{posted['id']}", status=200)["code"] == "-- only for bob"
    assert [row["name"] for row in bob.call("GET", "/api/v1/users", status=200)] == ["bob"]


def test_a_user_cannot_become_another_one(place: ServedIsland, tokens: dict[str, str]) -> None:
    alice = Caller(place.url, tokens["alice"])
    for name in ("bob", "administrator", "user", "nobody", "..%2fbob"):
        for method, target in (("POST", f"/api/v1/users/{name}/rotate"), ("DELETE", f"/api/v1/users/{name}")):
            assert alice.raw(method, target)[0] == 404
    assert Caller(place.url, tokens["bob"]).call("GET", "/api/v1/user", status=200)["name"] == "bob"
    assert alice.call("POST", "/api/v1/users/alice/rotate", status=200)["role"] == "user"


def test_files_of_the_home_folder_are_no_files_of_batches(place: ServedIsland, tokens: dict[str, str]) -> None:
    bob = Caller(place.url, tokens["bob"])
    for path in links_of(place):
        answer = bob.call("POST", "/batches", {"file": path}, status=400)
        assert "cannot be added" in answer["msg"] or ".py" in answer["msg"], path
    outside = place.home.parent / "outside.py"
    outside.write_text("print(1)")
    bob.call("POST", "/batches", {"file": str(outside)}, status=201)
    assert os.access(place.home / "token", os.R_OK), "the account of this test could read it"
