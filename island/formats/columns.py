"""Columns: names, types, units and UCDs; detection of the columns with positions and times.

A schema is flattened: the fields of nested records appear under dotted paths
(`candidate.magpsf`); lists and maps stay one column.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal
from xml.parsers import expat

import msgspec
import pyarrow as pa

from island.errors import BadInput

MAX_COLUMNS = 50_000
MAX_DEPTH = 48
_MAX_VOTABLE = 4 * 1024 * 1024
_MAX_TEXT = 4096


class Column(msgspec.Struct, frozen=True, omit_defaults=True):
    """One column of a dataset. `name` is a dotted path, `type` a result of `type_name`.

    `unsupported` is the reason why the column cannot be decoded, or empty.
    """

    name: str
    type: str
    unit: str = ""
    ucd: str = ""
    description: str = ""
    nullable: bool = True
    unsupported: str = ""


class PositionColumns(msgspec.Struct, frozen=True):
    """The columns of right ascension and declination, and how they were found.

    `ra_scale` and `dec_scale` are degrees per unit of the column.
    """

    ra: str
    dec: str
    how: str
    ra_scale: float = 1.0
    dec_scale: float = 1.0
    unit: str = ""


TimeKind = Literal["jd", "mjd", "mjd_tai", "jd_barycentric", "mjd_barycentric", "days", "julian_year", "timestamp"]


class TimeColumn(msgspec.Struct, frozen=True):
    """The column of observation time, the kind of its values, and how it was found."""

    name: str
    kind: TimeKind
    how: str


class ColumnMetadata(msgspec.Struct, frozen=True):
    """Unit, UCD and description of one column from metadata."""

    unit: str = ""
    ucd: str = ""
    description: str = ""


def of_schema(schema: Any, unsupported: Mapping[str, str] | None = None) -> tuple[Column, ...]:
    """The flattened columns of a pyarrow schema, with units, UCDs and descriptions from its metadata.

    `unsupported` has the reasons for top-level columns that cannot be decoded.

    Raises BadInput for duplicate names, more than MAX_COLUMNS columns, or nesting deeper than MAX_DEPTH.
    """
    notes = file_notes(schema.metadata or {})
    columns: list[Column] = []
    seen: set[str] = set()
    for path, field, nullable in leaves(schema):
        if path in seen:
            raise BadInput(f"two columns are named {path}", hint="Rename one of them and write the files again.")
        seen.add(path)
        metadata = _merge(field_notes(field.metadata or {}), notes.get(path, ColumnMetadata()))
        columns.append(
            Column(
                name=path,
                type=type_name(field.type),
                unit=metadata.unit,
                ucd=metadata.ucd,
                description=metadata.description,
                nullable=nullable,
                unsupported=(unsupported or {}).get(path, (unsupported or {}).get(path.partition(".")[0], "")),
            )
        )
    return tuple(columns)


def leaves(schema: Any) -> Iterator[tuple[str, Any, bool]]:
    """(dotted path, pyarrow field, nullable) of every column that is not a record. Raises BadInput over the limits."""
    for count, (path, field, nullable) in enumerate(_leaves(schema, "", False, 0)):
        if count >= MAX_COLUMNS:
            raise BadInput(f"the schema has more than {MAX_COLUMNS} columns", hint="Split the table.")
        yield path, field, nullable


def _leaves(fields: Iterable[Any], prefix: str, nullable: bool, depth: int) -> Iterator[tuple[str, Any, bool]]:
    if depth > MAX_DEPTH:
        raise BadInput(f"the schema is nested deeper than {MAX_DEPTH} records", hint="Flatten the table.")
    for field in fields:
        path = prefix + field.name
        maybe = nullable or bool(field.nullable)
        if pa.types.is_struct(field.type):
            yield from _leaves(list(field.type), path + ".", maybe, depth + 1)
        else:
            yield path, field, maybe


def leaf_arrays(batch: Any) -> Iterator[tuple[str, Any]]:
    """(dotted path, array) of every column that is not a record. The fields of a null record are null."""

    def descend(name: str, array: Any) -> Iterator[tuple[str, Any]]:
        if pa.types.is_struct(array.type):
            for field, inner in zip(array.type, array.flatten(), strict=True):
                yield from descend(f"{name}.{field.name}", inner)
        else:
            yield name, array

    for field, array in zip(batch.schema, batch.columns, strict=True):
        yield from descend(field.name, array)


def project_schema(schema: Any, columns: Iterable[str]) -> Any:
    """The schema reduced to `columns`: names of columns, or dotted paths of record fields.

    The order is that of the schema. Raises BadInput for an unknown column, with similar names in the hint.
    """
    wanted = _tree(columns, schema.names)
    return pa.schema(_project_fields(list(schema), wanted, ""), metadata=schema.metadata)


def project_batch(batch: Any, schema: Any) -> Any:
    """The batch reduced to `schema`, a result of `project_schema` for the schema of the batch."""
    arrays = [_project_array(batch.column(field.name), field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema) if arrays else batch.select([])


class _Tree(dict[str, "_Tree"]):
    """Wanted names, each with the wanted names of its fields. `whole` is true if all fields are wanted."""

    whole = False


def _tree(columns: Iterable[str], names: Iterable[str]) -> _Tree:
    root, known = _Tree(), set(names)
    for path in columns:
        node = root
        # A dot may also be part of the name of a column.
        for part in (path,) if path in known else path.split("."):
            node = node.setdefault(part, _Tree())
        node.whole = True
    return root


def _project_fields(fields: list[Any], wanted: _Tree, prefix: str) -> list[Any]:
    names = [field.name for field in fields]
    for name in wanted:
        if name not in names:
            find(prefix + name, [prefix + other for other in names])
            raise BadInput(f"there is no column {prefix}{name}", hint="Write the name exactly as in the schema.")
    kept = []
    for field in fields:
        below = wanted.get(field.name)
        if below is None:
            continue
        if not below.whole and below:
            if not pa.types.is_struct(field.type):
                raise BadInput(f"column {prefix}{field.name} has no fields", hint="Only records have fields.")
            field = field.with_type(pa.struct(_project_fields(list(field.type), below, f"{prefix}{field.name}.")))
        kept.append(field)
    return kept


def _project_array(array: Any, kind: Any) -> Any:
    if array.type == kind or not pa.types.is_struct(kind):
        return array
    inner = [_project_array(array.field(field.name), field.type) for field in kind]
    return pa.StructArray.from_arrays(inner, fields=list(kind), mask=array.is_null())


def type_name(kind: Any) -> str:
    """The name of an Arrow type, including nested types. It does not depend on the version of pyarrow."""
    types = pa.types
    if types.is_dictionary(kind):
        return type_name(kind.value_type)
    if types.is_struct(kind):
        return "struct<" + ", ".join(f"{field.name}: {type_name(field.type)}" for field in kind) + ">"
    if types.is_map(kind):
        return f"map<{type_name(kind.key_type)}, {type_name(kind.item_type)}>"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    if types.is_large_string(kind) or str(kind) == "string_view":
        return "string"
    if types.is_large_binary(kind) or types.is_fixed_size_binary(kind) or str(kind) == "binary_view":
        return "binary"
    if types.is_decimal(kind):
        return f"decimal({kind.precision}, {kind.scale})"
    if types.is_timestamp(kind):
        return f"timestamp[{kind.unit}, {kind.tz}]" if kind.tz else f"timestamp[{kind.unit}]"
    return str(kind)


# --- units, UCDs and descriptions -------------------------------------------------------------

_UNIT_KEYS = ("unit", "units")
_UCD_KEYS = ("ucd",)
_TEXT_KEYS = ("description", "doc", "comment")


def field_notes(metadata: Mapping[bytes, bytes]) -> ColumnMetadata:
    """Unit, UCD and description in the metadata of a pyarrow field. Keys are case-insensitive."""
    texts = {_text(key).lower(): _text(value) for key, value in metadata.items()}

    def first(keys: tuple[str, ...]) -> str:
        return next((texts[key].strip() for key in keys if texts.get(key, "").strip()), "")

    return ColumnMetadata(first(_UNIT_KEYS), first(_UCD_KEYS), first(_TEXT_KEYS))


def file_notes(metadata: Mapping[bytes, bytes]) -> dict[str, ColumnMetadata]:
    """Metadata of columns from the VOTable header (VOParquet) or astropy's header in a Parquet file, by name."""
    notes: dict[str, ColumnMetadata] = {}
    if header := metadata.get(b"table_meta_yaml"):
        notes.update(_astropy_notes(_text(header, _MAX_VOTABLE)))
    if content := metadata.get(b"IVOA.VOTable-Parquet.content"):
        for name, found in votable_notes(content).items():
            notes[name] = _merge(found, notes.get(name, ColumnMetadata()))
    return notes


