"""Decisions about jobs: settings, views, policies, results, and reports about lost work."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from island.config import JobsSection
from island.errors import BadInput
from island.jobs import core
from island.jobs.executor import policy, texts
from island.jobs.foreign_conf import refused_foreign_keys
from island.jobs.home import hints, requests, views
from island.jobs.messages import MAX_HOPS, MAX_INLINE, Envelope, InputRef, StatementReport

ME, HOME = "b" * 64, "a" * 64


@pytest.mark.parametrize(
    "key",
    [
        "spark.master",
        "spark.submit.pyFiles",
        "spark.driver.extraJavaOptions",
        "spark.executor.extraJavaOptions",
        "spark.jars",
        "spark.jars.packages",
        "spark.yarn.queue",
        "spark.hadoop.fs.s3a.access.key",
        "spark.island.path.x",
        "spark.island.view.x",
        "spark.kubernetes.namespace",
    ],
)
def test_settings_that_no_client_may_send(key: str) -> None:
    assert requests.refused_keys({key: "x", "spark.sql.shuffle.partitions": "2"}) == [key]


def test_settings_of_foreign_jobs_are_an_allow_list() -> None:
    fine = {"spark.sql.shuffle.partitions": "2", "spark.driver.memory": "1g", "spark.island.inputs": "a/b"}
    assert requests.refused_keys(fine) == refused_foreign_keys(fine) == []
    own = {"spark.golden": "1", "spark.sql.extensions": "x", "spark.serializer": "x"}
    assert requests.refused_keys(own) == []
    assert refused_foreign_keys(own) == sorted(own)


def test_inputs_are_a_comma_separated_list() -> None:
    assert requests.named_inputs({"spark.island.inputs": " a/b, c/d@abcd ,,a/b"}) == ["a/b", "c/d@abcd"]
    assert requests.named_inputs({}) == []
    with pytest.raises(BadInput, match="65 inputs"):
        requests.named_inputs({"spark.island.inputs": ",".join(f"a/{n}" for n in range(65))})


def test_each_view_of_an_input_has_its_path() -> None:
    ref = InputRef(owner=HOME, owner_name="a", name="x", snapshot="0" * 64, views=("a__x", "x"))
    assert texts.input_conf([(ref, "/p")]) == {"spark.island.path.a__x": "/p", "spark.island.path.x": "/p"}


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (JobsSection(), "jobs.accept_from"),
        (JobsSection(accept_from=["other"], foreign_code="any", same_user=True), "jobs.accept_from"),
        (JobsSection(accept_from=["members"], same_user=True), "jobs.foreign_code"),
        (JobsSection(accept_from=["h"], foreign_code="any"), "jobs.same_user"),
        (JobsSection(accept_from=["h"], foreign_code="any", same_user=True), ""),
        (JobsSection(accept_from=["members"], foreign_code="any", same_user=True), ""),
    ],
)
def test_a_foreign_job_needs_all_three_keys(section: JobsSection, key: str) -> None:
    refusal = policy.policy_refusal(section, "h", "u", is_home=False, means=lambda text: text == "h")
    assert key in refusal if key else refusal == ""
    assert policy.policy_refusal(section, "h", "u", is_home=True, means=lambda _: False) == ""


def envelope(**change: Any) -> Envelope:
    fields: dict[str, Any] = {
        "job": "01890000-0000-7000-8000-000000000000." + HOME[:10],
        "epoch": 1,
        "home": HOME,
        "user": "u",
        "request_hash": "0" * 64,
        "path": (HOME,),
        "hops": MAX_HOPS - 1,
    }
    return Envelope(**{**fields, **change})


def test_envelopes_that_are_not_acceptable() -> None:
    assert policy.envelope_problem(envelope(), HOME, ME) == ""
    assert "only its home" in policy.envelope_problem(envelope(), "c" * 64, ME)
    assert "already passed through" in policy.envelope_problem(envelope(path=(HOME, ME)), HOME, ME)
    assert "does not begin at its home" in policy.envelope_problem(envelope(path=(ME,)), HOME, ME)
    assert "not pass through more islands" in policy.envelope_problem(envelope(hops=0), HOME, ME)
    assert "not belong" in policy.envelope_problem(envelope(home="c" * 64, path=("c" * 64,)), "c" * 64, ME)


@pytest.mark.parametrize(
    "text",
    [
        b'{"status":"fine"}',
        b'{"status":"ok","data":[1]}',
        b'{"status":"ok","data":{"a":1}',
        b'{"status":"ok","data":{"a":01}}',
        b'{"status":"ok","data":{"a":"\xff"}}',
        b'{"status":"ok","data":{"a":"\xc3"}}',
        b'{"status":"ok","data":{"a":"\\ud800"}}',
        b'{"status":"ok"} {}',
        b"[]",
    ],
)
@pytest.mark.parametrize("pad", [0, MAX_INLINE])
def test_what_is_not_an_output_of_livy_is_found_at_any_size(text: bytes, pad: int) -> None:
    assert "not in Livy's format" in core.output_problem(b" " * pad + text)
    assert core.output_problem(b" " * pad + b'{"status":"ok","data":{"a":"\xc3\xa9"},"ename":null}') == ""


def test_a_large_output_of_many_small_values_is_checked_without_building_them() -> None:
    data = b'{"status":"ok","data":{"a":[' + b"[]," * 2_000_000 + b"[]]}}"
    tracemalloc.start()
    try:
        assert core.output_problem(data) == ""
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
    finally:
        tracemalloc.stop()


def not_found(evalue: str) -> str:
    return json.dumps({"status": "error", "ename": "Error", "evalue": evalue, "traceback": []})


def test_the_missing_table_is_found_in_sparks_message() -> None:
    message = "[TABLE_OR_VIEW_NOT_FOUND] The table or view `a`.`b c` cannot be found."
    assert hints.missing_table(not_found(message)) == "a.b c"
    assert hints.missing_table(not_found("Table or view not found: a.b; line 1")) == "a.b"
    assert hints.missing_table(not_found("[UNRESOLVED_COLUMN] `x` NOT_FOUND")) == ""
    assert hints.missing_table('{"status": "ok", "data": {"text/plain": "TABLE_OR_VIEW_NOT_FOUND `x`"}}') == ""


def test_the_dataset_that_a_table_means() -> None:
    known = [("ngc", "galaxies"), ("ngc", "open-clusters"), ("ztf", "alerts")]
    assert hints.suggest("ngc__galaxies", known) == ("ngc/galaxies", True)
    assert hints.suggest("NGC.galaxies", known) == ("ngc/galaxies", True)
    assert hints.suggest("open_clusters", known) == ("ngc/open-clusters", True)
    assert hints.suggest("galaxie", known) == ("ngc/galaxies", False)
    assert hints.suggest("nowhere_at_all", known) == ("", False)
    assert hints.suggest("galaxies", [*known, ("ztf", "galaxies")]) == ("ngc/galaxies", False)


def test_a_name_that_several_inputs_share_is_answered_with_their_views() -> None:
    hashes = {"owner": "a" * 64, "snapshot": "b" * 64}
    inputs = [
        InputRef(owner_name="ngc", name="stars", views=("ngc__stars",), **hashes),
        InputRef(owner_name="ztf", name="Stars", views=("ztf__Stars",), **hashes),
        InputRef(owner_name="ztf", name="alerts", views=("ztf__alerts", "alerts"), **hashes),
    ]
    assert hints.views_meant("stars", inputs) == ["ngc__stars", "ztf__Stars"]
    assert hints.views_meant("alerts", inputs) == hints.views_meant("nothing", inputs) == []
    told = json.loads(hints.with_views(not_found("no `stars`"), "stars", ["ngc__stars", "ztf__Stars"]))
    assert told["evalue"].splitlines()[-1] == told["traceback"][-1].strip()
    assert "write ngc__stars or ztf__Stars" in told["evalue"]


def test_how_statements_of_a_lost_session_end() -> None:
    waiting = core.lost_statement(StatementReport(number=1, state="waiting"), "why")
    assert waiting.state == "cancelled" and json.loads(waiting.output)["ename"] == "NeverRun"
    running = core.lost_statement(StatementReport(number=1, state="running"), "why")
    assert running.state == "error" and "why" in json.loads(running.output)["evalue"]
    assert core.lost_statement(StatementReport(number=1, state="cancelling"), "why").state == "cancelled"
    done = StatementReport(number=1, state="available", output="{}")
    assert core.lost_statement(done, "why") is done


def test_the_log_begins_as_in_livy() -> None:
    assert views.livy_log([], ["a"]) == ["stdout: ", "\nstderr: ", "\nisland: ", "a"]
    assert views.livy_log(["stdout: ", "x", "\nstderr: "], [])[:2] == ["stdout: ", "x"]
    assert len(views.short_log([str(n) for n in range(50)])) == 10


def test_two_requests_are_the_same_by_content() -> None:
    assert core.request_hash("session", {"a": 1, "b": "é"}) == core.request_hash("session", {"b": "é", "a": 1})
    assert core.request_hash("session", {"a": 1}) != core.request_hash("batch", {"a": 1})
