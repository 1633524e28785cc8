"""`island session` and `island job` against a running user port."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from urllib.parse import urlsplit

import pytest

from tests.islands.user_port import played_livy, site_in_thread
from tests.servers.daemon import island_command

Island = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def island(tmp_path: Path) -> Iterator[Island]:
    """Runs one command as a user of a home whose Livy is played."""
    with ExitStack() as stack:
        livy = stack.enter_context(livy_in_thread())
        url = urlsplit(stack.enter_context(site_in_thread(tmp_path / "home", livy, "", {})))
        environment = {"ISLAND_TOKEN": str(url.password)}

        def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
            place = ("--url", f"http://{url.hostname}:{url.port}")
            return island_command(*place, *arguments, stdin=stdin, environment=environment)

        yield run


@contextmanager
def livy_in_thread() -> Iterator[str]:
    """`played_livy` with an event loop of its own."""
    loop, ready, stop = asyncio.new_event_loop(), Event(), asyncio.Event()
    found: list[str] = []

    async def main() -> None:
        async with played_livy() as url:
            found.append(url)
            ready.set()
            await stop.wait()

    thread = Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert ready.wait(30)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_a_session_by_command(island: Island) -> None:
    opened = island("session", "open", "--kind", "pyspark", "--name", "mine")
    assert opened.returncode == 0, opened.stderr
    assert opened.stdout == "0\n"
    assert "runs at home" in opened.stderr and "ready at home" in opened.stderr
    assert island("session", "exec", "0", "1+1").stdout == "2\n"
    assert island("session", "exec", "0", "-", stdin="1+1").stdout == "2\n"
    assert [line.split() for line in island("session", "exec", "0", "table").stdout.splitlines()] == [["n"], ["7"]]
    failed = island("session", "exec", "0", "fail")
    assert failed.returncode == 1 and "boom" in failed.stderr and not failed.stdout
    row = json.loads(island("session", "ls", "--json").stdout)[0]
    assert (row["id"], row["state"], row["island"], row["name"]) == (0, "idle", "home", "mine")
    assert {"id", "job", "kind", "state", "island", "owner", "inputs"} <= set(row)
    for name in ("0", row["job"], row["job"][:10], "mine"):
        assert json.loads(island("job", "show", name, "--json").stdout)["job"] == row["job"]
    explained = json.loads(island("job", "explain", "0", "--json").stdout)
    assert explained[0]["island"] == "home" and explained[0]["chosen"] is True
    assert "home" in island("job", "explain", "0").stdout
    assert "runs at home" in island("job", "logs", "0").stdout
    assert island("job", "wait", "0").returncode == 0
    closed = island("session", "close", "0")
    assert closed.returncode == 0 and f"island job show {row['job']}" in closed.stderr
    shown = island("job", "show", row["job"])
    assert "\nstatement 0, available: 1+1\n2\n" in shown.stdout and "boom" in shown.stderr
    ended = island("job", "wait", row["job"])
    assert ended.returncode == 1 and "ended by its owner" in ended.stderr
    assert island("session", "exec", "0", "1").returncode == 1


def test_results_are_read_whole_also_after_the_end_of_the_session(island: Island, tmp_path: Path) -> None:
    island("session", "open", "--kind", "pyspark")
    assert island("session", "exec", "0", "1+1").returncode == 0
    executed = island("session", "exec", "0", "rows 3 300000")
    assert executed.stdout.count("0000000") == 3 and len(executed.stdout) > 900_000
    island("session", "close", "0")
    [small, large] = json.loads(island("session", "results", "0", "--json").stdout)
    assert (small["id"], small["state"], small["size"], small["sha256"]) == (0, "available", 61, "")
    target = tmp_path / "large.json"
    for _ in range(2):  # a file that exists is replaced
        written = island("session", "result", "0", "1", "--to", str(target))
        assert written.returncode == 0, written.stderr
    data = target.read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (large["size"], large["sha256"])
    rows = json.loads(data)["data"]["application/json"]["data"]
    assert [len(text) for [text] in rows] == [300_000] * 3
    assert island("session", "result", "0", "0").stdout == "2\n"
    assert island("session", "result", "0", "1").stdout == executed.stdout
    assert "[a result of 1.7 MiB: island session result " in island("job", "show", "0").stdout
    assert island("session", "result", "0", "7").returncode == 1
    failed = island("session", "result", "0", "1", "--to", str(tmp_path / "missing" / "x.json"))
    assert failed.returncode == 1 and "cannot be written" in failed.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["large.json"]


def test_the_key_of_a_job_is_shown_only_if_asked_for(island: Island) -> None:
    island("session", "open", "--kind", "pyspark", "--conf", "spark.sql.ansi.enabled=true", "--memory", "1g")
    assert "key" not in json.loads(island("job", "show", "0", "--json").stdout)
    assert len(json.loads(island("job", "show", "0", "--show-key", "--json").stdout)["key"]) == 32


def test_a_session_at_a_prompt(island: Island) -> None:
    island("session", "open", "--kind", "pyspark")
    done = island("session", "attach", "0", stdin="1+1\nif True:\n    table\n\nfail\n\nexit\nnever read\n")
    assert done.returncode == 0
    assert (
        done.stdout.startswith("home:0> 2\n")
        and "ran if True:\n    table" in done.stdout
        and "boom" in done.stderr
        and "never" not in done.stdout
    )
    assert json.loads(island("job", "show", "0", "--json").stdout)["state"] == "idle"
    island("session", "close", "0")
    closed = island("session", "attach", "0", stdin="1+1\n")
    assert closed.returncode == 0 and "dead" in closed.stderr


def test_a_log_is_followed_until_the_end(island: Island) -> None:
    row = json.loads(island("job", "show", island("session", "open", "--kind", "sql").stdout.strip(), "--json").stdout)
    island("session", "close", "0")
    followed = island("job", "logs", "--follow", row["job"])
    assert followed.returncode == 0 and followed.stderr.count("runs at home") == 1


def test_arguments_that_look_like_global_options_reach_the_batch(island: Island, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("print(1)")
    done = island("job", "submit", str(file), "--arg", "--url=x", "--arg", "--home", "--conf", "spark.task.cpus=1")
    assert done.returncode == 0, done.stderr
    shown = json.loads(island("job", "ls", "--json").stdout)
    assert [row["job"] for row in shown] == [done.stdout.strip()]
    assert island("job", "submit", str(file), "--conf", "nothing").returncode == 1
    assert island("job", "submit", str(file), "--timeout", "3").returncode == 2


def test_what_is_wrong_is_said(island: Island, tmp_path: Path) -> None:
    unknown = island("session", "open", "--kind", "sql", "--input", "home/nothing")
    assert unknown.returncode == 1 and "home/nothing" in unknown.stderr and unknown.stdout == ""
    assert island("session", "open", "--kind", "cobol").returncode == 2
    assert island("session", "exec", "17", "1").returncode == 1
    assert island("job", "show", "17").returncode == 1
    missing = island("job", "submit", str(tmp_path / "none.py"))
    assert missing.returncode == 1 and "cannot be read" in missing.stderr
    text = tmp_path / "a.txt"
    text.write_text("x")
    assert ".py" in island("job", "submit", str(text)).stderr
    assert json.loads(island("job", "ls", "--json").stdout) == []