def votable_notes(content: bytes) -> dict[str, ColumnMetadata]:
    """Metadata from the FIELD elements of a VOTable, by name of the column.

    The result is empty if the document is too large or malformed, or declares a DOCTYPE (entities).
    """
    if len(content) > _MAX_VOTABLE:
        return {}
    reader = _VOTable()
    try:
        reader.parse(content)
    except (expat.ExpatError, _Refused, ValueError):
        return {}
    return reader.notes


class _Refused(Exception):
    """The document declares a DOCTYPE or has too many fields."""


class _VOTable:
    """Collects the FIELD elements of one VOTable document."""

    def __init__(self) -> None:
        self.notes: dict[str, ColumnMetadata] = {}
        self._field: dict[str, str] | None = None
        self._text: list[str] | None = None

    def parse(self, content: bytes) -> None:
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.Parse(content, True)

    def _refuse(self, *_: object) -> None:
        raise _Refused

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rsplit(":", 1)[-1]
        if name == "FIELD":
            self._field = {**attributes, "DESCRIPTION": ""}
        elif name == "DESCRIPTION" and self._field is not None:
            self._text = []

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def _end(self, tag: str) -> None:
        name = tag.rsplit(":", 1)[-1]
        if name == "DESCRIPTION" and self._field is not None and self._text is not None:
            self._field["DESCRIPTION"] = " ".join("".join(self._text).split())[:_MAX_TEXT]
            self._text = None
        elif name == "FIELD" and self._field is not None:
            field, self._field = self._field, None
            if len(self.notes) >= MAX_COLUMNS:
                raise _Refused
            column = field.get("name") or field.get("ID") or ""
            self.notes[column] = ColumnMetadata(
                field.get("unit", "").strip()[:_MAX_TEXT],
                field.get("ucd", "").strip()[:_MAX_TEXT],
                field["DESCRIPTION"],
            )


