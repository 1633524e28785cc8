"""Messages of the catalog: dataset and replica records, cards, queries and views."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from island.kernel.codec import Message
from island.kernel.ids import DatasetName, IslandId

RECORD_LIMIT = 4096
"""Maximum size of a dataset or replica record, in bytes."""
CARD_LIMIT = 256 * 1024
"""Maximum size of a card, in bytes."""
COLUMNS_LIMIT = 1024
"""Maximum size of the column names in a record, in bytes."""
TITLE_LIMIT = 512
"""Maximum size of a title, in bytes."""

Hash = Annotated[str, Meta(max_length=64, pattern=r"^[0-9a-f]{64}\Z")]
Size = Annotated[int, Meta(ge=0, le=1 << 62)]
Seconds = Annotated[float, Meta(ge=-1e14, le=1e14)]
"""Unix seconds, within three million years of 1970."""
Text = Annotated[str, Meta(max_length=4096)]
Word = Annotated[str, Meta(max_length=256)]


class DatasetRecord(Message, frozen=True, kw_only=True):
    """One dataset in its owner's log, with the key `dataset/NAME`; at most RECORD_LIMIT bytes.

    `coverage` is encoded as by `core.pack_coverage`, b"" if it is not known. `time` is the time
    range of the rows. `columns` has the names that fit, and `hidden` is the number of the others.
    `files` is the number of files, `size` their total size in bytes. `card` is the hash of the card.
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
    """The state of a replica of one snapshot. `gone` is published before the record is deleted."""

    snapshot: Hash
    state: HoldingState
    size: Size = 0


class ReplicaRecord(Message, frozen=True, kw_only=True):
    """The replicas of a dataset at another island, with the key `replica/OWNERKEY/NAME` in that island's log."""

    MAX_BYTES = RECORD_LIMIT

    version: Literal[1] = 1
    held: Annotated[tuple[SnapshotHolding, ...], Meta(max_length=16)]


class CardColumn(Message, frozen=True, kw_only=True):
    """One column; nested columns have a dotted path as name. `type` is for display."""

    name: Text
    type: Text
    unit: Text = ""
    ucd: Text = ""
    description: Text = ""
    nullable: bool = True


class Card(Message, frozen=True, kw_only=True):
    """The full description of a dataset, for which a record has no space; a blob of at most CARD_LIMIT bytes.

    `moc` is an ASCII MOC (ICRS, nested), "" if the coverage is not known. `area` is in square degrees.
    `cut` lists the parts that were shortened to fit. `details` depend on the format (kind and
    partitions of a HATS catalog).
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
    """(modification time in ns, inode) of the files of one page, in order. Never sent to other islands."""

    MAX_BYTES = 256 * 1024

    files: Annotated[tuple[tuple[int, int], ...], Meta(max_length=4096)]


class LocalIndex(Message, frozen=True, kw_only=True):
    """The hash of the `LocalPage` of each page of files, by its hash. Never sent to other islands."""

    MAX_BYTES = 64 * 1024 * 1024

    pages: Annotated[dict[Hash, Hash], Meta(max_length=500_000)]


# --- local queries and results, never sent to other islands ---------------------------------


class SearchQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The conditions of a search, which must all hold. Empty conditions are ignored.

    `words` are words that must all occur; `column` is a column name, the beginning of one, or a UCD
    (case-insensitive); `region` is `circle RA DEC RADIUS` in degrees (ICRS); `time` is `FROM..TO` with
    ISO 8601 dates or times in UTC, either side may be empty; `format` is a format as shown by
    `island dataset ls`. `limit` is the maximum number of results.
    """

    words: Annotated[str, Meta(max_length=1000)] = ""
    column: Annotated[str, Meta(max_length=256)] = ""
    region: Annotated[str, Meta(max_length=4096)] = ""
    time: Annotated[str, Meta(max_length=200)] = ""
    format: Annotated[str, Meta(max_length=32)] = ""
    limit: Annotated[int, Meta(ge=1, le=100_000)] = 10_000


@dataclass(frozen=True, slots=True)
class DatasetView:
    """One dataset of the archipelago in a listing. `bytes` is the total size of its files."""

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
    """A resolved dataset name: its owner and the snapshot.

    `record` is the record of this snapshot if it is known, else that of the newest snapshot.
    """

    owner: IslandId
    owner_name: str
    name: str
    snapshot: str
    record: DatasetRecord = field(repr=False, compare=False)

    @property
    def newest(self) -> bool:
        """Whether `record` describes `snapshot`."""
        return self.record.snapshot == self.snapshot

    @property
    def dataset(self) -> DatasetName:
        """`OWNER/NAME@SNAPSHOT` with the displayed name of the owner."""
        return DatasetName(self.owner_name, self.name, self.snapshot)
