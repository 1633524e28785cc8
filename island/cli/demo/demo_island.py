"""One island of the demo: its home folder, its daemon as a child process, and the commands that are run for it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
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

from island.client import Api
from island.errors import IslandError
from island.home import Endpoint
from island.kernel.interpreter import import_path, module_command

T = TypeVar("T")

ISLAND = module_command("island.cli.main")


PORTS = range(20_000, 32_000)
"""Below the ports that systems choose themselves for connections and for port 0, and that are soon used again."""


def free_ports(count: int) -> list[int]:
    """Return `count` TCP ports of the loopback interface that are free now; raises `IslandError` if there are fewer."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.SystemRandom().sample(PORTS, len(PORTS)):
            if len(found) == count:
                return found
            with contextlib.suppress(OSError):  # it is in use
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    raise IslandError(
        f"too few TCP ports of the loopback interface from {PORTS.start} to {PORTS.stop - 1} are free",
        hint="End programs that listen at many ports.",
    )


def wait_for(what: str, look: Callable[[], T | None], seconds: float = 60.0) -> T:
    """Call `look` ten times a second until it returns something other than None; return that.

    Raises `IslandError` that names `what` after `seconds`.
    """
    end = time.monotonic() + seconds
    while (found := look()) is None:
        if time.monotonic() > end:
            raise IslandError(f"timed out after {seconds:.0f} s waiting for {what}", hint="See the daemon's log.")
        time.sleep(0.1)
    return found


class DemoIsland:
    """An island named `name` with the home folder `root/name`. With `dialled=False` it has no peer port."""

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
        # Sessions of a demo live for seconds, in which Java's second compiler costs more than it gains.
        self.configure("java_options", '["-XX:TieredStopAtLevel=1"]')

    def configure(self, key: str, value: str) -> None:
        """Set `key` in island.toml to `value` (TOML); takes effect at the next start."""
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
                env=_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent,  # noqa: PLW1509 - one prctl call
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
        """Kill the daemon with SIGKILL, to simulate a crash."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Stop the daemon with SIGTERM, and with SIGKILL if it has not exited after 20 seconds."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def command(self, *arguments: str, seconds: float = 180.0, stdin: str = "") -> str:
        """Run `island ARGUMENTS` with this home folder; return its stdout. Raises `IslandError` if it fails."""
        done = subprocess.run(
            [*ISLAND, "--home", str(self.home), *arguments],
            env=_environment(), input=stdin, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        if done.returncode:
            raise IslandError(f"`island {' '.join(arguments[:3])}` at {self.name} failed: {done.stderr.strip()[-600:]}")
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Run a command with `--json` and return the parsed output."""
        return json.loads(self.command(*arguments, "--json"))

    def get(self, path: str) -> Any:
        """Ask the daemon what a command would ask, without the time that a command takes to start."""
        return Api(self.home_endpoint()).get(path)

    def environment(self) -> dict[str, str]:
        """Return environment variables with which programs use this island."""
        return {**_environment(), "ISLAND_HOME": str(self.home)}

    def home_endpoint(self) -> Endpoint:
        """Return the URL of the user port and the administrator's token."""
        return Endpoint(self.url, (self.home / "token").read_text("utf-8").strip())

    @property
    def user_token(self) -> str:
        return (self.home / "token.user").read_text("utf-8").strip()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": import_path(os.environ)}


def _tail(path: Path) -> str:
    return path.read_text("utf-8", "replace")[-800:] if path.exists() else "its log is empty"


def _die_with_parent() -> None:
    # On Linux the islands are killed when the demo ends, even if it crashes. Elsewhere only `stop` ends them.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
