"""The limits of an engine, which the administrator can set."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec


def default_cores() -> int:
    """Default number of cores of a session: all but one, at least two, at most eight."""
    return max(2, min(8, (os.cpu_count() or 2) - 1))


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and defaults. Memory sizes are JVM strings, times are in seconds, sizes of output in characters."""

    max_sessions: int = 4
    max_batches: int = 4
    max_queued: int = 200
    max_output: int = 4 * 1024 * 1024
    max_kept_output: int = 32 * 1024 * 1024
    memory: str = "1g"
    max_memory: str = "8g"
    cores: int = msgspec.field(default_factory=default_cores)
    rows: int = 1000
    idle_timeout_s: float = 3600.0
    start_timeout_s: float = 180.0
    retain_s: float = 600.0
    allow_files: tuple[Path, ...] = ()
    pass_env: tuple[str, ...] = ()
    java_options: tuple[str, ...] = ()
