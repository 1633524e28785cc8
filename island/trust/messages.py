"""Messages of trust: genesis, admissions, chains, invitations and journal heads. See `protocols/trust-v1.md`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from island.kernel.codec import Message

Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", max_length=64)]
Address = Annotated[str, Meta(max_length=260, pattern=r"^[!-~]{3,260}\Z")]
"""`host:port`, printable ASCII."""

MAX_LINKS = 8
"""Maximum number of admissions in a chain."""

GENESIS_LIMIT, LINK_LIMIT, CHAIN_LIMIT, INVITATION_LIMIT, HEAD_LIMIT = 1024, 512, 4096, 4096, 512
"""Maximum encoded sizes, in bytes."""


class Genesis(Message, frozen=True, kw_only=True):
    """The record that founds a network. The network id is the BLAKE3 hash of its bytes."""

    MAX_BYTES = GENESIS_LIMIT

    label: Annotated[str, Meta(max_length=64)]
    nonce: Key
    founders: Annotated[tuple[Key, ...], Meta(min_length=1, max_length=16)]
    threshold: Annotated[int, Meta(ge=1, le=16)]
    """Number of founders who must agree to revoke an admission. Not used in this version."""
    recovery: Key
    """BLAKE3 hash of the public recovery key. The private key is kept offline."""


class AdmissionLink(Message, frozen=True, kw_only=True):
    """The content of an admission: island `by` admits island `key` under a name."""

    MAX_BYTES = LINK_LIMIT

    key: Key
    name: Name
    by: Key
    may_invite: bool = True


class Admission(Message, frozen=True, kw_only=True):
    """An encoded `AdmissionLink` and the signature of `by` (kind `admission`) over its bytes."""

    link: Annotated[bytes, Meta(max_length=LINK_LIMIT)]
    signature: Signature


class Chain(Message, frozen=True, kw_only=True):
    """The admissions that lead from a founder to one island. It can be verified without other data.

    `genesis` has the bytes of the genesis record, whose hash is the network id. The holder of the
    chain is the key of the last link, or the founder if there are no links.
    """

    MAX_BYTES = CHAIN_LIMIT

    genesis: Annotated[bytes, Meta(max_length=GENESIS_LIMIT)]
    founder: Key
    links: Annotated[tuple[Admission, ...], Meta(max_length=MAX_LINKS)] = ()


class Invitation(Message, frozen=True, kw_only=True):
    """An invitation: lets another island join. It is passed on outside the network."""

    MAX_BYTES = INVITATION_LIMIT

    genesis: Annotated[bytes, Meta(max_length=GENESIS_LIMIT)]
    inviter: Key
    name: Name
    """The inviter's name, for display."""
    addresses: Annotated[tuple[Address, ...], Meta(max_length=8)]
    secret: Annotated[bytes, Meta(min_length=16, max_length=32)]
    expires: Annotated[int, Meta(ge=0)]
    """Unix seconds by the inviter's clock. For display; only the inviter decides whether it has expired."""


class JournalHead(Message, frozen=True, kw_only=True):
    """The newest row of an island's journal, signed by that island (kind `journal-head`) and kept by others.

    The generation increases when an administrator accepts that rows are missing.
    """

    MAX_BYTES = HEAD_LIMIT

    generation: Annotated[int, Meta(ge=1, le=2**53)]
    seq: Annotated[int, Meta(ge=1, le=2**53)]
    hash: Key
    signature: Signature


class HeadOffer(Message, frozen=True, kw_only=True):
    """The journal head of the sender. No head: the sender's journal was changed by another program, or is empty."""

    MAX_BYTES = HEAD_LIMIT

    head: JournalHead | None = None
    since: Annotated[int, Meta(ge=0, le=2**53)] = 0
    """The row number of the head that the receiver has, as far as the sender knows; 0 if it does not know."""
    since_hash: Annotated[bytes, Meta(max_length=32)] = b""
    """The current hash of that row in the sender's journal; empty if the row does not exist."""


class HeadHeld(Message, frozen=True, kw_only=True):
    """The answer to a `HeadOffer`: the newest head of the sender's journal that the receiver now has."""

    MAX_BYTES = HEAD_LIMIT

    head: JournalHead | None = None
