"""Files made to overwhelm who reads them, given to a real daemon: it stays small, goes on, and stops at once."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from island.cli.demo.demo_island import wait_for
from island.errors import IslandError
from tests.e2e.test_daemon import children
from tests.islands.publishing import write_table
from tests.servers.daemon import ServedIsland, is_read, running
from tests.standins import bombs

pytestmark = pytest.mark.e2e

ROOM = 400 * 1024
"""kB of memory at most for a daemon that decodes nothing itself; it takes about 150,000 when it does nothing."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedIsland]:
    """A daemon whose limits of memory and rows let a test end soon."""
    made = ServedIsland(tmp_path_factory.mktemp("bombs"), "kiso")
    limit(made, seconds=30, rows=5_000_000)
    with running(made):
        yield made


@pytest.fixture(scope="module")
def hasty_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedIsland]:
    """A home whose limit of processor time lets a test end soon."""
    made = ServedIsland(tmp_path_factory.mktemp("hasty"), "hasty")
    limit(made, seconds=2, rows=500_000_000)
    yield made
    made.stop()


@pytest.fixture
def hasty(hasty_home: ServedIsland) -> ServedIsland:
    """The daemon of this home; started again after a test that stopped it."""
    if not hasty_home.is_running:
        hasty_home.start()
    return hasty_home


def limit(place: ServedIsland, seconds: int, rows: int) -> None:
    """Set the limits of what reads files."""
    for key, value in (("memory", '"320MiB"'), ("seconds", str(seconds)), ("rows", str(rows)), ("poll", "0.2")):
        place.configure(key, value)


def peak(place: ServedIsland) -> int:
    """The most memory that the daemon has held so far, in kB."""
    [line] = [line for line in Path(f"/proc/{place.pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (bombs.many_rows, "rows.avro"),
        (lambda path: bombs.many_rows(path, "zstandard"), "zstd.avro"),
        (lambda path: bombs.many_rows(path, "snappy", 1), "snappy.avro"),
    ],
)
def test_a_bomb_that_takes_time_is_refused(
    hasty: ServedIsland, tmp_path: Path, make: Callable[[Path], Path], name: str
) -> None:
    check_refused(hasty, make(tmp_path / name), "s of processor time")


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (bombs.long_array, "array.avro", "320 MiB of memory"),
        (bombs.wide_map, "map.avro", "320 MiB of memory"),
        (bombs.no_bytes, "nothing.avro", "contains only empty records"),
        (bombs.too_many_said, "lie.avro", "1099511627776 records"),
        (bombs.nested_schema, "deep.avro", "nested too deeply|not JSON"),
        (bombs.nested_json, "brackets.avro", "not JSON"),
        (bombs.recursive_schema, "self.avro", "refers to itself"),
        (bombs.rle_rows, "rle.parquet", "has at least 6000000 rows; the limit for one file is 5000000"),
        (bombs.repeated_text, "text.parquet", "320 MiB of memory"),
        (bombs.long_list, "list.parquet", "320 MiB of memory"),
    ],
)
def test_a_bomb_is_refused_and_the_daemon_stays_small(
    place: ServedIsland, tmp_path: Path, make: Callable[[Path], Path], name: str, words: str
) -> None:
    check_refused(place, make(tmp_path / name), words)


def check_refused(place: ServedIsland, path: Path, words: str) -> None:
    with pytest.raises(IslandError) as caught:
        place.command("dataset", "publish", str(path), "--name", "bomb")
    text = " ".join(str(caught.value).split())
    assert any(word in text for word in words.split("|")), text
    assert path.name in text
    assert peak(place) < ROOM
    assert place.json("dataset", "ls") == []
    assert list((place.home / "manifests").glob("*")) == []


def test_sound_files_pass_beside_a_bomb(place: ServedIsland, tmp_path: Path) -> None:
    path = write_table(tmp_path / "sound.parquet", 5000)
    place.command("dataset", "publish", str(path), "--name", "sound")
    assert [row["rows"] for row in place.json("dataset", "ls")] == [5000]
    place.command("dataset", "unpublish", "sound")


def test_a_bomb_in_a_watched_folder_is_set_aside_and_stopping_takes_no_time(
    hasty: ServedIsland, tmp_path: Path
) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    bombs.many_rows(drop / "a-bomb.avro")
    write_table(drop / "b-sound.parquet", 100)
    os.utime(drop / "a-bomb.avro", (1, 1))  # read first
    hasty.command("source", "add", "folder", str(drop), "--name", "alerts")

    def reported() -> dict[str, object] | None:
        [source] = hasty.json("source", "ls")
        return source if source["problem"] and source["files"] else None

    source = wait_for("the bomb to be set aside", reported, 120)
    assert "a-bomb.avro" in str(source["problem"]) and "limit" in str(source["problem"])
    assert (source["files"], source["rows"]) == (1, 100)
    assert peak(hasty) < ROOM

    # It is being read again when the daemon is told to stop.
    hasty.command("source", "rm", "alerts")
    hasty.command("source", "add", "folder", str(drop), "--name", "again")
    wait_for("a process that reads the bomb", lambda: is_read(hasty, drop / "a-bomb.avro") or None)
    watches = [os.pidfd_open(each) for each in (hasty.pid, *children(hasty.pid))]
    os.kill(hasty.pid, signal.SIGTERM)
    for watch in watches:  # each can be read once its process has ended
        assert select.select([watch], [], [], 60)[0]
        os.close(watch)
    hasty.stop()
