"""Logs and metrics: log lines with an event name and stable keys, and Prometheus metrics.

Modules use `log = structlog.get_logger("island")`; the program calls `configure` once. The values
of keys that could hold a secret are masked. Control characters are escaped, because values come
from file names and other islands, and logs are read in terminals.
"""

from __future__ import annotations

import atexit
import logging
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, TextIO

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from island.kernel import library_log
from island.kernel.log_writer import LogWriter
from island.kernel.terminal import escaped

REGISTRY = CollectorRegistry()
"""All metrics of the program, served at `/metrics` on the user port."""
ProcessCollector(registry=REGISTRY)
# One more series for each counter, which nothing uses.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library does not annotate it

EXPOSITION_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of `exposition()`."""

OTHERS = "others"
"""The label for all values that are not counted separately."""


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """A metric as it is shown at `/metrics`, for its documentation and the check of its name."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    text: str
    limit: int | None = None
    """Maximum number of values of its label, if other islands or users choose them."""


DEFINED: list[MetricDefinition] = []
"""The metrics that the imported modules have registered."""

_SECRET = ("token", "secret", "password", "invitation", "authorization", "private")


def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
    """Register a counter `island_NAME_total`. `text` is its meaning."""
    DEFINED.append(MetricDefinition(f"island_{name}_total", "counter", labels, text))
    return Counter(f"island_{name}", text, labels, registry=REGISTRY)


def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
    """Register a gauge `island_NAME`. `text` is its meaning."""
    DEFINED.append(MetricDefinition(f"island_{name}", "gauge", labels, text))
    return Gauge(f"island_{name}", text, labels, registry=REGISTRY)


def histogram(name: str, text: str, labels: tuple[str, ...] = (), *, buckets: tuple[float, ...]) -> Histogram:
    """Register a histogram `island_NAME`, in seconds; `buckets` are the upper bounds of its buckets."""
    DEFINED.append(MetricDefinition(f"island_{name}", "histogram", labels, text))
    return Histogram(f"island_{name}", text, labels, registry=REGISTRY, buckets=buckets)


class BoundedCounter:
    """A counter with one label, whose values other islands or users choose: a bounded number of them is kept.

    The first `limit` values are counted separately, and all later ones under `OTHERS`, so that they cannot fill the
    memory.
    """

    def __init__(self, name: str, text: str, label: str, limit: int) -> None:
        """Register the counter `island_NAME_total`."""
        self._counter = Counter(f"island_{name}", text, (label,), registry=REGISTRY)
        self._limit = limit
        self._used: set[str] = set()
        DEFINED.append(MetricDefinition(f"island_{name}_total", "counter", (label,), text, limit))

    def labels(self, value: str) -> Counter:
        """Return the counter of a value."""
        if value not in self._used:
            if len(self._used) >= self._limit:
                return self._counter.labels(OTHERS)
            self._used.add(value)
        return self._counter.labels(value)


def exposition() -> bytes:
    """All metrics in the Prometheus text format."""
    return generate_latest(REGISTRY)


def _mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in event:
        if any(word in key.lower() for word in _SECRET):
            event[key] = "***"
    return event


def _one_safe_line(_logger: Any, _method: str, line: Any) -> str:
    return escaped(line)  # the renderer returns a str


LOST = counter("log_lines_lost", "Log lines that could not be written")

_writer: LogWriter | None = None


def configure(level: str = "info", form: str = "text", stream: TextIO | None = None) -> None:
    """Write log lines of `level` and above to `stream` (default: stderr) as `text` (key=value) or `json`.

    A thread writes them (see `LogWriter`). Includes the messages of libraries (see `library_log`).
    """
    global _writer
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)
    )
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _mask,
        structlog.processors.format_exc_info,
        renderer,
        _one_safe_line,
    ]

    def report(lines: int, reason: str) -> str:
        line: Any = {"event": "log.lines_lost", "lines": lines, "reason": reason}
        for processor in processors:
            line = processor(None, "warning", line)
        return str(line)

    before, _writer = _writer, LogWriter(stream or sys.stderr, report, LOST.inc)
    writer = _writer
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    library_log.install()
    if before is None:
        atexit.register(flush)
    else:
        before.close()


def flush() -> None:
    """Wait for a short time until the lines that were logged are written."""
    if _writer is not None:
        _writer.flush()


def problems() -> list[str]:
    """The problem of the log, if lines of it were lost, for the status of the program."""
    return [_writer.problem] if _writer is not None and _writer.problem else []
