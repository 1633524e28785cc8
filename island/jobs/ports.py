"""Protocols for the parts of the catalog and of membership that jobs use. The services implement them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from island.catalog.messages import DatasetView, ResolvedDataset
from island.kernel.ids import DatasetName, IslandId
from island.membership.service import IslandView


class Datasets(Protocol):
    """The methods of `catalog.service.Catalog` that jobs use."""

    async def resolve(self, name: DatasetName | str) -> ResolvedDataset:
        """The owner and snapshot that a name means. Raises `NotFound` with similar names, or `Ambiguous`."""

    async def datasets(self) -> list[DatasetView]:
        """All datasets of the archipelago."""

    def holders(self, owner: IslandId, name: str, snapshot: str) -> Sequence[IslandId]:
        """The islands that have the complete snapshot, the owner first."""


class Islands(Protocol):
    """The methods of `membership.service.Membership` that jobs use."""

    def views(self) -> list[IslandView]:
        """All known islands, this one first."""

    def view(self, island: IslandId) -> IslandView:
        """One island. Raises `NotFound` if it is not known."""

    def display(self, island: IslandId) -> str:
        """The display name of an island."""

    def resolve(self, text: str) -> IslandId:
        """The island that a name or key prefix means. Raises `NotFound` or `Ambiguous`."""

    def is_up(self, island: IslandId) -> bool:
        """Whether the island is up."""
