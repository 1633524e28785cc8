"""Interfaces between catalog, jobs, replicas and streams, which do not import each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from island.catalog.messages import ResolvedDataset
from island.kernel.ids import IslandId

Progress = Callable[[int, int, str], None]
"""Called with progress: bytes done, total bytes, and a description of the current step."""


def no_progress(done: int, total: int, what: str) -> None:
    """Ignore progress."""


@dataclass(frozen=True, slots=True)
class LocalInput:
    """A complete and verified local dataset, as a path that Spark can read as Parquet.

    `moved` is the number of its bytes that were ever received from other islands.
    """

    view: str
    owner: IslandId
    name: str
    snapshot: str
    path: str
    bytes: int
    moved: int


class Inputs(Protocol):
    """Provides datasets as inputs of jobs. Implemented by `replicas`."""

    async def missing(self, resolved: ResolvedDataset) -> int:
        """The number of bytes of the snapshot that are not on this island; 0 for its own datasets."""

    async def materialise(self, resolved: ResolvedDataset, progress: Progress) -> LocalInput:
        """Fetch missing data, verify them, and make the dataset readable for Spark.

        The data are kept for a day, or until `release`. Raises `Unreachable`, `Changed`, `Corrupt`, `Full`.
        """

    async def release(self, owner: IslandId, name: str, snapshot: str) -> None:
        """Allow the data to be deleted: no session or batch of this island uses the snapshot any more."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """The size of a snapshot in bytes, how many are on this island, and how many it received from other islands."""

    bytes: int
    bytes_local: int
    bytes_moved: int


class Replication(Protocol):
    """Provides the status of replicas for `dataset show`. Implemented by `replicas`."""

    async def status(self, resolved: ResolvedDataset) -> ReplicaStatus:
        """Return the status of a snapshot on this island."""
