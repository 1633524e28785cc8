"""Converts Avro schemas to Arrow schemas, and Avro records to Arrow batches.

| Avro | Arrow |
|---|---|
| boolean, int, long, float, double, string, bytes | the same |
| enum | string |
| fixed | binary |
| record | struct |
| array, map | list, map |
| union of null and one other type | the other type, nullable |
| union of int and long, float and double | long, double |
| union of several other types | struct with nullable fields `member0`, `member1`, ..., as in Spark |
| date; timestamp-millis, -micros; local-timestamp-... | date32; timestamp in UTC; timestamp without zone |
| decimal | decimal128; binary for more than 38 digits |
| uuid | string, also from fixed |
| time-..., timestamp-nanos, local-timestamp-nanos | the number with metadata `unit`: Spark 3.5 cannot read them |
| other logical types, such as duration | the base type |
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
# (logical type, base type): Arrow type.
_MOMENTS: dict[tuple[str, str], Any] = {
    ("date", "int"): pa.date32(),
    ("timestamp-millis", "long"): pa.timestamp("ms", tz="UTC"),
    ("timestamp-micros", "long"): pa.timestamp("us", tz="UTC"),
    ("local-timestamp-millis", "long"): pa.timestamp("ms"),
    ("local-timestamp-micros", "long"): pa.timestamp("us"),
}
_UNIT_OF = {"time-millis": "ms", "time-micros": "us", "timestamp-nanos": "ns", "local-timestamp-nanos": "ns"}
# The largest number of digits of a decimal in Spark.
_MAX_PRECISION = 38
_EXACT = decimal.Context(prec=_MAX_PRECISION + 2)
# The Python type of a decoded value for each branch of a union. Values of named branches are (name, value) instead.
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
    """The Arrow type of an Avro type.

    `convert` is applied to decoded values that are not null (None: no conversion). `empty` is
    true if values are encoded in zero bytes.
    """

    type: Any
    nullable: bool = False
    convert: Convert | None = None
    empty: bool = False
    metadata: dict[str, str] = {}


class AvroDecoder:
    """Decodes the records of one Avro schema into Arrow batches of `schema`.

    With `columns` (dotted paths), batches have only these columns. Raises Unsupported with the
    field for a type without an Arrow type, Corrupt for an invalid schema, and BadInput for an
    unknown column.
    """

    def __init__(self, avro_schema: Any, columns: Sequence[str] | None = None, *, name: str = "the file") -> None:
        self._name = name
        _check_depth(avro_schema, name)
        self._writer = _parse(_plain(avro_schema), name)
        # For unions of several types, fastavro must return the name of the branch with each value.
        self._tagged = _has_wide_union(avro_schema)
        full = _shape_of_table(avro_schema, self._tagged, name)
        metadata = {"description": str(avro_schema["doc"])} if avro_schema.get("doc") else None
        full_schema = pa.schema(list(full.type), metadata=metadata)
        self.schema = full_schema if columns is None else project_schema(full_schema, columns)
        self._reader, self._shape = None, full
        if columns is not None and not self._tagged:
            self._narrow(avro_schema, columns)

    def _narrow(self, avro_schema: Any, columns: Sequence[str]) -> None:
        """Let fastavro skip unwanted fields if the schema can be pruned; otherwise `batch` drops them after decoding.

        The result is the same.
        """
        pruned = _pruned(avro_schema, columns, deep=not _has_references(avro_schema))
        try:
            reader = _parse(_plain(pruned), self._name)
            shape = _shape_of_table(pruned, self._tagged, self._name)
        except (Corrupt, Unsupported):
            # Pruning removed the definition of a named type that is used later.
            return
        self._reader, self._shape = reader, shape

    def records(self, block: avro_container.AvroBlock) -> Iterator[tuple[Any, int]]:
        """Pairs of a decoded record and the offset of its end in the block. Raises Corrupt for invalid records."""
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
                f"{self._name} is corrupt: the block at byte {block.offset} has bytes after its last record",
                hint="Copy or write the file again.",
            )

    def batch(self, records: list[Any]) -> Any:
        """Convert decoded records to one Arrow batch of `schema`. Raises Corrupt."""
        try:
            array = pa.array(records, type=self._shape.type)
        except MemoryError:
            raise
        except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
            raise Corrupt(
                f"{self._name} contains a value that does not fit its type: {error}", hint="Write the file again."
            ) from error
        batch = pa.RecordBatch.from_arrays(array.flatten(), schema=pa.schema(list(self._shape.type)))
        return project_batch(batch, self.schema)


def open_batches(
    path: Path, columns: Sequence[str] | None, batch_rows: int, batch_bytes: int
) -> tuple[Any, Iterator[tuple[Any, int]]]:
    """(Arrow schema, iterator of (batch, bytes of the file read so far)) of one Avro file.

    A batch ends when it has `batch_rows` rows, or when its encoded records reach `batch_bytes`.
    """
    decoder = AvroDecoder(avro_container.header_of(path).schema, columns, name=str(path))
    return decoder.schema, _batches(path, decoder, batch_rows, batch_bytes)


def _batches(path: Path, decoder: AvroDecoder, batch_rows: int, batch_bytes: int) -> Iterator[tuple[Any, int]]:
    pending: list[Any] = []
    pending_bytes = done = 0
    for block in avro_container.blocks(path):
        start, done = 0, block.offset
        for record, end in decoder.records(block):
            pending.append(record)
            pending_bytes += end - start
            start = end
            if len(pending) >= batch_rows or pending_bytes >= batch_bytes:
                yield decoder.batch(pending), done
                pending, pending_bytes = [], 0
    if pending:
        yield decoder.batch(pending), done


def _parse(schema: Any, name: str) -> Any:
    try:
        return fastavro.parse_schema(schema)
    except (SchemaParseException, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(f"{name} has an invalid Avro schema: {error}", hint="Write the file again.") from error


def _check_depth(schema: Any, name: str) -> None:
    """Raise Unsupported for deep schemas, to limit the recursion in this module and in fastavro."""
    stack = [(schema, 0)]
    while stack:
        part, depth = stack.pop()
        # A record inside a record is three levels of JSON: its dict, the list of fields, a field.
        if depth > 4 * MAX_DEPTH:
            raise Unsupported(f"{name} has a schema that is nested too deeply", hint="Flatten the table.")
        if isinstance(part, dict | list):
            inner = part.values() if isinstance(part, dict) else part
            stack.extend((item, depth + 1) for item in inner)


# --- pruning schemas --------------------------------------------------------------------------


def _plain(schema: Any) -> Any:
    """The schema without logical types and fastavro's markers, so that values decode to plain numbers and bytes."""
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
    """Every type inside a schema. References to named types are not resolved."""
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
    """The branches except null. A union of int and long counts as long, one of float and double as double."""
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
    """A copy of a record's schema with only the wanted fields. With `deep`, nested records are pruned too."""
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


