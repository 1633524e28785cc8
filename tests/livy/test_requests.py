"""Decoding of requests as in Livy, and its refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.livy import requests
from island.livy.messages import BatchRequest, SessionRequest, StatementRequest
from island.livy.rest import LivyRefusal


def _raw(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_a_whole_session_request() -> None:
    body = {
        "kind": "pyspark",
        "name": "mine",
        "driverMemory": "512m",
        "driverCores": 2,
        "conf": {"spark.a": 1, "spark.b": True, "spark.c": "x"},
        "jars": ["/a.jar"],
        "pyFiles": [],
        "heartbeatTimeoutInSecond": 0,
        "ttl": "10m",
        "idleTimeout": None,
        "queue": None,
    }
    assert requests.session_request(_raw(body)) == SessionRequest(
        kind="pyspark",
        name="mine",
        driver_memory="512m",
        driver_cores=2,
        conf={"spark.a": "1", "spark.b": "true", "spark.c": "x"},
        jars=["/a.jar"],
        ttl="10m",
    )
    assert requests.session_request(b"{}") == SessionRequest()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "No content to map due to end-of-input"),
        (b'{"kind": ', "Not JSON"),
        (b"\xff\xfe", "Not JSON"),
        (b"[" * 100_000, "Not JSON"),
        (b"[1]", "from Array value"),
        (b'"pyspark"', "from String value"),
        (b'{"kind": "cobol"}', "Invalid kind: cobol (through reference chain"),
        (b'{"kind": ["pyspark"]}', "java.lang.String` from Array value"),
        (b'{"colour": "red"}', 'Unrecognized field "colour" (class org.apache.livy.server.interactive.'),
        (b'{"numExecutors": "many"}', "java.lang.Integer"),
        (b'{"numExecutors": 99999999999}', "java.lang.Integer"),
        (b'{"jars": "a.jar"}', "scala.collection.immutable.List<java.lang.String>` from String value"),
        (b'{"jars": [{}]}', "java.lang.String"),
        (b'{"conf": []}', "from Array value"),
    ],
)
def test_a_bad_session_body_is_400_with_a_plain_string(raw: bytes, words: str) -> None:
    with pytest.raises(LivyRefusal) as caught:
        requests.session_request(raw)
    assert caught.value.status == 400
    text = json.loads(caught.value.json())
    assert isinstance(text, str) and words in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"name": "31415926"}, "Invalid session name: 31415926"),
        ({"name": ""}, "Invalid session name: "),
        ({"name": "a/b"}, "Invalid session name: a/b"),
        ({"ttl": "soon"}, "Invalid time string: soon"),
        ({"idleTimeout": "-1s"}, "Invalid time string: -1s"),
    ],
)
def test_a_refused_session_is_400_with_a_message(body: dict[str, Any], words: str) -> None:
    with pytest.raises(LivyRefusal) as caught:
        requests.session_request(_raw(body))
    assert caught.value.status == 400
    assert json.loads(caught.value.json()) == {"msg": f"Rejected, Reason: {words}"}


def test_batches() -> None:
    body = {"file": "/a.py", "args": ["one", 2, 1.5, True], "conf": {}}
    assert requests.batch_request(_raw(body)) == BatchRequest(file="/a.py", args=["one", "2", "1.5", "true"])
    with pytest.raises(LivyRefusal, match="File is required"):
        requests.batch_request(b"{}")
    with pytest.raises(LivyRefusal, match=r'"kind" \(class org\.apache\.livy\.server\.batch'):
        requests.batch_request(_raw({"file": "/a.py", "kind": "pyspark"}))
    with pytest.raises(LivyRefusal, match="from Object value"):
        requests.batch_request(_raw({"file": "/a.py", "args": {"a": 1}}))


def test_statements() -> None:
    assert requests.statement_request(b'{"code": ""}') == StatementRequest("")
    assert requests.statement_request(b'{"code": "1", "kind": "sql", "msg_type": "x"}') == StatementRequest("1", "sql")
    for raw in (b"{}", b'{"code": null}', b'{"code": 1}', b'{"code": "1", "kind": "cobol"}', b"code=1"):
        with pytest.raises(LivyRefusal) as caught:
            requests.statement_request(raw)
        assert caught.value.status == 400
    with pytest.raises(LivyRefusal, match="Invalid kind: null"):
        requests.completion_request(b'{"code": "spa", "cursor": 3}')


def test_times_and_memory() -> None:
    times = {"5": 5, "90s": 90_000, "2m": 120_000, "2min": 120_000, "1h": 3_600_000, "1d": 86_400_000, "1500us": 1}
    assert {text: requests.milliseconds(text) for text in times} == times
    sizes = {"512m": 512 << 20, "2g": 2 << 30, "1k": 1024, "3GB": 3 << 30, "7": 7 << 20}
    assert {text: requests.memory_bytes(text) for text in sizes} == sizes
    for bad in ("", "m", "1.5g", "-1g", "1x", "1" * 30):
        with pytest.raises(LivyRefusal):
            requests.memory_bytes(bad)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["kind", "conf", "jars", "code", "x"]), inner),
    )
)
def test_any_json_is_decoded_or_refused(value: Any) -> None:
    raw = json.dumps(value).encode()
    for parse in (
        requests.session_request,
        requests.batch_request,
        requests.statement_request,
        requests.completion_request,
    ):
        try:
            parse(raw)
        except LivyRefusal as refusal:
            assert refusal.status == 400 and refusal.json()
