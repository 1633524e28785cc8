"""The test vectors of gossip-v1: bytes and what they mean, valid and hostile, checked for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from island.gossip import core
from island.gossip.core import BatchVerdict, Head, LogBatch
from island.gossip.logs import SIGNATURE
from island.gossip.messages import DeltaPage, Digest, Heads, Pull
from island.kernel import codec
from island.kernel.codec import Malformed, Message
from island.kernel.ids import NetworkId
from island.trust.signing import verify
from tests.vectors.gossip import FILES, digest_case, meaning, positions

VECTORS = Path(__file__).resolve().parents[2] / "protocols" / "vectors"


def cases(file: str) -> list[Any]:
    found = json.loads((VECTORS / file).read_text("utf-8"))
    return [pytest.param(case, NetworkId(found.get("network", "")), id=case["name"]) for case in found["cases"]]


def signed(batch: LogBatch, network: NetworkId) -> bool:
    return verify(batch.origin, SIGNATURE, network, batch.body, batch.signature)


@pytest.mark.parametrize(("case", "network"), cases("gossip-batches.json"))
def test_batches(case: dict[str, Any], network: NetworkId) -> None:
    data = bytes.fromhex(case["batch"])
    if case.get("refused") == "malformed":
        with pytest.raises(Malformed):
            core.open_batch(data)
        return
    assert signed(core.open_batch(data), network) == ("refused" not in case)
    if "means" in case:
        assert meaning(data) == case["means"]


@pytest.mark.parametrize(("case", "network"), cases("gossip-logs.json"))
def test_logs(case: dict[str, Any], network: NetworkId) -> None:
    stored = [core.open_batch(bytes.fromhex(one)) for one in case["stored"]]
    head = Head()
    for one in stored:
        assert signed(one, network)
        assert core.judge_batch(head, one) is BatchVerdict.FITS
        head = head.after(one)
    comes = core.open_batch(bytes.fromhex(case["comes"]))
    verdict = core.judge_batch(head, comes)
    proved = any(core.contradict(one, comes) for one in stored)
    words = {
        BatchVerdict.FITS: "stored",
        BatchVerdict.GAP: "gap",
        BatchVerdict.BREAKS: "doubt",
        BatchVerdict.OTHER_EPOCH: "ignored",
        BatchVerdict.PAST: "proof" if proved else "duplicate",
    }
    assert words[verdict] == case["verdict"]


@pytest.mark.parametrize(("case", "network"), cases("gossip-digests.json"))
def test_digests(case: dict[str, Any], network: NetworkId) -> None:
    digest = codec.decode(bytes.fromhex(case["digest"]), Digest)
    assert (digest.roster.hex(), digest.root.hex()) == (case["roster"], case["root"])
    assert positions(case["mine"]).digest() == digest
    assert positions(case["theirs"]).answer(digest) == codec.decode(bytes.fromhex(case["answer"]), Heads)
    assert digest_case(case["name"], case["mine"], case["theirs"]) == case


@pytest.mark.parametrize(("case", "network"), cases("gossip-messages.json"))
def test_messages(case: dict[str, Any], network: NetworkId) -> None:
    kinds: dict[str, type[Message]] = {"Pull": Pull, "Page": DeltaPage}
    data, kind = bytes.fromhex(case["bytes"]), kinds[case["type"]]
    if case.get("refused"):
        with pytest.raises(Malformed):
            codec.decode(data, kind)
    else:
        assert codec.encode(codec.decode(data, kind)) == data


@pytest.mark.parametrize("file", sorted(FILES))
def test_the_generator_still_makes_these_files(file: str) -> None:
    assert json.loads((VECTORS / file).read_text("utf-8")) == json.loads(json.dumps(FILES[file]()))