# --- mapping to Arrow -------------------------------------------------------------------------


def _shape_of_table(schema: Any, tagged: bool, name: str) -> ArrowMapping:
    try:
        shape = _Shaper(tagged, name).shape(schema, "", "", 0)
    except RecursionError as error:
        raise Unsupported(f"{name} has a schema that is nested too deeply", hint="Flatten the table.") from error
    if not pa.types.is_struct(shape.type) or isinstance(schema, list):
        raise Unsupported(
            f"{name} contains values of type {_kind(schema)}, not records", hint="Write the rows as records."
        )
    if shape.empty:
        raise Unsupported(f"{name} contains only empty records", hint="Publish a table with columns.")
    return shape


class _Shaper:
    """Maps one schema to Arrow. Tracks the named types that are defined, and those being defined (recursion)."""

    def __init__(self, tagged: bool, name: str) -> None:
        self._tagged = tagged
        self._name = name
        self._known: dict[str, ArrowMapping] = {}
        self._open: set[str] = set()
        self._fields = 0

    def _refuse(self, path: str, what: str) -> Unsupported:
        return Unsupported(
            f"{self._name}: column {path or '(the record)'} {what}, which cannot be a column of a table",
            hint="Remove this column from the file, or write it as bytes or text.",
        )

    def shape(self, schema: Any, namespace: str, path: str, depth: int) -> ArrowMapping:
        """The mapping of any type. `path` is for error messages. Raises Unsupported."""
        if depth > MAX_DEPTH:
            raise self._refuse(path, "is nested too deeply")
        if isinstance(schema, list):
            return self._union(schema, namespace, path, depth)
        if isinstance(schema, str):
            return self._reference(schema, namespace, path)
        if not isinstance(schema, dict):
            raise self._refuse(path, "has an invalid type")
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
                raise self._refuse(path, f"is one of more than {MAX_COLUMNS} columns")
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
            raise self._refuse(path, "is an array of empty items")
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
        # By the specification, an unknown or invalid logical type is read as its base type.
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
    """Metadata of an Arrow field from the attributes of an Avro field or of its type."""
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
    """Extract the value from the pair (name, value) that fastavro returns for named types inside unions."""

    def untagged(value: Any) -> Any:
        plain = value[1] if isinstance(value, tuple) else value
        return plain if convert is None or plain is None else convert(plain)

    return untagged


def _choose(names: list[str], kinds: list[str], shapes: list[ArrowMapping]) -> Convert:
    """Convert a value of a union of several types to {"memberN": value}, N being its branch."""

    def choose(value: Any) -> dict[str, Any]:
        if isinstance(value, tuple):
            index, plain = names.index(value[0]), value[1]
        else:
            plain = value
            fitting = [i for i, kind in enumerate(kinds) if _PYTHON_TYPE.get(kind) is type(value)]
            # Decoded int and long values have the same Python type: use the last branch that fits.
            index = fitting[-1] if fitting else -1
            if index < 0:
                raise ValueError(f"a value of type {type(value).__name__} does not fit any branch of its union")
        convert = shapes[index].convert
        return {f"member{index}": plain if convert is None else convert(plain)}

    return choose


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _full_name_of(branch: Any, namespace: str) -> str:
    if isinstance(branch, dict) and branch.get("type") in _NAMED:
        return _full_name(str(branch.get("name", "")), str(branch.get("namespace", namespace) or ""))
    return _full_name(branch, namespace) if isinstance(branch, str) and branch not in _PRIMITIVES else ""
