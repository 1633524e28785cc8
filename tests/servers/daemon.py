"""An island for tests: its daemon is a child process, its commands run in the process of the test."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from island.cli import base, main
from island.cli.demo.demo_island import ISLAND, DemoIsland
from island.engine.supervisor import descendants
from island.errors import IslandError


def as_from_terminal() -> None:
    """Restore the usual signals in a child. What a shell starts in the background ignores SIGINT, with nohup SIGHUP."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def island_command(
    *arguments: str, stdin: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `island ARGUMENTS` in this process, without the time that a new process takes to start.

    Use `island_process` where the process itself is the point.
    """
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        patch.setattr(base, "TARGET", base.Target())
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as stop:
            main.run(list(arguments))
    assert isinstance(stop.value.code, int)
    return subprocess.CompletedProcess(arguments, stop.value.code, out.getvalue(), err.getvalue())


def island_process(
    *arguments: str, stdin: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `island ARGUMENTS` as a person does: in a new process."""
    return subprocess.run(
        [*ISLAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, **(environment or {})},
    )


class ServedIsland(DemoIsland):
    """A `DemoIsland` whose commands run in this process. Without `spark`, its daemon starts no engine."""

    def __init__(self, root: Path, name: str, *, dialled: bool = True, spark: bool = False) -> None:
        super().__init__(root, name, dialled=dialled)
        if not spark:
            self.configure("embedded", "false")

    def add_silent_engine(self) -> None:
        """Add a Livy that does not answer, so that jobs wait for it. Call it before `start`."""
        with (self.home / "island.toml").open("a") as file:
            file.write(
                '[[engine]]\nname = "silent"\nurl = "http://127.0.0.1:9"\nkinds = ["pyspark", "shared", "sql"]\n'
            )

    @property
    def pid(self) -> int:
        """The process id of the daemon, which must be running."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the daemon was started and not stopped since."""
        return self._process is not None

    def run(self, *arguments: str, token: str = "", stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command for this island, with the administrator's token or another one."""
        environment = {"ISLAND_TOKEN": token} if token else {}
        return island_command("--home", str(self.home), *arguments, stdin=stdin, environment=environment)

    def command(self, *arguments: str, seconds: float = 180.0, stdin: str = "") -> str:
        """See `DemoIsland.command`."""
        done = self.run(*arguments, stdin=stdin)
        if done.returncode:
            raise IslandError(f"`island {' '.join(arguments[:3])}` at {self.name} failed: {done.stderr.strip()[-600:]}")
        return done.stdout


@contextlib.contextmanager
def running(*islands: ServedIsland) -> Iterator[None]:
    """Run the daemons of some islands, and end them with the block."""
    try:
        for each in islands:
            each.start()
        yield
    finally:
        for each in islands:
            each.stop()


def is_read(place: ServedIsland, path: Path) -> bool:
    """Whether the daemon, or a process below it, has a file open."""
    for pid in [place.pid, *descendants(place.pid)]:
        try:
            if any(link.is_symlink() and os.readlink(link) == str(path) for link in Path(f"/proc/{pid}/fd").iterdir()):
                return True
        except FileNotFoundError:
            continue  # a process that ended, or a descriptor that was closed, while we looked
    return False
