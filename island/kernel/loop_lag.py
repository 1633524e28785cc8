"""Measures how late the event loop runs, because work that blocks it delays every session and request."""

from __future__ import annotations

import asyncio
from typing import Final

from island.kernel.ports import Clock
from island.kernel.telemetry import histogram

LAG = histogram(
    "event_loop_lag_seconds",
    "Delay with which the event loop ran a timer",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)

INTERVAL_S: Final = 0.5


async def measure(clock: Clock) -> None:
    """Wait for `INTERVAL_S` seconds, and record by how much longer it took."""
    due = clock.monotonic() + INTERVAL_S
    await asyncio.sleep(INTERVAL_S)
    LAG.observe(max(0.0, clock.monotonic() - due))
