"""Clients without support for island: pylivy from PyPI, and the requests that sparkmagic sends."""

from __future__ import annotations

import base64
import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.servers.engine import RunningEngine

pytestmark = pytest.mark.spark


def test_pylivy(engine: RunningEngine) -> None:
    livy = pytest.importorskip("livy")
    pandas = pytest.importorskip("pandas")
    with livy.LivySession.create(engine.login_url, kind=livy.SessionKind.PYSPARK, echo=False, name="pylivy") as session:
        assert session.run("6 * 7").text == "42"
        session.upload("frame", pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]}))
        assert session.download("frame").to_dict("list") == {"a": [1, 2], "b": ["x", "y"]}
        with pytest.raises(livy.SparkRuntimeError, match="ZeroDivisionError"):
            session.run("1 / 0")
    with livy.LivySession.create(
        engine.url, auth=("any", engine.token), kind=livy.SessionKind.SQL, echo=False
    ) as session:
        frame = session.download_sql("select id, id * 2 as twice from range(3)")
        assert frame.to_dict("list") == {"id": [0, 1, 2], "twice": [0, 2, 4]}


def _call(engine: RunningEngine, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One request as sparkmagic's `requests` sends it."""
    where = urlsplit(engine.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    login = base64.b64encode(f"me:{engine.token}".encode()).decode()
    headers = {"Content-Type": "application/json", "X-Requested-By": "me", "Authorization": f"Basic {login}"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")
    finally:
        connection.close()


def test_sparkmagic_calls(engine: RunningEngine) -> None:
    status, session = _call(
        engine, "POST", "/sessions", {"kind": "pyspark", "heartbeatTimeoutInSecond": 60, "name": "magic"}
    )
    assert status == 201
    path = f"/sessions/{session['id']}"
    end = time.monotonic() + 240
    while (state := _call(engine, "GET", path)[1]["state"]) != "idle":
        assert state == "starting" and time.monotonic() < end
        time.sleep(0.05)
    # The code that %%sql sends to a pyspark session: rows as JSON lines.
    code = (
        'spark.sql(u"""select \'Ω\' as s, 1 as n""").createOrReplaceTempView(\'t\')\n'
        "for line in spark.table('t').toJSON().take(10): print(line)"
    )
    status, statement = _call(engine, "POST", f"{path}/statements", {"code": code})
    assert (status, statement["state"], statement["output"]) in [(201, "waiting", None), (201, "running", None)]
    while True:
        status, statement = _call(engine, "GET", f"{path}/statements/{statement['id']}")
        if statement["state"] in ("available", "cancelled", "error"):
            break
        assert time.monotonic() < end
    assert statement["output"]["status"] == "ok"
    assert json.loads(statement["output"]["data"]["text/plain"]) == {"s": "Ω", "n": 1}
    assert _call(engine, "GET", f"{path}/log?from=0")[0] == 200
    assert _call(engine, "POST", f"{path}/statements/{statement['id']}/cancel", {})[0] == 200
    assert _call(engine, "DELETE", path) == (200, {"msg": "deleted"})
    assert _call(engine, "DELETE", path)[0] == 404
