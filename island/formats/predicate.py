"""Row filters: an SQL condition, a region of the sky, or both.

`expression` documents the syntax of conditions and their treatment of NULL and NaN, `region`
the syntax of regions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from island.errors import BadInput
from island.formats import expression
from island.formats.columns import PositionColumns, find_position, of_schema
from island.formats.region import Region

__all__ = ["BoundPredicate", "Predicate", "Region"]


@dataclass(frozen=True)
class Predicate:
    """A parsed predicate that is not bound to a table. Without condition and region it keeps every row."""

    where: str | None
    region: Region | None
    _tree: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, where: str | None, region: str | None = None) -> Predicate:
        """Parse a condition and a region. Raises BadInput for syntax errors. The text is never executed."""
        return cls(
            where=where,
            region=None if region is None else Region.parse(region),
            _tree=None if where is None else expression.parse(where),
        )

    def bind(self, schema: Any, *, ra: str | None = None, dec: str | None = None) -> BoundPredicate:
        """Bind the predicate to a pyarrow schema.

        `ra` and `dec` name the coordinate columns if they cannot be detected by UCD or name.
        Raises BadInput for an unknown column (the hint lists similar names), a comparison of
        different types, a function that is not allowed, or a region without coordinate columns.
        """
        compiler = expression.Compiler(schema)
        condition = None if self._tree is None else compiler.condition(self._tree)
        position = None if self.region is None else self._position(schema, ra, dec)
        used = list(compiler.used)
        if position is not None:
            used.extend(name for name in (position.ra, position.dec) if name not in used)
        return BoundPredicate(tuple(used), condition, self.region, position)

    @staticmethod
    def _position(schema: Any, ra: str | None, dec: str | None) -> PositionColumns:
        position, doubts = find_position(of_schema(schema), ra, dec)
        if position is None:
            raise BadInput(
                "the region cannot be used: no coordinate columns were detected in the table"
                + (f": {doubts[0]}" if doubts else ""),
                hint="Use a condition on columns instead, or publish the table with --ra and --dec.",
            )
        return position


@dataclass(frozen=True)
class BoundPredicate:
    """A predicate bound to a schema. `columns` are the dotted paths of the columns that it reads."""

    columns: tuple[str, ...]
    _condition: Any = field(repr=False)
    region: Region | None = None
    position: PositionColumns | None = None

    def mask(self, batch: Any) -> Any:
        """A boolean array without nulls: true for the rows to keep. Raises BadInput if the condition fails."""
        kept = None if self._condition is None else expression.keep(self._condition(batch))
        if self.region is not None and self.position is not None:
            inside = self._inside(batch, self.region, self.position)
            kept = inside if kept is None else pc.and_(kept, inside)
        return pa.array([True] * batch.num_rows, pa.bool_()) if kept is None else kept

    def filter(self, batch: Any) -> Any:
        """The rows of a batch that satisfy the predicate, in order."""
        return batch.filter(self.mask(batch))

    @staticmethod
    def _inside(batch: Any, region: Region, position: PositionColumns) -> Any:
        ra, dec = (
            _coordinate(batch, name).to_numpy(zero_copy_only=False) * scale
            for name, scale in ((position.ra, position.ra_scale), (position.dec, position.dec_scale))
        )
        return pa.array(region.contains(ra, dec))


def _coordinate(batch: Any, path: str) -> Any:
    if path in batch.schema.names:
        return batch.column(path).cast(pa.float64(), safe=False)
    first, *rest = path.split(".")
    array = batch.column(first)
    for name in rest:
        array = pc.struct_field(array, name)
    return array.cast(pa.float64(), safe=False)
