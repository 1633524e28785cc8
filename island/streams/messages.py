"""Messages between a source and a subscriber, positions, and the gossip record of a source.

`protocols/streams-v1.md` specifies them. A position is opaque to the subscriber, which stores
the bytes and returns them to the source.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from island.kernel.codec import BULK_LIMIT, Message, decode, encode

DESCRIBE = "stream.describe"
"""Bulk kind: request the schema of a source and the position at which a subscription begins."""

READ = "stream.read"
"""Bulk kind: read the rows of a source from a position on."""

MAX_POSITION = 4096
MAX_SCHEMA = 192 * 1024
MAX_PREDICATE = 4096
MAX_REGION = 512
BLOCK = 240 * 1024
"""Maximum number of bytes in a block of rows; it is below the limit of a bulk block."""

RECORD_LIMIT = 4096
"""Maximum size of the gossip record of a source, in bytes."""

MAX_PAYLOAD = 64 * 1024 * 1024
"""Maximum size of a delivery in bytes, and therefore of a single row."""

SourceName = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Incarnation = Annotated[str, Meta(max_length=16, pattern=r"^[0-9a-f]{16}\Z")]
PositionBytes = Annotated[bytes, Meta(max_length=MAX_POSITION)]
SchemaBytes = Annotated[bytes, Meta(max_length=MAX_SCHEMA)]
PredicateText = Annotated[str, Meta(max_length=MAX_PREDICATE)]
RegionText = Annotated[str, Meta(max_length=MAX_REGION)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Start = Literal["beginning", "now"]
StopState = Literal["error", "gap", "stopped"]


class StreamPosition(Message, frozen=True):
    """A position in a folder source: the next row to read is number `row` (before filtering) of file `seq`.

    Files that were removed by change `since` of the source journal are not delivered to this
    reader, and are not a gap: its subscription began later. This is the content of the opaque
    bytes; only the source decodes it.
    """

    MAX_BYTES = MAX_POSITION

    seq: Count
    row: Count = 0
    since: Count = 0


class DescribeRequest(Message, frozen=True):
    """Request to check a subscription and to return its first position."""

    MAX_BYTES = 32 * 1024

    source: SourceName
    where: PredicateText = ""
    region: RegionText = ""
    start: Start = "now"


class DescribeAnswer(Message, frozen=True):
    """Answer to DescribeRequest: the schema (Arrow IPC; empty before the first file) and the first position."""

    MAX_BYTES = BULK_LIMIT

    incarnation: Incarnation
    position: PositionBytes
    columns: SchemaBytes = b""


class ReadRequest(Message, frozen=True):
    """Request for the rows from `position` on that satisfy the condition `where` and lie in the region."""

    MAX_BYTES = 32 * 1024

    source: SourceName
    incarnation: Incarnation
    position: PositionBytes
    where: PredicateText = ""
    region: RegionText = ""
    window: Annotated[int, Meta(ge=65536, le=2**32)] = 8 * 1024 * 1024


class Lag(Message, frozen=True):
    """The data beyond a position at the source: complete files, their rows, seconds since the oldest arrived."""

    files: Count = 0
    rows: Count = 0
    seconds: Annotated[float, Meta(ge=0)] = 0.0


class StreamSchema(Message, tag_field="t", tag="opened", frozen=True):
    """The schema of all deliveries of the stream; sent before the first one."""

    MAX_BYTES = BULK_LIMIT

    columns: SchemaBytes


class Delivery(Message, tag_field="t", tag="delivery", frozen=True):
    """The rows between two positions. `size` bytes of Arrow IPC follow in blocks (none if `size` is 0)."""

    MAX_BYTES = 32 * 1024

    frm: PositionBytes
    to: PositionBytes
    rows: Count
    size: Annotated[int, Meta(ge=0, le=MAX_PAYLOAD)]
    behind: Lag = Lag()


class Heartbeat(Message, tag_field="t", tag="heartbeat", frozen=True):
    """Message without rows: the source has sent everything up to `position`."""

    MAX_BYTES = 32 * 1024

    position: PositionBytes
    behind: Lag = Lag()


class EndOfStream(Message, tag_field="t", tag="stop", frozen=True):
    """The last message of a source, with the reason why it ends the stream."""

    MAX_BYTES = 32 * 1024

    state: StopState
    reason: Annotated[str, Meta(max_length=2000)]


Down = StreamSchema | Delivery | Heartbeat | EndOfStream


class Ack(Message, frozen=True):
    """Acknowledgement: everything up to `position` is on the subscriber's disk."""

    MAX_BYTES = 8 * 1024

    position: PositionBytes


class ColumnSummary(Message, frozen=True):
    """A column in the gossip record of a source."""

    name: Annotated[str, Meta(max_length=256)]
    type: Annotated[str, Meta(max_length=256)]


class SourceRecord(Message, frozen=True):
    """The gossip record `source/NAME`, at most 4 KiB. `columns` are the first that fit, `more` counts the others."""

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
    """Decode a position of this source. Empty bytes are the beginning. Raises `Malformed`."""
    return decode(data, StreamPosition) if data else StreamPosition(seq=0)


def fit_record(record: SourceRecord, limit: int = RECORD_LIMIT) -> bytes:
    """Encode the record in at most `limit` bytes, with as many of the first columns as fit."""
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
    """Decode a message of a source to a subscriber. Raises `Malformed`."""
    message: Down = decode(data, Down, limit=BULK_LIMIT)  # type: ignore[arg-type]  # mypy does not accept a union here
    return message
