"""Writes protocols/vectors/trust-*.json and session-*.json: `python -m tests.vectors.trust`.

A difference to the existing files means that the protocol has changed.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from island.kernel import codec
from island.kernel.db import Database
from island.kernel.ids import NetworkId, key_bytes
from island.kernel.ports import SeededRng
from island.net import frames
from island.net.frames import FrameType, Hello, RequestHead
from island.net.handshake import transcript
from island.trust import core, heads, journal
from island.trust.keys import Identity
from island.trust.messages import Admission, AdmissionLink, Chain, HeadHeld, HeadOffer, Invitation, JournalHead
from island.trust.signing import signed_bytes

FOLDER = Path(__file__).resolve().parents[2] / "protocols" / "vectors"


class _Fixed(SeededRng):
    """Repeats one byte, so that other implementations can produce the same bytes."""

    def __init__(self, byte: int) -> None:
        super().__init__(byte)
        self._byte = byte

    def bytes(self, count: int) -> bytes:
        return bytes([self._byte]) * count


ISLANDS = [Identity.generate(_Fixed(n)) for n in range(1, 12)]
GENESIS = core.found_network("test vectors", bytes(range(32)), ISLANDS[0].id, key_bytes(ISLANDS[10].id))
NETWORK = core.network_id(GENESIS)


def signatures() -> dict[str, Any]:
    """Signatures and the bytes that are signed."""
    cases = []
    for kind, payload in (("admission", b""), ("session", b"payload"), ("journal", bytes(range(256)))):
        cases.append(
            {
                "kind": kind,
                "payload": payload.hex(),
                "signed": signed_bytes(kind, NETWORK, payload).hex(),
                "signature": ISLANDS[0].sign(kind, NETWORK, payload).hex(),
            }
        )
    return {
        "what": "Signatures of island 1. The private key of island n is the byte n, 32 times.",
        "islands": [identity.id for identity in ISLANDS],
        "network": NETWORK,
        "cases": cases,
    }


def chain_to(depth: int) -> Chain:
    """The chain from the founder, island 1, to island 1 + depth."""
    chain = core.founder_chain(GENESIS, ISLANDS[0].id)
    for n in range(depth):
        chain = core.admit_key(chain, ISLANDS[n], ISLANDS[n + 1].id, f"island-{n + 2}")
    return chain


def _signed(by: int, link: AdmissionLink | bytes, network: NetworkId = NETWORK) -> Admission:
    data = link if isinstance(link, bytes) else codec.encode(link)
    return Admission(link=data, signature=ISLANDS[by].sign("admission", network, data))


def _link(by: int, key: int, **more: Any) -> AdmissionLink:
    return AdmissionLink(key=key_bytes(ISLANDS[key].id), name="x", by=key_bytes(ISLANDS[by].id), **more)


def _chain(*links: Admission, founder: int = 0) -> bytes:
    return codec.encode(Chain(genesis=GENESIS, founder=key_bytes(ISLANDS[founder].id), links=links))


def chains() -> dict[str, Any]:
    """Valid chains, and chains that must be refused."""
    valid = []
    for depth in (0, 1, 2, 8):
        chain = chain_to(depth)
        valid.append(
            {
                "meaning": f"{depth} links",
                "chain": codec.encode(chain).hex(),
                "links": [admission.link.hex() for admission in chain.links],
                "holder": ISLANDS[depth].id,
                "name": f"island-{depth + 1}" if depth else None,
                "may_invite": True,
            }
        )
    later = msgspec.to_builtins(_link(0, 1), builtin_types=(bytes,)) | {"from_a_later_version": 1}
    valid += [
        {
            "meaning": "an unknown field is covered by the signature and ignored",
            "chain": _chain(_signed(0, codec.encode(later))).hex(),
            "holder": ISLANDS[1].id,
            "name": "x",
            "may_invite": True,
        },
        {
            "meaning": "a member that may not invite",
            "chain": _chain(_signed(0, _link(0, 1, may_invite=False))).hex(),
            "holder": ISLANDS[1].id,
            "name": "x",
            "may_invite": False,
        },
    ]
    eight = chain_to(8)
    hostile = {
        "signed by another key": _chain(_signed(2, _link(0, 1))),
        "signed for another network": _chain(_signed(0, _link(0, 1), NetworkId("00" * 32))),
        "links that do not follow each other": _chain(_signed(0, _link(0, 1)), _signed(2, _link(2, 3))),
        "a link by a member that may not invite": _chain(
            _signed(0, _link(0, 1, may_invite=False)), _signed(1, _link(1, 2))
        ),
        "the same key twice": _chain(_signed(0, _link(0, 1)), _signed(1, _link(1, 0))),
        "a key that is not a founder": _chain(founder=3),
        "nine links": codec.encode(
            Chain(genesis=GENESIS, founder=eight.founder, links=(*eight.links, _signed(8, _link(8, 9))))
        ),
        "another genesis": codec.encode(
            Chain(
                genesis=core.found_network("x", bytes(32), ISLANDS[0].id, bytes(32)), founder=key_bytes(ISLANDS[0].id)
            )
        ),
        "cut off": codec.encode(eight)[:-1],
        "a byte too many": codec.encode(eight) + b"\0",
        "deeply nested": b"\x91" * 4000,
        "not msgpack": b"\xc1",
        "empty": b"",
    }
    return {
        "what": "Chains of admissions in one network; hostile ones are refused.",
        "network": NETWORK,
        "genesis": GENESIS.hex(),
        "valid": valid,
        "hostile": [{"meaning": meaning, "chain": data.hex()} for meaning, data in hostile.items()],
    }


def invitations() -> dict[str, Any]:
    """Invitations as text."""
    invitation = Invitation(
        genesis=GENESIS,
        inviter=key_bytes(ISLANDS[0].id),
        name="lapalma",
        addresses=("island.example.org:8991", "[2001:db8::1]:8991"),
        secret=bytes(range(16)),
        expires=1_800_000_000,
    )
    word = core.format_invitation(invitation)
    nonsense = codec.encode({"genesis": b"\x80"})
    hostile = {
        "a letter changed": (word[:50] + ("A" if word[50] != "A" else "B") + word[51:], "invitation_altered"),
        "cut off": (word[:-4], "invitation_altered"),
        "another version": (word.replace("island1-", "island2-"), "invitation_malformed"),
        "an invalid letter": (word[:-1] + "!", "invitation_malformed"),
        "a valid checksum of invalid data": (
            core.PREFIX + base64.urlsafe_b64encode(nonsense + core._checksum(nonsense)).rstrip(b"=").decode(),
            "invitation_malformed",
        ),
        "empty": ("", "invitation_malformed"),
    }
    return {
        "what": "An invitation: its text and its content. Hostile ones are refused.",
        "word": word,
        "body": codec.encode(invitation).hex(),
        "inviter": ISLANDS[0].id,
        "name": invitation.name,
        "addresses": list(invitation.addresses),
        "secret": invitation.secret.hex(),
        "secret_hash": core.secret_hash(invitation.secret).hex(),
        "expires": invitation.expires,
        "network": NETWORK,
        "hostile": [{"meaning": meaning, "word": text, "error": code} for meaning, (text, code) in hostile.items()],
    }


def journals() -> dict[str, Any]:
    """Rows of a journal and their hashes."""

    def fill(conn: sqlite3.Connection) -> list[dict[str, Any]]:
        for n in range(1, 4):
            journal.append(
                conn, at=1_800_000_000.5 + n, who="administrator@lapalma", act="peer.invite", what=f"no. {n} ä",
                outcome="done", detail={"uses": n, "b": None},
            )  # fmt: skip
        return [dict(row) for row in conn.execute("SELECT * FROM journal ORDER BY seq")]

    with tempfile.TemporaryDirectory() as folder:
        state = Database.open(Path(folder), "state")
        rows = fill(state._writer)
        state.close()
    return {
        "what": "Rows of a journal; `hash` covers `previous` and the content.",
        "rows": [{**row, "previous": row["previous"].hex(), "hash": row["hash"].hex()} for row in rows],
    }


def _head(by: int, generation: int, seq: int, mark: int, network: NetworkId = NETWORK) -> JournalHead:
    digest = bytes([mark]) * 32
    signature = ISLANDS[by].sign(heads.SIGNATURE, network, heads.head_payload(generation, seq, digest))
    return JournalHead(generation=generation, seq=seq, hash=digest, signature=signature)


def journal_heads() -> dict[str, Any]:
    """Heads that island 1 offers one after the other, and the head that the receiver keeps after each."""
    offers = [
        ("the first head is kept", HeadOffer(head=_head(0, 1, 10, 1))),
        ("a higher row without a link to the held row changes nothing", HeadOffer(head=_head(0, 1, 12, 2))),
        ("a lower row: the journal was cut", HeadOffer(head=_head(0, 1, 9, 3))),
        ("the held head again: no mismatch", HeadOffer(head=_head(0, 1, 10, 1))),
        ("another hash at the same row: a fork", HeadOffer(head=_head(0, 1, 10, 4))),
        ("a higher row linked to another row 10: a fork", HeadOffer(head=_head(0, 1, 12, 5), since=10)),
        (
            "a higher row linked to the held row is kept",
            HeadOffer(head=_head(0, 1, 12, 2), since=10, since_hash=bytes([1]) * 32),
        ),
        ("no head: the island reports that its journal was changed", HeadOffer()),
        ("a new generation is kept with any row", HeadOffer(head=_head(0, 2, 3, 6))),
        ("an older generation: cut", HeadOffer(head=_head(0, 1, 2**53, 7))),
    ]
    held, steps = core.HeldHead(), []
    for meaning, given in offers:
        held = core.weigh_head(held, given)
        steps.append(
            {
                "meaning": meaning,
                "offer": codec.encode(given).hex(),
                "answer": codec.encode(HeadHeld(head=held.head)).hex(),
                "mismatch": held.mismatch,
            }
        )
    good = msgspec.to_builtins(_head(0, 1, 10, 1), builtin_types=(bytes,))
    hostile = {
        "signed by another island": codec.encode(HeadOffer(head=_head(1, 1, 10, 1))),
        "signed for another network": codec.encode(HeadOffer(head=_head(0, 1, 10, 1, NetworkId("00" * 32)))),
        "another row than was signed": codec.encode({"head": good | {"seq": 11}}),
        "another generation than was signed": codec.encode({"head": good | {"generation": 2}}),
        "row 0": codec.encode({"head": good | {"seq": 0}}),
        "a row above 2^53": codec.encode({"head": good | {"seq": 2**53 + 1}}),
        "a hash of 31 bytes": codec.encode({"head": good | {"hash": bytes(31)}}),
        "over 512 bytes": codec.encode({"head": good, "from_a_later_version": bytes(400)}),
        "not msgpack": b"\xc1",
    }
    return {
        "what": "Requests `journal.head` of island 1 and their answers, in order. Hostile ones are breaches.",
        "network": NETWORK,
        "island": ISLANDS[0].id,
        "steps": steps,
        "hostile": [{"meaning": meaning, "offer": data.hex()} for meaning, data in hostile.items()],
    }


def _hello(n: int, **more: Any) -> bytes:
    return codec.encode(
        Hello(
            version=1,
            session="control",
            network=bytes.fromhex(NETWORK),
            key=key_bytes(ISLANDS[n].id),
            name=f"island-{n + 1}",
            nonce=bytes([0xA0 + n]) * 32,
            program="0.1.0",
            chain=codec.encode(chain_to(n)),
            **more,
        )
    )


def handshakes() -> dict[str, Any]:
    """The bytes that both sides of a handshake sign."""
    dialler, listener = _hello(1), _hello(0, addresses=("island.example.org:8991",))
    certificate = bytes([0xCE]) * 32
    payloads = {
        "dialler": transcript("dialler", NETWORK, dialler, listener, certificate),
        "listener": transcript("listener", NETWORK, dialler, listener, certificate),
    }
    return {
        "what": "Island 2 dials island 1: hellos, certificate hash, the bytes that each side signs, and its signature.",
        "network": NETWORK,
        "hello_dialler": dialler.hex(),
        "hello_listener": listener.hex(),
        "certificate": certificate.hex(),
        "transcript_dialler": payloads["dialler"].hex(),
        "transcript_listener": payloads["listener"].hex(),
        "proof_dialler": ISLANDS[1].sign("session", NETWORK, payloads["dialler"]).hex(),
        "proof_listener": ISLANDS[0].sign("session", NETWORK, payloads["listener"]).hex(),
    }


def framing() -> dict[str, Any]:
    """Encoded frames."""

    def one(kind: FrameType, number: int, payload: bytes) -> str:
        return b"".join(frames.pack_frame(kind, number, payload)).hex()

    head = RequestHead(kind="chunks", to=key_bytes(ISLANDS[2].id), origin=key_bytes(ISLANDS[0].id), hops=1)
    valid = [
        {"meaning": "READY", "type": FrameType.READY, "id": 0, "payload": "", "frame": one(FrameType.READY, 0, b"")},
        {"meaning": "CREDIT 65536", "type": FrameType.CREDIT, "id": 7, "payload": "00010000",
         "frame": one(FrameType.CREDIT, 7, b"\0\1\0\0")},
        {"meaning": "a block", "type": FrameType.DATA, "id": 3, "payload": b"block".hex(),
         "frame": one(FrameType.DATA, 3, b"block")},
        {"meaning": "request 1 of kind echo", "type": FrameType.REQUEST, "id": 1, "kind": "echo", "hops": 0, "to": "",
         "origin": "", "body": b"body".hex(),
         "frame": b"".join(frames.pack_headed(FrameType.REQUEST, 1, RequestHead(kind="echo"), b"body")).hex()},
        {"meaning": "a relayed stream", "type": FrameType.OPEN, "id": 1, "kind": "chunks", "hops": 1,
         "to": ISLANDS[2].id, "origin": ISLANDS[0].id, "body": "",
         "frame": b"".join(frames.pack_headed(FrameType.OPEN, 1, head, b"")).hex()},
    ]  # fmt: skip

    def headed(data: bytes) -> str:
        return one(FrameType.REQUEST, 1, len(data).to_bytes(2, "big") + data)

    hostile = {
        "no type and id": frames.HEAD.pack(4, 1, 0).hex(),
        "over the limit of a control session": frames.HEAD.pack(frames.CONTROL_FRAME + 6, FrameType.REQUEST, 1).hex(),
        "an unknown type": frames.HEAD.pack(5, 99, 0).hex(),
        "a head that is cut off": one(FrameType.REQUEST, 1, b"\x00\x09abc"),
        "a kind with a slash": headed(codec.encode({"kind": "../x"})),
        "three hops": headed(codec.encode({"kind": "x", "hops": 3})),
        "a negative hop": headed(codec.encode({"kind": "x", "hops": -1})),
        "no kind": headed(b"\x80"),
        "a deeply nested head": headed(b"\x91" * 900 + b"\x90"),
        "a head that claims a huge array": headed(b"\xdd\xff\xff\xff\xff"),
    }
    return {
        "what": "Frames after the handshake: bytes and meaning. Hostile ones end a control session.",
        "valid": valid,
        "hostile": [{"meaning": meaning, "frame": data} for meaning, data in hostile.items()],
    }


VECTORS: dict[str, Callable[[], dict[str, Any]]] = {
    "trust-signatures": signatures,
    "trust-chains": chains,
    "trust-invitations": invitations,
    "trust-journal": journals,
    "trust-journal-heads": journal_heads,
    "session-handshake": handshakes,
    "session-frames": framing,
}


def main() -> None:
    """Write all files."""
    for name, make in VECTORS.items():
        path = FOLDER / f"{name}.json"
        path.write_text(json.dumps(make(), indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
