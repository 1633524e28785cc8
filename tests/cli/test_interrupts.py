"""Commands that are interrupted: they undo what they began, say so, and end with the signal's exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from island.client import Api
from island.home import Endpoint
from tests.cli.test_jobs import livy_in_thread
from tests.islands.user_port import site_in_thread
from tests.servers.daemon import as_from_terminal

COMMAND = [sys.executable, "-m", "island.cli.main"]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """A client of a home whose Livy is played."""
    with ExitStack() as stack:
        livy = stack.enter_context(livy_in_thread())
        url = urlsplit(stack.enter_context(site_in_thread(tmp_path / "home", livy, "", {})))
        yield Api(Endpoint(f"http://{url.hostname}:{url.port}", str(url.password)))


@contextmanager
def command(url: str, token: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs; killed at the end of the block if it still does."""
    process = subprocess.Popen(
        [*COMMAND, "--url", url, *arguments],
        env={**os.environ, "ISLAND_TOKEN": token},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_from_terminal,  # noqa: PLW1509 - three calls
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(look: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something at the island, of which no event tells us."""
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_session_exec_cancels_its_statement(api: Api, number: signal.Signals) -> None:
    session = api.post("/api/v1/sessions", {"kind": "pyspark"})["job"]
    where = f"/api/v1/jobs/{session}/statements"
    with command(api.endpoint.url, api.endpoint.token, "session", "exec", session, "stay") as process:
        until(lambda: [row["state"] for row in api.get(where)] == ["running"])
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "")
    # The signal may come before the island's answer does, which is said, too.
    assert err.splitlines()[-1] == f"cancelled statement 0 of session {session}"
    until(lambda: [row["state"] for row in api.get(where)] == ["cancelled"])
    api.delete(f"/api/v1/jobs/{session}", kind="session")


@contextmanager
def silent_island() -> Iterator[socket.socket]:
    """A listening socket: what an island is that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        yield listening


def accepted(listening: socket.socket) -> socket.socket:
    """The command's connection, once its request has come."""
    connection, _ = listening.accept()
    assert connection.recv(1)
    return connection


def url_of(listening: socket.socket) -> str:
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_second_interrupt_ends_session_exec_at_once() -> None:
    arguments = ("session", "exec", "0", "1")
    with (
        silent_island() as listening,
        command(url_of(listening), "t", *arguments) as process,
        accepted(listening),
    ):
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "as soon as the island has answered" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT


@pytest.mark.parametrize("hangs", [False, True])
def test_a_statement_whose_number_comes_late_is_cancelled(hangs: bool) -> None:
    arguments = ("session", "exec", "0", "1")
    with (
        silent_island() as listening,
        command(url_of(listening), "t", *arguments) as process,
        accepted(listening) as first,
    ):
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "as soon as the island has answered" in process.stderr.readline()
        body = json.dumps({"id": 7, "state": "waiting"}).encode()
        first.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert process.stderr.readline() == "cancelling the statement; press Ctrl-C again to leave it running\n"
        second, _ = listening.accept()
        with second:
            assert b"POST /api/v1/jobs/0/statements/7/cancel " in second.recv(65536)
            if not hangs:
                second.close()
            # The island goes away without an answer, or does not answer: what could not be done is said.
            _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "statement 7 of session 0 could not be cancelled and may still be running" in err
        assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [("job", "logs", "0"), ("job", "wait", "0"), ("dataset", "ls")])
def test_a_command_that_only_reads_ends_quietly(arguments: tuple[str, ...]) -> None:
    with (
        silent_island() as listening,
        command(url_of(listening), "t", *arguments) as process,
        accepted(listening),
    ):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_publish_closes_its_connection(number: signal.Signals, tmp_path: Path) -> None:
    arguments = ("dataset", "publish", str(tmp_path), "--name", "a")
    with (
        silent_island() as listening,
        command(url_of(listening), "t", *arguments) as process,
        accepted(listening) as connection,
    ):
        connection.settimeout(60)
        connection.recv(65536)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (128 + number, "", "")
        while connection.recv(65536):
            pass


@pytest.mark.parametrize("arguments", [("job", "ls"), ("job", "ls", "--json"), ("--help",)])
def test_a_reader_that_goes_is_no_error(api: Api, arguments: tuple[str, ...]) -> None:
    for _ in range(3):
        api.post("/api/v1/sessions", {"kind": "pyspark"})
    with command(api.endpoint.url, api.endpoint.token, *arguments) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) in (0, 1)
        process.stdout = None
