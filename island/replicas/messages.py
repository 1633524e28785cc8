"""The request for chunks of another island: bulk kind `chunks`.

The answer is the bytes of all ranges, in the order of the request, in blocks of any size
up to the limit of the session. `protocols/replicas-v1.md` specifies the protocol.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from island.kernel.codec import Message
from island.kernel.ids import IslandId

KIND = "chunks"
"""The bulk kind of a request for chunks."""

MAX_PIECES = 512
"""Maximum number of files in one request."""
MAX_RANGES = 512
"""Maximum number of ranges in one request, over all of its files."""
MAX_BYTES = 32 * 2**20
"""Maximum number of bytes that one request may ask for."""

Offset = Annotated[int, Meta(ge=0, le=1 << 50)]
Hash = Annotated[str, Meta(max_length=64, pattern=r"^[0-9a-f]{64}\Z")]


class FileRanges(Message, frozen=True):
    """Ranges of one file: (start, end) in bytes, end exclusive. Each range begins and ends at a chunk border."""

    path: Annotated[str, Meta(min_length=1, max_length=1024)]
    ranges: Annotated[tuple[tuple[Offset, Offset], ...], Meta(min_length=1, max_length=MAX_RANGES)]


class ChunkRequest(Message, frozen=True):
    """Request for ranges of files of one snapshot of the dataset `name` of `owner`."""

    owner: Hash
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    snapshot: Hash
    pieces: Annotated[tuple[FileRanges, ...], Meta(min_length=1, max_length=MAX_PIECES)]

    @property
    def owner_id(self) -> IslandId:
        """The id of the island that owns the dataset."""
        return IslandId(self.owner)

    def size(self) -> int:
        """Number of requested bytes."""
        return sum(max(0, end - start) for piece in self.pieces for start, end in piece.ranges)
