"""One island of the demo: its home, its daemon as a child process, and the commands that talk to it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from island.errors import IslandError
from island.home import Endpoint

T = TypeVar("T")

ISLAND = [sys.executable, "-m", "island.cli.main"]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(what: str, look: Callable[[], T | None], seconds: float = 60.0) -> T:
    """Look ten times a second until there is something; raises `IslandError` that says what did not come."""
    end = time.monotonic() + seconds
    while (found := look()) is None:
        if time.monotonic() > end:
            raise IslandError(f"timed out after {seconds:.0f} s waiting for {what}", hint="The daemon's log says more.")
        time.sleep(0.1)
    return found


class DemoIsland:
    """An island named `name` in `root/name`. `dialled=False` makes one that others cannot dial."""

    def __init__(self, root: Path, name: str, *, dialled: bool = True) -> None:
        self.name, self.home = name, root / name
        user, peer = free_ports(2)
        self.url = f"http://127.0.0.1:{user}"
        self.peer_listen = f"127.0.0.1:{peer}" if dialled else ""
        self.log = root / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.command(
            "init", str(self.home), "--name", name, "--listen", self.url.removeprefix("http://"),
            f"--peer-listen={self.peer_listen}", "--archipelago", "demo",
        )  # fmt: skip

    def configure(self, key: str, value: str) -> None:
        """Change one key of island.toml, as the administrator would in an editor."""
        path = self.home / "island.toml"
        lines = path.read_text("utf-8").splitlines()
        path.write_text(
            "\n".join(f"{key} = {value}" if li.startswith(f"{key} =") else li for li in lines) + "\n", "utf-8"
        )

    def start(self) -> None:
        """Start the daemon and wait until it is ready."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*ISLAND, "--home", str(self.home), "run"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent,  # noqa: PLW1509 - one prctl call
                start_new_session=True,
            )  # fmt: skip
        wait_for(f"island {self.name} to be ready", self._ready, 60)

    def _ready(self) -> bool | None:
        if self._process and self._process.poll() is not None:
            raise IslandError(f"island {self.name} did not start: {_tail(self.log)}")
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return True if answer.status == 200 else None
        except (urllib.error.URLError, OSError):
            return None  # not listening yet

    def kill(self) -> None:
        """SIGKILL the daemon, as a crash would."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after 20 seconds."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def command(self, *arguments: str, seconds: float = 180.0, stdin: str = "") -> str:
        """What `island ARGUMENTS` prints on stdout with this home; raises `IslandError` when it fails."""
        done = subprocess.run(
            [*ISLAND, "--home", str(self.home), *arguments],
            input=stdin, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        if done.returncode:
            raise IslandError(f"`island {' '.join(arguments[:3])}` at {self.name} failed: {done.stderr.strip()[-600:]}")
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """The same, with `--json`, parsed."""
        return json.loads(self.command(*arguments, "--json"))

    def environment(self) -> dict[str, str]:
        """The environment in which programs find this island."""
        return {**os.environ, "ISLAND_HOME": str(self.home)}

    def home_endpoint(self) -> Endpoint:
        """URL and administrator's token."""
        return Endpoint(self.url, (self.home / "token").read_text("utf-8").strip())

    @property
    def user_token(self) -> str:
        return (self.home / "token.user").read_text("utf-8").strip()


def _tail(path: Path) -> str:
    return path.read_text("utf-8", "replace")[-800:] if path.exists() else "it logged nothing"


def _die_with_parent() -> None:
    # However the demo ends, its islands end with it (Linux; elsewhere `stop` does it).
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
