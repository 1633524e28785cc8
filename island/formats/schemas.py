"""Compares the schemas of files: whether two files can be parts of one table."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from island.formats.columns import type_name


def difference(first: Any, second: Any) -> str:
    """The first difference that prevents two files from being parts of one table; "" if there is none.

    Columns must have the same names and types. Their order, metadata, nullability and encoding
    (dictionary, 32- or 64-bit offsets) may differ.
    """
    first_names, second_names = set(first.names), set(second.names)
    if missing := [name for name in first.names if name not in second_names]:
        return f"column {missing[0]} is missing" + _and_more(missing)
    if extra := [name for name in second.names if name not in first_names]:
        return f"column {extra[0]} is additional" + _and_more(extra)
    for field in first:
        mine, other = type_name(field.type), type_name(second.field(field.name).type)
        if mine != other:
            where = _first_difference(field.name, field.type, second.field(field.name).type)
            return f"column {where[0]} is {_short(where[2])}, not {_short(where[1])}"
    return ""


def _first_difference(path: str, mine: Any, other: Any) -> tuple[str, str, str]:
    """The innermost record field that differs: (path, type in `mine`, type in `other`)."""
    if pa.types.is_struct(mine) and pa.types.is_struct(other):
        others = {field.name: field.type for field in other}
        mines = {field.name: field.type for field in mine}
        for name, kind in mines.items():
            if name not in others:
                return f"{path}.{name}", type_name(kind), "missing"
            if type_name(kind) != type_name(others[name]):
                return _first_difference(f"{path}.{name}", kind, others[name])
        for name, kind in others.items():
            if name not in mines:
                return f"{path}.{name}", "missing", type_name(kind)
    return path, type_name(mine), type_name(other)


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def fit_batch(batch: Any, schema: Any) -> Any:
    """A batch with the column order and types of `schema`. `difference` of the two schemas must be ""."""
    if batch.schema.equals(schema, check_metadata=True):
        return batch
    arrays = [batch.column(field.name) for field in schema]
    cast = [
        array if array.type == field.type else array.cast(field.type)
        for array, field in zip(arrays, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(cast, schema=schema)
