"""The full-text index of datasets, derived from the catalog and rebuilt if it is missing or damaged.

Each document is one dataset. `words` has stemmed English words, so that "galaxy" finds "galaxies".
`plain` has the words without stemming, to search for prefixes. Queries are split into plain words
before, so that they have no syntax and cannot be malformed.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import tantivy

from island.catalog import core
from island.catalog.messages import Card, DatasetRecord
from island.errors import Full
from island.kernel.ids import IslandId

log = structlog.get_logger("island")

VERSION = "2"
_HEAP = 32 * 1024 * 1024
_MAX_TEXT = 200_000
Key = tuple[IslandId, str]


@dataclass(frozen=True, slots=True)
class IndexDocument:
    """The indexed content of one dataset."""

    owner: IslandId
    name: str
    title: str
    text: str
    cells: tuple[list[str], list[str]]
    """The result of `core.index_cells`."""


def document(owner: IslandId, name: str, island: str, record: DatasetRecord, card: Card | None) -> IndexDocument:
    """Build the document of a dataset from its record and, if it is known, its card."""
    parts = [name, island, record.format, *record.columns]
    if card is not None:
        parts += [card.description, card.licence, *(value for _, value in card.details)]
        for column in card.columns:
            parts += [column.name, column.ucd, column.description]
    return IndexDocument(owner, name, record.title, "\n".join(parts)[:_MAX_TEXT], core.index_cells(record.coverage))


class WordIndex:
    """A tantivy index in a folder. All methods block, so call them from a thread. A lock serializes writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index: Any = None
        self._lock = threading.Lock()

    def open(self, *, rebuild: bool = False) -> bool:
        """Open the index; returns True if it is new and empty.

        It is created again with `rebuild`, or if it is missing, damaged or of another version.
        """
        with self._lock:
            if not rebuild:
                return self._open()
            self._rebuild()
            return True

    def _open(self) -> bool:
        marker = self._folder / "version"
        try:
            if marker.is_file() and marker.read_text() == VERSION and tantivy.Index.exists(str(self._folder)):
                self._index = tantivy.Index.open(str(self._folder))
                self._index.searcher()
                return False
        except Exception as error:  # noqa: BLE001 - the library raises ValueError, OSError and its own
            log.warning("search.damaged", folder=str(self._folder), error=str(error))
        self._rebuild()
        return True

    def _rebuild(self) -> None:
        self._index = None
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._index = tantivy.Index(_schema(), path=str(self._folder))
        (self._folder / "version").write_text(VERSION)
        log.info("search.rebuild", folder=str(self._folder))

    def apply(self, changed: Iterable[IndexDocument], gone: Iterable[Key]) -> None:
        """Replace the documents of `changed` datasets and delete those of `gone` ones, durably. Raises `Full`."""
        with self._lock:
            try:
                self._write(changed, gone)
            except (ValueError, OSError) as error:  # the library raises these when the disk is full
                raise Full(
                    f"the search index in {self._folder} cannot be written: {str(error)[:200]}",
                    hint="Check that disk and free some space. The index is then updated automatically.",
                ) from error
            self._index.reload()

    def _write(self, changed: Iterable[IndexDocument], gone: Iterable[Key]) -> None:
        writer = self._index.writer(_HEAP, 1)
        try:
            for owner, name in gone:
                writer.delete_documents_by_term("key", f"{owner}/{name}")
            for item in changed:
                key = f"{item.owner}/{item.name}"
                writer.delete_documents_by_term("key", key)
                writer.add_document(
                    tantivy.Document(
                        key=key,
                        title=item.title,
                        name=item.name,
                        words=item.text,
                        plain=f"{item.title}\n{item.text}",
                        cell=item.cells[0],
                        above=item.cells[1],
                    )
                )
            writer.commit()
        finally:
            writer.wait_merging_threads()

    def find(self, words: Sequence[str], cells: tuple[Sequence[str], Sequence[str]] | None, limit: int) -> list[Key]:
        """Find at most `limit` datasets that contain all words, or words that begin with them; best matches first.

        With `cells` (the result of `core.query_cells`), only datasets whose coverage shares a cell with them.
        """
        searcher, schema = self._index.searcher(), self._index.schema
        parts = [(tantivy.Occur.Must, self._word_query(word)) for word in words]
        if cells is not None:
            either = [
                (tantivy.Occur.Should, tantivy.Query.term_set_query(schema, name, list(terms)))
                for name, terms in zip(("cell", "above"), cells, strict=True)
            ]
            sky = tantivy.Query.const_score_query(tantivy.Query.boolean_query(either), 0.0)
            parts.append((tantivy.Occur.Must, sky))
        found = []
        for _, address in searcher.search(tantivy.Query.boolean_query(parts), limit).hits:
            owner, _, name = searcher.doc(address)["key"][0].partition("/")
            found.append((IslandId(owner), name))
        return found

    def _word_query(self, word: str) -> Any:
        # The word has only letters and digits, so it needs no escaping in either syntax.
        stemmed = self._index.parse_query(f'"{word}"', ["title", "name", "words"], {"title": 3.0, "name": 3.0})
        if len(word) < 3:
            return stemmed
        begins = tantivy.Query.regex_query(self._index.schema, "plain", f"{word}.*")
        return tantivy.Query.boolean_query([(tantivy.Occur.Should, stemmed), (tantivy.Occur.Should, begins)])


def _schema() -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("key", stored=True, tokenizer_name="raw", index_option="basic")
    for name in ("cell", "above"):
        builder.add_text_field(name, tokenizer_name="raw", index_option="basic")
    for name in ("title", "name", "words"):
        builder.add_text_field(name, tokenizer_name="en_stem", index_option="position")
    builder.add_text_field("plain", tokenizer_name="default", index_option="basic")
    return builder.build()
