"""Metrics have names and units by the conventions of Prometheus, are documented, and stay bounded in number."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from island import daemon as daemon_module
from island.daemon import Daemon
from island.errors import Full
from island.kernel import loop_lag, telemetry
from island.kernel.telemetry import OTHERS, REGISTRY, BoundedCounter, MetricDefinition
from island.net import measurements
from island.net.measurements import channel_lags, known_state
from island.streams.views import ChannelView
from tests.contracts import metrics
from tests.contracts.promtool import promtool
from tests.standins.faults import full_disk
from tests.standins.member import until, victim

NOT_BASE_UNITS = re.compile(
    r"_(milliseconds|ms|microseconds|us|minutes|hours|days|kb|kib|mb|mib|gb|gib|bits|kilobytes|percent|s)(_|$)"
)
UNITS = ("seconds", "bytes")
CLOSED_LABELS = {
    *("database", "direction", "kind", "loop", "method", "outcome", "part", "python", "queue", "reason", "route"),
    *("session", "state", "status", "version"),
}
"""Labels whose values are constants of the program."""
BOUNDED_WHEN_SET = {
    *("island_channel_lag_rows", "island_channel_lag_seconds"),
    *("island_engine_free_places", "island_engine_running"),
}
"""Gauges that are set for at most `MAX_CHANNELS` names, or for the engines of the configuration."""
RESERVED_LABELS = {"le", "quantile", "job", "instance"}
RESERVED_ENDS = ("_total", "_count", "_sum", "_bucket", "_created")


def base_name(metric: MetricDefinition) -> str:
    """The name without the suffix that its type adds."""
    return metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name


@pytest.mark.parametrize("metric", metrics.defined(), ids=lambda each: each.name)
def test_a_metric_follows_the_conventions(metric: MetricDefinition) -> None:
    name = base_name(metric)
    assert re.fullmatch(r"island_[a-z][a-z0-9]*(_[a-z0-9]+)*", name), "one prefix, snake case"
    assert not NOT_BASE_UNITS.search(name), "base units only"
    for unit in UNITS:
        assert unit not in name.split("_")[:-1], f"{unit} is the last word of a name"
    assert not name.endswith(RESERVED_ENDS), "these ends belong to types"
    assert metric.kind != "histogram" or name.endswith(UNITS), "a histogram has a unit"
    assert name.endswith("_info") == (name == "island_build_info")
    assert metric.text[0].isupper() or metric.text[0].isdigit()
    assert not metric.text.endswith(".") and "|" not in metric.text and "\n" not in metric.text
    for label in metric.labels:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", label) and label not in RESERVED_LABELS
        assert not NOT_BASE_UNITS.search(f"_{label}") and label not in UNITS, "no units in labels"
    is_bounded = metric.limit is not None or metric.name in BOUNDED_WHEN_SET
    assert is_bounded or set(metric.labels) <= CLOSED_LABELS, "a label that others choose is bounded"


def test_the_page_is_up_to_date() -> None:
    assert metrics.PAGE.read_text("utf-8") == metrics.render(), "run: python -m tests.contracts.metrics"


def test_labels_that_others_choose_are_bounded() -> None:
    counted = BoundedCounter("tried", "A counter of this test", "dataset", 3)
    telemetry.DEFINED.pop()
    try:
        for number in [*range(1000), 1]:  # the last one is counted separately, although the limit was reached
            counted.labels(f"virgo/{number}").inc()
        [family] = counted._counter.collect()
    finally:
        REGISTRY.unregister(counted._counter)
    values = {sample.labels["dataset"]: sample.value for sample in family.samples}
    assert values == {"virgo/0": 1, "virgo/1": 2, "virgo/2": 1, OTHERS: 997}


def test_states_of_jobs_are_bounded() -> None:
    assert known_state("idle") == "idle" and known_state("dead") == "dead"
    assert known_state("what another island invented") == OTHERS


def channel(name: str, seconds: float, rows: int, direction: str = "in") -> ChannelView:
    return ChannelView(
        id="", island="here", direction="in" if direction == "in" else "out",
        source=f"here/{name}" if direction == "out" else "there/alerts", into=f"here/{name}",
        state="live", since=0.0, reason="", rate=0.0, bytes_rate=0.0, rows=0, bytes=0,
        lag_rows=rows, lag_files=1, lag_s=seconds, segments=0, user="",
    )  # fmt: skip


def test_the_lag_of_channels_is_that_of_the_slowest_reader_and_bounded() -> None:
    lags = channel_lags([channel("a", 5.0, 10, "out"), channel("a", 2.0, 30, "out"), channel("a", 1.0, 1)])
    assert lags == {
        ("out", "a"): measurements.ChannelLag(5.0, 30),
        ("in", "a"): measurements.ChannelLag(1.0, 1),
    }
    many = channel_lags([channel(f"d{number:04d}", float(number), number) for number in range(1000)], limit=10)
    assert len(many) == 11
    assert many["in", "d0999"].seconds == 999.0 and many["in", OTHERS].seconds == 989.0


class LateClock:
    """A clock that advances by `step` seconds each time it is read."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        self.now += self.step
        return self.now

    boottime = wall


