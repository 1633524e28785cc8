"""The gateway over HTTP: who may ask, what is refused and how, and what stays readable."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from island.errors import Full
from island.jobs.home import store
from island.jobs.home.store import StatementRow
from island.jobs.messages import StatementReport
from island.livy.client import LivyClient
from island.trust.users import Principal
from tests.islands.user_port import Site, played_livy, site
from tests.standins.faults import Fault


class Http:
    """A client of one site, as a user or as the administrator."""

    def __init__(self, place: Site, session: aiohttp.ClientSession) -> None:
        self.place, self._session = place, session

    async def __call__(
        self, method: str, path: str, body: Any = None, *, role: str = "user", raw: bytes | None = None, **headers: str
    ) -> tuple[int, Any, Any]:
        headers.setdefault("Authorization", f"Bearer {self.place.token(role)}")
        async with self._session.request(
            method,
            self.place.server.url + path,
            json=body,
            data=raw,
            headers={k.replace("_", "-"): v for k, v in headers.items()},
            allow_redirects=False,
        ) as answer:
            data = await answer.read()
            found = await answer.json(content_type=None) if data[:1] in (b"{", b"[", b'"') else data.decode()
            return answer.status, found, answer.headers

    async def idle(self, number: int) -> None:
        async with asyncio.timeout(30):
            while (await self("GET", f"/sessions/{number}/state"))[1]["state"] != "idle":
                await asyncio.sleep(0.01)


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"any:{password}".encode()).decode()


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[Http]:
    async with (
        played_livy() as url,
        site(tmp_path / "home", livy=LivyClient(url)) as place,
        aiohttp.ClientSession() as session,
    ):
        yield Http(place, session)


async def test_a_token_is_needed_as_bearer_or_password(http: Http) -> None:
    token = http.place.token()
    assert (await http("GET", "/sessions"))[0] == 200
    assert (await http("GET", "/sessions", Authorization=basic(token)))[0] == 200
    refusals = {
        "": "a token is required",
        "Bearer wrong": "token",
        basic("wrong"): "token",
        "Basic ???": "not valid HTTP Basic",
    }
    for wrong, words in refusals.items():
        status, body, headers = await http("GET", "/sessions", Authorization=wrong)
        assert status == 401 and words in body["message"] and "Basic" in headers["WWW-Authenticate"]
        assert token not in str(body)


async def test_a_session_from_open_to_close(http: Http) -> None:
    status, view, headers = await http("POST", "/sessions", {"kind": "pyspark", "proxyUser": "root"})
    assert (status, view["id"], view["state"], view["proxyUser"]) == (201, 0, "starting", None)
    assert headers["Location"] == "/sessions/0" and len(view) == 23
    await http.idle(0)
    status, posted, headers = await http("POST", "/sessions/0/statements", {"code": "1+1"})
    assert (status, posted["id"], posted["state"]) == (201, 0, "waiting")
    assert headers["Location"] == "/sessions/0/statements/0"
    async with asyncio.timeout(30):
        while (await http("GET", "/sessions/0/statements/0"))[1]["state"] != "available":
            await asyncio.sleep(0.01)
    found = (await http("GET", "/sessions/0/statements/0"))[1]
    assert found["output"]["data"] == {"text/plain": "2"} and found["progress"] == 1.0
    log = (await http("GET", "/sessions/0/log?size=-1"))[1]["log"]
    assert log[0] == "stdout: " and any(line.startswith("runs at home: ") for line in log)
    assert (await http("POST", "/sessions/0/stop"))[0] == 204
    assert (await http("GET", "/sessions/0"))[1]["state"] == "dead"
    status, body, _ = await http("POST", "/sessions/0/statements", {"code": "late"})
    assert status == 400 and "isn't active" in body["msg"]
    assert (await http("GET", "/sessions/0/statements"))[1]["total_statements"] == 1
    assert (await http("DELETE", "/sessions/0"))[1] == {"msg": "deleted"}
    assert (await http("GET", "/sessions/0"))[0] == 404
    assert (await http("POST", "/sessions", {"kind": "sql"}))[1]["id"] == 1


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/sessions", {"conf": {"spark.island.inputs": "home/nothing"}}, "home/nothing"),
        ("/sessions", {"conf": {"spark.island.inputs": "nobody/x"}}, "nobody"),
        ("/sessions", {"conf": {"spark.island.inputs": "a/b/c"}}, "not a valid dataset name"),
        ("/sessions", {"conf": {"spark.master": "yarn"}}, "spark.master"),
        ("/sessions", {"queue": "island:nowhere"}, "nowhere"),
        ("/batches", {"file": "/etc/passwd"}, "cannot be added"),
        ("/batches", {"file": "hdfs://x/y.py"}, "not a local path"),
    ],
)
async def test_what_is_refused_at_once(http: Http, path: str, body: dict[str, Any], words: str) -> None:
    status, answer, _ = await http("POST", path, body)
    assert status == 400 and words in answer["msg"]
    assert (await http("GET", path))[1]["total"] == 0


async def test_an_idempotency_key_makes_one_session(http: Http) -> None:
    answers = [await http("POST", "/sessions", {"kind": "sql"}, Idempotency_Key="k") for _ in range(3)]
    assert {answer[1]["id"] for answer in answers} == {0}
    status, body, _ = await http("POST", "/sessions", {"kind": "pyspark"}, Idempotency_Key="k")
    assert status == 400 and "used for another request" in body["msg"]


async def test_the_operator_api_shows_the_same_job(http: Http) -> None:
    status, row, _ = await http("POST", "/api/v1/sessions", {"kind": "pyspark", "name": "mine"})
    assert status == 201 and row["id"] == 0
    await http.idle(0)
    shown = (await http("GET", f"/api/v1/jobs/{row['job'][:8]}?key=1"))[1]
    assert (shown["state"], shown["island"], shown["owner"], len(shown["key"])) == ("idle", "home", "user@home", 32)
    assert (await http("GET", "/api/v1/jobs"))[1][0]["job"] == row["job"]
    explained = (await http("GET", "/api/v1/jobs/0/explain"))[1]
    assert [(r["island"], r["chosen"], r["replayed"]) for r in explained] == [("home", True, True)]
    posted = (await http("POST", "/api/v1/jobs/0/statements", {"code": "fail"}))[1]
    done = (await http("GET", f"/api/v1/jobs/0/statements/{posted['id']}?timeout=30"))[1]
    assert done["output"]["ename"] == "ValueError"
    assert (await http("GET", "/api/v1/jobs/999"))[0] == 404
    assert (await http("GET", "/api/v1/jobs/0/statements/x"))[0] == 400
    assert (await http("GET", "/api/v1/jobs/0/wait?timeout=never"))[0] == 400
    wrong = await http("GET", f"/api/v1/jobs/{row['job']}", X_Island_Job_Key="0" * 32)
    assert wrong[0] in (403, 502) and "not the key of this job" in wrong[1]["message"]
    assert (await http("POST", "/api/v1/jobs/0/cancel"))[1]["state"] in ("shutting_down", "dead")
    batch = await http("POST", "/api/v1/batches?file=a.txt", raw=b"print(1)")
    assert batch[0] == 400 and ".py" in batch[1]["message"]


async def test_a_full_disk_refuses_before_acceptance_and_never_after(http: Http) -> None:
    await http("POST", "/sessions", {"kind": "sql"})
    await http.idle(0)
    full = Fault(http.place.state, Full("the disk is full"), times=None)
    requests: list[tuple[str, str, Any]] = [
        ("POST", "/sessions", {"kind": "sql"}),
        ("POST", "/sessions/0/statements", {"code": "1"}),
        ("DELETE", "/sessions/0", None),
        ("POST", "/api/v1/sessions", {"kind": "sql"}),
    ]
    for method, path, body in requests:
        status, answer, headers = await http(method, path, body)
        assert (status, headers["Retry-After"]) == (507, "30"), answer
        assert "full" in str(answer)
    full.mend()
    assert (await http("GET", "/sessions"))[1]["total"] == 1, "nothing was accepted"
    # After an acceptance nothing is read that could fail the answer.
    unread = Fault(http.place.state, Full("the disk is full"), what="read", times=None)
    for path in ("/sessions", "/api/v1/sessions"):
        assert (await http("POST", path, {"kind": "sql"}))[0] == 201
    unread.mend()
    assert (await http("GET", "/sessions"))[1]["total"] == 3


async def test_large_outputs_are_listed_in_parts_and_whole(http: Http) -> None:
    await http("POST", "/sessions", {"kind": "sql"})
    await http.idle(0)
    job = await http.place.jobs.named(Principal("administrator", "administrator"), "0")
    output = json.dumps({"status": "ok", "execution_count": 0, "data": {"text/plain": "x" * 1_000_000}})

    def fill(conn: sqlite3.Connection) -> None:
        for _ in range(12):
            number = store.add_statement(conn, job.id, "1", "sql", 100)
            assert number is not None
            store.apply_statement(conn, job.id, StatementReport(number=number, state="available", output=output))

    await http.place.state.write(fill)
    largest = 0
    read = http.place.state.read

    async def measured(function: Any) -> Any:
        nonlocal largest
        found = await read(function)
        if isinstance(found, list):
            largest = max(largest, sum(len(each.output) for each in found if isinstance(each, StatementRow)))
        return found

    http.place.state.read = measured  # type: ignore[method-assign]  # counts what is in memory at a time
    for path, key in (("/sessions/0/statements", "statements"), ("/api/v1/jobs/0/statements", "")):
        _, answer, _ = await http("GET", path)
        listed = answer[key] if key else answer
        assert [each["id"] for each in listed] == list(range(12))
        assert all(each["output"] == json.loads(output) for each in listed)
    assert 1_000_000 < largest < 6_000_000
    _, page, _ = await http("GET", "/sessions/0/statements?order=desc&from=1&size=2")
    assert ([each["id"] for each in page["statements"]], page["total_statements"]) == ([10, 9], 12)
    assert (await http("GET", "/sessions/0/statements?from=12"))[1] == {"total_statements": 12, "statements": []}


async def test_names_and_codes_are_data(http: Http) -> None:
    """What looks like SQL, markup or a path in a name or an id is a name or an id."""
    nasty = "x'); DROP TABLE job; --"
    assert (await http("POST", "/sessions", {"kind": "sql", "name": nasty}))[1]["name"] == nasty
    assert (await http("GET", "/sessions/x%27%20OR%201=1"))[0] == 404
    assert (await http("GET", "/api/v1/jobs/%25"))[0] == 404
    assert (await http("GET", "/api/v1/jobs/..%2f..%2fkey"))[0] == 404
    assert (await http("GET", "/sessions"))[1]["total"] == 1
