"""`docs/metrics.md`, made from the metrics that the daemon's modules register.

Run as a program (`python -m tests.contracts.metrics`) it writes the file; a test compares.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from island.kernel.telemetry import DEFINED, MetricDefinition

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"

INTRO = """# Metrics

`GET /metrics` on the user port returns these metrics in the Prometheus text format. The
[administrator's guide](administrator.md#monitor) says how to collect them, and has alert rules and a dashboard.

Names and units follow the conventions of Prometheus: sizes are in bytes, durations in seconds, and the names of
counters end with `_total`. Counters start at 0 when the daemon starts. The number of series is bounded: datasets (100
for each metric), holders (50) and channels (100) beyond these numbers share the label `others`. Routes are those of the
[API](../protocols/openapi.yaml), with parameters by name; a request that no route accepts has the route `unknown`, and
one whose client closed the connection has the status `aborted`.

This page is generated from the program (`python -m tests.contracts.metrics`).

| name | type | labels | meaning |
|---|---|---|---|
"""

OUTRO = """
The metrics `process_*` (processor time, memory, open files, start time) are those of Prometheus' client libraries. They
describe the daemon without its child processes, so without the engine.

`island_condition` is the state that `/readyz` and `island status` report. The label `engine` is the name of an engine:
`embedded`, `livy` for that of `[livy] url`, or the name of an `[[engine]]`. `island_measurements_failed_total` counts
scrapes in which jobs, channels or the disk could not be read, for example while `state.db` is damaged; these metrics
are then absent.
"""


def defined() -> list[MetricDefinition]:
    """All metrics of a daemon, sorted by name."""
    importlib.import_module("island.daemon")  # imports every module that registers metrics
    return sorted((each for each in DEFINED if each.name.startswith("island_")), key=lambda each: each.name)


def render() -> str:
    """The text of the page."""
    rows = [
        f"| `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {each.text} |"
        for each in defined()
    ]
    return INTRO + "\n".join(rows) + "\n" + OUTRO


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
