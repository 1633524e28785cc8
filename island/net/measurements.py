"""Gauges that describe the present: they are set each time when Prometheus asks, and not kept up to date between."""

from __future__ import annotations

import asyncio
import platform
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import structlog

import island
from island.errors import IslandError
from island.jobs.engines.engines import Engines
from island.jobs.service import Jobs
from island.kernel.db import Database
from island.kernel.telemetry import OTHERS, counter, gauge
from island.kernel.work import ThreadWorkers
from island.livy.messages import SESSION_ALIVE, SESSION_ENDED
from island.net.condition import Condition, State
from island.streams.service import Streams
from island.streams.views import ChannelView

if TYPE_CHECKING:
    from prometheus_client import Gauge

log = structlog.get_logger("island")

BUILD = gauge("build_info", "Version of the program and of Python; the value is always 1", ("version", "python"))
CONDITION = gauge("condition", "1 for the present state of the island, 0 for the others", ("state",))
PROBLEMS = gauge("problems", "Problems that `island status` lists")
ENGINE = gauge("engine_running", "1 if the engine runs and answers", ("engine",))
PLACES = gauge("engine_free_places", "Sessions and batches that the engine has places for", ("engine",))
JOBS = gauge("jobs", "Stored jobs of this home, with those that have ended, by Livy's state", ("kind", "state"))
RUNS = gauge("runs_live", "Sessions and batches of all islands that this island runs or will run", ("kind",))
CHANNELS = gauge("channels", "Channels by direction and state", ("direction", "state"))
LAG_SECONDS = gauge(
    "channel_lag_seconds",
    "Seconds since the oldest row arrived that was not delivered. `name` is the dataset (in) or the source (out)",
    ("direction", "name"),
)
LAG_ROWS = gauge("channel_lag_rows", "Rows of the source that were not delivered yet", ("direction", "name"))
DATABASE_FAILING = gauge("database_failing", "1 if the last write to the database failed", ("database",))
QUEUE = gauge("queue_length", "Work that was submitted and is not done, by queue", ("queue",))
FREE = gauge("home_free_bytes", "Free space in the file system of the home folder")
SIZE = gauge("home_size_bytes", "Size of the file system of the home folder")
UNMEASURED = counter("measurements_failed", "Gauges that were left out because they could not be read", ("part",))

MAX_CHANNELS: Final = 100
"""Names of channels with their own lag. The largest lag of all others is under the name `others`."""
_STATES: Final = SESSION_ALIVE | SESSION_ENDED


@dataclass(frozen=True, slots=True)
class ChannelLag:
    """The largest lag of the channels with one label."""

    seconds: float = 0.0
    rows: int = 0


def channel_lags(views: Iterable[ChannelView], limit: int = MAX_CHANNELS) -> dict[tuple[str, str], ChannelLag]:
    """Return the lags by direction and name. Several readers of a source share a name, and the slowest counts.

    At most `limit` names have their own entry, those with the longest lag.
    """
    found: dict[tuple[str, str], ChannelLag] = {}

    def add(key: tuple[str, str], lag: ChannelLag) -> None:
        old = found.get(key, ChannelLag())
        found[key] = ChannelLag(max(old.seconds, lag.seconds), max(old.rows, lag.rows))

    for view in views:
        name = (view.into if view.direction == "in" else view.source).rpartition("/")[2]
        add((view.direction, name), ChannelLag(view.lag_s, view.lag_rows))
    for key in sorted(found, key=lambda each: (-found[each].seconds, each))[limit:]:
        add((key[0], OTHERS), found.pop(key))
    return found


def known_state(state: str) -> str:
    """Return a state of a job as a label: Livy's states as they are, anything else as `others`."""
    return state if state in _STATES else OTHERS


class Measurements:
    """Sets the gauges of one island. A part that cannot be read is left out and counted; the others are set."""

    def __init__(
        self,
        *,
        home: Path,
        condition: Callable[[], Condition],
        engines: Engines,
        databases: Mapping[str, Database],
        workers: ThreadWorkers,
        jobs: Jobs,
        streams: Streams,
    ) -> None:
        self._home, self._condition, self._engines = home, condition, engines
        self._databases, self._workers, self._jobs, self._streams = databases, workers, jobs, streams
        self._measuring = asyncio.Lock()

    async def take(self) -> None:
        """Set all gauges of this module."""
        async with self._measuring:
            self._set_condition()
            for part, measure in (("jobs", self._set_jobs), ("channels", self._set_channels), ("disk", self._set_disk)):
                try:
                    await measure()
                except (IslandError, OSError, sqlite3.Error) as error:
                    UNMEASURED.labels(part).inc()
                    log.warning("metrics.not_measured", part=part, error=str(error))

    def _set_condition(self) -> None:
        BUILD.labels(island.__version__, platform.python_version()).set(1)
        now = self._condition()
        for state in get_args(State):
            CONDITION.labels(state).set(state == now.state)
        PROBLEMS.set(len(now.problems))
        for each in (ENGINE, PLACES):
            each.clear()
        for engine in self._engines.all():
            ENGINE.labels(engine.name).set(not engine.problem)
            PLACES.labels(engine.name).set(engine.free())
        for name, database in self._databases.items():
            DATABASE_FAILING.labels(name).set(bool(database.problem))
            QUEUE.labels(f"{name}.db writes").set(database.waiting)
        for name, length in self._workers.lengths().items():
            QUEUE.labels(name).set(length)

    async def _set_jobs(self) -> None:
        for each in (JOBS, RUNS):
            each.clear()
        stored = Counter[tuple[str, str]]()
        for kind, state, count in await self._jobs.count():
            stored[kind, known_state(state)] += count
        _show(JOBS, stored)
        for kind, count in self._jobs.live_runs().items():
            RUNS.labels(kind).set(count)

    async def _set_channels(self) -> None:
        for each in (CHANNELS, LAG_SECONDS, LAG_ROWS):
            each.clear()
        views = await self._streams.channels()
        _show(CHANNELS, Counter((view.direction, view.state) for view in views))
        for key, lag in channel_lags(views).items():
            LAG_SECONDS.labels(*key).set(lag.seconds)
            LAG_ROWS.labels(*key).set(lag.rows)

    async def _set_disk(self) -> None:
        usage = await self._workers.disk(shutil.disk_usage, self._home)
        FREE.set(usage.free)
        SIZE.set(usage.total)


def _show(target: Gauge, counts: Mapping[tuple[str, str], int]) -> None:
    for key, count in counts.items():
        target.labels(*key).set(count)
