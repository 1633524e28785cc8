"""docs/commands.md lists every command, option and key, and the commands print these keys."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from island.cli.demo.demo_island import ISLAND
from tests.contracts import commands, document
from tests.servers.daemon import ServedIsland


def test_the_page_is_up_to_date() -> None:
    assert commands.PAGE.read_text("utf-8") == commands.render(), "run: python -m tests.contracts.commands"


def test_every_command_and_option_is_on_the_page() -> None:
    page = commands.PAGE.read_text("utf-8")
    for name, command in commands.leaves(commands.tree()):
        assert f"### `island {name}" in page, name
        for parameter in command.params:
            assert parameter.param_type_name != "option" or parameter.help, f"{name} {parameter.opts} has no help"
            for option in parameter.opts:
                assert not option.startswith("--") or f"`{option}`" in page, f"{name} {option}"


def test_every_command_with_json_has_its_keys_on_the_page() -> None:
    with_json = {
        name
        for name, command in commands.leaves(commands.tree())
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert with_json == commands.SCHEMAS.keys() | commands.LOCAL.keys()
    assert set(commands.SCHEMAS.values()) <= set(document.document()["components"]["schemas"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedIsland]:
    """An island with one object of each kind. Its Livy is down, so sessions need no Spark."""
    made = ServedIsland(tmp_path_factory.mktemp("commands"), "kiso")
    made.add_silent_engine()
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def printed(place: ServedIsland) -> dict[str, Any]:
    """The output of each command with `--json`."""
    root = place.home.parent
    (root / "folder").mkdir()
    table = pa.table({"ra": [10.0, 187.0], "mag": [3.4, 8.6]})
    for path in (root / "small.parquet", root / "folder" / "a.parquet"):
        pq.write_table(table, path)
    answers = {
        "user add": place.json("user", "add", "alice", "--expires", "30"),
        "user rotate": place.json("user", "rotate", "alice"),
        "user show": place.json("user", "show"),
        "dataset publish": place.json("dataset", "publish", str(root / "small.parquet"), "--name", "small"),
        "source add folder": place.json("source", "add", "folder", str(root / "folder"), "--name", "folder"),
        "subscription add": place.json("subscription", "add", "kiso/folder", "--from", "beginning", "--into", "copy"),
    }
    session = place.command("session", "open", "--kind", "pyspark", "--input", "kiso/small", "--no-wait").strip()
    for name in (*sorted(name for name in commands.LISTS if name.endswith(" ls")), "journal"):
        answers[name] = place.json(*name.split())
    status = [*ISLAND, "--home", str(place.home), "status", "--json"]
    done = subprocess.run(status, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, "its Livy is down"
    answers["status"] = json.loads(done.stdout)
    nearby = [*ISLAND, "--home", str(place.home), "peer", "nearby", "--json"]
    done = subprocess.run(nearby, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, "discovery is off"
    answers["peer nearby"] = json.loads(done.stdout)
    for name in ("doctor", "status"):
        done = subprocess.run(
            [*ISLAND, name, "--json"], env=place.environment(), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1, "its Livy is down"
        answers[name] = json.loads(done.stdout)
    answers["config show"] = place.json("config", "show")
    place.configure("accept_from", '["members"]')
    answers["config check"] = place.json("config", "check")
    answers["dataset search"] = place.json("dataset", "search", "small")
    answers["dataset show"] = place.json("dataset", "show", "kiso/small")
    answers["source show"] = place.json("source", "show", "kiso/folder")
    answers["session ls"] = place.json("session", "ls", "--all")
    answers["job accuracy"] = place.json("job", "accuracy")
    for name in ("show", "explain"):
        answers[f"job {name}"] = place.json("job", name, session)
    return answers


def test_the_commands_print_the_keys_on_the_page(printed: dict[str, Any]) -> None:
    assert len(printed) >= 14
    for name, value in printed.items():
        assert isinstance(value, list) == (name in commands.LISTS), name
        rows = value if isinstance(value, list) else [value]
        assert rows, f"{name} shows nothing to check"
        if name in commands.LOCAL:
            assert all(list(row) == [key for key, _ in commands.LOCAL[name]] for row in rows), name
            continue
        for row in rows:
            assert sorted(row) == sorted(document.keys(commands.SCHEMAS[name])), name
            document.check({"$ref": f"#/components/schemas/{commands.SCHEMAS[name]}"}, row, name)


def test_the_engine_answers_for_itself(place: ServedIsland, tmp_path: Path) -> None:
    said = place.command("engine", "--help")
    assert said.startswith("usage: island engine") and "--max-sessions" in said
    for arguments, code in (
        (["--nonsense"], 2),
        (["--host", "192.0.2.1"], 1),
        # Its own --token-file, not the one of the commands.
        (["--token-file", str(tmp_path / "none"), "--dir", str(tmp_path / "engine")], 1),
    ):
        done = subprocess.run([*ISLAND, "engine", *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code and "island engine: " in done.stderr and "Traceback" not in done.stderr
