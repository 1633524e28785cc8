"""Pure functions of trust: verify chains, encode and parse invitations, decide about redemptions and journal heads."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Literal

import blake3

from island.errors import BadInput, Conflict, Denied, PeerMisbehaved
from island.kernel import codec
from island.kernel.ids import IslandId, NetworkId, island_id, key_bytes
from island.trust.messages import (
    INVITATION_LIMIT,
    MAX_LINKS,
    Admission,
    AdmissionLink,
    Chain,
    Genesis,
    HeadOffer,
    Invitation,
    JournalHead,
)
from island.trust.signing import SigningKey, verify

PREFIX = "island1-"
_CHECKSUM_BYTES = 16
_ASK_AGAIN = "Ask for a new invitation: `island peer invite` at the inviting island prints one."


@dataclass(frozen=True, slots=True)
class AdmittedIsland:
    """The island that a chain admits, and its rights."""

    island: IslandId
    name: str | None
    """The name under which it was admitted; None for a founder."""
    may_invite: bool
    depth: int
    """Number of links from the founder; 0 for a founder."""


# --- networks and chains -------------------------------------------------------------------


def network_id(genesis: bytes) -> NetworkId:
    """The id of the network that a genesis record founds."""
    return NetworkId(blake3.blake3(genesis).hexdigest())


def found_network(label: str, nonce: bytes, founder: IslandId, recovery_public: bytes) -> bytes:
    """Return the canonical bytes of the genesis record of a network with one founder."""
    return codec.encode(
        Genesis(
            label=label,
            nonce=nonce,
            founders=(key_bytes(founder),),
            threshold=1,
            recovery=blake3.blake3(recovery_public).digest(),
        )
    )


def founder_chain(genesis: bytes, founder: IslandId) -> Chain:
    """The chain of a founder, which has no links."""
    return Chain(genesis=genesis, founder=key_bytes(founder))


def admit_key(chain: Chain, signer: SigningKey, key: IslandId, name: str) -> Chain:
    """Return the chain of `key`, admitted by the holder of `chain`; raises `Denied` if the holder may not admit."""
    network = network_id(chain.genesis)
    holder = verify_chain(network, chain)
    if holder.island != signer.id:
        raise Denied(
            "the chain of this island ends with another key",
            hint="Restore state.db and the file `key` from the same backup.",
        )
    if not holder.may_invite:
        raise Denied("this island was admitted without the right to invite", hint="Ask the island that invited it.")
    if holder.depth >= MAX_LINKS:
        raise Denied(
            f"this island is {MAX_LINKS} admissions away from the founder, which is the limit",
            hint="Create the invitation at an island that is nearer to the founder.",
        )
    link = codec.encode(AdmissionLink(key=key_bytes(key), name=name, by=key_bytes(signer.id)))
    admission = Admission(link=link, signature=signer.sign("admission", network, link))
    longer = Chain(genesis=chain.genesis, founder=chain.founder, links=(*chain.links, admission))
    verify_chain(network, longer)  # never return a chain that other islands would refuse
    return longer


def decode_chain(data: bytes) -> Chain:
    """Decode a chain of at most `CHAIN_LIMIT` bytes; raises `Malformed`."""
    return codec.decode(data, Chain)


def label_of(chain: Chain) -> str:
    """The label of the network that a chain belongs to."""
    return codec.decode(chain.genesis, Genesis).label


def verify_chain(network: NetworkId, chain: bytes | Chain) -> AdmittedIsland:
    """Verify a chain and return the island that it admits to `network`.

    Raises `PeerMisbehaved` if the chain belongs to another network, does not begin with a founder,
    admits a key twice, or has a link with a wrong signature, from a key other than the previous
    link's, or from an island that may not invite.
    """
    if isinstance(chain, bytes):
        chain = decode_chain(chain)
    if network_id(chain.genesis) != network:
        raise PeerMisbehaved(
            f"a chain of another network ({network_id(chain.genesis)[:10]}, this network is {network[:10]})",
            code="other_network",
        )
    genesis = codec.decode(chain.genesis, Genesis)
    if chain.founder not in genesis.founders:
        raise PeerMisbehaved("a chain that does not begin with a founder", code="bad_chain")
    holder = AdmittedIsland(island_id(chain.founder), None, True, 0)
    seen = {holder.island}
    for admission in chain.links:
        holder = _verify_link(network, holder, admission)
        if holder.island in seen:
            raise PeerMisbehaved("a chain that admits one key twice", code="bad_chain")
        seen.add(holder.island)
    return holder


def _verify_link(network: NetworkId, signer: AdmittedIsland, admission: Admission) -> AdmittedIsland:
    link = codec.decode(admission.link, AdmissionLink)
    if island_id(link.by) != signer.island:
        raise PeerMisbehaved("a chain whose links do not follow each other", code="bad_chain")
    if not signer.may_invite:
        raise PeerMisbehaved("an admission by an island that may not invite", code="bad_chain")
    if not verify(signer.island, "admission", network, admission.link, admission.signature):
        raise PeerMisbehaved("an admission whose signature is wrong", code="bad_chain")
    return AdmittedIsland(island_id(link.key), link.name, link.may_invite, signer.depth + 1)


# --- invitations ---------------------------------------------------------------------------


def secret_hash(secret: bytes) -> bytes:
    """The hash of an invitation's secret (32 bytes). Only the hash is stored."""
    return blake3.blake3(secret, derive_key_context="island/1/invitation-secret").digest()


