"""What crosses the wire or reaches the disk: dataset and replica records, cards, and queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from island.kernel.codec import Message
from island.kernel.ids import DatasetName, IslandId

RECORD_LIMIT = 4096
"""The largest dataset or replica record."""
CARD_LIMIT = 256 * 1024
"""The largest card."""
COLUMNS_LIMIT = 1024
"""Bytes of column names in a record."""
TITLE_LIMIT = 512
"""Bytes of a title."""

Hash = Annotated[str, Meta(max_length=64, pattern=r"^[0-9a-f]{64}\Z")]
Size = Annotated[int, Meta(ge=0, le=1 << 62)]
Seconds = Annotated[float, Meta(ge=-1e14, le=1e14)]
"""Unix seconds, UTC; any time within three million years."""
Text = Annotated[str, Meta(max_length=4096)]
Word = Annotated[str, Meta(max_length=256)]


class DatasetRecord(Message, frozen=True, kw_only=True):
    """One dataset in its owner's log, under the key `dataset/NAME`; at most RECORD_LIMIT bytes.

    `coverage` is as in `core.pack_coverage`, b"" where it is not known; `time` is the range of
    times of the rows. `columns` are the first names that fit; `hidden` is how many did not.
    `size` is the sum of the sizes of all `files`. `card` names the blob with the rest.
    """

    MAX_BYTES = RECORD_LIMIT

    version: Literal[1] = 1
    title: Annotated[str, Meta(max_length=TITLE_LIMIT)] = ""
    format: Annotated[str, Meta(min_length=1, max_length=32)]
    rows: Size
    size: Size
    files: Size
    snapshot: Hash
    visibility: Annotated[str, Meta(max_length=32)] = "public"
    created: Seconds
    updated: Seconds
    coverage: Annotated[bytes, Meta(max_length=2048)] = b""
    time: tuple[Seconds, Seconds] | None = None
    columns: Annotated[tuple[Word, ...], Meta(max_length=COLUMNS_LIMIT)] = ()
    hidden: Size = 0
    card: Hash


HoldingState = Literal["begun", "complete", "gone"]


class SnapshotHolding(Message, frozen=True, kw_only=True):
    """How much of one snapshot a replica has; `gone` is the last word before the record is deleted."""

    snapshot: Hash
    state: HoldingState
    size: Size = 0


class ReplicaRecord(Message, frozen=True, kw_only=True):
    """What an island holds of another's dataset, under `replica/OWNERKEY/NAME` in the holder's log."""

    MAX_BYTES = RECORD_LIMIT

    version: Literal[1] = 1
    held: Annotated[tuple[SnapshotHolding, ...], Meta(max_length=16)]


class CardColumn(Message, frozen=True, kw_only=True):
    """One column, nested ones by dotted path. `type` is in words."""

    name: Text
    type: Text
    unit: Text = ""
    ucd: Text = ""
    description: Text = ""
    nullable: bool = True


class Card(Message, frozen=True, kw_only=True):
    """What a person wants to know of a dataset and a record has no room for; a blob of at most CARD_LIMIT bytes.

    `moc` is an ASCII MOC (ICRS, nested), "" where coverage is not known. `cut` names what had to
    be shortened to fit. `details` is per format (the kind of a HATS catalog, its partitions).
    """

    MAX_BYTES = CARD_LIMIT

    version: Literal[1] = 1
    snapshot: Hash
    title: Text = ""
    description: Annotated[str, Meta(max_length=32 * 1024)] = ""
    licence: Text = ""
    provenance: Annotated[str, Meta(max_length=32 * 1024)] = ""
    format: Word
    rows: Size = 0
    size: Size = 0
    files: Size = 0
    columns: Annotated[tuple[CardColumn, ...], Meta(max_length=50_000)] = ()
    hidden: Size = 0
    moc: Annotated[str, Meta(max_length=128 * 1024)] = ""
    area: Annotated[float, Meta(ge=0, le=41_253)] | None = None
    time: tuple[Seconds, Seconds] | None = None
    position: Annotated[tuple[Text, ...], Meta(max_length=4)] = ()
    time_column: Text = ""
    details: Annotated[tuple[tuple[Word, Text], ...], Meta(max_length=256)] = ()
    warnings: Annotated[tuple[Text, ...], Meta(max_length=256)] = ()
    cut: Annotated[tuple[Word, ...], Meta(max_length=16)] = ()
    software: Word = ""


class LocalPage(Message, frozen=True, kw_only=True):
    """What the file system said of the files of one page: (modification time in ns, inode), in order. Never sent."""

    MAX_BYTES = 256 * 1024

    files: Annotated[tuple[tuple[int, int], ...], Meta(max_length=4096)]


class LocalIndex(Message, frozen=True, kw_only=True):
    """For each page of files (by hash), the hash of its `LocalPage`. Never sent."""

    MAX_BYTES = 64 * 1024 * 1024

    pages: Annotated[dict[Hash, Hash], Meta(max_length=500_000)]


# --- not on the wire: what the service hands out --------------------------------------------


class SearchQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person searches for; every part that is given must hold.

    `words` are ordinary words; `column` a column's name, the beginning of one, or a UCD, in any
    case; `region` as `circle RA DEC RADIUS` in degrees (ICRS); `time` as `FROM..TO`, either
    side open, ISO dates or times in UTC; `format` as `ls` shows it.
    """

    words: Annotated[str, Meta(max_length=1000)] = ""
    column: Annotated[str, Meta(max_length=256)] = ""
    region: Annotated[str, Meta(max_length=4096)] = ""
    time: Annotated[str, Meta(max_length=200)] = ""
    format: Annotated[str, Meta(max_length=32)] = ""
    limit: Annotated[int, Meta(ge=1, le=100_000)] = 10_000


@dataclass(frozen=True, slots=True)
class DatasetView:
    """One dataset of the archipelago, as listings show it. `bytes` is the size of all its files."""

    owner: IslandId
    island: str
    name: str
    title: str
    format: str
    rows: int
    bytes: int
    files: int
    snapshot: str
    created: float
    updated: float
    record: DatasetRecord = field(repr=False, compare=False)

    @property
    def dataset(self) -> str:
        """`OWNER/NAME`."""
        return f"{self.island}/{self.name}"


@dataclass(frozen=True, slots=True)
class ResolvedDataset:
    """A dataset name that was understood: whose it is, and which snapshot is meant.

    `record` is that of this snapshot where it is known, else that of the newest.
    """

    owner: IslandId
    owner_name: str
    name: str
    snapshot: str
    record: DatasetRecord = field(repr=False, compare=False)

    @property
    def newest(self) -> bool:
        """Whether `record` describes `snapshot`, as it does for the newest one."""
        return self.record.snapshot == self.snapshot

    @property
    def dataset(self) -> DatasetName:
        """`OWNER/NAME@SNAPSHOT` with the owner as people see it."""
        return DatasetName(self.owner_name, self.name, self.snapshot)
