"""The composition root: the order in which parts are stopped, and a part that cannot stop."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from island.daemon import Daemon, Part, code_shares_account
from island.kernel.ports import SystemClock, SystemRng
from tests.kernel.process_functions import add
from tests.standins.faults import Fault
from tests.standins.member import home


class Recorded(Daemon):
    """A daemon that records which of its parts have begun to stop, and which have stopped."""

    def __init__(self, folder: Path) -> None:
        super().__init__(*home(folder, "here", {}), SystemClock(), SystemRng())
        self.begun_to_stop: list[str] = []
        self.stopped: list[str] = []
        self.peer_port: int | None = None

    def _parts(self) -> list[Part]:
        return [self._recorded(part) for part in super()._parts()]

    def _recorded(self, part: Part) -> Part:
        stop = part.stop
        if stop is None:
            return part

        async def recorded() -> None:
            self.begun_to_stop.append(part.name)
            await stop()
            self.stopped.append(part.name)

        return replace(part, stop=recorded)

    @property
    def stoppable(self) -> list[str]:
        """The parts that can be stopped, in the order in which they are started."""
        return [part.name for part in self._parts() if part.stop is not None]


async def run(daemon: Recorded, *, fail: bool) -> None:
    """Start the daemon, let it use a port and a child process, and stop it, with a disk that fails if `fail`."""
    async with daemon.tasks() as tasks:
        await daemon.start(tasks)
        daemon.peer_port = daemon.peers.port
        await daemon.trust.invite(["here:1"])  # only an island with a network offers its last journal head
        assert await daemon.publishing.run(add, 1, 2) == 3
        if fail:
            Fault(daemon.state, what="read", times=None)


async def test_parts_stop_in_the_reverse_order_of_their_start(tmp_path: Path) -> None:
    daemon = Recorded(tmp_path / "here")
    await run(daemon, fail=False)
    assert daemon.stopped == daemon.stoppable[::-1]


async def test_a_part_that_fails_to_stop_is_logged_and_all_others_are_stopped(tmp_path: Path) -> None:
    daemon = Recorded(tmp_path / "here")
    with structlog.testing.capture_logs() as logs:
        await run(daemon, fail=True)
    assert daemon.begun_to_stop == daemon.stoppable[::-1]
    assert daemon.stopped == [name for name in daemon.stoppable[::-1] if name != "last journal head"]
    (line,) = [line for line in logs if line["event"] == "daemon.stop_failed"]
    assert line["part"] == "last journal head"
    assert "disk I/O error" in str(line["exc_info"])
    assert daemon.publishing.pids == []
    assert not daemon.home.running.exists()
    assert daemon.peer_port is not None
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", daemon.peer_port)


HANGS = """
import sys, threading
from pathlib import Path
from island import daemon
from island.kernel import telemetry
from tests.standins.member import home

class Hangs(daemon.Daemon):
    async def start(self, tasks):
        await super().start(tasks)
        self.workers.disk(threading.Event().wait)

daemon.Daemon, daemon.EXIT_SECONDS = Hangs, 1.0
telemetry.configure()
daemon.main(*home(Path(sys.argv[1]), "here", {}))
"""
"""A daemon with a thread that never ends, in a pool whose threads are joined."""


def test_a_daemon_with_a_thread_that_hangs_exits_when_it_is_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGS, str(tmp_path / "here")]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stderr is not None
            while "event=daemon.ready" not in (line := process.stderr.readline()):
                assert line, "it ended before it was ready"
            process.send_signal(signal.SIGTERM)
            lines = process.stderr.read().splitlines()
            assert process.wait() == 1
        finally:
            process.kill()
    assert "event=daemon.stopped" not in lines[-1] and "event=daemon.stop_hangs" in lines[-1]


def test_a_livy_of_the_same_account_is_said_to_share_it() -> None:
    assert code_shares_account("")
    with socket.create_server(("127.0.0.1", 0)) as livy:
        port = livy.getsockname()[1]
        assert code_shares_account(f"http://127.0.0.1:{port}")
        assert not code_shares_account(f"http://livy.example.org:{port}")
    assert not code_shares_account(f"http://127.0.0.1:{port}")  # nothing listens there