def format_invitation(invitation: Invitation) -> str:
    """Encode an invitation as text: `island1-` and base64url without padding, with a checksum at the end."""
    body = codec.encode(invitation)
    return PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).rstrip(b"=").decode("ascii")


def parse_invitation(text: str) -> Invitation:
    """Parse the text of an invitation; spaces and line breaks are ignored.

    Raises `BadInput` with the reason (code `invitation_malformed` or `invitation_altered`).
    """
    compact = "".join(text.split())
    if not compact.startswith(PREFIX):
        raise _malformed(f"it does not begin with '{PREFIX}'")
    if len(compact) > len(PREFIX) + INVITATION_LIMIT * 4 // 3 + 4:
        raise _malformed("it is too long")
    encoded = compact.removeprefix(PREFIX)
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed("it has invalid characters, or characters are missing") from error
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    canonical = base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii") == encoded
    if not canonical or len(checksum) < _CHECKSUM_BYTES or _checksum(body) != checksum:
        raise BadInput(
            "the invitation was changed or truncated: its checksum does not match",
            hint=f"Copy the complete invitation. {_ASK_AGAIN}",
            code="invitation_altered",
        )
    try:
        invitation = codec.decode(body, Invitation)
        codec.decode(invitation.genesis, Genesis)
    except codec.Malformed as error:
        raise _malformed(error.message) from error
    return invitation


def _malformed(why: str) -> BadInput:
    return BadInput(f"this is not an invitation: {why}", hint=_ASK_AGAIN, code="invitation_malformed")


def _checksum(body: bytes) -> bytes:
    return blake3.blake3(body, derive_key_context="island/1/invitation-checksum").digest(length=_CHECKSUM_BYTES)


@dataclass(frozen=True, slots=True)
class IssuedInvitation:
    """An invitation as stored at the inviter."""

    expires: float
    uses: int
    used: int


def judge_redemption(issued: IssuedInvitation | None, admitted_by_it: bool, now: float) -> Literal["admit", "again"]:
    """Decide whether a secret admits a key: "admit", or "again" if the key was admitted before.

    Raises `BadInput` with code `invitation_unknown`, `invitation_expired` or `invitation_used_up`.
    """
    if issued is None:
        raise BadInput("the inviter does not know this invitation", hint=_ASK_AGAIN, code="invitation_unknown")
    if admitted_by_it:
        return "again"
    if now >= issued.expires:
        raise BadInput("the invitation has expired", hint=_ASK_AGAIN, code="invitation_expired")
    if issued.used >= issued.uses:
        raise BadInput("the invitation is used up", hint=_ASK_AGAIN, code="invitation_used_up")
    return "admit"


def check_adoption(current: NetworkId | None, network: NetworkId) -> None:
    """Raise `Conflict` unless an island that belongs to `current` may adopt `network`."""
    if current is not None and current != network:
        raise Conflict(
            f"this island already belongs to another archipelago ({current[:10]}, not {network[:10]})",
            hint="An island can join only one archipelago. Create another home folder with `island init`.",
            code="other_network",
        )


# --- heads of journals ---------------------------------------------------------------------

Mismatch = Literal["", "cut", "fork", "changed"]
"""How an island's journal contradicts the stored head. `cut`: it ends before that row; `fork`: it has another
row at that place; `changed`: the island itself reports that another program changed it. "": no contradiction."""


@dataclass(frozen=True, slots=True)
class HeldHead:
    """The newest stored head of another island's journal, and whether that island's newest offer contradicts it."""

    head: JournalHead | None = None
    mismatch: Mismatch = ""
    claimed: JournalHead | None = None
    """The head, also signed by that island, that contradicts `head`."""


def weigh_head(held: HeldHead, offer: HeadOffer) -> HeldHead:
    """Return what to store after an offer with a valid signature.

    The offered head replaces the stored one only if it continues it or has a higher generation.
    """
    mine, theirs = held.head, offer.head
    if theirs is None:
        return HeldHead(mine, "changed", held.claimed)
    if mine is None or theirs.generation > mine.generation:
        return HeldHead(theirs)
    if theirs.generation < mine.generation or theirs.seq < mine.seq:
        return HeldHead(mine, "cut", theirs)
    if theirs.seq == mine.seq:
        return HeldHead(mine) if theirs.hash == mine.hash else HeldHead(mine, "fork", theirs)
    if offer.since != mine.seq:
        return held  # the sender does not know the stored head yet; it learns it from the answer
    return HeldHead(theirs) if offer.since_hash == mine.hash else HeldHead(mine, "fork", theirs)
