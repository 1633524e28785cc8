"""Avro schemas as Arrow schemas, and Avro records as Arrow batches.

| Avro | Arrow |
|---|---|
| boolean, int, long, float, double, string, bytes | the same |
| enum | string |
| fixed | binary |
| record | struct |
| array, map | list, map |
| union of null and one | that one, nullable |
| union of int and long, float and double | long, double |
| union of several others | struct with a nullable field `member0`, `member1`, ... for each, as Spark has it |
| date; timestamp-millis, -micros; local-timestamp-... | date32; timestamp in UTC; timestamp without zone |
| decimal | decimal128 or decimal256 |
| uuid | string (as text, from fixed too) |
| time-..., timestamp-nanos, duration | the plain number or bytes with metadata `unit`: Spark 3.5 cannot read them |
| null | string, always null |

Field metadata: `description` from `doc`, `unit`, `ucd` (also `units`), `avro.logicalType`.
"""

from __future__ import annotations

import decimal
import io
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import pyarrow as pa
from fastavro.read import SchemaResolutionError
from fastavro.schema import SchemaParseException

from island.errors import Corrupt, Unsupported
from island.formats import avro_container
from island.formats.columns import MAX_COLUMNS, MAX_DEPTH, project_batch, project_schema

Convert = Callable[[Any], Any]

_PRIMITIVES: dict[str, Any] = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "bytes": pa.binary(),
    "null": pa.string(),
}
# (logical type, its base): Arrow's type.
_MOMENTS: dict[tuple[str, str], Any] = {
    ("date", "int"): pa.date32(),
    ("timestamp-millis", "long"): pa.timestamp("ms", tz="UTC"),
    ("timestamp-micros", "long"): pa.timestamp("us", tz="UTC"),
    ("local-timestamp-millis", "long"): pa.timestamp("ms"),
    ("local-timestamp-micros", "long"): pa.timestamp("us"),
}
_UNIT_OF = {"time-millis": "ms", "time-micros": "us", "timestamp-nanos": "ns", "local-timestamp-nanos": "ns"}
# Spark's widest decimal.
_MAX_PRECISION = 38
_EXACT = decimal.Context(prec=_MAX_PRECISION + 2)
# Python's type of a decoded value for each branch of a union; named branches arrive as (name, value).
_PYTHON_TYPE: dict[str, type] = {
    "boolean": bool,
    "int": int,
    "long": int,
    "float": float,
    "double": float,
    "string": str,
    "bytes": bytes,
    "array": list,
    "map": dict,
}
_NAMED = ("record", "error", "enum", "fixed")


class ArrowMapping(msgspec.Struct, frozen=True):
    """How one Avro type becomes Arrow.

    `convert` changes a decoded value that is not null first (None: taken as it is); `empty` says
    that its encoding takes no bytes.
    """

    type: Any
    nullable: bool = False
    convert: Convert | None = None
    empty: bool = False
    metadata: dict[str, str] = {}


