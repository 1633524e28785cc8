"""The commands against two real daemons: a source, a subscription, what they show, and what they refuse."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from island.cli.demo.demo_island import wait_for
from island.errors import IslandError
from tests.islands.subscribing import Home, rows_of, write
from tests.servers.daemon import ServedIsland

pytestmark = pytest.mark.e2e

SOURCE_KEYS = {"island", "source", "name", "kind", "format", "files", "rows", "bytes", "state", "problem", "columns"}
CHANNEL_KEYS = {"id", "island", "source", "into", "state", "rate", "lag", "lag_s", "rows", "bytes", "since", "reason"}


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[ServedIsland, ServedIsland]]:
    """An island that can be dialled, and a laptop that cannot."""
    made = ServedIsland(tmp_path, "orion"), ServedIsland(tmp_path, "laptop", dialled=False)
    for place in made:
        place.configure("poll", "0.2")
    try:
        yield made
    finally:
        for place in made:
            place.stop()


def one(place: ServedIsland, *words: str) -> dict[str, Any]:
    """The only row of a listing; an empty dict while there is none."""
    rows = place.json(*words)
    assert len(rows) <= 1
    return rows[0] if rows else {}


def as_user(place: ServedIsland, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """A request with the user's token."""
    token = (place.home / "token.user").read_text().strip()
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        place.url + path, data, {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_from_a_folder_to_a_dataset_by_commands(places: tuple[ServedIsland, ServedIsland], tmp_path: Path) -> None:
    orion, laptop = places
    for place in places:
        place.start()
    laptop.command("peer", "join", stdin=orion.command("peer", "invite"))
    home = Home(tmp_path / "watched")
    write(home, "one", 0, 300)
    with pytest.raises(IslandError, match="no folder"):
        orion.command("source", "add", "folder", str(tmp_path / "absent"), "--name", "alerts")
    orion.command("source", "add", "folder", str(home.drop), "--name", "alerts")
    listed = wait_for("the file", lambda: row if (row := one(laptop, "source", "ls")).get("files") else None, 60)
    assert listed.keys() >= SOURCE_KEYS
    assert (listed["island"], listed["source"], listed["rows"], listed["state"]) == (
        "orion",
        "orion/alerts",
        300,
        "watching",
    )

    for words, said in (
        (("--where", "nope < 3"), "nope"),
        (("--where", "mag <"), "not valid SQL"),
        (("--where", "1=1; DROP TABLE x"), "semicolon"),
        (("--where", "mag < (SELECT 1)"), "island:"),
        (("--region", "circle 1"), "circle"),
    ):
        with pytest.raises(IslandError, match=said):
            laptop.command("subscription", "add", "orion/alerts", *words, "--into", "mine")
    with pytest.raises(IslandError, match="alerts"):
        laptop.command("subscription", "add", "orion/alert", "--into", "mine")
    assert laptop.json("dataset", "ls") == []

    made = laptop.json(
        "subscription", "add", "orion/alerts", "--where", "mag < 15", "--from", "beginning", "--into", "mine"
    )
    assert one(laptop, "dataset", "ls")["name"] == "mine", "it is published at once"
    with pytest.raises(IslandError, match="already"):
        laptop.command("subscription", "add", "orion/alerts", "--into", "mine")
    write(home, "two", 300, 300)

    def expected() -> int:
        return sum(1 for row in rows_of(sorted(home.drop.glob("*.parquet"))).elements() if (row[3] or 99) < 15)

    def arrived() -> dict[str, Any] | None:
        """The channel when it has delivered all rows and the source has told it so."""
        row = one(laptop, "channel", "ls")
        return row if (row["rows"], row["state"], row["lag"]) == (expected(), "live", 0) else None

    channel = wait_for("rows", arrived)
    assert channel.keys() >= CHANNEL_KEYS
    assert channel["into"] == "laptop/mine"
    assert one(orion, "channel", "ls")["direction"] == "out"

    orion.kill()
    waiting = wait_for("the loss", lambda: c if (c := one(laptop, "channel", "ls"))["state"] == "waiting" else None, 60)
    assert "orion" in waiting["reason"]
    write(home, "three", 600, 300)
    orion.start()
    wait_for("the rest", lambda: True if one(laptop, "channel", "ls")["rows"] == expected() else None, 60)
    dataset = laptop.home / "streams" / "mine"
    found = rows_of(sorted(dataset.glob("*.parquet")))
    everything = rows_of(sorted(home.drop.glob("*.parquet")))
    assert found == {row: n for row, n in everything.items() if row[3] is not None and row[3] < 15}

    # A user may have subscriptions, not sources, and not others' subscriptions.
    assert as_user(laptop, "POST", "/api/v1/sources", {"kind": "folder", "path": "/tmp", "name": "x"})[0] == 403
    assert as_user(laptop, "DELETE", f"/api/v1/subscriptions/{made['id']}")[0] == 404
    assert as_user(laptop, "GET", "/api/v1/subscriptions") == (200, [])
    status, own = as_user(laptop, "POST", "/api/v1/subscriptions", {"source": "orion/alerts", "into": "theirs"})
    assert (status, own["user"], own["from"]) == (201, "user", "now")
    assert as_user(laptop, "DELETE", f"/api/v1/subscriptions/{own['id']}")[0] == 200
    assert as_user(laptop, "POST", "/api/v1/subscriptions", {"source": "orion/alerts", "into": "a/b"})[0] == 400
    assert as_user(laptop, "POST", "/api/v1/subscriptions", {"source": "orion/alerts", "colour": 1})[0] == 400

    orion.command("source", "rm", "alerts")
    stopped = wait_for("the end", lambda: c if (c := one(laptop, "channel", "ls"))["state"] == "stopped" else None, 60)
    assert "alerts" in stopped["reason"]
    laptop.command("subscription", "rm", made["id"])
    assert laptop.json("subscription", "ls") == []
    assert "subscription.add" in laptop.command("journal")
