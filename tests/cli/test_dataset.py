"""The dataset commands against a running user port, as a person uses them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from island.cli import base, main
from island.config import parse
from island.kernel.db import Database
from island.kernel.ports import SeededRng, SystemClock
from island.kernel.work import ThreadWorkers
from island.net.api import datasets
from island.net.api.user_port import UserServer, build
from island.net.condition import Condition
from island.replicas.service import Replicas, ReplicasDependencies
from island.trust.users import Tokens, create_tokens
from tests.islands.publishing import Islands, write_table


class Shell:
    """Runs commands in a thread, and keeps what they print."""

    def __init__(self, home: Path, url: str, capture: pytest.CaptureFixture[str]) -> None:
        self.home, self.url, self._capture = home, url, capture

    async def __call__(self, *words: str, code: int = 0, user: bool = False) -> tuple[str, str]:
        token = self.home / ("token.user" if user else "token")
        self._capture.readouterr()
        with pytest.raises(SystemExit) as stop:
            await asyncio.to_thread(main.run, ["--url", self.url, "--token-file", str(token), "dataset", *words])
        out, err = self._capture.readouterr()
        assert stop.value.code == code, err
        return out, err


@pytest.fixture
async def shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shell]:
    monkeypatch.setattr(base, "TARGET", base.Target())
    monkeypatch.delenv("ISLAND_TOKEN", raising=False)
    async with Islands(tmp_path).island("alpha") as alpha:
        create_tokens(alpha.home, SeededRng("tokens"))
        chunks = Database.open(alpha.home, "chunks")
        replicas = Replicas(
            ReplicasDependencies(
                chunks=chunks,
                catalog=alpha.catalog,
                gossip=alpha.gossip,
                membership=alpha.membership,
                trust=alpha.trust,
                peers=alpha.peers,
                config=parse({"island": {"name": "alpha"}}, "test"),
                clock=SystemClock(),
                rng=SeededRng("replicas"),
                home=alpha.home,
                state=alpha.state,
                workers=ThreadWorkers(),
            )
        )
        routes = datasets.routes(alpha.catalog, replicas)
        server = UserServer(build(Tokens.load(alpha.home), routes, Condition), "127.0.0.1:0")
        await server.start()
        try:
            yield Shell(alpha.home, server.url, capsys)
        finally:
            await server.stop()
            chunks.close()


async def test_publish_list_search_show_withdraw(shell: Shell, tmp_path: Path) -> None:
    path = write_table(tmp_path / "data" / "virgo.parquet", 2000)
    out, err = await shell("publish", str(path), "--name", "virgo", "--title", "Virgo cluster", "--licence", "CC0")
    assert out == "alpha/virgo\n"
    assert "2,000 rows" in err
    assert "public: every island of the archipelago 'test' (1 island now) can see and read it" in err
    listed = json.loads((await shell("ls", "--json"))[0])
    assert [(row["island"], row["name"], row["rows"], row["bytes"]) for row in listed] == [
        ("alpha", "virgo", 2000, path.stat().st_size)
    ]
    assert {"dataset", "title", "format", "files", "snapshot", "updated", "key"} <= set(listed[0])
    for words in (
        ["cluster"],
        ["CLUST"],
        ['"virgo cluster"'],
        ["--column", "mag"],
        ["--column", "PHOT.MAG"],
        ["--region", "circle 187.7 12.4 5"],
        ["--format", "parquet"],
        ["virgo", "--column", "ra", "--region", "circle 187.7 12.4 5"],
    ):
        assert json.loads((await shell("search", *words, "--json"))[0]) == listed, words
    for words in (
        ["andromeda"],
        ["--region", "circle 10 41 3"],
        ["--column", "nothing"],
        ["--time", "2020-01-01.."],
        ["!?"],
    ):
        assert json.loads((await shell("search", *words, "--json"))[0]) == [], words
    out, err = await shell("search", "andromeda")
    assert (out, err) == ("", "no dataset matches\n")
    shown = json.loads((await shell("show", "alpha/virgo", "--json"))[0])
    assert (shown["bytes"], shown["bytes_local"], shown["bytes_moved"]) == (listed[0]["bytes"],) * 2 + (0,)
    assert [column["unit"] for column in shown["columns"]] == ["", "deg", "deg", "mag"]
    assert (shown["licence"], shown["ra"], shown["dec"]) == ("CC0", "ra", "dec")
    assert [(holder["island"], holder["role"], holder["state"]) for holder in shown["holders"]] == [
        ("alpha", "owner", "self")
    ]
    out, _ = await shell("show", f"alpha/virgo@{shown['snapshot'][:8]}")
    assert "pos.eq.ra" in out and re.search(r"^read +island://alpha/virgo$", out, re.MULTILINE)
    assert (await shell("ls", user=True))[0] == (await shell("ls"))[0]
    await shell("unpublish", "alpha/virgo")
    assert json.loads((await shell("ls", "--json"))[0]) == []
    assert path.exists()


async def test_what_goes_wrong_is_said(shell: Shell, tmp_path: Path) -> None:
    path = write_table(tmp_path / "data" / "a.parquet")
    cases = [
        (["publish", str(path), "--name", "a/b"], "valid dataset name"),
        (["publish", str(tmp_path / "none.parquet"), "--name", "a"], "does not exist"),
        (["publish", str(path), "--name", "a", "--ra", "ra"], "together"),
        (["publish", str(path), "--name", "a", "--ra", "rra", "--dec", "dec"], "rra"),
        (["search", "--region", "round the moon"], "circle"),
        (["search", "--time", "yesterday"], "FROM..TO"),
        (["show", "alpha"], "OWNER/NAME"),
        (["show", "alpha/none"], "there is no dataset alpha/none"),
        (["show", "nobody/none"], "nobody"),
        (["unpublish", "none"], "does not publish a dataset named"),
    ]
    for words, text in cases:
        out, err = await shell(*words, code=1)
        assert out == ""
        assert text in err, words
        assert "Traceback" not in err
    _, err = await shell("publish", str(path), "--name", "a", code=1, user=True)
    assert "administrator" in err
    await shell("publish", code=2)
    assert json.loads((await shell("ls", "--json"))[0]) == []
