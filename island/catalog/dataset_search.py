"""Searches the catalog: the index returns candidates, which are checked against their records and cards."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from island.catalog import core, store
from island.catalog.messages import Card, SearchQuery
from island.catalog.store import CatalogEntry
from island.catalog.word_index import WordIndex, document
from island.errors import BadInput
from island.formats.region import Region
from island.kernel.db import Database
from island.kernel.ids import IslandId
from island.kernel.work import Workers, to_the_end
from island.membership.service import Membership

log = structlog.get_logger("island")

FORMATS = ("parquet", "avro", "hats")
"""The formats of datasets that this version supports."""

INDEX_BATCH = 2000
INDEX_BYTES = 16 * 2**20
"""Size of the cards, in bytes, after which a batch of documents is indexed."""
FOUND_LIMIT = 100_000
"""Maximum number of candidates from the index."""


class DatasetSearch:
    """Finds datasets by words, columns, sky region, time and format, and updates the index."""

    def __init__(self, db: Database, membership: Membership, folder: Path, workers: Workers) -> None:
        self._db, self._membership, self._workers = db, membership, workers
        self._index = WordIndex(folder)
        self._indexing = asyncio.Lock()

    async def start(self, *, rebuild: bool = False) -> None:
        """Open the index. It is rebuilt with `rebuild`, or if it is missing, damaged or of another version."""
        async with self._indexing:
            if await to_the_end(self._workers.disk(lambda: self._index.open(rebuild=rebuild))):
                await self._db.write(store.index_all)

    async def search(self, query: SearchQuery) -> list[CatalogEntry]:
        """Return the datasets that meet all conditions of the query, best matches first. Raises `BadInput`.

        Changes that are not indexed yet are indexed first, so that all known datasets are found.
        """
        region = Region.parse(query.region) if query.region.strip() else None
        wanted = core.DatasetFilter(
            words=tuple(core.tokens(query.words)),
            column=query.column.strip(),
            time=core.parse_times(query.time) if query.time.strip() else None,
            format=_format(query.format),
        )
        if query.words.strip() and not wanted.words:
            return []
        if wanted.words or region is not None:
            found = await self._by_index(wanted, region, query.limit)
        else:
            found = await self._db.read(lambda conn: store.entries(conn, wanted.format, wanted.time))
            found = await self._fitting(found, wanted, None)
        if not wanted.words:
            found.sort(key=lambda entry: (self._membership.display(entry.owner).lower(), entry.name))
        return found[: query.limit]

    async def _by_index(self, wanted: core.DatasetFilter, region: Region | None, limit: int) -> list[CatalogEntry]:
        """Ask the index for more and more candidates, until enough of them meet all conditions."""
        await self.index()
        sky = await self._workers.cpu(_Sky.of, region) if region is not None else None
        reach = limit if wanted.is_plain and sky is None else max(1000, 2 * limit)
        while True:
            found = await self._found(wanted.words, sky, reach)
            fitting = await self._fitting([entry for entry in found if entry is not None], wanted, sky)
            if len(fitting) >= limit or len(found) < reach or reach >= FOUND_LIMIT:
                return fitting
            reach = min(8 * reach, FOUND_LIMIT)

    async def _found(self, words: Sequence[str], sky: _Sky | None, reach: int) -> list[CatalogEntry | None]:
        """The first `reach` candidates of the index; None for datasets that have been deleted since."""
        cells = sky.index if sky is not None else None
        try:
            keys = await self._workers.cpu(self._index.find, words, cells, reach)
        except (ValueError, OSError, RuntimeError) as error:  # the library raises these for damaged files
            log.warning("search.damaged", error=str(error))
            await self.start(rebuild=True)
            await self.index()
            keys = await self._workers.cpu(self._index.find, words, cells, reach)
        return await self._db.read(lambda conn: [store.entry(conn, owner, name) for owner, name in keys])

    async def _fitting(
        self, found: Sequence[CatalogEntry], wanted: core.DatasetFilter, sky: _Sky | None
    ) -> list[CatalogEntry]:
        """The candidates that meet all conditions by their record and, if it is known, by their card."""
        rough = [
            entry
            for entry in found
            if core.fits(wanted, entry.record) and (sky is None or core.may_overlap(entry.record.coverage, sky.bitmap))
        ]
        if sky is None and not wanted.column:
            return rough
        kept = []
        for at in range(0, len(rough), 200):  # a card has up to 256 KiB
            part = rough[at : at + 200]
            cards = await self._cards(part)
            for entry, data in zip(part, cards, strict=True):
                if sky is None and core.has_column(wanted.column, entry.record.columns, ()):
                    kept.append(entry)
                    continue
                card = core.read_card(data) if data is not None else None
                if core.fits_card(wanted, entry.record, card) and (sky is None or sky.meets(card)):
                    kept.append(entry)
        return kept

    async def _cards(self, entries: Sequence[CatalogEntry]) -> list[bytes | None]:
        return await self._db.read(lambda conn: [store.card(conn, entry.record.card) for entry in entries])

    async def index(self) -> int:
        """Index all changes that are not indexed yet; returns their number."""
        async with self._indexing:
            count = 0
            while changes := await self._db.read(lambda conn: store.unindexed(conn, INDEX_BATCH)):
                count += await self._index_batch(changes)
            return count

    async def _index_batch(self, changes: Sequence[tuple[int, IslandId, str]]) -> int:
        """Index the first of `changes`, until their cards exceed INDEX_BYTES; returns how many were indexed."""

        def read(conn: sqlite3.Connection) -> tuple[int, list[tuple[CatalogEntry, bytes | None]]]:
            found, size = list[tuple[CatalogEntry, bytes | None]](), 0
            for done, (_, owner, name) in enumerate(changes):
                if size > INDEX_BYTES:
                    return done, found
                if (entry := store.entry(conn, owner, name)) is not None:
                    card = store.card(conn, entry.record.card)
                    found.append((entry, card))
                    size += len(card or b"")
            return len(changes), found

        done, found = await self._db.read(read)
        changes = changes[:done]
        keys = [(owner, name) for _, owner, name in changes]
        display = {owner: self._membership.display(owner) for owner, _ in keys}

        def apply() -> None:
            documents = [
                document(e.owner, e.name, display[e.owner], e.record, core.read_card(card) if card else None)
                for e, card in found
            ]
            here = {(document.owner, document.name) for document in documents}
            self._index.apply(documents, [key for key in keys if key not in here])

        await to_the_end(self._workers.cpu(apply))
        await self._db.write(lambda conn: store.indexed(conn, [change for change, _, _ in changes]))
        return len(changes)


@dataclass(frozen=True, slots=True)
class _Sky:
    """A region as cells of the HEALPix orders at which it is compared with the index, records and cards."""

    index: tuple[list[str], list[str]]
    bitmap: bytes
    order: int
    cells: list[int]

    @classmethod
    def of(cls, region: Region) -> _Sky:
        order = _fine_order(region)
        index = core.query_cells(region.healpix(core.INDEX_ORDER), core.INDEX_ORDER)
        return cls(index, region.bitmap(), order, region.healpix(order))

    def meets(self, card: Card | None) -> bool:
        """Whether the region overlaps a card's MOC. True if the card or its MOC is not known."""
        return card is None or not card.moc or core.moc_overlaps(card.moc, self.cells, self.order)


def _fine_order(region: Region) -> int:
    """The finest order from 5 to 10 at which a region has at most about 20,000 cells."""
    count = max(1, len(region.healpix(5)))
    order = 5
    while order < 10 and count * 4 <= 20_000:
        order, count = order + 1, count * 4
    return order


def _format(text: str) -> str:
    """The wanted format, "" for any; raises `BadInput` for an unknown format."""
    wanted = text.strip().lower()
    if wanted and wanted not in FORMATS:
        raise BadInput(f"'{text[:80]}' is not a format of datasets", hint=f"Use one of {', '.join(FORMATS)}.")
    return wanted
