"""Catalogs in HATS layout: properties, partitions, margins, indexes, collections.

Source: the IVOA note "HATS" and the layout of astronomy-commons/hats:
`collection.properties` names a main catalog, its margins and its indexes, each a folder with
`hats.properties` (or `properties`) and its rows in `dataset/Norder=K/Dir=D/Npix=N.parquet`, or
in a folder of that name; an index has its rows in `dataset/index/`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

from island.errors import BadInput, Corrupt
from island.formats.files import format_by_name, is_data_name, open_binary

Role = Literal["data", "margin", "index", "metadata"]

MAX_PROPERTIES = 1024 * 1024
COLLECTION = "collection.properties"
CATALOG = ("hats.properties", "properties")

_PARTITION = re.compile(r"(?:^|/)Norder=(\d{1,2})/Dir=(\d{1,12})/Npix=(\d{1,12})(?:\.parquet$|/)")


class HatsCatalog(msgspec.Struct, frozen=True):
    """One catalog of a HATS tree. `path` is relative to the published folder, "" for itself."""

    path: str
    role: Role
    kind: str
    name: str
    rows: int | None
    ra: str
    dec: str
    margin_arcsec: float | None = None
    index_column: str = ""
    is_default: bool = True


class HatsPartition(msgspec.Struct, frozen=True, order=True):
    """A HEALPix cell of the nested grid that holds one file's rows."""

    order: int
    pixel: int


class HatsLayout(msgspec.Struct, frozen=True):
    """How a HATS folder is built: the main catalog first, then margins and indexes."""

    name: str
    is_collection: bool
    parts: tuple[HatsCatalog, ...]
    problems: tuple[str, ...] = ()

    @property
    def main(self) -> HatsCatalog:
        return self.parts[0]

    def part_of(self, relative: str) -> HatsCatalog | None:
        """The catalog that a published file belongs to; None for files of the collection itself."""
        for part in self.parts:
            if not part.path or relative.startswith(part.path + "/"):
                return part
        return None

    def role_of(self, relative: str) -> Role:
        """What a published file is: rows of the main catalog, of a margin, of an index, or metadata."""
        part = self.part_of(relative)
        if part is None or format_by_name(relative) != "parquet" or not is_data_name(relative.rsplit("/", 1)[-1]):
            return "metadata"
        inside = relative[len(part.path) :].lstrip("/")
        if part.role == "index":
            return "index" if inside.startswith("dataset/") else "metadata"
        return part.role if partition_of(inside) is not None else "metadata"


def is_hats(folder: Path) -> bool:
    """Whether a folder is a HATS catalog or collection, by its properties."""
    if (folder / COLLECTION).is_file():
        return True
    return any((folder / name).is_file() and _mentions_hats(folder / name) for name in CATALOG)


def _mentions_hats(path: Path) -> bool:
    with open_binary(path) as file:
        head = file.read(65536)
    return b"hats_" in head or b"#HATS" in head


def layout_of(folder: Path) -> HatsLayout:
    """The catalogs below a HATS folder. Raises BadInput or Corrupt where its properties do not fit its files."""
    if not (folder / COLLECTION).is_file():
        part = _part(folder, "", is_default=True)
        return HatsLayout(name=part.name or folder.name, is_collection=False, parts=(part,))
    said = read_properties(folder / COLLECTION)
    main_path = _inside(folder, said.get("hats_primary_table_url", ""), COLLECTION)
    main = _part(folder, main_path, is_default=True)
    parts, problems = [main], []
    margins = said.get("all_margins", "").split() or said.get("default_margin", "").split()
    # all_indexes alternates between the column and the folder.
    indexes = said.get("all_indexes", "").split()[1::2]
    for name in [*margins, *indexes]:
        if not (folder / name).is_dir():
            problems.append(f"{COLLECTION} names {name}, which is not there")
            continue
        is_default = name == said.get("default_margin") or name in indexes[:1]
        parts.append(_part(folder, _inside(folder, name, COLLECTION), is_default=is_default))
    return HatsLayout(
        name=said.get("obs_collection", folder.name), is_collection=True, parts=tuple(parts), problems=tuple(problems)
    )


def _inside(folder: Path, name: str, where: str) -> str:
    parts = name.strip("/").split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or "://" in name:
        raise BadInput(
            f"{folder / where} names {name or 'nothing'} as its catalog, which is no folder inside it",
            hint="hats_primary_table_url is the name of a folder beside collection.properties.",
        )
    if not (folder / name).is_dir():
        raise BadInput(f"{folder / where} names {name}, which is not there", hint="Copy the whole collection.")
    return "/".join(parts)


def _part(folder: Path, path: str, *, is_default: bool) -> HatsCatalog:
    root = folder / path if path else folder
    said: dict[str, str] = {}
    for name in CATALOG:
        if (root / name).is_file():
            said = read_properties(root / name)
            break
    else:
        raise BadInput(f"{root} has no hats.properties", hint="Copy the whole catalog, with its properties.")
    kind = said.get("dataproduct_type", "object").lower()
    role: Role = "margin" if kind == "margin" else "index" if kind == "index" else "data"
    return HatsCatalog(
        path=path,
        role=role,
        kind=kind,
        name=said.get("obs_collection", root.name),
        rows=_integer(said.get("hats_nrows", "")),
        ra=said.get("hats_col_ra", ""),
        dec=said.get("hats_col_dec", ""),
        margin_arcsec=_number(said.get("hats_margin_threshold", "")),
        index_column=said.get("hats_index_column", ""),
        is_default=is_default,
    )


def read_properties(path: Path) -> dict[str, str]:
    """`key=value` lines; `#` begins a comment. Raises Corrupt over 1 MiB or where it is not text."""
    with open_binary(path) as file:
        data = file.read(MAX_PROPERTIES + 1)
    if len(data) > MAX_PROPERTIES:
        raise Corrupt(f"{path} is over 1 MiB", hint="A properties file is a page of key=value lines.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Corrupt(f"{path} is not text", hint="A properties file is a page of key=value lines.") from error
    said = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not key.lstrip().startswith(("#", "!")):
            said[key.strip()] = value.strip()
    return said


def partition_of(relative: str) -> HatsPartition | None:
    """The cell that a path names, or None. Raises Corrupt for a cell outside its order's grid."""
    found = _PARTITION.search(relative)
    if found is None:
        return None
    order, pixel = int(found[1]), int(found[3])
    if order > 29 or pixel >= 12 * 4**order:
        raise Corrupt(f"{relative} names HEALPix cell {pixel} of order {order}, which does not exist")
    return HatsPartition(order, pixel)


def listed_partitions(folder: Path, part: HatsCatalog) -> set[HatsPartition] | None:
    """The cells of partition_info.csv, or None where there is none that can be read."""
    path = folder / part.path / "partition_info.csv"
    if not path.is_file() or path.stat().st_size > 64 * MAX_PROPERTIES:
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    names = [name.strip() for name in lines[0].split(",")] if lines else []
    if "Norder" not in names or "Npix" not in names:
        return None
    order_at, pixel_at = names.index("Norder"), names.index("Npix")
    cells = set()
    for line in lines[1:]:
        values = line.split(",")
        if len(values) == len(names):
            order, pixel = _integer(values[order_at]), _integer(values[pixel_at])
            if order is not None and pixel is not None:
                cells.add(HatsPartition(order, pixel))
    return cells


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
