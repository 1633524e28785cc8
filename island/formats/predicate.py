"""Which rows are wanted: a condition in SQL, a region of the sky, or both.

The same predicate runs where data are and where they arrive. See `expression` for what a
condition may say and what NULL and NaN mean in it, `region` for regions.
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
    """A parsed predicate, not yet tied to a table. Without condition and region it keeps every row."""

    where: str | None
    region: Region | None
    _tree: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, where: str | None, region: str | None = None) -> Predicate:
        """Check the syntax of both. Raises BadInput; the text is never executed."""
        return cls(
            where=where,
            region=None if region is None else Region.parse(region),
            _tree=None if where is None else expression.parse(where),
        )

    def bind(self, schema: Any, *, ra: str | None = None, dec: str | None = None) -> BoundPredicate:
        """Tie the predicate to a pyarrow schema.

        `ra` and `dec` name the coordinate columns where they would not be found by UCD or name.
        Raises BadInput for an unknown column (the nearest are named), a comparison of kinds that
        do not fit, a function that is not allowed, or a region without coordinate columns.
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
                "a region was given and the table has no coordinate columns that are found"
                + (f": {doubts[0]}" if doubts else ""),
                hint="Use a condition on columns instead, or publish the table with --ra and --dec.",
            )
        return position


@dataclass(frozen=True)
class BoundPredicate:
    """A predicate for the batches of one schema. `columns` are the dotted paths that it reads."""

    columns: tuple[str, ...]
    _condition: Any = field(repr=False)
    region: Region | None = None
    position: PositionColumns | None = None

    def mask(self, batch: Any) -> Any:
        """A boolean array without nulls: which rows are kept. Raises BadInput where values cannot be computed."""
        kept = None if self._condition is None else expression.keep(self._condition(batch))
        if self.region is not None and self.position is not None:
            inside = self._inside(batch, self.region, self.position)
            kept = inside if kept is None else pc.and_(kept, inside)
        return pa.array([True] * batch.num_rows, pa.bool_()) if kept is None else kept

    def filter(self, batch: Any) -> Any:
        """The rows of a batch that are kept, in order."""
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
