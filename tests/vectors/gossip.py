"""Writes protocols/vectors/gossip-*.json: `python -m tests.vectors.gossip`.

`tests/gossip/test_vectors.py` checks the files. The output must not change as long as the format
does not change; a new format has another version.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blake3 import blake3

from island.gossip import core
from island.gossip.core import Head, HeadVector, LogBatch
from island.gossip.logs import SIGNATURE
from island.gossip.messages import BatchBody, Delta, DeltaPage, ForkProof, LogEntry, Pull, PullRange, SignedBatch
from island.kernel import codec
from island.kernel.ids import IslandId, NetworkId, key_bytes
from island.kernel.ports import SeededRng
from island.trust.keys import Identity

OUT = Path(__file__).resolve().parents[2] / "protocols" / "vectors"
NETWORK = NetworkId(blake3(b"gossip-v1 vectors").hexdigest())
ME = Identity.generate(SeededRng("gossip-v1"))


def sign(body: bytes, use: str = SIGNATURE, network: NetworkId = NETWORK) -> bytes:
    return codec.encode(SignedBatch(body=body, signature=ME.sign(use, network, body)))


def make(entries: list[Any], *, first: int = 1, previous: bytes = core.ZERO, epoch: int = 1, **more: Any) -> bytes:
    body = {"origin": key_bytes(ME.id), "epoch": epoch, "first": first, "previous": previous, "entries": entries}
    return sign(codec.encode({**body, **more}))


def batch(head: Head, changes: list[tuple[str, bytes | None]]) -> LogBatch:
    (body,) = core.cut_batches(ME.id, head, changes)
    return core.open_batch(sign(body))


def meaning(signed: bytes) -> dict[str, Any]:
    opened = core.open_batch(signed)
    return {
        "origin": opened.origin,
        "epoch": opened.epoch,
        "first": opened.first,
        "last": opened.last,
        "previous": opened.previous.hex(),
        "hash": opened.hash.hex(),
        "entries": [
            {"key": e.key, "value": None if e.value is None else e.value.hex(), "seq": e.seq} for e in opened.entries
        ],
    }


def batches() -> dict[str, Any]:
    one = batch(Head(), [("server/0a1b2c3d", b"value"), ("dataset/ngc", None)])
    two = batch(Head().after(one), [("server/0a1b2c3d", b"")])
    unknown = make([["novelty/x", b"\xc1", 1]], extension={"of": "a later version"})
    valid = {
        "first batch: a value and a tombstone": one.signed,
        "second batch: an empty value is not a tombstone": two.signed,
        "unknown kind, unknown field: stored and relayed unchanged": unknown,
        "longest key, largest value": make([["k/" + "x" * 198, bytes(4096), 1]]),
    }
    other = NetworkId("11" * 32)
    plain = codec.encode(
        BatchBody(
            origin=key_bytes(ME.id),
            epoch=1,
            first=1,
            previous=core.ZERO,
            entries=(LogEntry(key="a/b", value=b"", seq=1),),
        )
    )
    flipped = bytearray(one.signed)
    flipped[-1] ^= 1
    hostile = {
        "signature of another network": (sign(plain, network=other), "signature"),
        "signature for another use": (sign(plain, use="admission"), "signature"),
        "one bit of the signature": (bytes(flipped), "signature"),
        "key without a kind": (make([["nokind", b"", 1]]), "malformed"),
        "key with a space": (make([["a/b c", b"", 1]]), "malformed"),
        "key in capitals": (make([["A/b", b"", 1]]), "malformed"),
        "key not ASCII": (make([["a/é", b"", 1]]), "malformed"),
        "key over 200 bytes": (make([["a/" + "x" * 199, b"", 1]]), "malformed"),
        "value over 4096 bytes": (make([["a/b", bytes(4097), 1]]), "malformed"),
        "value is text": (make([["a/b", "text", 1]]), "malformed"),
        "seq does not begin at first": (make([["a/b", b"", 2]]), "malformed"),
        "seq has a gap": (make([["a/b", b"", 1], ["a/b", b"", 3]]), "malformed"),
        "seq 0": (make([["a/b", b"", 0]], first=0), "malformed"),
        "seq over 2^53": (make([["a/b", b"", 2**53 + 1]], first=2**53 + 1), "malformed"),
        "no entries": (make([]), "malformed"),
        "epoch 0": (make([["a/b", b"", 1]], epoch=0), "malformed"),
        "previous of 31 bytes": (make([["a/b", b"", 1]], previous=bytes(31)), "malformed"),
        "over 24 KiB": (make([[f"a/{n}", bytes(4096), n] for n in range(1, 7)]), "malformed"),
        "bytes after the end": (one.signed + b"\0", "malformed"),
        "cut off": (one.signed[:-1], "malformed"),
        "nested deeply": (b"\x91" * 200 + b"\x90", "malformed"),
        "an array of 2^32-1 elements": (b"\xdd\xff\xff\xff\xff", "malformed"),
        "empty": (b"", "malformed"),
    }
    return {
        "network": NETWORK,
        "cases": [
            *({"name": name, "batch": data.hex(), "means": meaning(data)} for name, data in valid.items()),
            *({"name": name, "batch": data.hex(), "refused": why} for name, (data, why) in hostile.items()),
        ],
    }


def judgements() -> dict[str, Any]:
    one = batch(Head(), [("a/1", b"1"), ("a/2", b"2")])
    two = batch(Head().after(one), [("a/1", b"3")])
    three = batch(Head().after(two), [("a/1", b"4")])
    fork = batch(Head().after(one), [("a/1", b"other")])
    wide = batch(Head(), [("a/1", b"1"), ("a/2", b"2"), ("a/1", b"3")])
    later = make([["a/1", b"", 1]], epoch=2)

    def case(name: str, stored: list[LogBatch], came: bytes, verdict: str) -> dict[str, Any]:
        return {"name": name, "stored": [b.signed.hex() for b in stored], "comes": came.hex(), "verdict": verdict}

    return {
        "network": NETWORK,
        "cases": [
            case("the first", [], one.signed, "stored"),
            case("the next", [one], two.signed, "stored"),
            case("the same again", [one, two], one.signed, "duplicate"),
            case("one is missing", [one], three.signed, "gap"),
            case("no batch is stored", [], two.signed, "gap"),
            case("another batch at the same position", [one, two], fork.signed, "proof"),
            case("another batch that overlaps", [one, two], wide.signed, "proof"),
            case("a batch that follows another branch of the fork", [one, fork], three.signed, "doubt"),
            case("another epoch", [one], later, "ignored"),
        ],
    }


def digests() -> dict[str, Any]:
    def head(seq: int, mark: int, *, frozen: bool = False) -> dict[str, Any]:
        return {"epoch": 1, "seq": seq, "hash": f"{mark:02x}" * 32, "frozen": frozen}

    a, b, c = "0a" * 32, "0b" * 32, "0c" * 32
    pairs: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "both empty": ({}, {}),
        "equal": ({a: head(3, 1)}, {a: head(3, 1)}),
        "ahead and behind": ({a: head(3, 1), b: head(2, 2)}, {a: head(5, 3), b: head(1, 4)}),
        "different rosters": ({a: head(3, 1), b: head(2, 2)}, {a: head(3, 1), c: head(1, 4)}),
        "fork at one number": ({a: head(3, 1)}, {a: head(3, 2)}),
        "frozen there": ({a: head(3, 1)}, {a: head(4, 2, frozen=True)}),
        "frozen here": ({a: head(3, 1, frozen=True)}, {a: head(4, 2)}),
        "frozen on both sides is equal": ({a: head(3, 1, frozen=True)}, {a: head(4, 2, frozen=True)}),
    }
    return {"cases": [digest_case(name, mine, theirs) for name, (mine, theirs) in pairs.items()]}


def positions(heads: dict[str, Any]) -> HeadVector:
    return HeadVector(
        {
            IslandId(o): Head(h["epoch"], h["seq"], bytes.fromhex(h["hash"]), h["frozen"])
            for o, h in sorted(heads.items())
        }
    )


def digest_case(name: str, mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    here, there = positions(mine), positions(theirs)
    asked = here.digest()
    answer = there.answer(asked)
    heads, until = here.read(asked, answer)
    equal = (asked.roster, asked.root) == (answer.roster, answer.root)
    difference = core.Difference() if equal else core.compare_heads(here, heads, b"", until)

    def plain(wants: list[PullRange]) -> list[dict[str, Any]]:
        return [{"origin": w.origin.hex(), "epoch": w.epoch, "after": w.after} for w in wants]

    return {
        "name": name,
        "mine": mine,
        "theirs": theirs,
        "roster": asked.roster.hex(),
        "root": asked.root.hex(),
        "digest": codec.encode(asked).hex(),
        "answer": codec.encode(answer).hex(),
        "wants": plain(difference.wants),
        "offers": plain(difference.offers),
    }


def messages() -> dict[str, Any]:
    one = batch(Head(), [("a/1", b"1")])
    other = batch(Head(), [("a/1", b"2")])
    delta = Delta(origin=key_bytes(ME.id), chain=b"chain", batches=(one.signed,))
    proof = Delta(origin=key_bytes(ME.id), proof=ForkProof(one=one.signed, other=other.signed))
    wants = (PullRange(origin=key_bytes(ME.id), epoch=1, after=7),)
    return {
        "cases": [
            {"name": "pull", "type": "Pull", "bytes": codec.encode(Pull(wants=wants)).hex()},
            {"name": "page", "type": "Page", "bytes": codec.encode(DeltaPage(deltas=(delta,), more=True)).hex()},
            {"name": "page with a proof", "type": "Page", "bytes": codec.encode(DeltaPage(deltas=(proof,))).hex()},
            {"name": "empty page", "type": "Page", "bytes": codec.encode(DeltaPage()).hex()},
            {"name": "pull of nothing", "type": "Pull", "bytes": codec.encode({"wants": []}).hex(), "refused": True},
            {"name": "pull after -1", "type": "Pull", "bytes": _pull(after=-1).hex(), "refused": True},
            {"name": "pull of 201", "type": "Pull", "bytes": _pull(count=201).hex(), "refused": True},
            {"name": "key of 31 bytes", "type": "Pull", "bytes": _pull(size=31).hex(), "refused": True},
        ]
    }


def _pull(*, after: int = 0, count: int = 1, size: int = 32) -> bytes:
    return codec.encode({"wants": [[bytes(size), 1, after]] * count})


FILES = {
    "gossip-batches.json": batches,
    "gossip-logs.json": judgements,
    "gossip-digests.json": digests,
    "gossip-messages.json": messages,
}

if __name__ == "__main__":
    for file, content in FILES.items():
        (OUT / file).write_text(json.dumps(content(), indent=1, ensure_ascii=False) + "\n", "utf-8")