class AvroDecoder:
    """Decodes the records of one Avro schema into Arrow batches of `schema`.

    With `columns` (dotted paths) only those are decoded and the rest is skipped. Raises
    Unsupported, naming the field, for what has no Arrow form; BadInput for an unknown column.
    """

    def __init__(self, avro_schema: Any, columns: Sequence[str] | None = None, *, name: str = "the file") -> None:
        self._name = name
        _check_depth(avro_schema, name)
        self._writer = _parse(_plain(avro_schema), name)
        # Only then is it known which branch of a union a value came from.
        self._tagged = _has_wide_union(avro_schema)
        full = _shape_of_table(avro_schema, self._tagged, name)
        metadata = {"description": str(avro_schema["doc"])} if avro_schema.get("doc") else None
        full_schema = pa.schema(list(full.type), metadata=metadata)
        self.schema = full_schema if columns is None else project_schema(full_schema, columns)
        self._reader, self._shape = None, full
        if columns is not None and not self._tagged:
            self._narrow(avro_schema, columns)

    def _narrow(self, avro_schema: Any, columns: Sequence[str]) -> None:
        """Let fastavro skip what is not wanted, where the schema can be cut; else all is decoded and cut after."""
        pruned = _pruned(avro_schema, columns, deep=not _has_references(avro_schema))
        try:
            reader = _parse(_plain(pruned), self._name)
            shape = _shape_of_table(pruned, self._tagged, self._name)
        except (Corrupt, Unsupported):
            # The definition of a named type that is used later was cut away.
            return
        self._reader, self._shape = reader, shape

    def records(self, block: avro_container.AvroBlock) -> Iterator[tuple[Any, int]]:
        """(decoded record, end of it inside the block's bytes); Corrupt where the bytes are no records."""
        stream = io.BytesIO(block.data)
        convert = self._shape.convert
        try:
            for _ in range(block.count):
                record = fastavro.schemaless_reader(stream, self._writer, self._reader, return_named_type=self._tagged)
                yield (record if convert is None else convert(record)), stream.tell()
        except (
            EOFError,
            ValueError,
            LookupError,
            TypeError,
            OverflowError,
            SchemaResolutionError,
        ) as error:
            raise Corrupt(
                f"{self._name} is corrupt: a record in the block at byte {block.offset} cannot be decoded"
                f" ({type(error).__name__}: {error})",
                hint="Copy or write the file again.",
            ) from error
        if stream.tell() != len(block.data):
            raise Corrupt(
                f"{self._name} is corrupt: the block at byte {block.offset} holds more bytes than its records",
                hint="Copy or write the file again.",
            )

    def batch(self, records: list[Any]) -> Any:
        """Decoded records as one Arrow batch of `schema`."""
        try:
            array = pa.array(records, type=self._shape.type)
        except MemoryError:
            raise
        except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
            raise Corrupt(f"{self._name} holds a value that does not fit its type: {error}") from error
        batch = pa.RecordBatch.from_arrays(array.flatten(), schema=pa.schema(list(self._shape.type)))
        return project_batch(batch, self.schema)


def open_batches(
    path: Path, columns: Sequence[str] | None, batch_rows: int, batch_bytes: int
) -> tuple[Any, Iterator[tuple[Any, int]]]:
    """(Arrow schema, iterator of (batch, bytes of the file read so far)) of one Avro file.

    A batch has at most `batch_rows` rows and ends where its records exceed `batch_bytes` encoded bytes.
    """
    decoder = AvroDecoder(avro_container.header_of(path).schema, columns, name=str(path))
    return decoder.schema, _batches(path, decoder, batch_rows, batch_bytes)


def _batches(path: Path, decoder: AvroDecoder, batch_rows: int, batch_bytes: int) -> Iterator[tuple[Any, int]]:
    held: list[Any] = []
    held_bytes = done = 0
    for block in avro_container.blocks(path):
        start, done = 0, block.offset
        for record, end in decoder.records(block):
            held.append(record)
            held_bytes += end - start
            start = end
            if len(held) >= batch_rows or held_bytes >= batch_bytes:
                yield decoder.batch(held), done
                held, held_bytes = [], 0
    if held:
        yield decoder.batch(held), done


