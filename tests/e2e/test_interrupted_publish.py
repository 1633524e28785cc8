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

from island.cli.demo.demo_island import ISLAND, wait_for
from tests.servers.daemon import ServedIsland, as_from_terminal, is_read, running

pytestmark = pytest.mark.e2e
HOLE = 256 << 30
"""Bytes of nothing in a file: reading them takes minutes, storing them takes no room."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedIsland]:
    """A running island, on which the tests leave nothing."""
    made = ServedIsland(tmp_path_factory.mktemp("publish"), "kiso")
    with running(made):
        yield made


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


def publishing(place: ServedIsland, path: Path) -> subprocess.Popen[bytes]:
    """The command that publishes a file as `a`, once the daemon reads the file."""
    command = [*ISLAND, "--home", str(place.home), "dataset", "publish", str(path), "--name", "a"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=as_from_terminal,  # noqa: PLW1509 - three calls
    )
    wait_for("the daemon to read", lambda: is_read(place, path) or None)
    return process


def pages(place: ServedIsland) -> set[str]:
    """The pages of publications that the island keeps."""
    folder = place.home / "manifests"
    return {each.name for each in folder.iterdir()} if folder.is_dir() else set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_publish_ends_with_its_command(place: ServedIsland, large: Path, small: Path, number: signal.Signals) -> None:
    before = pages(place)
    process = publishing(place, large)
    process.send_signal(number)
    assert process.wait(60) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    wait_for("the end of the reading", lambda: not is_read(place, large) or None)
    wait_for("the end of the publication", lambda: pages(place) <= before or None)
    assert place.json("dataset", "ls") == []
    place.command("dataset", "publish", str(small), "--name", "a")
    assert [row["rows"] for row in place.json("dataset", "ls")] == [3]
    place.command("dataset", "unpublish", "a")


def test_a_publish_ends_with_its_daemon(place: ServedIsland, large: Path, small: Path) -> None:
    before = pages(place)
    process = publishing(place, large)
    place.kill()
    assert process.wait(60) == 1
    (place.home / "manifests").mkdir(exist_ok=True)
    (place.home / "manifests" / "begun.tmp").touch()  # whether the kill left one is chance
    place.start()
    assert pages(place) <= before
    assert place.json("dataset", "ls") == []
    place.command("dataset", "publish", str(small), "--name", "a")
    assert [row["rows"] for row in place.json("dataset", "ls")] == [3]
    place.command("dataset", "unpublish", "a")
