"""The services that jobs use, at home and at the executor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from island.catalog.ports import Inputs
from island.config import Config
from island.jobs.engines.engines import Engines
from island.jobs.ports import Datasets, Islands
from island.kernel.db import Database
from island.kernel.ports import Clock, Peers, Rng
from island.kernel.work import Workers
from island.trust.service import Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsDependencies:
    """The services that `Jobs` uses."""

    state: Database
    catalog: Datasets
    inputs: Inputs
    membership: Islands
    trust: Trust
    peers: Peers
    config: Config
    engines: Engines
    clock: Clock
    rng: Rng
    home: Path
    workers: Workers
