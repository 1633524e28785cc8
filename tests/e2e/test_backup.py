"""A running island is backed up, lost, and restored; what the other island knows is newer than the backup."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.cli.demo.demo_island import ISLAND, DemoIsland, wait_for
from island.client import Api
from island.errors import IslandError

pytestmark = pytest.mark.e2e


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[DemoIsland, DemoIsland]]:
    """Two linked islands; the first founded the archipelago."""
    kiso, hida = DemoIsland(tmp_path, "kiso"), DemoIsland(tmp_path, "hida")
    try:
        for place in (kiso, hida):
            place.configure("embedded", "false")
            place.start()
        hida.command("peer", "join", kiso.command("peer", "invite").strip())
        yield kiso, hida
    finally:
        kiso.stop()
        hida.stop()


def api(place: DemoIsland) -> Api:
    return Api(place.home_endpoint())


def publish(place: DemoIsland, name: str) -> None:
    folder = place.home.parent / name
    folder.mkdir()
    pq.write_table(pa.table({"ra": [10.0, 187.0], "mag": [3.4, 8.6]}), folder / "a.parquet")
    place.command("dataset", "publish", str(folder), "--name", name)


def listed(place: DemoIsland) -> set[str]:
    return {row["dataset"] for row in api(place).get("/api/v1/datasets")}


def problems(place: DemoIsland) -> str:
    return "\n".join(api(place).get("/api/v1/island")["problems"])


def test_a_restored_island_takes_its_log_back_and_acknowledges_its_journal(
    places: tuple[DemoIsland, DemoIsland], tmp_path: Path
) -> None:
    kiso, hida = places
    publish(kiso, "before")
    backup = tmp_path / "kiso.tar.gz"
    kiso.command("backup", str(backup))
    kiso.command("backup", "--verify", str(backup))
    publish(kiso, "after")
    wait_for("the other island to list both", lambda: listed(hida) == {"kiso/before", "kiso/after"} or None)
    kiso.command("journal", "--verify")  # the other island now holds the newest head of the journal
    with pytest.raises(IslandError, match="is running"):
        kiso.command("restore", str(backup), str(tmp_path / "second"))

    kiso.kill()
    hida.stop()
    kiso.home.rename(tmp_path / "lost")
    done = subprocess.run(
        [*ISLAND, "restore", str(backup), str(kiso.home)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "same island" in done.stderr and "--acknowledge" in done.stderr
    kiso.start()
    assert listed(kiso) == {"kiso/before"}
    assert "signs no changes until another island is linked" in problems(kiso)

    hida.start()
    wait_for("the loss to be noticed", lambda: "--acknowledge" in problems(kiso) or None)
    wait_for("the loss to be known elsewhere", lambda: "kiso" in problems(hida) or None)
    assert "signs no changes" not in problems(kiso)
    kiso.command("journal", "--acknowledge", "restored the backup")
    wait_for("the end of the alarm here", lambda: problems(kiso) == "" or None)
    wait_for("the end of the alarm there", lambda: problems(hida) == "" or None)
    kiso.command("journal", "--verify")

    # What was published after the backup is withdrawn everywhere, and the log goes on.
    wait_for("both to agree", lambda: listed(hida) == {"kiso/before"} or None)
    publish(kiso, "later")
    wait_for("the log to go on", lambda: listed(hida) == {"kiso/before", "kiso/later"} or None)
    assert listed(kiso) == {"kiso/before", "kiso/later"}
