"""Makes the fixture `home-VERSION.tar.gz`: a home folder that a released version has written, and what it showed.

Run it once for each release, with the checked-out tree of that release and a Python that has its dependencies:

    sudo mkdir -p /srv/island && sudo chown "$USER" /srv/island
    python -m tests.upgrade.make_home TREE PYTHON

Everything is done by commands of the release, below /srv/island, so that the fixture has no path of the machine that
made it. `kiso` is the island whose home is kept. `hida` is another member of its archipelago and is not kept. The keys
are made for the fixture and used nowhere else.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path("/srv/island")
FIXTURES = Path(__file__).parent

LEFT_OUT = {"engine", "jobs", "lock", "running.json", "search"}
"""What a daemon makes again at each start."""

SHOWN = {
    "datasets": ("dataset", "ls"),
    "islands": ("peer", "ls"),
    "jobs": ("job", "ls"),
    "journal": ("journal",),
    "servers": ("server", "ls"),
    "sources": ("source", "ls"),
    "subscriptions": ("subscription", "ls"),
}
"""The commands whose JSON output is kept in `shown.json`."""


class Island:
    """One island of the release, with its daemon as a child process."""

    def __init__(self, name: str, port: int) -> None:
        self.home, self.url = ROOT / name, f"http://127.0.0.1:{port}"
        self.run("init", str(self.home), "--name", name, f"--listen=127.0.0.1:{port}",
                 f"--peer-listen=127.0.0.1:{port + 1}", "--archipelago", "fixture")  # fmt: skip
        self.daemon = subprocess.Popen([*COMMAND, "--home", str(self.home), "run"], env=ENVIRONMENT, cwd=ROOT)
        until(lambda: answers(f"{self.url}/readyz"))

    def run(self, *arguments: str) -> str:
        """Run a command of the release for this island, and return its stdout."""
        command = [*COMMAND, "--home", str(self.home), *arguments]
        return subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout

    def json(self, *arguments: str) -> Any:
        """Run a command with `--json`."""
        return json.loads(self.run(*arguments, "--json"))

    def stop(self) -> None:
        """Stop the daemon."""
        self.daemon.send_signal(signal.SIGTERM)
        self.daemon.wait()


def until(look: Any) -> None:
    """Wait at most a minute until `look()` is true."""
    for _ in range(600):
        if look():
            return
        time.sleep(0.1)
    raise SystemExit("timed out; see the log of the daemons above")


def answers(url: str) -> bool:
    """Whether there is an answer with status 200."""
    try:
        with urllib.request.urlopen(url) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def table(folder: str, name: str, ra: list[float], mag: list[float]) -> None:
    """Write a small Parquet file."""
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    rows = pa.table({"ra": ra, "dec": [0.5 * each for each in mag], "mag": mag})
    pq.write_table(rows, ROOT / folder / name)


def live(kiso: Island, hida: Island) -> None:
    """Give `kiso` something of each kind."""
    table("stars", "a.parquet", [10.0, 187.0], [3.4, 8.6])
    table("galaxies", "a.parquet", [20.0, 87.0, 91.5], [13.4, 18.6, 17.0])
    table("alerts", "a.parquet", [83.8, 201.3, 56.7], [15.1, 19.2, 18.0])
    kiso.run("dataset", "publish", str(ROOT / "stars"), "--name", "stars", "--title", "Two stars")
    table("stars", "b.parquet", [266.4], [12.0])
    kiso.run("dataset", "publish", str(ROOT / "stars"), "--name", "stars")
    kiso.run("dataset", "publish", str(ROOT / "alerts"), "--name", "withdrawn")
    kiso.run("dataset", "unpublish", "withdrawn")
    kiso.run("server", "add", "hdfs", "hdfs://nn.example.org:8020")
    kiso.run("source", "add", "folder", str(ROOT / "alerts"), "--name", "alerts")
    hida.run("peer", "join", kiso.run("peer", "invite").strip())
    hida.run("dataset", "publish", str(ROOT / "galaxies"), "--name", "galaxies", "--title", "Three galaxies")
    hida.run("source", "add", "folder", str(ROOT / "galaxies"), "--name", "new-galaxies")
    until(lambda: len(kiso.json("dataset", "ls")) == 2 and any(each["files"] for each in hida.json("source", "ls")))
    kiso.run("dataset", "fetch", "hida/galaxies")
    kiso.run("subscription", "add", "hida/new-galaxies", "--from", "beginning", "--into", "copy")
    until(lambda: kiso.json("subscription", "ls")[0]["rows"] == 3)
    session = kiso.run("session", "open", "--kind", "sql").strip()
    kiso.run("session", "exec", session, "SELECT 40 + 2 AS answer")
    kiso.run("session", "close", session)
    until(lambda: len(hida.json("dataset", "ls")) == 3)


def pack(shown: dict[str, Any], version: str) -> None:
    """Write the fixture: the home, and `shown.json`."""
    with tarfile.open(FIXTURES / f"home-{version}.tar.gz", "w:gz") as archive:
        text = json.dumps(shown, indent=1).encode()
        header = tarfile.TarInfo("shown.json")
        header.size = len(text)
        archive.addfile(header, io.BytesIO(text))
        for path in sorted((ROOT / "kiso").rglob("*")):
            below = path.relative_to(ROOT / "kiso")
            if path.is_file() and not path.is_symlink() and below.parts[0] not in LEFT_OUT:
                entry = archive.gettarinfo(path, f"home/{below}")
                entry.uid = entry.gid = 0
                entry.uname = entry.gname = ""
                with path.open("rb") as content:
                    archive.addfile(entry, content)


def main() -> None:
    """Make the fixture of the release whose tree is `TREE`."""
    # Links with neutral names, because Python and Spark put their own paths into logs of jobs.
    for name, target in (("tree", TREE), ("python", Path(PYTHON).absolute().parent.parent)):
        (ROOT / name).symlink_to(target.absolute())
    kiso, hida = Island("kiso", 18990), Island("hida", 18992)
    try:
        live(kiso, hida)
        shown = {name: kiso.json(*command) for name, command in SHOWN.items()}
        version = kiso.run("--version").split()[1]
    finally:
        hida.stop()
        kiso.stop()
    pack(shown, version)


if __name__ == "__main__":
    TREE, PYTHON = Path(sys.argv[1]), sys.argv[2]
    COMMAND = [str(ROOT / "python" / "bin" / "python"), "-m", "island.cli.main"]
    ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "tree"), "HOSTNAME": "kiso"}
    main()
