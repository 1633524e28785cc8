"""The test vectors of manifest-v1 and catalog-v1: bytes and what they mean, checked for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from island.catalog import core, manifest
from island.catalog.manifest import FileEntry, FileHasher, PageRef
from island.catalog.messages import RECORD_LIMIT, Card, DatasetRecord, ReplicaRecord
from island.errors import IslandError
from island.kernel import codec

VECTORS = Path(__file__).resolve().parents[2] / "protocols" / "vectors"


def cases(name: str) -> list[Any]:
    found = json.loads((VECTORS / name).read_text("utf-8"))["cases"]
    return [pytest.param(case, id=str(case.get("name", number))) for number, case in enumerate(found)]


@pytest.mark.parametrize("case", cases("manifest-borders.json"))
def test_borders(case: dict[str, Any]) -> None:
    assert list(manifest.borders(case["size"], case["offsets"])) == case["ends"]


@pytest.mark.parametrize("case", cases("manifest-hashes.json"))
def test_hashes(case: dict[str, Any]) -> None:
    data = bytes((31 * i + case["seed"]) % 251 for i in range(case["size"]))
    pages: dict[str, str] = {}

    def sink(page: bytes) -> str:
        pages[manifest.blob_hash(page)] = page.hex()
        return manifest.blob_hash(page)

    chunks: list[dict[str, Any]] = []
    hasher, at = FileHasher(sink), 0
    for end in manifest.borders(case["size"], case["offsets"]):
        chunks.append({"length": end - at, "hash": manifest.chunk_hash(data[at:end]).hex()})
        hasher.add(data[at:end])
        at = end
    entry = hasher.finish("a", form="parquet", rows=1)
    assert len(chunks) == case["chunk_count"] == entry.chunks
    assert (chunks if len(chunks) < 8 else chunks[:2] + chunks[-2:]) == case["chunks"]
    groups = [
        manifest.group_hash(
            [chunk["length"] for chunk in chunks[start : start + 64]],
            [bytes.fromhex(chunk["hash"]) for chunk in chunks[start : start + 64]],
        ).hex()
        for start in range(0, len(chunks), 64)
    ]
    assert (groups, entry.hash.hex()) == (case["groups"], case["file"])
    assert codec.encode(entry).hex() == case["entry"]
    assert codec.decode(bytes.fromhex(case["entry"]), FileEntry) == entry
    assert (pages if isinstance(case["pages"], dict) else sorted(pages)) == case["pages"]


def read_page(case: dict[str, Any]) -> object:
    data = bytes.fromhex(case["bytes"])
    if case["kind"] == "root":
        root = manifest.decode_root(data)
        assert manifest.blob_hash(data) == case["snapshot"]
        assert codec.encode(root) == data
        return root
    ref = codec.decode(bytes.fromhex(case["ref"]), PageRef)
    return manifest.decode_page(data, ref) if case["kind"] == "files" else manifest.decode_stats(data, ref)


@pytest.mark.parametrize("case", cases("manifest-pages.json"))
def test_pages(case: dict[str, Any]) -> None:
    if case["valid"]:
        assert read_page(case)
        return
    with pytest.raises(IslandError):
        read_page(case)


@pytest.mark.parametrize("case", cases("catalog-coverage.json"))
def test_coverages(case: dict[str, Any]) -> None:
    packed = bytes.fromhex(case["packed"])
    if not case["valid"]:
        with pytest.raises(IslandError):
            core.unpack_coverage(packed)
        return
    order, bitmap = core.unpack_coverage(packed)
    number = int.from_bytes(bitmap, "little")
    found = [cell for cell in range(core.cells(order)) if number >> cell & 1]
    cells = case["cells"]
    if isinstance(cells, dict):
        assert (len(found), found[:3], found[1] - found[0]) == (cells["count"], cells["first"], cells["step"])
    else:
        assert found == cells
    assert order == case["order"]
    assert core.pack_coverage(bitmap) == packed


def read_record(case: dict[str, Any]) -> DatasetRecord | ReplicaRecord | Card:
    data = bytes.fromhex(case["bytes"])
    if case["kind"] == "card":
        return core.read_card(data)
    if case["kind"] == "replica":
        return codec.decode(data, ReplicaRecord, limit=RECORD_LIMIT)
    return codec.decode(data, DatasetRecord, limit=RECORD_LIMIT)


@pytest.mark.parametrize("case", cases("catalog-records.json"))
def test_records(case: dict[str, Any]) -> None:
    if not case["valid"]:
        with pytest.raises(IslandError):
            read_record(case)
        return
    found = read_record(case)
    assert json.loads(json.dumps(msgspec.to_builtins(found))) == case["meaning"]
