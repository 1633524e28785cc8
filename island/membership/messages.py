"""The records of membership: the island itself and its servers. See `protocols/gossip-v1.md`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from msgspec import Meta

from island.gossip.messages import VALUE_LIMIT
from island.kernel.codec import Message
from island.trust.messages import Address

SELF_KEY = "island/self"

ServerKind = Literal["livy", "spark-ui", "spark-history", "hdfs", "hbase", "jupyterhub", "other"]
SERVER_KINDS: tuple[str, ...] = get_args(ServerKind)


class SelfRecord(Message, frozen=True):
    """The record `island/self`: an island's description of itself."""

    MAX_BYTES = VALUE_LIMIT

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", max_length=64)]
    addresses: Annotated[tuple[Address, ...], Meta(max_length=8)] = ()
    """The `host:port` at which its peer port can be dialled; empty if it only dials out."""
    version: Annotated[str, Meta(max_length=64)] = ""
    software: Annotated[str, Meta(max_length=64)] = ""
    started: Annotated[float, Meta(ge=-1e14, le=1e14)] = 0.0
    """Wall time of its last start, for display."""


class ServerRecord(Message, frozen=True):
    """The record `server/ID`: one service beside an island."""

    MAX_BYTES = VALUE_LIMIT

    kind: Annotated[str, Meta(min_length=1, max_length=32)]
    url: Annotated[str, Meta(min_length=1, max_length=512)]
    comment: Annotated[str, Meta(max_length=500)] = ""
