"""Messages to the service manager, received with a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from island.kernel.loops import Tasks
from island.kernel.ports import SystemRng
from island.kernel.service_manager import ServiceManager


class Ended(Exception):
    """Ends a task group."""


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """The service manager's end of the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
        channel.bind("\0" + address[1:] if address.startswith("@") else address)
        yield channel


async def received(channel: socket.socket) -> list[str]:
    async with asyncio.timeout(30):
        return (await asyncio.get_running_loop().sock_recv(channel, 4096)).decode().split("\n")


async def test_ready_then_the_watchdog_with_the_state_then_stopping(tmp_path: Path) -> None:
    states = iter(["starting", "ready", *["degraded: the disk of NAME\nMAINPID=1 is full"] * 1000])
    address = str(tmp_path / "notify")
    with listening(address) as channel:
        manager = ServiceManager(address, watchdog=0.02)
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                await manager.start(Tasks(group), SystemRng(), lambda: next(states))
                assert await received(channel) == ["READY=1", "WATCHDOG=1", "STATUS=starting"]
                assert await received(channel) == ["WATCHDOG=1", "STATUS=ready"]
                # A line break in a text from elsewhere is no message of its own.
                escaped = r"STATUS=degraded: the disk of NAME\u000aMAINPID=1 is full"
                assert await received(channel) == ["WATCHDOG=1", escaped]
                await manager.stop()
                while (lines := await received(channel))[0] == "WATCHDOG=1":
                    assert lines == ["WATCHDOG=1", escaped]
                assert lines == ["STOPPING=1", "STATUS=stopping"]
                raise Ended


async def test_an_abstract_socket() -> None:
    address = f"@island-test-{os.getpid()}"
    with listening(address) as channel:
        await ServiceManager(address).stop()
        assert await received(channel) == ["STOPPING=1", "STATUS=stopping"]


async def test_a_manager_that_is_not_there_yet_is_told_later(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            tasks = Tasks(group)
            await ServiceManager(address, watchdog=0.02).start(tasks, SystemRng(), lambda: "ready")
            while not tasks.faults.problems():
                await asyncio.sleep(0)
            assert "service manager fails and is retried" in tasks.faults.problems()[0]
            with listening(address) as channel:
                assert (await received(channel))[0] == "READY=1"
            raise Ended


def test_a_manager_that_does_not_read_does_not_block(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with listening(address), pytest.raises(BlockingIOError):
        while True:
            ServiceManager(address)._send("WATCHDOG=1")


def test_children_do_not_inherit_the_variables() -> None:
    environment = {
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/var/lib/island",
    }
    manager = ServiceManager.from_environment(environment)
    assert (manager.address, manager.watchdog) == ("/run/systemd/notify", 3.0)
    assert environment == {"HOME": "/var/lib/island"}


@pytest.mark.parametrize(
    ("variables", "address", "watchdog"),
    [
        ({}, "", 0.0),
        ({"NOTIFY_SOCKET": "@name", "WATCHDOG_USEC": "1000000"}, "@name", 1.0),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, "", 0.0),
        ({"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, "/run/notify", 0.0),
        ({"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "soon"}, "/run/notify", 0.0),
    ],
)
def test_variables(variables: dict[str, str], address: str, watchdog: float) -> None:
    manager = ServiceManager.from_environment(variables)
    assert (manager.address, manager.watchdog) == (address, watchdog)
    assert variables == {}


async def test_without_a_manager_nothing_is_sent_and_no_loop_runs() -> None:
    async with asyncio.TaskGroup() as group:
        await ServiceManager().start(Tasks(group), SystemRng(), lambda: "ready")
        await ServiceManager().stop()
