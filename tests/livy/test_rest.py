"""The rules of Livy's REST API: paging, ids, logs and settings."""

from __future__ import annotations

import json

import msgspec
import pytest

from island.livy.conf import input_views, is_protected, protected_keys, refused_conf
from island.livy.messages import Output, SessionView
from island.livy.rest import LivyRefusal, allow, id_or_name, integer, log_page, page_bounds, slice_page, statement_page


def test_a_session_view_has_livys_23_keys_in_order() -> None:
    first = "id name appId owner proxyUser state kind appInfo log ttl idleTimeout driverMemory driverCores"
    then = "executorMemory executorCores conf archives files heartbeatTimeoutInSecond jars numExecutors pyFiles queue"
    keys = [*first.split(), *then.split()]
    assert len(keys) == 23
    assert list(json.loads(msgspec.json.encode(SessionView(1)))) == keys


def test_views_of_older_livys_decode() -> None:
    raw = b'{"id":3,"name":null,"appId":null,"owner":null,"proxyUser":null,"state":"idle","kind":"spark","appInfo":'
    raw += b'{"driverLogUrl":null,"sparkUiUrl":null},"log":["stdout: "]}'
    assert msgspec.json.decode(raw, type=SessionView).state == "idle"


def test_ids_and_names() -> None:
    assert [id_or_name(text) for text in ("7", "-1", "nobody", "7a")] == [7, -1, "nobody", "7a"]
    for text in ("99999999999", "2147483648"):
        with pytest.raises(LivyRefusal) as caught:
            id_or_name(text)
        assert json.loads(caught.value.json()) == {"msg": f'For input string: "{text}"'}
    with pytest.raises(LivyRefusal):
        integer("abc")


def test_pages() -> None:
    items = list(range(10))
    assert page_bounds({}) == (0, 100)
    assert slice_page(items, 3, 2) == [3, 4]
    assert slice_page(items, -5, 2) == [] and slice_page(items, -1, 3) == [0, 1]
    assert slice_page(items, 100, 5) == [] and slice_page(items, 0, 0) == [] and slice_page(items, 0, -1) == []
    assert statement_page(items, {"order": "desc", "size": "2"}) == [9, 8]
    assert statement_page(items, {}) == items
    with pytest.raises(LivyRefusal):
        page_bounds({"from": "abc"})


def test_log_pages() -> None:
    lines = [str(i) for i in range(250)]
    tail = log_page(1, lines, {})
    assert (tail.start, tail.total, tail.log) == (150, 250, lines[150:])
    assert log_page(1, lines, {"from": "0", "size": "2"}).log == ["0", "1"]
    assert log_page(1, lines, {"size": "-1"}).log == lines
    past = log_page(1, lines, {"from": "100000", "size": "10"})
    assert (past.start, past.log) == (100_000, [])
    assert json.loads(msgspec.json.encode(past)) == {"id": 1, "from": 100_000, "total": 250, "log": []}


def test_allow() -> None:
    assert allow(["GET", "HEAD", "POST"]) == "POST, GET, HEAD"
    assert allow({"GET", "HEAD", "DELETE"}) == "GET, HEAD, DELETE"


def test_settings() -> None:
    assert is_protected("spark.master") and is_protected("spark.ui.port") and not is_protected("spark.sql.ansi.enabled")
    assert protected_keys({"spark.a": "", "spark.jars.packages": "", "spark.master": ""}) == [
        "spark.jars.packages",
        "spark.master",
    ]
    assert refused_conf({"spark.sql.ansi.enabled": "true", "livy.x": "1"}) is None
    for conf in ({"spark.master": "x"}, {"a\nb": "1"}, {"spark.x": "\0"}, {"spark.x": "y" * 100_000}):
        refusal = refused_conf(conf)
        assert refusal is not None and refusal.status == 400
    assert refused_conf({f"spark.{i}": "" for i in range(2000)}) is not None


def test_inputs() -> None:
    conf = {"spark.island.path.a__b": "/x", "spark.island.view.b": "a__b", "spark.z": ""}
    assert input_views(conf) == ({"a__b": "/x"}, {"b": "a__b"})
    for bad in (
        {"spark.island.path.a b": "/x"},
        {"spark.island.path.a`b": "/x"},
        {"spark.island.path.a": "x"},
        {"spark.island.view.b": "nothing"},
    ):
        with pytest.raises(LivyRefusal):
            input_views(bad)


def test_text_of_an_output() -> None:
    assert Output("ok", 0, data={"text/plain": "2"}).text == "2"
    assert Output("ok", 0, data={"application/json": [1]}).text == '{"application/json":[1]}'
    assert Output("error", 0, ename="E", evalue="v", traceback=["t\n"]).text == "E: v\nt\n"
    assert json.loads(msgspec.json.encode(Output("ok", 0, data={}))) == {
        "status": "ok",
        "execution_count": 0,
        "data": {},
    }
