"""Files made to overwhelm who reads them, given to a real daemon: it stays small, goes on, and stops at once."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from island.cli.demo.demo_island import DemoIsland, wait_for
from island.errors import IslandError
from tests.e2e.test_daemon import children
from tests.islands.publishing import write_table
from tests.standins import bombs

pytestmark = pytest.mark.e2e

ROOM = 400 * 1024
"""kB of memory at most for a daemon that decodes nothing itself; it takes about 150,000 when it does nothing."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoIsland]:
    """A daemon whose limits let a test end soon. It has no Spark: a Livy that does not answer is enough."""
    made = DemoIsland(tmp_path_factory.mktemp("bombs"), "kiso")
    configure(made)
    made.start()
    yield made
    made.stop()


def configure(place: DemoIsland) -> None:
    path = place.home / "island.toml"
    text = path.read_text("utf-8").replace('\nurl = ""\n', '\nurl = "http://127.0.0.1:9"\n')
    for key, value in (("memory", '"320MiB"'), ("seconds", "5"), ("rows", "50000000"), ("poll", "0.2")):
        [line] = [line for line in text.splitlines() if line.startswith(f"{key} = ")]
        text = text.replace(line, f"{key} = {value}")
    path.write_text(text, "utf-8")


def peak(place: DemoIsland) -> int:
    """The most memory that the daemon has held so far, in kB."""
    [line] = [line for line in Path(f"/proc/{pid(place)}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


def pid(place: DemoIsland) -> int:
    return int(json.loads((place.home / "running.json").read_text("utf-8"))["pid"])


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (bombs.many_rows, "rows.avro", "s of processor time"),
        (lambda path: bombs.many_rows(path, "zstandard"), "zstd.avro", "s of processor time"),
        (lambda path: bombs.many_rows(path, "snappy", 1), "snappy.avro", "s of processor time"),
        (bombs.long_array, "array.avro", "320 MiB of memory"),
        (bombs.wide_map, "map.avro", "320 MiB of memory"),
        (bombs.no_bytes, "nothing.avro", "contains only empty records"),
        (bombs.too_many_said, "lie.avro", "1099511627776 records"),
        (bombs.nested_schema, "deep.avro", "nested too deeply|not JSON"),
        (bombs.nested_json, "brackets.avro", "not JSON"),
        (bombs.recursive_schema, "self.avro", "refers to itself"),
        (bombs.rle_rows, "rle.parquet", "has at least 60000000 rows; the limit for one file is 50000000"),
        (bombs.repeated_text, "text.parquet", "320 MiB of memory"),
        (bombs.long_list, "list.parquet", "320 MiB of memory"),
    ],
)
def test_a_bomb_is_refused_and_the_daemon_stays_small(
    place: DemoIsland, tmp_path: Path, make: Callable[[Path], Path], name: str, words: str
) -> None:
    path = make(tmp_path / name)
    with pytest.raises(IslandError) as caught:
        place.command("dataset", "publish", str(path), "--name", "bomb")
    text = " ".join(str(caught.value).split())
    assert any(word in text for word in words.split("|")), text
    assert name in text
    assert peak(place) < ROOM
    assert place.json("dataset", "ls") == []
    assert list((place.home / "manifests").glob("*")) == []


def test_sound_files_pass_beside_a_bomb(place: DemoIsland, tmp_path: Path) -> None:
    path = write_table(tmp_path / "sound.parquet", 5000)
    place.command("dataset", "publish", str(path), "--name", "sound")
    assert [row["rows"] for row in place.json("dataset", "ls")] == [5000]
    place.command("dataset", "unpublish", "sound")


def test_a_bomb_in_a_watched_folder_is_set_aside_and_stopping_takes_no_time(tmp_path: Path) -> None:
    place = DemoIsland(tmp_path, "kiso")
    configure(place)
    drop = tmp_path / "drop"
    drop.mkdir()
    place.start()
    try:
        bombs.many_rows(drop / "a-bomb.avro")
        write_table(drop / "b-sound.parquet", 100)
        os.utime(drop / "a-bomb.avro", (1, 1))  # read first
        place.command("source", "add", "folder", str(drop), "--name", "alerts")

        def reported() -> dict[str, object] | None:
            [source] = place.json("source", "ls")
            return source if source["problem"] and source["files"] else None

        source = wait_for("the bomb to be set aside", reported, 120)
        assert "a-bomb.avro" in str(source["problem"]) and "limit" in str(source["problem"])
        assert (source["files"], source["rows"]) == (1, 100)
        assert peak(place) < ROOM

        # Another one is being read when the daemon is told to stop.
        place.command("source", "rm", "alerts")
        place.command("source", "add", "folder", str(drop), "--name", "again")
        busy = wait_for("a process that reads the bomb", lambda: children(pid(place)) or None)
        watches = [os.pidfd_open(each) for each in (pid(place), *busy)]
        os.kill(pid(place), signal.SIGTERM)
        for watch in watches:  # each can be read once its process has ended
            assert select.select([watch], [], [], 20)[0]
            os.close(watch)
    finally:
        place.stop()
