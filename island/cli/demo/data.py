"""The demo's input: OpenNGC from the package `pyongc`, and optionally ZTF alerts.

OpenNGC (Mattia Verga, CC-BY-SA-4.0) is one SQLite file with 14,033 rows, in which `ra` and
`dec` are in radians. The demo converts them to degrees and adds units and UCDs to the columns.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from island.errors import BadInput, IslandError

GALAXIES = ("G", "GPair", "GTrpl", "GGroup")
CLUSTERS = ("OCl", "GCl", "Cl+N", "*Ass", "PN", "HII", "EmN", "Neb", "RfN", "SNR", "DrkN")
NEBULAE = ("PN", "HII", "EmN", "Neb", "RfN", "SNR", "DrkN")
CREDIT = "OpenNGC by Mattia Verga, CC-BY-SA-4.0, from the package pyongc 1.2.2"
LICENCE = "CC-BY-SA-4.0"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DemoColumn:
    """A column of the demo's tables: name, type, unit, UCD, meaning."""

    name: str
    kind: str
    unit: str
    ucd: str
    text: str


COLUMNS = (
    DemoColumn("name", "string", "", "meta.id;meta.main", "NGC or IC designation"),
    DemoColumn("type", "string", "", "src.class", "type of the object"),
    DemoColumn("ra", "double", "deg", "pos.eq.ra;meta.main", "right ascension, ICRS"),
    DemoColumn("dec", "double", "deg", "pos.eq.dec;meta.main", "declination, ICRS"),
    DemoColumn("const", "string", "", "meta.id.parent", "constellation"),
    DemoColumn("majax", "double", "arcmin", "phys.angSize.smajAxis", "major axis"),
    DemoColumn("minax", "double", "arcmin", "phys.angSize.sminAxis", "minor axis"),
    DemoColumn("pa", "double", "deg", "pos.posAng", "position angle of the major axis"),
    DemoColumn("bmag", "double", "mag", "phot.mag;em.opt.B", "magnitude in B"),
    DemoColumn("vmag", "double", "mag", "phot.mag;em.opt.V", "magnitude in V"),
    DemoColumn("jmag", "double", "mag", "phot.mag;em.IR.J", "magnitude in J"),
    DemoColumn("hmag", "double", "mag", "phot.mag;em.IR.H", "magnitude in H"),
    DemoColumn("kmag", "double", "mag", "phot.mag;em.IR.K", "magnitude in K"),
    DemoColumn("hubble", "string", "", "src.morph.type", "Hubble type"),
    DemoColumn("radvel", "double", "km/s", "spect.dopplerVeloc.opt", "heliocentric radial velocity"),
    DemoColumn("redshift", "double", "", "src.redshift", "redshift"),
    DemoColumn("messier", "string", "", "meta.id", "Messier number"),
    DemoColumn("commonnames", "string", "", "meta.id", "common names"),
    DemoColumn("identifiers", "string", "", "meta.id", "identifiers in other catalogues"),
    DemoColumn("notes", "string", "", "meta.note", "notes of NED and OpenNGC"),
)


def catalogue() -> list[Row]:
    """Return every object of OpenNGC as a dict of `COLUMNS`, ra and dec in degrees.

    Raises `IslandError` if pyongc is not installed.
    """
    try:
        path = resources.files("pyongc") / "ongc.db"
    except ModuleNotFoundError as error:
        raise IslandError(
            "the demo's input is not installed",
            hint="In a clone: pip install '.[spark,demo]'.",
        ) from error
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        return [_row(found) for found in connection.execute("SELECT * FROM objects ORDER BY name")]
    finally:
        connection.close()


def _row(found: sqlite3.Row) -> Row:
    row: Row = {column.name: found[column.name] for column in COLUMNS if column.name != "notes"}
    row["notes"] = " ".join(text for text in (found["nednotes"], found["ongcnotes"]) if text)
    for angle in ("ra", "dec"):
        row[angle] = None if row[angle] is None else math.degrees(row[angle])
    for column in COLUMNS:
        if column.kind == "double" and row[column.name] is not None:
            row[column.name] = float(row[column.name])
    return row


def of_types(rows: Sequence[Row], types: Sequence[str]) -> list[Row]:
    """Return the rows whose type is one of `types`."""
    return [row for row in rows if row["type"] in types]


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """Write a Parquet file with units and UCDs in the metadata of its fields; `path` appears only when complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"string": pa.string(), "double": pa.float64()}
    schema = pa.schema(
        [
            pa.field(c.name, kinds[c.kind], metadata={"unit": c.unit, "ucd": c.ucd, "description": c.text})
            for c in COLUMNS
        ]
    )
    partial = path.with_name(f".{path.name}.part")
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), partial, compression="zstd")
    partial.replace(path)


def write_avro(rows: Sequence[Row], path: Path) -> None:
    """Write an Avro file with units and UCDs as attributes of its fields; `path` appears only when complete."""
    import fastavro

    fields = [
        {"name": c.name, "type": ["null", c.kind], "default": None, "doc": c.text, "unit": c.unit, "ucd": c.ucd}
        for c in COLUMNS
    ]
    schema = {"type": "record", "name": "OpenNGC", "fields": fields}
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as file:
        fastavro.writer(file, fastavro.parse_schema(schema), rows, codec="deflate")
    partial.replace(path)


def alert_files(folder: Path) -> list[Path]:
    """Return the Avro files in `folder` whose schema has a field `tns`; raises `BadInput` if there are none."""
    import fastavro

    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder", hint="Use a folder of ZTF alerts (Avro) with --alerts.")
    found = []
    for path in sorted(folder.glob("*.avro")):
        with path.open("rb") as file:
            schema = fastavro.reader(file).writer_schema
        if isinstance(schema, dict) and any(f["name"] == "tns" for f in schema.get("fields", [])):
            found.append(path)
    if not found:
        raise BadInput(
            f"no Avro file in {folder} has a field 'tns'",
            hint="Use alerts of a broker that adds the name in the Transient Name Server (TNS).",
        )
    return found


def alerts_in(paths: Sequence[Path]) -> list[Row]:
    """Return the alerts of some files as rows with objectId, tns, ra and dec (degrees), magpsf."""
    import fastavro

    rows = []
    for path in paths:
        with path.open("rb") as file:
            for alert in fastavro.reader(file):
                rows.append(
                    {
                        "objectId": alert["objectId"],
                        "tns": alert["tns"],
                        "ra": alert["candidate"]["ra"],
                        "dec": alert["candidate"]["dec"],
                        "magpsf": alert["candidate"]["magpsf"],
                    }
                )
    return rows


def split_alerts(paths: Sequence[Path], folder: Path, alerts_a_file: int) -> list[Path]:
    """Write the alerts to files in `folder` with at most `alerts_a_file` alerts each; return their paths."""
    import fastavro

    staged = []
    for path in paths:
        with path.open("rb") as file:
            reader = fastavro.reader(file)
            alerts = list(reader)
            schema = reader.writer_schema
        for start in range(0, len(alerts), alerts_a_file):
            target = folder / f"{path.stem}-{start:05d}.avro"
            with target.open("wb") as out:
                fastavro.writer(out, schema, alerts[start : start + alerts_a_file], codec="deflate")
            staged.append(target)
    return staged
