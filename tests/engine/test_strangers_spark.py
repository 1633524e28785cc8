"""Another account of this machine gets nothing from a live session or batch.

Every process of the machine can connect to the ports of Spark and pyspark, so each port must require a secret.
The same attempts succeed against Spark with its default settings, which shows that they are correct.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from island.engine.jvm import find_java
from island.engine.supervisor import descendants
from island.livy.client import LivyClient
from island.livy.messages import BatchRequest, SessionRequest
from tests.engine import ports_of_spark, stranger
from tests.missing import missing
from tests.servers.engine import Opened, RunningEngine, need_spark, until

pytestmark = pytest.mark.spark
JAR = "of-the-session.jar"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
LISTENING = "0A"


@pytest.fixture(scope="module")
def account() -> pwd.struct_passwd:
    """The account `nobody`. Only root can change to it, so the test is skipped for others; in CI it fails."""
    need_spark()
    if os.getuid() != 0:
        reason = "only root can try what another account gets: run this file's tests as root"
        missing(reason)
    return pwd.getpwnam("nobody")


@pytest.fixture(scope="module")
def folder(account: pwd.struct_passwd) -> Iterator[Path]:
    """A folder that every account can enter. Folders of pytest cannot be entered, which would hide open files."""
    made = Path(tempfile.mkdtemp(prefix="strangers-"))
    made.chmod(0o755)
    (made / "work").mkdir()
    with zipfile.ZipFile(made / "work" / JAR, "w") as jar:
        jar.writestr("inside.txt", "x")
    shutil.copy(ports_of_spark.__file__, made / "work" / "ports_of_spark.py")
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[RunningEngine]:
    """An engine in that folder."""
    running = RunningEngine(folder / "home", "--allow-files", str(folder / "work"))
    yield running
    assert running.close() == 0, running.errors.read_text()


def listening(pids: list[int]) -> dict[int, tuple[int, bool]]:
    """The TCP ports on which the processes listen, with the process and whether only on loopback."""
    owners: dict[str, int] = {}
    for pid in pids:
        for name in (Path("/proc") / str(pid) / "fd").iterdir():
            try:
                owners[os.readlink(name)] = pid
            except FileNotFoundError:
                continue  # closed meanwhile
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            owner = owners.get(f"socket:[{fields[9]}]")
            if fields[3] == LISTENING and owner is not None:
                found[int(port, 16)] = (owner, address in LOOPBACK)
    return found


def ports(pids: list[int], told: dict[str, int]) -> dict[str, int]:
    """All ports of the processes by name. Fails for an unknown port and for a port that is not on loopback."""
    found = listening(pids)
    assert all(is_loopback for _, is_loopback in found.values()), found
    unknown = {port: pid for port, (pid, _) in found.items() if port not in told.values()}
    [workers] = unknown
    assert b"pyspark.daemon" in Path(f"/proc/{unknown[workers]}/cmdline").read_bytes()
    assert found.keys() == {*told.values(), workers}
    return told | {"workers": workers}


def opened_for_writing(pids: list[int]) -> set[str]:
    """Files on disk that the processes can write to."""
    found = set()
    for pid in pids:
        for name in (Path("/proc") / str(pid) / "fd").iterdir():
            try:
                path, mode = os.readlink(name), name.lstat().st_mode
            except FileNotFoundError:
                continue  # closed meanwhile
            if path.startswith("/") and not path.startswith(("/dev/", "/proc/")) and mode & 0o200:
                found.add(path)
    return found


def attempts(account: pwd.struct_passwd, task: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The results of the account's attempts at the ports and paths."""
    done = subprocess.run(
        [sys.executable, "-I", stranger.__file__, str(account.pw_uid), str(account.pw_gid)],
        input=json.dumps({"jar": JAR, **task}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return answer["got"], answer["readable"]


def uploaded(folder: Path) -> bool:
    """Whether Spark accepted the stranger's block."""
    (folder / "asked").write_text("")
    until((folder / "uploaded").exists, 60)
    return bool(json.loads((folder / "uploaded").read_text()))


def refuse_everything(account: pwd.struct_passwd, engine: RunningEngine, told: dict[str, Any]) -> None:
    """Check that no port of the engine's processes serves the account, and that it can read none of their files."""
    below = [engine.process.pid, *engine.below()]
    url_port = int(engine.url.rpartition(":")[2])
    names = ports(below, told["ports"] | {"engine": url_port})
    written = opened_for_writing(below) - {str(engine.errors)}  # the test's own file
    files = [engine.directory, *engine.directory.rglob("*")]
    traces = [path for pid in below for path in Path("/tmp").glob(f"hsperfdata_*/{pid}")]
    paths = sorted({str(path) for path in (*files, *traces)} | written)
    assert any("blockmgr" in path for path in paths) and any(path.endswith("spark.properties") for path in paths)
    got, readable = attempts(account, told | {"ports": names, "paths": paths})
    assert got.keys() == {f"{name}: {each.__name__}" for name, some in stranger.ATTEMPTS.items() for each in some}
    assert {name: what for name, what in got.items() if what} == {}
    assert readable == []


def test_spark_with_default_settings_serves_every_account(account: pwd.struct_passwd, folder: Path) -> None:
    place = folder / "stock"
    place.mkdir()
    os.mkfifo(place / "asked")
    command = [sys.executable, str(folder / "work" / "ports_of_spark.py"), str(place)]
    submit = f"--master local[1] --jars '{folder / 'work' / JAR}' pyspark-shell"
    java = str(find_java(os.environ))
    environ = {**os.environ, "JAVA_HOME": java, "PYSPARK_SUBMIT_ARGS": submit, "TMPDIR": str(place)}
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, cwd=place, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: process.poll() is not None or (place / "told").exists(), 300)
        assert process.poll() is None, (place / "log").read_text()
        told = json.loads((place / "told").read_text())
        names = {name: told["ports"][name] for name in ("rpc", "blocks")}
        assert not listening([process.pid, *descendants(process.pid)])[names["rpc"]][1]
        got, readable = attempts(account, told | {"ports": names, "paths": [str(folder / "work" / JAR)]})
        assert len(got) == 4 and all(got.values()), got
        assert "a row of the session" in got["blocks: read_a_block"]
        assert uploaded(place)
        assert readable
    finally:
        below = descendants(process.pid)
        for pid in [process.pid, *below]:
            os.kill(pid, 9)
        process.wait()


async def test_a_session_serves_no_other_account(
    account: pwd.struct_passwd, engine: RunningEngine, folder: Path
) -> None:
    async with LivyClient(engine.url, engine.token) as client:
        view = await client.create_session(SessionRequest(kind="pyspark", jars=[str(folder / "work" / JAR)]))
        try:
            session = Opened(client, (await client.wait_session(view.id)).id)
            where = str(folder / "work")
            await session.text(f"import sys; sys.path.append({where!r}); import json, ports_of_spark as p")
            told = json.loads(await session.text("print(json.dumps(p.told(spark)))"))
            assert told["in_jar"]
            refuse_everything(account, engine, told)
            assert await session.text("p.has_uploaded(spark)") == "False"
            assert await session.text("spark.range(7).count()") == "7"
        finally:
            await client.delete_session(view.id)


async def test_a_batch_serves_no_other_account_with_any_settings(
    account: pwd.struct_passwd, engine: RunningEngine, folder: Path
) -> None:
    place = folder / "work" / "batch"
    place.mkdir()
    os.mkfifo(place / "asked")
    async with LivyClient(engine.url, engine.token) as client:
        file, jar = folder / "work" / "ports_of_spark.py", folder / "work" / JAR
        view = await client.create_batch(BatchRequest(file=str(file), args=[str(place)], jars=[str(jar)]))
        try:
            while not (place / "told").exists():
                state = (await client.batch(view.id)).state
                assert state in ("starting", "running"), (await client.batch_log(view.id)).log
                await asyncio.sleep(0.05)
            told = json.loads((place / "told").read_text())
            assert told["in_jar"]
            refuse_everything(account, engine, told)
            assert not uploaded(place)
        finally:
            await client.delete_batch(view.id)
