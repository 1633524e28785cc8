"""What the tests of `kernel.processes` run in a child."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from island.errors import Corrupt, Unsupported
from island.kernel import process_messages
from island.kernel.process_messages import Emit


class OddOne(Unsupported):
    """An error that only this module knows."""


def add(first: int, second: int) -> int:
    return first + second


def parent_of(path: Path) -> Path:
    return path.parent


def pid() -> int:
    return os.getpid()


def working_directory() -> Path:
    return Path.cwd()


def environment() -> dict[str, str]:
    return dict(os.environ)


def descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue  # the one by which the folder was listed
    return found


def count(emit: Emit[int], most: int) -> None:
    for number in range(most):
        emit(number)


def count_and_fail(emit: Emit[int], most: int) -> None:
    count(emit, most)
    raise Corrupt(f"after {most}", hint="Begin again.")


def raise_named(name: str) -> None:
    if name == "corrupt":
        raise Corrupt("it is broken", hint="Write it again.", code="odd_code")
    if name == "unknown":
        raise OddOne("it is odd")
    if name == "os":
        Path("/nonexistent/file").read_bytes()
    raise ZeroDivisionError("a mistake")


def grow(mebibytes: int) -> int:
    process_messages.begin("big.avro", 60.0)
    return sum(len(part) for part in [bytearray(2**20) for _ in range(mebibytes)])


def spin(emit: Emit[int], seconds: float) -> None:
    """Announce itself, then use the processor for ever."""
    process_messages.begin("slow.avro", seconds)
    emit(os.getpid())
    while True:
        pass


def spin_twice(seconds: float) -> int:
    """Use a little less than the limit for each of several files."""
    for number in range(3):
        process_messages.begin(f"{number}.avro", seconds)
        end = time.process_time() + seconds / 2
        while time.process_time() < end:
            process_messages.alive()
    return 3


def hang(emit: Emit[int]) -> None:
    emit(os.getpid())
    while True:
        time.sleep(3600)


def crash(number: int) -> None:
    process_messages.begin("crash.parquet", 60.0)
    os.kill(os.getpid(), number)
    signal.pause()


def crash_at_once(calls: Path) -> None:
    with calls.open("a") as file:
        file.write("called\n")
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def say_much(size: int) -> bytes:
    return bytes(size)


def chatter() -> int:
    sys.stdout.write("this is no answer\n")
    sys.stdout.flush()
    return 1


def lie() -> int:
    wrong: Any = "text and not a number"
    return wrong  # type: ignore[no-any-return]  # a child that was taken over answers anything


def has_socket() -> bool:
    with socket.socket() as own:
        known = f"socket:[{os.fstat(own.fileno()).st_ino}]"
    return any(name.startswith("socket:") and name != known for name in descriptors())


def imported(names: list[str]) -> list[str]:
    """Which of some modules this process has imported."""
    return [name for name in names if name in sys.modules]
