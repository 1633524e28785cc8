"""One real daemon: init, run, ready, stop, crash, restart, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.cli.demo.demo_island import wait_for
from tests.servers.daemon import ServedIsland, island_command, island_process

pytestmark = pytest.mark.e2e


@pytest.fixture
def place(tmp_path: Path) -> ServedIsland:
    """An island that no test starts."""
    return ServedIsland(tmp_path, "kiso")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedIsland]:
    """An island with an engine, whose daemon tests stop and kill."""
    made = ServedIsland(tmp_path_factory.mktemp("daemon"), "kiso", spark=True)
    yield made
    made.stop()


@pytest.fixture
def running(home: ServedIsland) -> ServedIsland:
    """This island with its daemon running."""
    if not home.is_running:
        home.start()
    return home


def get(url: str, token: str = "") -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def children(pid: int) -> list[int]:
    """The pids of all descendants of a process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue  # it ended while we looked
    found, level = [], {pid}
    while level := {child for child, parent in parents.items() if parent in level}:
        found += sorted(level)
    return found


def gone(pids: list[int]) -> bool | None:
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if state != "Z":
            return None
    return True


def test_init_makes_a_private_home_and_refuses_to_make_it_again(tmp_path: Path) -> None:
    home = tmp_path / "h"
    done = island_process("init", str(home), "--name", "kiso", "--archipelago", "sky")
    assert done.returncode == 0 and done.stdout == "" and "island run" in done.stderr
    for name in ("key", "token", "token.user"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert (home / "token").read_text() != (home / "token.user").read_text()
    text = (home / "island.toml").read_text()
    assert "\naccept_from = []\n" in text and '\nforeign_code = "none"\n' in text and "\nsame_user = false\n" in text
    key = (home / "key").read_bytes()
    again = island_command("init", str(home), "--name", "other")
    assert again.returncode == 1 and "already the home folder" in again.stderr and "Traceback" not in again.stderr
    assert (home / "key").read_bytes() == key


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--name", "a/b"), "not a valid island name"),
        (("--name", "kiso", "--listen", "0.0.0.0:8990"), "loopback"),
        (("--name", "kiso", "--listen", "nonsense"), "HOST:PORT"),
    ],
)
def test_init_refuses_what_cannot_work(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = island_command("init", str(tmp_path / "h"), *arguments)
    assert done.returncode == 1 and words in done.stderr
    assert not (tmp_path / "h").exists()


def test_usage_errors_are_2(tmp_path: Path) -> None:
    assert island_process("init").returncode == 2
    assert island_command("nonsense").returncode == 2
    assert island_command("--version").stdout.startswith("island ")


def test_a_home_that_is_none_says_how_to_make_one(tmp_path: Path) -> None:
    for command in (["run"], ["peer", "ls"]):
        done = island_command(*command, environment={"ISLAND_HOME": str(tmp_path / "none")})
        assert done.returncode == 1 and "island init" in done.stderr and "Traceback" not in done.stderr


def test_a_life(running: ServedIsland) -> None:
    place = running
    assert get(f"{place.url}/healthz")[0] == 200
    assert get(f"{place.url}/readyz")[0] == 200
    assert get(f"{place.url}/sessions")[0] == 401
    assert get(f"{place.url}/sessions", "wrong")[0] == 401
    status, version = get(f"{place.url}/version", place.user_token)
    assert status == 200 and json.loads(version)["version"] == "0.9.0-incubating"
    assert get(f"{place.url}/metrics", place.user_token)[0] == 200

    assert "engine.shares_account" in place.log.read_text()  # whoever runs code here is said to share the account

    second = island_process("--home", str(place.home), "run")
    assert second.returncode == 1 and "another daemon" in second.stderr

    [livy] = place.json("server", "ls")
    assert (livy["island"], livy["kind"]) == ("kiso", "livy")

    denied = place.run("server", "add", "hdfs", "hdfs://nn:8020", token=place.user_token)
    assert denied.returncode == 1 and "administrator" in denied.stderr

    place.stop()
    assert not (place.home / "running.json").exists()
    place.start()
    assert [s["kind"] for s in place.json("server", "ls")] == ["livy"]
    assert place.command("journal", "--verify") is not None


def test_sigterm_ends_everything(running: ServedIsland) -> None:
    place = running
    process = place._process
    assert process is not None
    below = wait_for("the engine", lambda: children(process.pid) or None)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    place.stop()
    wait_for("the engine to end", lambda: gone(below))


def test_sigkill_leaves_nothing_behind_and_a_restart_works_at_once(running: ServedIsland) -> None:
    place = running
    process = place._process
    assert process is not None
    below = wait_for("the engine", lambda: children(process.pid) or None)
    place.kill()
    wait_for("the engine to end", lambda: gone(below))
    place.start()
    assert place.json("peer", "ls") is not None


def test_a_port_in_use_is_named(place: ServedIsland) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        place.configure("user", f'"127.0.0.1:{port}"')
        done = island_process("--home", str(place.home), "run")
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr and "listen.user" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("accept_from = []", "accept_frm = []", "most similar known key is 'accept_from'"),
        ("same_user = false", 'same_user = "no"', "jobs.same_user"),
    ],
)
def test_a_wrong_configuration_is_explained(place: ServedIsland, old: str, new: str, words: str) -> None:
    path = place.home / "island.toml"
    path.write_text(path.read_text().replace(old, new))
    done = island_command("--home", str(place.home), "run")
    assert done.returncode == 1
    assert str(path) in done.stderr and words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_a_home_of_a_newer_version_is_refused(place: ServedIsland) -> None:
    # state.db alone would be migrated: no database is changed unless all of them can be used.
    for name, version in (("state", 0), ("gossip", 9999)):
        with contextlib.closing(sqlite3.connect(place.home / f"{name}.db")) as connection:
            connection.execute(f"PRAGMA user_version={version}")
    before = (place.home / "state.db").read_bytes()
    done = island_process("--home", str(place.home), "run")
    assert done.returncode == 1 and "newer version" in done.stderr and "Traceback" not in done.stderr
    assert "gossip.db" in done.stderr and "restore a backup from before the upgrade" in done.stderr
    assert (place.home / "state.db").read_bytes() == before


