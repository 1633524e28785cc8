"""How jobs, replicas and streams meet without importing one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from island.catalog.messages import ResolvedDataset
from island.kernel.ids import IslandId

Progress = Callable[[int, int, str], None]
"""Told while a person waits: bytes done, bytes in all, and what is being done."""


def no_progress(done: int, total: int, what: str) -> None:
    """For callers whom nobody waits for."""


@dataclass(frozen=True, slots=True)
class LocalInput:
    """A dataset that is here, whole and verified, as a path that Spark can read as Parquet.

    `moved` are the bytes that came from other islands for it, now or before.
    """

    view: str
    owner: IslandId
    name: str
    snapshot: str
    path: str
    bytes: int
    moved: int


class Inputs(Protocol):
    """Datasets as inputs of jobs. Implemented by `replicas`."""

    async def missing(self, resolved: ResolvedDataset) -> int:
        """Bytes of the snapshot that are not on this island; 0 for its own."""

    async def materialise(self, resolved: ResolvedDataset, progress: Progress) -> LocalInput:
        """Fetch what is missing, verify it, and make it readable for Spark.

        Raises `Unreachable`, `Changed`, `Corrupt`, `Full`.
        """


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """Of one snapshot: its size, what of it is on this island, and what islands sent of it to others.

    `moved` counts bytes of this dataset that this island has received from others.
    """

    bytes: int
    bytes_local: int
    bytes_moved: int


class Replication(Protocol):
    """What `dataset show` asks of `replicas`."""

    async def status(self, resolved: ResolvedDataset) -> ReplicaStatus:
        """How much of the snapshot is here, and how much was moved."""