# astropy writes one flow mapping per column: `- {name: ra, unit: deg, datatype: float64, description: ...}`.
_ASTROPY_ENTRY = re.compile(
    r"^\s*- \{name: (?P<name>[^,{}'\"]+)(?P<rest>[^{}]*(?:\{[^{}]*\}[^{}]*)*)\}\s*$", re.MULTILINE
)
_ASTROPY_UNIT = re.compile(r", unit: (?:!astropy\.units\.Unit \{unit: )?(?P<unit>[^,{}'\"]+)")


def _astropy_notes(header: str) -> dict[str, ColumnMetadata]:
    notes = {}
    for entry in _ASTROPY_ENTRY.finditer(header):
        unit = _ASTROPY_UNIT.search(entry["rest"])
        if unit:
            notes[entry["name"].strip()] = ColumnMetadata(unit=unit["unit"].strip())
    return notes


def _merge(first: ColumnMetadata, second: ColumnMetadata) -> ColumnMetadata:
    return ColumnMetadata(first.unit or second.unit, first.ucd or second.ucd, first.description or second.description)


def _text(value: bytes, limit: int = _MAX_TEXT) -> str:
    return value[:limit].decode("utf-8", errors="replace")


# --- column names from users ------------------------------------------------------------------


def find(name: str, names: Iterable[str], *, what: str = "column") -> str:
    """The column with this name; if there is none, the only one that is equal when case is ignored.

    Raises BadInput if there is no such column, with similar names in the hint, or if several match.
    """
    known = list(names)
    if name in known:
        return name
    same = [other for other in known if other.lower() == name.lower()]
    if len(same) == 1:
        return same[0]
    if same:
        raise BadInput(
            f"{what} {name} is ambiguous: {', '.join(same)}", hint="Write the name exactly as in the schema."
        )
    raise BadInput(f"there is no {what} {name}", hint=_nearest(name, known))


