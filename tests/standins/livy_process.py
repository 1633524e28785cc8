"""The played Livy as a process that can be killed: `python -m tests.standins.livy_process PORT FOLDER`.

Like Livy without recovery it forgets its sessions, and gives their ids again. What it has run is in the file `ran` of
its folder, one line for the code of each statement and the name of each batch. A session of another client is in it.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

from aiohttp import web

from island.livy.messages import BatchRequest, SessionRequest
from tests.standins.livy import LivyJob, PlayedLivy

STRANGER = "of-another-client"
DELAY_S = 0.05
"""The longest time between a request and its effect."""


class _Kept(list[str]):
    """A list whose items are also lines of a file as soon as they are added."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("a")

    def append(self, item: str) -> None:
        super().append(item)
        self._file.write(f"{item}\n")
        self._file.flush()


class KillableLivy(PlayedLivy):
    """A played Livy that writes down what it runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(files=folder.parent)
        self.posted = _Kept(folder / "ran")
        self.fault = self._delayed

    async def _delayed(self, _: web.Request) -> None:
        await asyncio.sleep(DELAY_S * random.random())

    def _add(self, what: str, request: SessionRequest | BatchRequest, state: str) -> LivyJob:
        if what == "batch":
            self.posted.append(request.name or "")
        return super()._add(what, request, state)


class LivyProcess:
    """A killable Livy at a port."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.url = folder, port, f"http://127.0.0.1:{port}"
        folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = [sys.executable, "-m", "tests.standins.livy_process", str(self.port), str(self.folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if (process := self._process) is not None:
            process.kill()
            process.communicate()
            self._process = None

    def ran(self) -> list[str]:
        """What it has run since it was first started."""
        return (self.folder / "ran").read_text().splitlines()


async def _serve(port: int, folder: Path) -> None:
    livy = KillableLivy(folder)
    livy.stranger(STRANGER)
    runner = web.AppRunner(livy.app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # ends with the process that started it


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), Path(sys.argv[2])))
