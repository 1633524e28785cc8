"""What home's side and the executor's side of jobs need of the rest of the island."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from island.catalog.ports import Inputs
from island.config import Config
from island.jobs.livy_engine import EnginePort
from island.jobs.ports import Datasets, Islands
from island.kernel.db import Database
from island.kernel.ports import Clock, Peers, Rng
from island.kernel.work import Workers
from island.trust.service import Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsDependencies:
    """What `Jobs` needs of the rest of the island."""

    state: Database
    catalog: Datasets
    inputs: Inputs
    membership: Islands
    trust: Trust
    peers: Peers
    config: Config
    livy: EnginePort | None
    """None where this island has no engine."""
    clock: Clock
    rng: Rng
    home: Path
    workers: Workers