def _nearest(name: str, known: list[str]) -> str:
    folded = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), list(folded), n=3, cutoff=0.5)
    leaves: dict[str, list[str]] = {}
    for other in known:
        leaves.setdefault(_leaf(other), []).append(other)
    fields = difflib.get_close_matches(_leaf(name), list(leaves), n=3, cutoff=0.7)
    tail = [other for leaf in fields for other in leaves[leaf]]
    hits = list(dict.fromkeys([*tail[:3], *(folded[key] for key in close)]))[:3]
    if hits:
        return f"Did you mean {' or '.join(hits)}?"
    shown = ", ".join(known[:8])
    more = f" and {len(known) - 8} more" if len(known) > 8 else ""
    return f"The columns are {shown}{more}." if known else "There are no columns."


def _leaf(name: str) -> str:
    return name.lower().rsplit(".", 1)[-1]


# --- positions --------------------------------------------------------------------------------

# Pairs of common names in lower case, the most reliable first: plain names, then those of VizieR, SExtractor,
# Pan-STARRS.
_RA_DEC_NAMES = (
    ("ra", "dec"),
    ("ra", "decl"),
    ("ra_icrs", "de_icrs"),
    ("ra_icrs", "dec_icrs"),
    ("raj2000", "dej2000"),
    ("raj2000", "decj2000"),
    ("ra_j2000", "dec_j2000"),
    ("_raj2000", "_dej2000"),
    ("_ra", "_de"),
    ("ra_deg", "dec_deg"),
    ("radeg", "dedeg"),
    ("radeg", "decdeg"),
    ("rightascension", "declination"),
    ("right_ascension", "declination"),
    ("alpha_j2000", "delta_j2000"),
    ("alphawin_j2000", "deltawin_j2000"),
    ("ramean", "decmean"),
    ("s_ra", "s_dec"),
    ("coord_ra", "coord_dec"),
)
# Records that contain the position of an alert (ZTF, LSST). They take precedence over other nested records.
_HOME_RECORDS = ("", "candidate", "diasource", "diaobject")

_DEGREES_PER: dict[str, float] = {
    "deg": 1.0,
    "degree": 1.0,
    "degrees": 1.0,
    "°": 1.0,
    "rad": 57.29577951308232,
    "radian": 57.29577951308232,
    "radians": 57.29577951308232,
    "arcmin": 1 / 60,
    "arcsec": 1 / 3600,
    "mas": 1 / 3_600_000,
}
_HOURS = {"h", "hr", "hour", "hours", "hourangle"}