def _parse(schema: Any, name: str) -> Any:
    try:
        return fastavro.parse_schema(schema)
    except (SchemaParseException, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(f"{name} has a schema that is not valid Avro: {error}", hint="Write the file again.") from error


def _check_depth(schema: Any, name: str) -> None:
    """Limit the recursion of all that follows, here and inside fastavro."""
    stack = [(schema, 0)]
    while stack:
        part, depth = stack.pop()
        # A record inside a record is three levels of JSON: its dict, its list of fields, a field.
        if depth > 4 * MAX_DEPTH:
            raise Unsupported(f"{name} has a schema that is nested too deeply", hint="Flatten the table.")
        if isinstance(part, dict | list):
            inner = part.values() if isinstance(part, dict) else part
            stack.extend((item, depth + 1) for item in inner)


# --- cutting schemas --------------------------------------------------------------------------


def _plain(schema: Any) -> Any:
    """The schema without logical types and fastavro's own marks: values decode to plain numbers and bytes."""
    if isinstance(schema, list):
        return [_plain(branch) for branch in schema]
    if isinstance(schema, dict):
        return {
            key: _plain(value) if key in ("type", "items", "values", "fields") else value
            for key, value in schema.items()
            if key != "logicalType" and not key.startswith("__")
        }
    return schema


def _walk(schema: Any) -> Iterator[Any]:
    """Every type inside a schema, references as they stand."""
    if isinstance(schema, list):
        yield schema
        for branch in schema:
            yield from _walk(branch)
    elif isinstance(schema, dict):
        yield schema
        kind = schema.get("type")
        if isinstance(kind, dict | list):
            yield from _walk(kind)
        for field in schema.get("fields", ()) if kind in ("record", "error") else ():
            yield from _walk(field.get("type"))
        for part in ("items", "values"):
            if part in schema:
                yield from _walk(schema[part])
        if isinstance(kind, str) and kind not in _NAMED and kind not in ("array", "map"):
            yield kind
    else:
        yield schema


def _has_references(schema: Any) -> bool:
    return any(isinstance(part, str) and part not in _PRIMITIVES for part in _walk(schema))


def _has_wide_union(schema: Any) -> bool:
    return any(isinstance(part, list) and len(_branches(part)) > 1 for part in _walk(schema))


def _branches(union: list[Any]) -> list[Any]:
    """The branches that are not null; a pair of numbers of one sort counts as its wider one."""
    branches = [branch for branch in union if _kind(branch) != "null"]
    kinds = {_kind(branch) for branch in branches}
    if len(branches) == 2 and all(isinstance(branch, str) for branch in branches):
        if kinds == {"int", "long"}:
            return ["long"]
        if kinds == {"float", "double"}:
            return ["double"]
    return branches


def _kind(schema: Any) -> str:
    if isinstance(schema, list):
        return "union"
    if isinstance(schema, dict):
        return _kind(schema.get("type"))
    return str(schema)


def _pruned(record: dict[str, Any], columns: Iterable[str], *, deep: bool) -> dict[str, Any]:
    """A copy of a record's schema with the wanted fields only."""
    wanted: dict[str, list[str]] = {}
    for path in columns:
        first, _, rest = path.partition(".")
        wanted.setdefault(first, []).append(rest)
    fields = []
    for field in record["fields"]:
        paths = wanted.get(field["name"])
        if paths is None:
            continue
        whole = "" in paths or not deep
        fields.append(field if whole else {**field, "type": _pruned_type(field["type"], paths)})
    return {**record, "fields": fields}


def _pruned_type(schema: Any, paths: list[str]) -> Any:
    if isinstance(schema, list):
        return [_pruned_type(branch, paths) for branch in schema]
    if isinstance(schema, dict) and schema.get("type") in ("record", "error"):
        return _pruned(schema, paths, deep=True)
    if isinstance(schema, dict) and isinstance(schema.get("type"), dict | list):
        return {**schema, "type": _pruned_type(schema["type"], paths)}
    return schema


# --- shapes -----------------------------------------------------------------------------------


def _shape_of_table(schema: Any, tagged: bool, name: str) -> ArrowMapping:
    try:
        shape = _Shaper(tagged, name).shape(schema, "", "", 0)
    except RecursionError as error:
        raise Unsupported(f"{name} has a schema that is nested too deeply", hint="Flatten the table.") from error
    if not pa.types.is_struct(shape.type) or isinstance(schema, list):
        raise Unsupported(f"{name} holds values of type {_kind(schema)}, not records", hint="A table has records.")
    if shape.empty:
        raise Unsupported(f"{name} has records without content", hint="Publish a table with columns.")
    return shape


class _Shaper:
    """Walks one schema; knows the named types seen so far and those that are open (recursion)."""

    def __init__(self, tagged: bool, name: str) -> None:
        self._tagged = tagged
        self._name = name
        self._known: dict[str, ArrowMapping] = {}
        self._open: set[str] = set()
        self._fields = 0

    def _refuse(self, path: str, what: str) -> Unsupported:
        return Unsupported(
            f"{self._name}: column {path or '(the record)'} {what}, which has no form in a table",
            hint="Leave this column out of the file, or write it as bytes or text.",
        )

    def shape(self, schema: Any, namespace: str, path: str, depth: int) -> ArrowMapping:
        """The shape of any type. `path` is for messages."""
        if depth > MAX_DEPTH:
            raise self._refuse(path, "is nested too deeply")
        if isinstance(schema, list):
            return self._union(schema, namespace, path, depth)
        if isinstance(schema, str):
            return self._reference(schema, namespace, path)
        if not isinstance(schema, dict):
            raise self._refuse(path, "has a type that is no type")
        kind = schema.get("type")
        if isinstance(kind, dict | list):
            return self.shape(kind, namespace, path, depth + 1)
        if kind in _NAMED:
            return self._definition(schema, namespace, path, depth)
        if kind == "array":
            return self._array(schema, namespace, path, depth)
        if kind == "map":
            return self._map(schema, namespace, path, depth)
        return self._logical(schema, self._reference(str(kind), namespace, path), str(kind))

    def _reference(self, name: str, namespace: str, path: str) -> ArrowMapping:
        if name in _PRIMITIVES:
            return ArrowMapping(_PRIMITIVES[name], nullable=name == "null", empty=name == "null")
        full = _full_name(name, namespace)
        if full in self._open:
            raise self._refuse(path, f"refers to itself ({full})")
        if full not in self._known:
            raise self._refuse(path, f"has the unknown type {name}")
        return self._known[full]

    def _definition(self, schema: dict[str, Any], namespace: str, path: str, depth: int) -> ArrowMapping:
        own_namespace = str(schema.get("namespace", namespace) or "")
        full = _full_name(str(schema.get("name", "")), own_namespace)
        inner_namespace = full.rpartition(".")[0]
        kind = schema["type"]
        if kind == "enum":
            shape = ArrowMapping(pa.string())
        elif kind == "fixed":
            shape = self._logical(schema, ArrowMapping(pa.binary(), empty=schema.get("size") == 0), "fixed")
        else:
            self._open.add(full)
            shape = self._record(schema, inner_namespace, path, depth)
            self._open.discard(full)
        self._known[full] = shape
        return shape

    def _record(self, schema: dict[str, Any], namespace: str, path: str, depth: int) -> ArrowMapping:
        fields: list[Any] = []
        converts: list[tuple[str, Convert]] = []
        empty = True
        for field in schema.get("fields", ()):
            self._fields += 1
            if self._fields > MAX_COLUMNS:
                raise self._refuse(path, f"is one of more than {MAX_COLUMNS}")
            name = str(field["name"])
            shape = self.shape(field["type"], namespace, f"{path}.{name}".lstrip("."), depth + 1)
            fields.append(
                pa.field(name, shape.type, nullable=shape.nullable, metadata=_field_metadata(field, shape) or None)
            )
            empty = empty and shape.empty
            if shape.convert is not None:
                converts.append((name, shape.convert))
        if not fields:
            raise self._refuse(path, "is a record without fields")
        return ArrowMapping(pa.struct(fields), convert=_convert_record(converts) if converts else None, empty=empty)

    def _array(self, schema: dict[str, Any], namespace: str, path: str, depth: int) -> ArrowMapping:
        item = self.shape(schema.get("items"), namespace, path + "[]", depth + 1)
        if item.empty:
            raise self._refuse(path, "is an array of items without content")
        convert = item.convert
        listed = None if convert is None else lambda values: [_maybe(convert, value) for value in values]
        return ArrowMapping(pa.list_(pa.field("element", item.type, nullable=item.nullable)), convert=listed)

    def _map(self, schema: dict[str, Any], namespace: str, path: str, depth: int) -> ArrowMapping:
        item = self.shape(schema.get("values"), namespace, path + "{}", depth + 1)
        convert = item.convert

        def pairs(values: dict[str, Any]) -> list[tuple[str, Any]]:
            if convert is None:
                return list(values.items())
            return [(key, _maybe(convert, value)) for key, value in values.items()]

        return ArrowMapping(pa.map_(pa.string(), pa.field("value", item.type, nullable=item.nullable)), convert=pairs)

    def _union(self, union: list[Any], namespace: str, path: str, depth: int) -> ArrowMapping:
        nullable = any(_kind(branch) == "null" for branch in union)
        branches = _branches(union)
        shapes = [self.shape(branch, namespace, path, depth + 1) for branch in branches]
        if not shapes:
            return ArrowMapping(pa.string(), nullable=True, empty=len(union) < 2)
        if len(shapes) == 1:
            only = shapes[0]
            convert = _untag(only.convert) if self._tagged else only.convert
            return ArrowMapping(only.type, nullable=nullable or only.nullable, convert=convert, metadata=only.metadata)
        names = [_full_name_of(branch, namespace) for branch in branches]
        kinds = [_kind(branch) for branch in branches]
        members = [pa.field(f"member{index}", shape.type) for index, shape in enumerate(shapes)]
        return ArrowMapping(pa.struct(members), nullable=nullable, convert=_choose(names, kinds, shapes))

    def _logical(self, schema: dict[str, Any], base: ArrowMapping, kind: str) -> ArrowMapping:
        logical = schema.get("logicalType")
        if not isinstance(logical, str):
            return base
        if (moment := _MOMENTS.get((logical, kind))) is not None:
            return ArrowMapping(moment, metadata={"avro.logicalType": logical})
        if logical in _UNIT_OF and kind in ("int", "long"):
            return ArrowMapping(base.type, metadata={"avro.logicalType": logical, "unit": _UNIT_OF[logical]})
        if logical == "uuid":
            as_text = (lambda raw: str(uuid.UUID(bytes=raw))) if kind == "fixed" and schema.get("size") == 16 else None
            return ArrowMapping(pa.string(), convert=as_text) if as_text or kind == "string" else base
        if logical == "decimal" and kind in ("bytes", "fixed"):
            return self._decimal(schema, base)
        # The specification: a logical type that is not known, or not valid, is its base.
        return ArrowMapping(base.type, empty=base.empty, metadata={"avro.logicalType": logical[:64]})

    def _decimal(self, schema: dict[str, Any], base: ArrowMapping) -> ArrowMapping:
        precision, scale = schema.get("precision"), schema.get("scale", 0)
        if not (isinstance(precision, int) and isinstance(scale, int) and precision > 0 and 0 <= scale <= precision):
            return base
        if precision > _MAX_PRECISION:
            return ArrowMapping(base.type, empty=base.empty, metadata={"avro.logicalType": "decimal"})

        def number(raw: bytes) -> decimal.Decimal:
            return decimal.Decimal(int.from_bytes(raw, "big", signed=True)).scaleb(-scale, context=_EXACT)

        return ArrowMapping(pa.decimal128(precision, scale), convert=number)


def _field_metadata(field: dict[str, Any], shape: ArrowMapping) -> dict[str, str]:
    """Metadata of an Arrow field from the attributes of an Avro field (or of its type)."""
    kept = dict(shape.metadata)
    if isinstance(field.get("doc"), str) and field["doc"]:
        kept["description"] = field["doc"]
    attributes = {**(field["type"] if isinstance(field["type"], dict) else {}), **field}
    for key, value in attributes.items():
        if key.lower() in ("unit", "units", "ucd") and isinstance(value, str) and value:
            kept["ucd" if key.lower() == "ucd" else "unit"] = value
    return kept


def _maybe(convert: Convert, value: Any) -> Any:
    return None if value is None else convert(value)


def _convert_record(converts: list[tuple[str, Convert]]) -> Convert:
    def convert(record: dict[str, Any]) -> dict[str, Any]:
        for name, change in converts:
            value = record[name]
            if value is not None:
                record[name] = change(value)
        return record

    return convert


def _untag(convert: Convert | None) -> Convert:
    """Take the value out of fastavro's (name, value), which it gives for named types inside unions."""

    def untagged(value: Any) -> Any:
        plain = value[1] if isinstance(value, tuple) else value
        return plain if convert is None or plain is None else convert(plain)

    return untagged


def _choose(names: list[str], kinds: list[str], shapes: list[ArrowMapping]) -> Convert:
    """A value of a union of several types as {"memberN": value}, N being its branch."""

    def choose(value: Any) -> dict[str, Any]:
        if isinstance(value, tuple):
            index, plain = names.index(value[0]), value[1]
        else:
            plain = value
            fitting = [i for i, kind in enumerate(kinds) if _PYTHON_TYPE.get(kind) is type(value)]
            # int and long look alike once decoded; the wider one can hold either.
            index = fitting[-1] if fitting else -1
            if index < 0:
                raise ValueError(f"a value of type {type(value).__name__} is of no branch of its union")
        convert = shapes[index].convert
        return {f"member{index}": plain if convert is None else convert(plain)}

    return choose


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _full_name_of(branch: Any, namespace: str) -> str:
    if isinstance(branch, dict) and branch.get("type") in _NAMED:
        return _full_name(str(branch.get("name", "")), str(branch.get("namespace", namespace) or ""))
    return _full_name(branch, namespace) if isinstance(branch, str) and branch not in _PRIMITIVES else ""
