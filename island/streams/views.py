"""What people see of sources, subscriptions and channels: flat, with stable keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from island.kernel.ids import IslandId
from island.streams.core import ChannelState


@dataclass(frozen=True, slots=True)
class SourceView:
    """One source of any island.

    `state`: `watching`; `empty` before the first file; `problem` where some file or the folder
    cannot be read; `down` where its island does not answer. `columns` are `name type` pairs, as many
    as its record holds; `path` is known of own sources only.
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
    """One subscription of this island's people."""

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
    """One active flow. `in`: into this island; `out`: to a subscriber elsewhere, as far as the source sees it.

    `rate` is rows a second over the last 30 s; `lag_*` is what the source has and the subscriber has not yet.
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
