"""Sessions of a real engine with a real Spark."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from island.errors import BadInput, NotFound
from island.livy.client import LivyClient
from island.livy.messages import CompletionRequest, SessionRequest
from tests.servers.engine import Opened, RunningEngine, alive, until

pytestmark = pytest.mark.spark


async def test_statement_text_and_numbers(session: Opened) -> None:
    first = await session.run("1 + 1")
    second = await session.run("print('a')\n'b'")
    assert first.output is not None and first.output.data == {"text/plain": "2"}
    assert second.output is not None and second.output.data == {"text/plain": "a\n'b'"}
    assert second.id == first.id + 1
    assert 0 < second.started <= second.completed


async def test_names_are_completed_also_while_a_statement_runs(session: Opened) -> None:
    async def names(code: str, kind: str = "pyspark") -> list[str]:
        return (await session.client.complete(session.id, CompletionRequest(code, kind))).candidates

    await session.text("brightness = 'of a star'")
    assert await names("brigh") == ["brightness"]
    assert "createDataFrame" in await names("spark.createD")
    assert await names("sel", "sql") == ["SELECT"]
    assert await names("sc.paral", "spark") == []
    running = await session.client.post_statement(session.id, "import time; time.sleep(300)")
    await _until_state(session, running.id, "running")
    assert "upper" in await names("brightness.up")
    await session.client.cancel_statement(session.id, running.id)
    await session.client.wait_statement(session.id, running.id, 60)


async def test_cancel_of_plain_python_is_prompt_and_the_session_continues(session: Opened) -> None:
    for code in (
        "import time\ntime.sleep(300)",
        "while True: pass",
        "while True:\n    try: pass\n    except Exception: pass",
    ):
        statement = await session.client.post_statement(session.id, code)
        await _until_state(session, statement.id, "running")
        await session.client.cancel_statement(session.id, statement.id)
        async with asyncio.timeout(60):
            view = await session.client.wait_statement(session.id, statement.id)
        assert (view.state, view.output, view.progress) == ("cancelled", None, 1.0)
    assert await session.text("'alive'") == "'alive'"


async def test_cancel_of_a_spark_job_ends_it_in_spark(session: Opened, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    task = f"lambda x: (open({str(begun)!r}, 'w').close(), __import__('time').sleep(300))"
    slow = f"sc.parallelize(range(4), 4).map({task}).count()"
    statement = await session.client.post_statement(session.id, slow)
    status = "len(sc.statusTracker().getActiveJobsIds())"
    async with asyncio.timeout(60):
        while not begun.exists():  # the Spark job must be running, not only the statement
            await asyncio.sleep(0.05)
    await session.client.cancel_statement(session.id, statement.id)
    async with asyncio.timeout(60):
        view = await session.client.wait_statement(session.id, statement.id)
    assert view.state == "cancelled"
    async with asyncio.timeout(60):
        while await session.text(status) != "0":  # Spark counts its jobs a little later than it ends them
            await asyncio.sleep(0.05)
    assert await session.text("spark.range(7).count()") == "7"


async def test_cancel_while_a_query_plans_leaves_the_connection_in_step(session: Opened) -> None:
    for _ in range(5):
        statement = await session.client.post_statement(
            session.id, "for i in range(10**9): spark.range(i).selectExpr('id + 1 as x').count()"
        )
        await _until_state(session, statement.id, "running")
        await session.client.cancel_statement(session.id, statement.id)
        await session.client.wait_statement(session.id, statement.id, 60)
        assert await session.text("spark.range(41).count(), spark.range(3).collect()[2][0]") == "(41, 2)"


async def test_cancel_of_a_waiting_statement(session: Opened) -> None:
    running = await session.client.post_statement(session.id, "import time\ntime.sleep(300)")
    waiting = await session.client.post_statement(session.id, "touched = True")
    await session.client.cancel_statement(session.id, waiting.id)
    assert (await session.client.statement(session.id, waiting.id)).state == "cancelled"
    await session.client.cancel_statement(session.id, running.id)
    assert (await session.client.wait_statement(session.id, running.id, 60)).state == "cancelled"
    assert await session.text("'touched' in globals()") == "False"


async def test_output_is_bounded(session: Opened) -> None:
    text = await session.text("for i in range(2_000_000): print('a line of text')")
    assert len(text) < 301_000
    assert "more characters were printed; the limit is 300000" in text[-200:]
    view = await session.run("'x' * 2_000_000")
    assert view.output is not None and view.output.status == "ok" and len(view.output.text) < 301_000
    view = await session.run("big = ['x' * 1000] * 1000\n%json big")
    assert view.output is not None and view.output.ename == "ResultTooLarge"


async def test_output_of_programs_goes_to_the_log_and_is_limited(session: Opened) -> None:
    flood = "import os\nos.system('yes a long flood of output | head -c 30000000; echo; echo last word')"
    assert await session.text(flood) == "0"
    async with asyncio.timeout(120):
        while "last word" not in (page := await session.client.session_log(session.id, size=-1)).log:
            await asyncio.sleep(0.05)
    assert page.total <= 402
    assert all(len(line) < 5000 for line in page.log)


async def test_standard_input_is_empty_and_exit_does_not_end_the_session(session: Opened) -> None:
    view = await session.run("input()")
    assert view.output is not None and view.output.ename == "EOFError"
    view = await session.run("exit()")
    assert view.output is not None and view.output.ename == "SystemExit"
    view = await session.run("input()")
    assert view.output is not None and view.output.ename == "EOFError"
    assert await session.text("3") == "3"


async def test_unusual_code_and_results(session: Opened) -> None:
    assert await session.text("print('a\\ud800b')") == "a\\ud800b"
    failed = await session.run("raise ValueError('\\udcff')")
    assert failed.output is not None and failed.output.evalue == "\\udcff"
    big = await session.run("n = {'n': 10**30}\n%json n")
    assert big.output is not None and big.output.data == {"application/json": {"n": 10**30}}
    assert await session.text("len('" + "x" * 1_000_000 + "')") == "1000000"
    assert await session.text("import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); 1") == "1"
    assert await session.text("import sys; sys.stdout = None") == ""
    assert await session.text("print('again')") == "again"
    thread = "import threading; t = threading.Thread(target=print, args=('t',)); t.start(); t.join()"
    assert await session.text(thread) == "t"


async def test_spark_stopped_and_started_again(client: LivyClient) -> None:
    view = await client.create_session(SessionRequest(kind="pyspark"))
    opened = Opened(client, (await client.wait_session(view.id)).id)
    assert await opened.text("spark.stop()") == ""
    failed = await opened.run("select 1", "sql")
    assert failed.output is not None and failed.output.status == "error"
    again = "from pyspark.sql import SparkSession\nspark = SparkSession.builder.getOrCreate()\nspark.range(3).count()"
    assert await opened.text(again) == "3"
    rows = await opened.run("select 1 as one", "sql")
    assert rows.output is not None and rows.output.status == "ok"
    # Code that closes the pipes to the engine ends only its own session.
    ended = await opened.run("import os; os.closerange(3, 200)")
    assert ended.state == "error"
    assert (await client.session(view.id)).state == "dead"
    await client.delete_session(view.id)


async def test_the_environment_has_no_secret(session: Opened, engine: RunningEngine) -> None:
    names = await session.text("import os; sorted(os.environ)")
    assert "ISLAND" not in names and "TOKEN" not in names and "SECRET" not in names
    everything = await session.text(
        "import glob\n''.join(open(p, errors='replace').read() for p in glob.glob(f'/proc/{os.getpid()}/environ')"
        " + glob.glob(f'/proc/{os.getpid()}/cmdline') + glob.glob('/proc/%d/environ' % os.getppid()))"
    )
    assert engine.token not in everything
    where = Path((await session.text("os.getcwd()")).strip("'"))
    assert where.is_relative_to(engine.directory / "scratch")
    assert engine.directory.stat().st_mode & 0o777 == 0o700


async def test_python_functions_run_in_workers(session: Opened) -> None:
    code = "def f(x):\n    return x * k\nk = 3\nsc.parallelize([1, 2]).map(f).collect()"
    assert await session.text(code) == "[3, 6]"
    code = (
        "from pyspark.sql.functions import pandas_udf\n"
        "spark.range(3).select(pandas_udf(lambda s: s + 1, 'long')('id').alias('n')).toPandas()['n'].tolist()"
    )
    assert await session.text(code) == "[1, 2, 3]"


async def test_statements_are_kept_within_limits(client: LivyClient, session: Opened) -> None:
    for number in range(105):
        last = await client.post_statement(session.id, str(number))
    view = await client.wait_statement(session.id, last.id)
    page = await client.statements(session.id)
    assert view.output is not None and view.output.text == "104"
    assert [s.id for s in page.statements] == list(range(last.id - 99, last.id + 1))
    with pytest.raises(NotFound, match="Statement not found"):
        await client.statement(session.id, 0)


async def test_inputs_are_views_and_paths(client: LivyClient, session: Opened, work: Path) -> None:
    one, many, nested = work / "one.parquet", work / "many", work / "nested"
    await session.text(f"spark.range(3).coalesce(1).write.parquet('{work}/out')")
    part = next((work / "out").glob("part-*.parquet")).read_bytes()
    one.write_bytes(part)
    for path in (many / "a.parquet", many / "b.parquet", nested / "x" / "a.parquet", nested / "b.parquet"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(part)
    (many / "README.txt").write_text("not Parquet")
    conf = {
        "spark.island.path.me__one": str(one),
        "spark.island.path.me__many": str(many),
        "spark.island.path.2nested": str(nested),
        "spark.island.view.one": "me__one",
    }
    view = await client.create_session(SessionRequest(kind="sql", name="with-inputs", conf=conf))
    assert view.conf == conf
    opened = Opened(client, (await client.wait_session(view.id)).id)
    counts = []
    for name in ("me__one", "one", "me__many", "2nested"):
        output = (await opened.run(f"select count(*) as n from {name}")).output
        assert output is not None and output.status == "ok", output
        counts.append((output.data or {})["application/json"]["data"][0][0])
    assert counts == [3, 3, 6, 6]
    told = await opened.run("print(spark.conf.get('spark.island.path.me__one'))", "pyspark")
    assert told.output is not None and told.output.text == str(one)
    again = await opened.run("spark.newSession().table('one').count() == spark.table('one').count()", "pyspark")
    assert again.output is not None and again.output.text == "True"
    await client.delete_session("with-inputs")


async def test_an_input_that_cannot_be_read_is_named(client: LivyClient, work: Path) -> None:
    (work / "broken.parquet").write_bytes(b"PAR1 this is none")
    conf = {"spark.island.path.me__broken": str(work / "broken.parquet")}
    view = await client.create_session(SessionRequest(kind="pyspark", conf=conf))
    async with asyncio.timeout(240):
        while (state := await client.session(view.id)).state == "starting":
            await asyncio.sleep(0.05)
    assert state.state == "dead"
    log = "\n".join((await client.session_log(view.id)).log)
    assert "input me__broken at" in log and "cannot be read" in log
    await client.delete_session(view.id)


async def test_the_end_of_a_process_is_reported(client: LivyClient, engine: RunningEngine) -> None:
    view = await client.create_session(SessionRequest(kind="pyspark", name="mortal"))
    opened = Opened(client, (await client.wait_session(view.id)).id)
    died = await opened.run("import os\nos._exit(3)")
    assert died.state == "error" and died.output is not None
    assert died.output.ename == "SessionDied" and "exit code 3" in (died.output.evalue or "")
    state = await client.session("mortal")
    assert state.state == "dead" and "code 3" in "\n".join(state.log)
    with pytest.raises(BadInput, match="dead"):
        await client.post_statement(view.id, "1")
    # The name of a dead session can be used again.
    again = await client.create_session(SessionRequest(kind="pyspark", name="mortal"))
    assert again.id > view.id and (await client.session("mortal")).id == again.id
    await client.delete_session(again.id)
    await client.delete_session(view.id)


async def test_a_session_ends_with_its_java(client: LivyClient, engine: RunningEngine) -> None:
    view = await client.create_session(SessionRequest(kind="pyspark"))
    opened = Opened(client, (await client.wait_session(view.id)).id)
    pid = int(await opened.text("int(sc._jvm.java.lang.ProcessHandle.current().pid())"))
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while (await client.session(view.id)).state != "dead":
            await asyncio.sleep(0.05)
    assert "Spark's Java exited" in "\n".join((await client.session_log(view.id)).log)
    await client.delete_session(view.id)


async def test_a_session_ends_with_its_supervisor(client: LivyClient, engine: RunningEngine) -> None:
    before = set(engine.below())
    view = await client.create_session(SessionRequest(kind="pyspark"))
    opened = Opened(client, (await client.wait_session(view.id)).id)
    await client.post_statement(view.id, "while True: pass")
    started = sorted(set(engine.below()) - before)
    os.kill(next(pid for pid in started if "supervisor.py" in _command(pid)), signal.SIGKILL)
    async with asyncio.timeout(60):
        while (await client.session(opened.id)).state != "dead" or alive(started):
            await asyncio.sleep(0.05)
    await client.delete_session(view.id)


async def test_deleting_leaves_nothing_even_while_starting(client: LivyClient, engine: RunningEngine) -> None:
    before = set(engine.below())
    view = await client.create_session(SessionRequest(kind="pyspark"))
    async with asyncio.timeout(120):
        while not any("java" in _command(pid) for pid in set(engine.below()) - before):
            await asyncio.sleep(0.02)
    started = sorted(set(engine.below()) - before)
    await client.delete_session(view.id)
    assert alive(started) == []
    with pytest.raises(NotFound):
        await client.session(view.id)


async def test_deleting_finds_processes_that_left_the_group(client: LivyClient, engine: RunningEngine) -> None:
    before = set(engine.below())
    view = await client.create_session(SessionRequest(kind="pyspark"))
    opened = Opened(client, (await client.wait_session(view.id)).id)
    command = "setsid sleep 1000 & setsid setsid sleep 1001 &"
    daemon = f"import subprocess; print(subprocess.Popen({command!r}, shell=True).wait())"
    assert await opened.text(daemon) == "0"
    busy = "sc.parallelize([1], 1).map(lambda x: [0 for i in iter(int, 1)]).count()"
    await client.post_statement(view.id, busy)

    def started(word: str) -> list[int]:
        return [pid for pid in set(engine.below()) - before if word in _command(pid)]

    # A process whose parent ends while /proc is read can be missing from one listing.
    async with asyncio.timeout(120):
        while len(sleeps := started("sleep 100")) < 2 or len(workers := started("pyspark.daemon")) < 2:
            await asyncio.sleep(0.05)
    await client.delete_session(view.id)
    assert alive(sleeps + workers) == []
    assert not list((engine.directory / "scratch").glob(f"session-{view.id}-*"))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


async def test_times_end_sessions(client: LivyClient) -> None:
    views = [
        await client.create_session(SessionRequest(kind="pyspark", ttl="1s")),
        await client.create_session(SessionRequest(kind="pyspark", idle_timeout="200ms")),
        await client.create_session(SessionRequest(kind="pyspark", heartbeat_timeout_in_second=1)),
    ]
    # A listing does not count as a heartbeat; a request for the session does.
    ours = {view.id for view in views}
    async with asyncio.timeout(240):
        while not all(s.state == "dead" for s in (await client.sessions()).sessions if s.id in ours):
            await asyncio.sleep(0.05)
    logs = ["\n".join((await client.session_log(view.id)).log) for view in views]
    assert "its ttl of 1s has expired" in logs[0]
    assert "idle for" in logs[1]
    assert "its client sent no request for 1 s" in logs[2]
    for view in views:
        await client.delete_session(view.id)


async def test_refusals(client: LivyClient, engine: RunningEngine) -> None:
    with pytest.raises(BadInput, match="it supports pyspark and sql"):
        await client.create_session(SessionRequest(kind="spark"))
    with pytest.raises(BadInput, match=r"Blacklisted.*spark\.master"):
        await client.create_session(SessionRequest(kind="pyspark", conf={"spark.master": "local[7]"}))
    with pytest.raises(BadInput, match="driver memory"):
        await client.create_session(SessionRequest(kind="pyspark", driver_memory="900g"))
    async with LivyClient(engine.url, "not the token") as other:
        with pytest.raises(Exception, match="token is required"):
            await other.version()


async def test_too_many_sessions_are_refused(client: LivyClient) -> None:
    opened = []
    with pytest.raises(BadInput, match="too many sessions"):
        for _ in range(5):
            opened.append((await client.create_session(SessionRequest(kind="pyspark"))).id)
    await asyncio.gather(*(client.delete_session(number) for number in opened))


async def test_sql_json(session: Opened) -> None:
    view = await session.run("select 1 as a, double('NaN') as b, timestamp'2026-01-02 03:04:05.678' as t", "sql")
    assert view.output is not None and isinstance(view.output.data, dict)
    result = view.output.data["application/json"]
    assert result["data"] == [[1, None, "2026-01-02T03:04:05.678Z"]]
    assert result["schema"]["fields"][0] == {"name": "a", "type": "integer", "nullable": False, "metadata": {}}


async def _until_state(session: Opened, number: int, state: str) -> None:
    async with asyncio.timeout(120):
        while (await session.client.statement(session.id, number)).state != state:
            await asyncio.sleep(0.01)


def test_a_terminated_engine_leaves_nothing(tmp_path: Path) -> None:
    running = RunningEngine(tmp_path / "home")
    asyncio.run(_open(running))
    below = running.below()
    assert any("java" in _command(pid) for pid in below)
    running.process.terminate()
    assert running.process.wait(120) == 0
    assert alive(below) == []
    running.close()


@pytest.mark.parametrize("how", ["sigkill", "pipe"])
def test_a_killed_engine_or_parent_leaves_nothing(tmp_path: Path, how: str) -> None:
    running = RunningEngine(tmp_path / "home", parent_pipe=True)
    asyncio.run(_open(running))
    below = running.below()
    assert any("java" in _command(pid) for pid in below)
    if how == "sigkill":
        running.process.kill()
    else:
        assert running.process.stdin is not None
        running.process.stdin.close()
    until(lambda: not alive(below), 60)
    assert running.process.wait(120) == (-signal.SIGKILL if how == "sigkill" else 0)
    running.close()

    # The log says that the session was lost; ids are not reused; the name can be used again.
    after = RunningEngine(tmp_path / "home")
    try:
        assert after.instance != running.instance
        asyncio.run(_look_back(after, "lost" if how == "sigkill" else "the engine ended"))
    finally:
        after.close()


async def _open(running: RunningEngine) -> None:
    async with LivyClient(running.url, running.token) as client:
        view = await client.create_session(SessionRequest(kind="pyspark", name="isl-1"))
        await client.wait_session(view.id)
        # Both Java and Python are busy at the end.
        await client.post_statement(view.id, "sc.parallelize([1], 1).map(lambda x: [0 for i in iter(int, 1)]).count()")
        assert client.instance == running.instance


async def _look_back(running: RunningEngine, why: str) -> None:
    async with LivyClient(running.url, running.token) as client:
        old = await client.session("isl-1")
        assert (old.id, old.state, old.name, old.kind) == (0, "dead", "isl-1", "pyspark")
        assert why in "\n".join(old.log)
        assert why in "\n".join((await client.session_log(0)).log)
        with pytest.raises(BadInput, match="isn't active"):
            await client.statements(0)
        assert (await client.sessions()).sessions == []
        new = await client.create_session(SessionRequest(kind="pyspark", name="isl-1"))
        assert new.id == 1 and (await client.session("isl-1")).id == 1
        await client.delete_session(1)
        assert (await client.session("isl-1")).id == 0
        await client.delete_session(0)
        with pytest.raises(NotFound):
            await client.session("isl-1")
