"""What crosses the wire between a source and a subscriber, and what reaches the disk.

Described in `protocols/streams-v1.md`. A position is opaque to the subscriber: it stores
and returns the bytes that the source gave it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from island.kernel.codec import BULK_LIMIT, Message, decode, encode

DESCRIBE = "stream.describe"
"""Bulk kind: what a source offers, and the position at which a subscription begins."""

READ = "stream.read"
"""Bulk kind: the rows of a source from a position on."""

MAX_POSITION = 4096
MAX_SCHEMA = 192 * 1024
MAX_PREDICATE = 4096
MAX_REGION = 512
BLOCK = 240 * 1024
"""Rows travel in blocks of at most this many bytes, below the limit of a bulk block."""

RECORD_LIMIT = 4096
"""The largest record of a source."""

MAX_PAYLOAD = 64 * 1024 * 1024
"""The largest delivery: a single row may be this large and no larger."""

SourceName = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Incarnation = Annotated[str, Meta(max_length=16, pattern=r"^[0-9a-f]{16}\Z")]
PositionBytes = Annotated[bytes, Meta(max_length=MAX_POSITION)]
SchemaBytes = Annotated[bytes, Meta(max_length=MAX_SCHEMA)]
Predicate = Annotated[str, Meta(max_length=MAX_PREDICATE)]
Region = Annotated[str, Meta(max_length=MAX_REGION)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Start = Literal["beginning", "now"]
Stopped = Literal["error", "gap", "stopped"]


class StreamPosition(Message, frozen=True):
    """Where in a folder source a reader stands: the next row is `row` (before the predicate) of file `seq`.

    Files that had vanished by change `since` of the journal are not owed to this reader: it
    came after them. The content of the opaque bytes; only the source reads it.
    """

    MAX_BYTES = MAX_POSITION

    seq: Count
    row: Count = 0
    since: Count = 0


class DescribeRequest(Message, frozen=True):
    """May this be subscribed to, and where would it begin?"""

    MAX_BYTES = 32 * 1024

    source: SourceName
    where: Predicate = ""
    region: Region = ""
    start: Start = "now"


class DescribeAnswer(Message, frozen=True):
    """The answer: the schema (Arrow IPC; empty while no file has arrived) and the first position."""

    MAX_BYTES = BULK_LIMIT

    incarnation: Incarnation
    position: PositionBytes
    columns: SchemaBytes = b""


class ReadRequest(Message, frozen=True):
    """Send me the rows from `position` on that satisfy the predicate and lie in the region."""

    MAX_BYTES = 32 * 1024

    source: SourceName
    incarnation: Incarnation
    position: PositionBytes
    where: Predicate = ""
    region: Region = ""
    window: Annotated[int, Meta(ge=65536, le=2**32)] = 8 * 1024 * 1024


class Lag(Message, frozen=True):
    """What lies beyond a position at the source: complete files, their rows, seconds since the oldest arrived."""

    files: Count = 0
    rows: Count = 0
    seconds: Annotated[float, Meta(ge=0)] = 0.0


class StreamSchema(Message, tag_field="t", tag="opened", frozen=True):
    """The schema of every row that follows; sent before the first delivery."""

    MAX_BYTES = BULK_LIMIT

    columns: SchemaBytes


class Delivery(Message, tag_field="t", tag="delivery", frozen=True):
    """The rows between two positions; `size` bytes of Arrow IPC follow in blocks (none if `size` is 0)."""

    MAX_BYTES = 32 * 1024

    frm: PositionBytes
    to: PositionBytes
    rows: Count
    size: Annotated[int, Meta(ge=0, le=MAX_PAYLOAD)]
    behind: Lag = Lag()


class Heartbeat(Message, tag_field="t", tag="heartbeat", frozen=True):
    """The source is alive and the reader has everything up to `position`."""

    MAX_BYTES = 32 * 1024

    position: PositionBytes
    behind: Lag = Lag()


class EndOfStream(Message, tag_field="t", tag="stop", frozen=True):
    """The source will send nothing more, and why."""

    MAX_BYTES = 32 * 1024

    state: Stopped
    reason: Annotated[str, Meta(max_length=2000)]


Down = StreamSchema | Delivery | Heartbeat | EndOfStream


class Ack(Message, frozen=True):
    """Everything up to `position` is durable at the subscriber."""

    MAX_BYTES = 8 * 1024

    position: PositionBytes


class ColumnSummary(Message, frozen=True):
    """A column as the gossiped record of a source lists it."""

    name: Annotated[str, Meta(max_length=256)]
    type: Annotated[str, Meta(max_length=256)]


class SourceRecord(Message, frozen=True):
    """The gossiped record `source/NAME` (≤ 4 KiB): columns are cut to what fits, `more` counts the rest."""

    MAX_BYTES = RECORD_LIMIT

    kind: Annotated[str, Meta(max_length=32)]
    incarnation: Incarnation
    format: Annotated[str, Meta(max_length=32)] = ""
    columns: Annotated[tuple[ColumnSummary, ...], Meta(max_length=1000)] = ()
    more: Count = 0
    files: Count = 0
    rows: Count = 0
    bytes: Count = 0
    added: float = 0.0
    updated: float = 0.0
    problem: Annotated[str, Meta(max_length=512)] = ""
    note: Annotated[str, Meta(max_length=512)] = ""


def encode_position(position: StreamPosition) -> bytes:
    """The opaque bytes of a position."""
    return encode(position)


def decode_position(data: bytes) -> StreamPosition:
    """The position that this source once gave out; empty bytes mean the beginning. Raises `Malformed`."""
    return decode(data, StreamPosition) if data else StreamPosition(seq=0)


def fit_record(record: SourceRecord, limit: int = RECORD_LIMIT) -> bytes:
    """The record in at most `limit` bytes: as many of its columns, from the first, as fit."""
    columns = record.columns[:1000]
    low, high = 0, len(columns)
    while low < high:
        middle = (low + high + 1) // 2
        if len(_cut(record, columns, middle)) <= limit:
            low = middle
        else:
            high = middle - 1
    return _cut(record, columns, low)


def _cut(record: SourceRecord, columns: tuple[ColumnSummary, ...], count: int) -> bytes:
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    fields.update(columns=columns[:count], more=len(record.columns) - count)
    return encode(SourceRecord(**fields))


def decode_down(data: bytes) -> Down:
    """One message of a source to a subscriber; raises `Malformed`."""
    message: Down = decode(data, Down, limit=BULK_LIMIT)  # type: ignore[arg-type]  # a union is not a type to mypy
    return message