def lag_buckets() -> dict[str, float]:
    [family] = loop_lag.LAG.collect()
    return {sample.labels["le"]: sample.value for sample in family.samples if sample.name.endswith("_bucket")}


async def test_a_late_event_loop_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "INTERVAL_S", 0.01)
    before = lag_buckets()
    await loop_lag.measure(LateClock(0.76))  # 0.75 s late
    after = lag_buckets()
    assert {le for le, count in after.items() if count > before[le]} == {"1.0", "2.5", "5.0", "+Inf"}


# --- a running daemon -----------------------------------------------------------------------------------


Values = dict[str, dict[tuple[tuple[str, str], ...], float]]


class Scraped:
    """A running daemon whose metrics are read as Prometheus does."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    async def text(self) -> str:
        token = self.daemon.home.user_token.read_text().strip()
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as client,
            client.get(self.daemon.server.url + "/metrics") as answer,
        ):
            assert answer.status == 200
            assert answer.headers["Content-Type"] == telemetry.EXPOSITION_TYPE
            return await answer.text()

    async def get(self, path: str, method: str = "GET") -> int:
        url = self.daemon.server.url + path
        async with aiohttp.ClientSession() as client, client.request(method, url) as answer:
            return answer.status

    async def value(self, name: str, **labels: str) -> float | None:
        """The value of one series, or None if it is absent."""
        for family in text_string_to_metric_families(await self.text()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return None


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scraped]:
    monkeypatch.setattr(daemon_module, "TRY_SECONDS", 3600.0)  # else the daemon may repair the database at any moment
    async with victim(tmp_path) as daemon:
        yield Scraped(daemon)


async def test_what_an_operator_needs(place: Scraped) -> None:
    assert await place.value("island_condition", state="ready") == 1.0
    assert await place.value("island_condition", state="unavailable") == 0.0
    assert await place.value("island_problems") == 0.0
    assert await place.value("island_database_failing", database="state") == 0.0
    assert 0 < (await place.value("island_home_free_bytes") or 0) <= (await place.value("island_home_size_bytes") or 0)
    assert await place.value("island_engine_running", engine="embedded") is None  # this island has no engine
    assert await place.value("island_runs_live", kind="session") == 0.0
    assert await place.value("island_peers_linked") is not None
    assert await place.value("island_queue_length", queue="state.db writes") is not None
    assert await place.value("process_open_fds") is not None
    assert "island_build_info{" in await place.text() and "_created" not in await place.text()


async def test_routes_have_bounded_labels(place: Scraped) -> None:
    name = "island_http_request_duration_seconds_count"
    unknown = {"method": "other", "route": "unknown", "status": "4xx"}
    before = await place.value(name, **unknown) or 0.0
    for method in ("GET", "POST", "PROPFIND", "LOCK", "SEARCH"):
        assert await place.get(f"/nothing/{method}", method) == 401
    assert await place.value(name, **unknown) == before + 5
    assert await place.get("/api/v1/datasets/a/b") == 401
    text = await place.text()
    assert "PROPFIND" not in text and "/nothing" not in text and "/datasets/a/b" not in text
    assert (await place.value(name, method="GET", route="/metrics", status="2xx") or 0.0) >= 2


async def test_a_failing_database_is_shown_and_metrics_are_still_served(
    place: Scraped, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = await place.value("island_database_write_errors_total", database="state") or 0.0
    failed = await place.value("island_measurements_failed_total", part="jobs") or 0.0

    def full(_: object) -> None:
        raise full_disk()

    with pytest.raises(Full):
        await place.daemon.state.write(full)
    assert await place.value("island_condition", state="unavailable") == 1.0
    assert await place.value("island_condition", state="ready") == 0.0
    assert await place.value("island_database_failing", database="state") == 1.0
    assert await place.value("island_database_write_errors_total", database="state") == errors + 1

    async def broken() -> list[tuple[str, str, int]]:
        return await place.daemon.state.read(full)  # type: ignore[arg-type]  # it only raises

    monkeypatch.setattr(place.daemon.jobs, "count", broken)
    assert await place.value("island_measurements_failed_total", part="jobs") == failed + 1
    assert await place.value("island_runs_live", kind="session") is None
    assert await place.value("island_home_free_bytes") is not None


async def test_every_metric_is_on_the_page_and_accepted_by_promtool(place: Scraped) -> None:
    await until(lambda: any(count for count in lag_buckets().values()))
    text = await place.text()
    page = metrics.PAGE.read_text("utf-8")
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in page or family.name.startswith("process_"), name
    checked: Callable[..., str] = promtool()
    assert await asyncio.to_thread(checked, "check", "metrics", stdin=text) == ""
