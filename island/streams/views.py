"""Sources, subscriptions and channels as shown by the operator API: flat structs with stable keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from island.kernel.ids import IslandId
from island.streams.core import ChannelState


@dataclass(frozen=True, slots=True)
class SourceView:
    """A source of any island.

    `state`: `watching`; `empty` before the first file; `problem` if a file or the folder cannot be
    read; `down` if its island is not up. `columns` are `name type` pairs, as many as are in its
    record; `columns_hidden` is the number of the others. `path` is None for sources of other islands.
    """

    island: str
    key: IslandId
    source: str
    name: str
    kind: str
    format: str
    files: int
    rows: int
    bytes: int
    state: Literal["watching", "empty", "problem", "down"]
    problem: str
    note: str
    columns: list[str]
    columns_hidden: int
    incarnation: str
    added: float
    updated: float
    path: str | None


@dataclass(frozen=True, slots=True)
class SubscriptionView:
    """A subscription of this island."""

    id: str
    island: str
    source: str
    where: str
    region: str
    start: str
    into: str
    user: str
    created: float
    state: ChannelState
    reason: str
    rows: int


@dataclass(frozen=True, slots=True)
class ChannelView:
    """A channel. Direction `in`: into this island; `out`: to a subscriber on another island, as seen by the source.

    `rate` is rows per second over the last 30 s. `lag_*` are the rows and files that the source has
    not sent yet, and the seconds since the oldest of them arrived.
    """

    id: str
    island: str
    direction: Literal["in", "out"]
    source: str
    into: str
    state: ChannelState
    since: float
    reason: str
    rate: float
    bytes_rate: float
    rows: int
    bytes: int
    lag_rows: int
    lag_files: int
    lag_s: float
    segments: int
    user: str
