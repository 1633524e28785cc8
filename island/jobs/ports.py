"""What jobs need of the catalog and of membership: the services themselves satisfy these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from island.catalog.messages import DatasetView, ResolvedDataset
from island.kernel.ids import DatasetName, IslandId
from island.membership.service import IslandView


class Datasets(Protocol):
    """`catalog.service.Catalog`, as far as jobs know it."""

    async def resolve(self, name: DatasetName | str) -> ResolvedDataset:
        """Whose dataset a name means, and which snapshot; raises `NotFound` with the nearest names, `Ambiguous`."""

    async def datasets(self) -> list[DatasetView]:
        """All datasets of the archipelago."""

    def holders(self, owner: IslandId, name: str, snapshot: str) -> Sequence[IslandId]:
        """Who has the whole snapshot, the owner first."""


class Islands(Protocol):
    """`membership.service.Membership`, as far as jobs know it."""

    def views(self) -> list[IslandView]:
        """Every island that is known, this one first."""

    def display(self, island: IslandId) -> str:
        """What people see of an island."""

    def resolve(self, text: str) -> IslandId:
        """The island that a text names; raises `NotFound` or `Ambiguous`."""

    def is_up(self, island: IslandId) -> bool:
        """Whether it is worth asking."""
