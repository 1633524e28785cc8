"""Names of datasets as temporary views in Spark."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Protocol, TypeVar


class Named(Protocol):
    """Anything with an owner's name and a name of its own, as `Resolved`."""

    @property
    def owner_name(self) -> str:
        """The owner as people see it."""

    @property
    def name(self) -> str:
        """The dataset's name."""


N = TypeVar("N", bound=Named)


def view_name(owner: str, name: str) -> str:
    """`OWNER__NAME`, with `_` for every character outside [A-Za-z0-9_]."""
    return f"{_plain(owner)}__{_plain(name)}"


def view_names(datasets: Iterable[N]) -> dict[str, N]:
    """The views of some datasets: `OWNER__NAME` each, and `NAME` where only one would have it.

    Spark does not tell views apart by case, so neither does "only one". Where two datasets
    would have one long name, the later ones get `_2`, `_3` and so on, in the order given.
    """
    wanted = list(datasets)
    views: dict[str, N] = {}
    taken: set[str] = set()
    for dataset in wanted:
        base = view_name(dataset.owner_name, dataset.name)
        name, number = base, 1
        while name.lower() in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name.lower())
        views[name] = dataset
    counts = Counter(_plain(dataset.name).lower() for dataset in wanted)
    for dataset in wanted:
        short = _plain(dataset.name)
        if counts[short.lower()] == 1 and short.lower() not in taken:
            views[short] = dataset
    return views


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", text)
