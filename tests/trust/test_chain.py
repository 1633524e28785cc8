"""Chains of admissions, verified alone."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.errors import Denied, PeerMisbehaved
from island.kernel import codec
from island.kernel.ids import NetworkId, key_bytes
from island.kernel.ports import SeededRng
from island.trust import core
from island.trust.keys import Identity
from island.trust.messages import CHAIN_LIMIT, Admission, AdmissionLink, Chain

ISLANDS = [Identity.generate(SeededRng(n)) for n in range(11)]
GENESIS = core.found_network("test", bytes(32), ISLANDS[0].id, b"r" * 32)
NETWORK = core.network_id(GENESIS)


def chain_to(depth: int) -> Chain:
    chain = core.founder_chain(GENESIS, ISLANDS[0].id)
    for n in range(depth):
        chain = core.admit_key(chain, ISLANDS[n], ISLANDS[n + 1].id, f"island-{n + 1}")
    return chain


def signed(link: AdmissionLink, by: Identity, network: NetworkId = NETWORK) -> Admission:
    data = codec.encode(link)
    return Admission(link=data, signature=by.sign("admission", network, data))


def hand_made(*links: Admission) -> Chain:
    return Chain(genesis=GENESIS, founder=key_bytes(ISLANDS[0].id), links=links)


def link(by: int, key: int, *, may_invite: bool = True) -> AdmissionLink:
    return AdmissionLink(key=key_bytes(ISLANDS[key].id), name="x", by=key_bytes(ISLANDS[by].id), may_invite=may_invite)


@pytest.mark.parametrize("depth", range(9))
def test_chains_of_up_to_eight_links_are_believed(depth: int) -> None:
    encoded = codec.encode(chain_to(depth))
    assert len(encoded) <= CHAIN_LIMIT
    holder = core.verify_chain(NETWORK, encoded)
    assert (holder.island, holder.depth, holder.may_invite) == (ISLANDS[depth].id, depth, True)
    assert holder.name == (f"island-{depth}" if depth else None)


def test_the_ninth_link_is_refused_when_made_and_when_read() -> None:
    chain = chain_to(8)
    with pytest.raises(Denied, match="which is the limit"):
        core.admit_key(chain, ISLANDS[8], ISLANDS[9].id, "ninth")
    longer = Chain(genesis=GENESIS, founder=chain.founder, links=(*chain.links, signed(link(8, 9), ISLANDS[8])))
    with pytest.raises(codec.Malformed):
        core.verify_chain(NETWORK, codec.encode(longer))


def test_only_the_holder_of_a_chain_may_lengthen_it() -> None:
    with pytest.raises(Denied):
        core.admit_key(chain_to(2), ISLANDS[1], ISLANDS[5].id, "x")
    silent = hand_made(signed(link(0, 1, may_invite=False), ISLANDS[0]))
    assert core.verify_chain(NETWORK, silent).may_invite is False
    with pytest.raises(Denied, match="without the right"):
        core.admit_key(silent, ISLANDS[1], ISLANDS[2].id, "x")


HOSTILE: dict[str, Callable[[], Chain]] = {
    "signed by another": lambda: hand_made(signed(link(0, 1), ISLANDS[2])),
    "signed for another network": lambda: hand_made(signed(link(0, 1), ISLANDS[0], NetworkId("00" * 32))),
    "does not follow": lambda: hand_made(signed(link(0, 1), ISLANDS[0]), signed(link(2, 3), ISLANDS[2])),
    "names another signer": lambda: hand_made(signed(link(2, 1), ISLANDS[0])),
    "may not invite": lambda: hand_made(
        signed(link(0, 1, may_invite=False), ISLANDS[0]), signed(link(1, 2), ISLANDS[1])
    ),
    "goes round": lambda: hand_made(signed(link(0, 1), ISLANDS[0]), signed(link(1, 0), ISLANDS[1])),
    "admits itself": lambda: hand_made(signed(link(0, 0), ISLANDS[0])),
    "no founder": lambda: Chain(genesis=GENESIS, founder=key_bytes(ISLANDS[3].id)),
    "genesis is no genesis": lambda: Chain(genesis=b"\x80", founder=key_bytes(ISLANDS[0].id)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_chains_blame_the_peer(what: str) -> None:
    chain = HOSTILE[what]()
    with pytest.raises(PeerMisbehaved):
        core.verify_chain(core.network_id(chain.genesis), codec.encode(chain))


def test_another_network_is_named() -> None:
    with pytest.raises(PeerMisbehaved, match="another network"):
        core.verify_chain(NetworkId("12" * 32), chain_to(1))


@given(position=st.integers(0, 10_000), value=st.integers(1, 255))
def test_no_flipped_byte_is_believed_to_be_another(position: int, value: int) -> None:
    good = codec.encode(chain_to(2))
    data = bytearray(good)
    data[position % len(data)] ^= value
    try:
        holder = core.verify_chain(NETWORK, bytes(data))
    except PeerMisbehaved:
        return
    # A flipped byte may hide in a field name of an optional field only; nobody else is admitted by it.
    assert holder.island == ISLANDS[2].id or holder.depth < 2


@given(st.binary(max_size=300))
def test_garbage_is_malformed(data: bytes) -> None:
    with pytest.raises(PeerMisbehaved):
        core.verify_chain(NETWORK, data)


def test_a_link_of_a_later_version_with_more_fields_is_believed() -> None:
    plain = {**msgspec.to_builtins(link(0, 1), builtin_types=(bytes,)), "until_epoch": 7}
    data = codec.encode(plain)
    admission = Admission(link=data, signature=ISLANDS[0].sign("admission", NETWORK, data))
    assert core.verify_chain(NETWORK, hand_made(admission)).island == ISLANDS[1].id


@pytest.mark.parametrize("name", ["", "x\n", "../x", "a b", "x" * 65, "ä", "-x", "x\0"])
def test_names_that_are_none_are_malformed(name: str) -> None:
    admission = signed(AdmissionLink(key=key_bytes(ISLANDS[1].id), name=name, by=key_bytes(ISLANDS[0].id)), ISLANDS[0])
    with pytest.raises(codec.Malformed):
        core.verify_chain(NETWORK, codec.encode(hand_made(admission)))
