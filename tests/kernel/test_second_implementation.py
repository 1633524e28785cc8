"""Every message in `protocols/vectors` means the same to msgpack, an implementation of its own, as to the codec."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from island.catalog.manifest import ChunkPage, FileEntry, FilePage, HashIndex, PageRef, Root, StatsPage
from island.catalog.messages import Card, DatasetRecord, ReplicaRecord
from island.gossip.messages import BatchBody, DeltaPage, Digest, Heads, Pull, SignedBatch
from island.kernel import codec
from island.kernel.codec import Malformed, Message
from island.net.frames import Hello, RequestHead
from island.replicas.messages import ChunkRequest
from island.trust.messages import Admission, AdmissionLink, Chain, Genesis, HeadHeld, HeadOffer, Invitation

VECTORS = Path(__file__).resolve().parents[2] / "protocols" / "vectors"

WHOLE: dict[str, dict[str, type[Message]]] = {
    "gossip-batches.json": {"batch": SignedBatch},
    "gossip-digests.json": {"digest": Digest, "answer": Heads},
    "gossip-logs.json": {"comes": SignedBatch, "stored": SignedBatch},
    "manifest-hashes.json": {"entry": FileEntry},
    "manifest-pages.json": {"ref": PageRef},
    "replicas-requests.json": {"bytes": ChunkRequest},
    "session-handshake.json": {"hello_dialler": Hello, "hello_listener": Hello},
    "trust-chains.json": {"chain": Chain, "genesis": Genesis},
    "trust-invitations.json": {"body": Invitation},
    "trust-journal-heads.json": {"offer": HeadOffer, "answer": HeadHeld},
}
"""By file, the keys under which a message stands in hex."""

NAMED: dict[str, tuple[str, dict[str, type[Message]]]] = {
    "catalog-records.json": ("kind", {"dataset": DatasetRecord, "replica": ReplicaRecord, "card": Card}),
    "gossip-messages.json": ("type", {"Pull": Pull, "Page": DeltaPage}),
    "manifest-pages.json": (
        "kind",
        {"root": Root, "files": FilePage, "stats": StatsPage},
    ),
}
"""By file, the key that says which type stands under `bytes`."""

INSIDE: dict[tuple[type[Message], str], type[Message]] = {
    (SignedBatch, "body"): BatchBody,
    (Chain, "genesis"): Genesis,
    (Invitation, "genesis"): Genesis,
    (Admission, "link"): AdmissionLink,
}
"""Fields that hold the bytes of another message."""

OTHERS = {
    "catalog-coverage.json", "manifest-borders.json", "trust-journal.json", "trust-signatures.json",
}  # fmt: skip
"""Files without messages."""


def messages() -> Iterator[tuple[str, type[Message], bytes]]:
    for path in sorted(VECTORS.glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        whole, (name, kinds) = WHOLE.get(path.name, {}), NAMED.get(path.name, ("", {}))
        for node in _nodes(content):
            for key, kind in whole.items():
                found = node.get(key, [])
                for text in found if isinstance(found, list) else [found]:
                    yield path.name, kind, bytes.fromhex(text)
            if name in node and "bytes" in node:
                yield path.name, kinds[node[name]], bytes.fromhex(node["bytes"])
            if path.name == "manifest-hashes.json" and isinstance(pages := node.get("pages"), dict):
                for data in map(bytes.fromhex, pages.values()):
                    yield path.name, ChunkPage if b"lengths" in data else HashIndex, data
            if path.name == "session-frames.json" and "frame" in node and node.get("type") in {18, 21, 32}:
                payload = bytes.fromhex(node["frame"])[9:]
                yield path.name, RequestHead, payload[2 : 2 + int.from_bytes(payload[:2], "big")]


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(below)


MESSAGES = list(messages())


def test_every_file_of_vectors_is_read() -> None:
    files = {path.name for path in VECTORS.glob("*.json")}
    assert {file for file, _, _ in MESSAGES} == files - OTHERS
    assert len(MESSAGES) > 120


def plain(value: Any) -> Any:
    """What msgpack makes of a struct's meaning: maps and lists, defaults left out."""
    return msgspec.to_builtins(value, builtin_types=(bytes,))


@pytest.mark.parametrize("file", sorted({file for file, _, _ in MESSAGES}))
def test_both_implementations_read_and_write_the_same(file: str) -> None:
    valid = 0
    for _, kind, data in (message for message in MESSAGES if message[0] == file):
        valid += check(kind, data)
    assert valid


def check(kind: type[Message], data: bytes) -> bool:
    """Whether the codec takes these bytes; if it does, msgpack must find the same in them, and write the same."""
    try:
        value = codec.decode(data, kind)
    except Malformed:
        return False
    theirs = msgpack.unpackb(data, strict_map_key=False)
    ours = _listed(plain(value))
    assert msgpack.unpackb(codec.encode(value)) == ours
    assert ours == _known(theirs, ours)
    assert codec.decode(msgpack.packb(ours), kind) == value
    assert codec.decode(msgpack.packb(theirs), kind) == value
    for (outer, field), inner in INSIDE.items():
        if kind is outer:
            check(inner, getattr(value, field))
    for admission in value.links if isinstance(value, Chain) else ():
        check(Admission, codec.encode(admission))
    return True


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, (list, tuple)) else value


def _known(theirs: Any, ours: Any) -> Any:
    """`theirs` without the fields that are unknown here, and without those that say the default."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return {key: _known(each, ours[key]) for key, each in theirs.items() if key in ours}
    if isinstance(theirs, list) and isinstance(ours, list):
        return [_known(each, mine) for each, mine in zip(theirs, ours, strict=True)]
    return theirs
