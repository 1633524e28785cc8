"""The vectors of `protocols/` say what the code does, and hostile ones are refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from island.errors import BadInput, PeerMisbehaved
from island.kernel import codec
from island.kernel.ids import IslandId, NetworkId, island_id
from island.net import frames
from island.net.frames import Hello
from island.net.handshake import transcript
from island.trust import core, journal
from island.trust.messages import HEAD_LIMIT, HeadHeld, HeadOffer
from island.trust.signing import signed_bytes, verify
from tests.vectors.trust import FOLDER, VECTORS


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize("name", VECTORS)
def test_what_is_written_now_is_what_was_written(name: str) -> None:
    assert json.loads(json.dumps(VECTORS[name]())) == load(name)


def test_signatures() -> None:
    found = load("trust-signatures")
    island, network = IslandId(found["islands"][0]), NetworkId(found["network"])
    for case in found["cases"]:
        payload, signature = bytes.fromhex(case["payload"]), bytes.fromhex(case["signature"])
        assert signed_bytes(case["kind"], network, payload).hex() == case["signed"]
        assert verify(island, case["kind"], network, payload, signature)


def test_chains() -> None:
    found = load("trust-chains")
    network = NetworkId(found["network"])
    assert core.network_id(bytes.fromhex(found["genesis"])) == network
    for case in found["valid"]:
        holder = core.verify_chain(network, bytes.fromhex(case["chain"]))
        assert (holder.island, holder.name, holder.may_invite) == (case["holder"], case["name"], case["may_invite"])
    for case in found["hostile"]:
        with pytest.raises(PeerMisbehaved):
            core.verify_chain(network, bytes.fromhex(case["chain"]))


def test_invitations() -> None:
    found = load("trust-invitations")
    read = core.parse_invitation(found["word"])
    assert codec.encode(read).hex() == found["body"] and core.network_id(read.genesis) == found["network"]
    assert (island_id(read.inviter), list(read.addresses)) == (found["inviter"], found["addresses"])
    assert core.secret_hash(read.secret).hex() == found["secret_hash"]
    for case in found["hostile"]:
        with pytest.raises(BadInput) as caught:
            core.parse_invitation(case["word"])
        assert caught.value.code == case["error"]


def test_journal() -> None:
    previous = journal.FIRST
    for row in load("trust-journal")["rows"]:
        assert row["previous"] == previous.hex()
        content = [row[key] for key in ("seq", "at", "who", "act", "what", "outcome", "detail")]
        previous = journal._hash(previous, content)
        assert row["hash"] == previous.hex()


def test_journal_heads() -> None:
    found = load("trust-journal-heads")
    island, network = IslandId(found["island"]), NetworkId(found["network"])

    def read(data: str) -> HeadOffer:
        offer = codec.decode(bytes.fromhex(data), HeadOffer, limit=HEAD_LIMIT)
        if offer.head is not None:
            payload = codec.encode([offer.head.generation, offer.head.seq, offer.head.hash])
            if not verify(island, "journal-head", network, payload, offer.head.signature):
                raise PeerMisbehaved("the signature is wrong")
        return offer

    held = core.HeldHead()
    for step in found["steps"]:
        held = core.weigh_head(held, read(step["offer"]))
        assert (codec.encode(HeadHeld(head=held.head)).hex(), held.mismatch) == (step["answer"], step["mismatch"])
    for case in found["hostile"]:
        with pytest.raises(PeerMisbehaved):
            read(case["offer"])


def test_handshake() -> None:
    found = load("session-handshake")
    network = NetworkId(found["network"])
    hellos = [bytes.fromhex(found[f"hello_{role}"]) for role in ("dialler", "listener")]
    for role, hello in (("dialler", hellos[0]), ("listener", hellos[1])):
        payload = transcript(role, network, hellos[0], hellos[1], bytes.fromhex(found["certificate"]))  # type: ignore[arg-type]  # a role
        assert payload.hex() == found[f"transcript_{role}"]
        island = island_id(codec.decode(hello, Hello).key)
        assert verify(island, "session", network, payload, bytes.fromhex(found[f"proof_{role}"]))
        assert core.verify_chain(network, codec.decode(hello, Hello).chain).island == island


async def read_one(data: bytes) -> frames.Frame:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await frames.read_frame(reader, frames.CONTROL_FRAME)


async def test_frames() -> None:
    found = load("session-frames")
    for case in found["valid"]:
        frame = await read_one(bytes.fromhex(case["frame"]))
        assert (frame.type, frame.id) == (case["type"], case["id"])
        if "payload" in case:
            assert frame.payload.hex() == case["payload"]
            continue
        head, body = frames.split_headed(frame.payload)
        assert (head.kind, head.hops, head.to.hex(), body.hex()) == (
            case["kind"],
            case["hops"],
            case["to"],
            case["body"],
        )
    for case in found["hostile"]:
        with pytest.raises(PeerMisbehaved):
            frames.split_headed((await read_one(bytes.fromhex(case["frame"]))).payload)
