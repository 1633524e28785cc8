"""Catalogs in HATS layout: properties, partitions, margins, indexes, collections.

The layout follows the IVOA note "HATS" and astronomy-commons/hats: `collection.properties` lists
a main catalog, its margins and its indexes. Each is a folder with `hats.properties` (or
`properties`). Its rows are in `dataset/Norder=K/Dir=D/Npix=N.parquet`, or in files below a folder
`Npix=N`; the rows of an index are in `dataset/index/`.
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
    """One catalog of a HATS tree. `path` is relative to the published folder; "" is the folder itself."""

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
    """A HEALPix cell of the nested grid that contains the rows of one file or folder."""

    order: int
    pixel: int


class HatsLayout(msgspec.Struct, frozen=True):
    """The catalogs of a HATS folder: the main catalog first, then margins and indexes."""

    name: str
    is_collection: bool
    parts: tuple[HatsCatalog, ...]
    problems: tuple[str, ...] = ()

    @property
    def main(self) -> HatsCatalog:
        return self.parts[0]

    def part_of(self, relative: str) -> HatsCatalog | None:
        """The catalog of a published file; None for files of the collection itself."""
        for part in self.parts:
            if not part.path or relative.startswith(part.path + "/"):
                return part
        return None

    def role_of(self, relative: str) -> Role:
        """The role of a published file: rows of the main catalog, of a margin, of an index, or metadata."""
        part = self.part_of(relative)
        if part is None or format_by_name(relative) != "parquet" or not is_data_name(relative.rsplit("/", 1)[-1]):
            return "metadata"
        inside = relative[len(part.path) :].lstrip("/")
        if part.role == "index":
            return "index" if inside.startswith("dataset/") else "metadata"
        return part.role if partition_of(inside) is not None else "metadata"


def is_hats(folder: Path) -> bool:
    """Whether a folder has the properties file of a HATS catalog or collection."""
    if (folder / COLLECTION).is_file():
        return True
    return any((folder / name).is_file() and _mentions_hats(folder / name) for name in CATALOG)


def _mentions_hats(path: Path) -> bool:
    with open_binary(path) as file:
        head = file.read(65536)
    return b"hats_" in head or b"#HATS" in head


def layout_of(folder: Path) -> HatsLayout:
    """The catalogs of a HATS folder. Raises BadInput or Corrupt if its properties are invalid or do not fit its files.

    Margins and indexes that are missing are listed in `problems`.
    """
    if not (folder / COLLECTION).is_file():
        part = _part(folder, "", is_default=True)
        return HatsLayout(name=part.name or folder.name, is_collection=False, parts=(part,))
    properties = read_properties(folder / COLLECTION)
    main_path = _inside(folder, properties.get("hats_primary_table_url", ""), COLLECTION)
    main = _part(folder, main_path, is_default=True)
    parts, problems = [main], []
    margins = properties.get("all_margins", "").split() or properties.get("default_margin", "").split()
    # The words of all_indexes are alternately a column and a folder.
    indexes = properties.get("all_indexes", "").split()[1::2]
    for name in [*margins, *indexes]:
        if not (folder / name).is_dir():
            problems.append(f"{COLLECTION} lists {name}, which does not exist")
            continue
        is_default = name == properties.get("default_margin") or name in indexes[:1]
        parts.append(_part(folder, _inside(folder, name, COLLECTION), is_default=is_default))
    return HatsLayout(
        name=properties.get("obs_collection", folder.name),
        is_collection=True,
        parts=tuple(parts),
        problems=tuple(problems),
    )


def _inside(folder: Path, name: str, where: str) -> str:
    parts = name.strip("/").split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or "://" in name:
        raise BadInput(
            f"{folder / where} gives {name!r} as a catalog, which is not the path of a folder in the collection",
            hint="hats_primary_table_url must be the name of a folder beside collection.properties.",
        )
    if not (folder / name).is_dir():
        raise BadInput(f"{folder / where} lists {name}, which does not exist", hint="Copy the whole collection.")
    return "/".join(parts)


def _part(folder: Path, path: str, *, is_default: bool) -> HatsCatalog:
    root = folder / path if path else folder
    properties: dict[str, str] = {}
    for name in CATALOG:
        if (root / name).is_file():
            properties = read_properties(root / name)
            break
    else:
        raise BadInput(f"{root} has no hats.properties", hint="Copy the whole catalog, including hats.properties.")
    kind = properties.get("dataproduct_type", "object").lower()
    role: Role = "margin" if kind == "margin" else "index" if kind == "index" else "data"
    return HatsCatalog(
        path=path,
        role=role,
        kind=kind,
        name=properties.get("obs_collection", root.name),
        rows=_integer(properties.get("hats_nrows", "")),
        ra=properties.get("hats_col_ra", ""),
        dec=properties.get("hats_col_dec", ""),
        margin_arcsec=_number(properties.get("hats_margin_threshold", "")),
        index_column=properties.get("hats_index_column", ""),
        is_default=is_default,
    )


def read_properties(path: Path) -> dict[str, str]:
    """Read `key=value` lines; `#` and `!` begin comments. Raises Corrupt if the file exceeds 1 MiB or is not UTF-8."""
    with open_binary(path) as file:
        data = file.read(MAX_PROPERTIES + 1)
    if len(data) > MAX_PROPERTIES:
        raise Corrupt(f"{path} is larger than 1 MiB", hint="A properties file consists of key=value lines.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Corrupt(f"{path} is not UTF-8 text", hint="A properties file consists of key=value lines.") from error
    properties = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not key.lstrip().startswith(("#", "!")):
            properties[key.strip()] = value.strip()
    return properties


def partition_of(relative: str) -> HatsPartition | None:
    """The HEALPix cell in a path, or None. Raises Corrupt for a cell that does not exist."""
    found = _PARTITION.search(relative)
    if found is None:
        return None
    order, pixel = int(found[1]), int(found[3])
    if order > 29 or pixel >= 12 * 4**order:
        raise Corrupt(f"the path {relative} contains HEALPix cell {pixel} of order {order}, which does not exist")
    return HatsPartition(order, pixel)


def listed_partitions(folder: Path, part: HatsCatalog) -> set[HatsPartition] | None:
    """The cells in partition_info.csv, or None if the file is missing, too large or has other columns."""
    path = folder / part.path / "partition_info.csv"
    if not path.is_file() or path.stat().st_size > 64 * MAX_PROPERTIES:
        return None
    with open_binary(path) as file:
        lines = file.read(64 * MAX_PROPERTIES).decode("utf-8", "replace").splitlines()
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