def find_position(
    schema_columns: tuple[Column, ...], ra: str | None = None, dec: str | None = None, *, how: str = "named"
) -> tuple[PositionColumns | None, list[str]]:
    """Find the coordinate columns: as given by the caller, by UCD, or by common names.

    Returns the columns, or None, and warnings for the user. Raises BadInput if a given column is
    missing, not numeric, or has a unit that is not an angle.
    """
    numbers = {column.name: column for column in schema_columns if is_number(column.type)}
    if ra is not None or dec is not None:
        if ra is None or dec is None:
            raise BadInput("--ra and --dec must be given together", hint="Give both --ra and --dec.")
        names = [column.name for column in schema_columns]
        pair = (find(ra, names), find(dec, names))
        for name in pair:
            if name not in numbers:
                raise BadInput(
                    f"column {name} is not numeric", hint="Coordinates must be numbers, in degrees or with a unit."
                )
        return _with_units(numbers[pair[0]], numbers[pair[1]], how), []
    for pairs, source in ((_by_ucd(numbers), "by UCD"), (_by_name(numbers), "by customary names")):
        if len(pairs) == 1:
            return _tolerant(numbers, pairs[0], source)
        if pairs:
            listed = "; ".join(f"{first}, {second}" for first, second in pairs[:4])
            return None, [f"several column pairs may be the position ({listed}): select one with --ra and --dec"]
    return None, []


def _tolerant(
    numbers: Mapping[str, Column], pair: tuple[str, str], source: str
) -> tuple[PositionColumns | None, list[str]]:
    try:
        return _with_units(numbers[pair[0]], numbers[pair[1]], source), []
    except BadInput as error:
        return None, [f"{error.message}: sky coverage is not known"]


def _with_units(ra: Column, dec: Column, how: str) -> PositionColumns:
    scales = []
    for column, hours in ((ra, 15.0), (dec, None)):
        unit = column.unit.strip().lower()
        scale = _DEGREES_PER.get(unit) if unit else 1.0
        if unit in _HOURS:
            scale = hours
        if scale is None:
            raise BadInput(
                f"column {column.name} has unit {column.unit!r}, which is not a known unit of angle",
                hint="Use deg, rad, hourangle (right ascension), arcmin, arcsec or mas.",
            )
        scales.append(scale)
    return PositionColumns(ra.name, dec.name, how, scales[0], scales[1], ra.unit)


def _by_ucd(numbers: Mapping[str, Column]) -> list[tuple[str, str]]:
    for wanted in (_main_ucd, _plain_ucd):
        ras = [column.name for column in numbers.values() if wanted(column.ucd, "ra")]
        decs = [column.name for column in numbers.values() if wanted(column.ucd, "dec")]
        if len(ras) == 1 and len(decs) == 1:
            return [(ras[0], decs[0])]
        if ras and decs:
            by_parent = [(ra, dec) for ra in ras for dec in decs if _parent(ra) == _parent(dec)]
            return _home(by_parent)
    return []


def _main_ucd(ucd: str, axis: str) -> bool:
    words = [word.strip() for word in ucd.lower().split(";")]
    return (words[0] == f"pos.eq.{axis}" and "meta.main" in words) or words[0] == f"pos_eq_{axis}_main"


def _plain_ucd(ucd: str, axis: str) -> bool:
    return ucd.lower().split(";")[0].strip() in (f"pos.eq.{axis}", f"pos_eq_{axis}")


def _by_name(numbers: Mapping[str, Column]) -> list[tuple[str, str]]:
    folded: dict[tuple[str, str], list[str]] = {}
    for name in numbers:
        parent = _parent(name)
        folded.setdefault((parent, name[len(parent) :].lstrip(".").lower()), []).append(name)
    parents = list(dict.fromkeys(parent for parent, _ in folded))
    for ra, dec in _RA_DEC_NAMES:
        pairs = [
            (folded[parent, ra][0], folded[parent, dec][0])
            for parent in parents
            if len(folded.get((parent, ra), ())) == 1 and len(folded.get((parent, dec), ())) == 1
        ]
        if pairs:
            return _home(pairs)
    return []


