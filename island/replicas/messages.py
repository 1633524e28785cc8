"""What islands ask of one another for data: the request of the bulk kind `chunks`.

The answer is the bytes of all ranges, in the order of the request, in blocks of any size
up to the limit of the session, and nothing else. `protocols/replicas-v1.md` has it all.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from island.kernel.codec import Message
from island.kernel.ids import IslandId

KIND = "chunks"
"""The bulk kind under which chunks are asked for."""

MAX_PIECES = 512
"""Files in one request."""
MAX_RANGES = 512
"""Ranges in one request, over all of its files."""
MAX_BYTES = 32 * 2**20
"""Bytes that one request may ask for."""

Offset = Annotated[int, Meta(ge=0, le=1 << 50)]
Hash = Annotated[str, Meta(max_length=64, pattern=r"^[0-9a-f]{64}\Z")]


class FileRanges(Message, frozen=True):
    """Ranges of one file: (start, end) in bytes, end not included, each beginning and ending at a chunk's border."""

    path: Annotated[str, Meta(min_length=1, max_length=1024)]
    ranges: Annotated[tuple[tuple[Offset, Offset], ...], Meta(min_length=1, max_length=MAX_RANGES)]


class ChunkRequest(Message, frozen=True):
    """Some ranges of some files of one snapshot of `owner`'s dataset `name`."""

    owner: Hash
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    snapshot: Hash
    pieces: Annotated[tuple[FileRanges, ...], Meta(min_length=1, max_length=MAX_PIECES)]

    @property
    def owner_id(self) -> IslandId:
        """The island whose dataset it is."""
        return IslandId(self.owner)

    def size(self) -> int:
        """Bytes asked for."""
        return sum(max(0, end - start) for piece in self.pieces for start, end in piece.ranges)