def test_a_secret_that_others_can_read_is_refused(place: ServedIsland) -> None:
    (place.home / "token").chmod(0o644)
    done = island_process("--home", str(place.home), "run")
    assert done.returncode == 1 and "chmod 600" in done.stderr


def exposed(home: Path) -> list[str]:
    """What below a home other accounts have any right to."""
    found = [path for path in (home, *home.rglob("*")) if not path.is_symlink() and path.lstat().st_mode & 0o077]
    return sorted(str(path.relative_to(home)) for path in found)


def test_nothing_in_a_home_is_for_other_accounts(tmp_path: Path) -> None:
    data = tmp_path / "stars"
    data.mkdir()
    (data / "a.parquet").write_bytes(parquet())
    before = os.umask(0)
    try:
        place = ServedIsland(tmp_path, "kiso")
        try:
            place.start()
            place.command("peer", "invite")
            place.command("dataset", "publish", str(data), "--name", "stars")
            place.command("source", "add", "folder", str(data), "--name", "stars-source")
            place.command("subscription", "add", "kiso/stars-source", "--from", "beginning", "--into", "copy")
            wait_for("rows of the copy", lambda: place.json("subscription", "ls")[0]["rows"] or None)
            assert (place.home / "state.db-wal").exists() and (place.home / "running.json").exists()
            assert exposed(place.home) == []
        finally:
            place.stop()
        assert exposed(place.home) == []

        # A home of an older version: everything but the secrets was open to others.
        for path in (place.home, *place.home.rglob("*")):
            if path.name not in ("key", "token", "token.user", "recovery.key"):
                path.chmod(0o777 if path.is_dir() else 0o666)
        try:
            place.start()
            assert exposed(place.home) == []
            assert "home.made_private" in place.log.read_text()
        finally:
            place.stop()
    finally:
        os.umask(before)


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"ra": [10.0, 187.0], "mag": [3.4, 8.6]}), sink)
    return bytes(sink.getvalue())