def _home(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    for record in _HOME_RECORDS:
        hits = [pair for pair in pairs if _parent(pair[0]).lower() == record]
        if len(hits) == 1:
            return hits
    return pairs


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


# --- times ------------------------------------------------------------------------------------

_TIME_NAMES: tuple[tuple[TimeKind, tuple[str, ...]], ...] = (
    ("mjd_tai", ("midpointmjdtai", "midpointtai", "expmidptmjd", "mjd_tai")),
    ("mjd", ("mjd", "obsmjd", "obs_mjd", "mjdobs", "mjd_obs", "mjd-obs", "epoch_mjd", "epochmean", "expmjd", "t_min")),
    ("jd", ("jd", "obsjd", "obs_jd", "jdobs", "jd_obs")),
    ("jd_barycentric", ("hjd", "bjd", "bjd_tdb")),
    ("mjd_barycentric", ("hmjd", "bmjd")),
    (
        "timestamp",
        ("time", "timestamp", "epoch", "obstime", "obs_time", "date_obs", "dateobs", "datetime", "observation_time"),
    ),
)


def find_time(schema_columns: tuple[Column, ...]) -> TimeColumn | None:
    """Find the column of observation time: by UCD if its meaning is certain, else by common names.

    A numeric column named `time` or `epoch` is not used, because its zero point and unit are unknown.
    """
    usable = [column for column in schema_columns if is_number(column.type) or is_moment(column.type)]
    by_ucd = [(column, kind) for column in usable if (kind := _kind_by_ucd(column)) is not None]
    for record in _HOME_RECORDS:
        hits = [(column, kind) for column, kind in by_ucd if _parent(column.name).lower() == record]
        if len(hits) == 1:
            return TimeColumn(hits[0][0].name, hits[0][1], "by UCD")
    for record in _HOME_RECORDS:
        here = {
            column.name[len(record) :].lstrip(".").lower(): column
            for column in usable
            if _parent(column.name).lower() == record
        }
        for kind, names in _TIME_NAMES:
            for name in names:
                column = here.get(name)
                if column is not None and is_moment(column.type) == (kind == "timestamp"):
                    # A timestamp in a top-level column of an alert stream is often the time of arrival;
                    # a Julian date inside the alert packet is the time of observation.
                    if kind == "timestamp" and (inner := _packet_time(usable)) is not None:
                        return inner
                    return TimeColumn(column.name, kind, "by customary names")
    return None


def _packet_time(usable: list[Column]) -> TimeColumn | None:
    for column in usable:
        parent, _, name = column.name.rpartition(".")
        if parent.lower() in _HOME_RECORDS[1:] and is_number(column.type):
            for kind, names in _TIME_NAMES:
                if name.lower() in names and kind != "timestamp":
                    return TimeColumn(column.name, kind, "by customary names")
    return None


def _kind_by_ucd(column: Column) -> TimeKind | None:
    primary = column.ucd.lower().split(";")[0].strip()
    if primary not in ("time", "time.epoch", "time.start", "time.obs", "time.obs.start", "time_date", "time_epoch"):
        return None
    if is_moment(column.type):
        return "timestamp"
    unit = column.unit.strip().lower()
    name = column.name.rpartition(".")[2].lower()
    for kind, names in _TIME_NAMES:
        if kind != "timestamp" and name in names:
            return kind
    if unit == "mjd" or "mjd" in name:
        return "mjd"
    if unit == "jd" or re.search(r"(^|_)jd($|_)", name):
        return "jd"
    if unit in ("d", "day", "days"):
        return "days"
    return "julian_year" if unit in ("yr", "a", "year", "julian year", "jyear") else None


def is_number(kind: str) -> bool:
    """Whether a type name is that of a plain number."""
    return kind in _NUMBERS


def is_moment(kind: str) -> bool:
    """Whether a type name is that of a timestamp or date."""
    return kind.startswith(("timestamp[", "date"))


_NUMBERS = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "halffloat", "float", "double"}

Progress = Callable[[int, int, str], None]
"""`progress(bytes_done, total_bytes, file)`: called often, from the thread that reads."""
