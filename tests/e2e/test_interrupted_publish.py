"""A publish whose command, or whose daemon, is killed: nothing of it stays, and its name is free."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.cli.demo.demo_island import ISLAND, DemoIsland, wait_for
from island.engine.supervisor import descendants

pytestmark = pytest.mark.e2e
HOLE = 256 << 30
"""Bytes of nothing in a file: reading them takes minutes, storing them takes no room."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[DemoIsland]:
    """A running island."""
    made = DemoIsland(tmp_path, "kiso")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file that is published in no time."""
    path = tmp_path / "small.parquet"
    pq.write_table(pa.table({"n": [1, 2, 3]}), path)
    return path


@pytest.fixture
def large(tmp_path: Path, small: Path) -> Path:
    """The same rows in a file that takes minutes to read: with a hole between the data and the footer."""
    whole = small.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    path = tmp_path / "large.parquet"
    with path.open("wb") as file:
        file.write(whole[:footer])
        file.seek(HOLE, os.SEEK_CUR)
        file.write(whole[footer:])
    return path


def publishing(place: DemoIsland, path: Path) -> subprocess.Popen[bytes]:
    """The command that publishes a file as `a`, once the daemon reads the file."""
    command = [*ISLAND, "--home", str(place.home), "dataset", "publish", str(path), "--name", "a"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for("the daemon to read", lambda: is_read(place, path) or None)
    return process


def is_read(place: DemoIsland, path: Path) -> bool:
    """Whether the daemon, or a process below it, has a file open."""
    assert place._process is not None
    for pid in [place._process.pid, *descendants(place._process.pid)]:
        try:
            if any(link.is_symlink() and os.readlink(link) == str(path) for link in Path(f"/proc/{pid}/fd").iterdir()):
                return True
        except FileNotFoundError:
            continue  # a process that ended, or a descriptor that was closed, while we looked
    return False


def is_clear(place: DemoIsland) -> bool:
    """Whether the island keeps no page of any publication."""
    return not (place.home / "manifests").is_dir() or not list((place.home / "manifests").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_publish_ends_with_its_command(place: DemoIsland, large: Path, small: Path, number: signal.Signals) -> None:
    process = publishing(place, large)
    process.send_signal(number)
    assert process.wait(60) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    wait_for("the end of the reading", lambda: not is_read(place, large) or None)
    wait_for("the end of the publication", lambda: is_clear(place) or None)
    assert place.json("dataset", "ls") == []
    place.command("dataset", "publish", str(small), "--name", "a")
    assert [row["rows"] for row in place.json("dataset", "ls")] == [3]


def test_a_publish_ends_with_its_daemon(place: DemoIsland, large: Path, small: Path) -> None:
    process = publishing(place, large)
    place.kill()
    assert process.wait(60) == 1
    (place.home / "manifests").mkdir(exist_ok=True)
    (place.home / "manifests" / "begun.tmp").touch()  # whether the kill left one is chance
    place.start()
    assert is_clear(place)
    assert place.json("dataset", "ls") == []
    place.command("dataset", "publish", str(small), "--name", "a")
    assert [row["rows"] for row in place.json("dataset", "ls")] == [3]
