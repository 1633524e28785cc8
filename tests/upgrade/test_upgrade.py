"""A home folder that a released version has written, under this version: nothing of it is lost."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from island.cli.demo.demo_island import DemoIsland
from island.client import Api
from island.errors import IslandError
from island.home import Endpoint
from island.kernel.db import migrations

pytestmark = pytest.mark.e2e

RELEASE = Path(__file__).parent / "home-0.1.0.tar.gz"
USER_PORT, PEER_PORT = "127.0.0.1:18990", "127.0.0.1:18991"
"""The ports in the fixture's configuration."""

VOLATILE = {
    "state",
    "since",
    "rtt_ms",
    "dialled",
    "linked",
    "bandwidth",
    "address",
    "silent_since",
    "reason",
    "version",
}
"""What the commands show about this moment: connections, and what depends on them."""


class Upgraded:
    """The island of the fixture, which was started by this version, and what its commands showed before."""

    def __init__(self, folder: Path) -> None:
        self.place = DemoIsland(folder, "kiso")
        shutil.rmtree(self.place.home)
        with tarfile.open(RELEASE) as archive:
            archive.extractall(folder, filter="data")
        (folder / "home").rename(self.place.home)
        self.shown: dict[str, Any] = json.loads((folder / "shown.json").read_text("utf-8"))
        toml = self.place.home / "island.toml"
        ports = {USER_PORT: self.place.url.removeprefix("http://"), PEER_PORT: self.place.peer_listen}
        text = toml.read_text("utf-8")
        for old, new in ports.items():
            assert old in text
            text = text.replace(old, new)
        toml.write_text(text, "utf-8")
        self.place.start()
        self.api = Api(self.place.home_endpoint())

    def compare(self, name: str, path: str, *, key: str, volatile: frozenset[str] = frozenset()) -> None:
        """Every row that the release showed is still there; it may have got further keys."""
        now = {row[key]: row for row in self.api.get(f"/api/v1/{path}")}
        before = {row[key]: row for row in self.shown[name]}
        assert before and now.keys() >= before.keys()
        for which, row in before.items():
            expected = {column: value for column, value in row.items() if column not in VOLATILE | volatile}
            assert {column: now[which][column] for column in expected} == expected


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    island = Upgraded(tmp_path_factory.mktemp("upgrade"))
    yield island
    island.place.stop()


def test_the_fixture_is_that_of_a_release(tmp_path: Path) -> None:
    with tarfile.open(RELEASE) as archive:
        archive.extract("home/state.db", tmp_path, filter="data")
    conn = sqlite3.connect(tmp_path / "home" / "state.db")
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    conn.close()
    assert version < migrations("state")[-1][0]  # otherwise the tests below do not migrate anything


def test_the_catalog_is_the_same(upgraded: Upgraded) -> None:
    upgraded.compare("datasets", "datasets", key="dataset")
    found = upgraded.api.get("/api/v1/datasets/search", words="galaxies")
    assert {row["dataset"] for row in found} == {"hida/galaxies", "kiso/copy"}
    details = upgraded.api.get("/api/v1/datasets/kiso/stars")
    assert details["rows"] == 3 and [column["name"] for column in details["columns"]] == ["ra", "dec", "mag"]
    replica = upgraded.api.get("/api/v1/datasets/hida/galaxies")
    assert replica["bytes_local"] == replica["bytes"]


def test_the_islands_and_servers_are_the_same(upgraded: Upgraded) -> None:
    upgraded.compare("islands", "peers", key="key")
    upgraded.shown["servers"] = [row for row in upgraded.shown["servers"] if row["url"] != f"http://{USER_PORT}"]
    upgraded.compare("servers", "servers", key="url")


def test_sources_and_subscriptions_are_the_same(upgraded: Upgraded) -> None:
    # The watched folder does not exist on this machine.
    upgraded.compare("sources", "sources", key="source", volatile=frozenset({"problem", "updated"}))
    upgraded.compare("subscriptions", "subscriptions", key="id")
    assert [row["rows"] for row in upgraded.api.get("/api/v1/subscriptions")] == [3]


def test_jobs_keep_their_results(upgraded: Upgraded) -> None:
    upgraded.compare("jobs", "jobs", key="job")
    assert "42" in upgraded.place.command("job", "show", "0")


def test_the_users_token_is_the_same(upgraded: Upgraded) -> None:
    user = Api(Endpoint(upgraded.place.url, upgraded.place.user_token))
    assert len(user.get("/api/v1/datasets")) == 3
    with pytest.raises(IslandError, match="administrator"):
        user.post("/api/v1/peers/invitations", {})


def test_the_journal_and_the_log_go_on(upgraded: Upgraded) -> None:
    upgraded.compare("journal", "journal", key="seq")
    upgraded.place.command("server", "add", "hbase", "http://hbase.example.org:8080")
    rows = upgraded.api.get("/api/v1/journal")
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1)) and rows[-1]["act"] == "server.add"
    verified = upgraded.api.get("/api/v1/journal/verify")
    assert verified["whole"] and verified["rows"] == len(rows)
    [me] = [row["key"] for row in upgraded.shown["islands"] if row["state"] == "self"]
    status = upgraded.api.get("/api/v1/island")
    assert status["key"] == me
    assert [p for p in status["problems"] if "/srv/island/alerts cannot be read" not in p] == []  # not on this machine
