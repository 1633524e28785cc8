"""What founds a network, admits to it, and invites: `protocols/trust-v1.md`."""

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
"""The longest chain of admissions from a founder."""

GENESIS_LIMIT, LINK_LIMIT, CHAIN_LIMIT, INVITATION_LIMIT, HEAD_LIMIT = 1024, 512, 4096, 4096, 512
"""Encoded sizes in bytes."""


class Genesis(Message, frozen=True, kw_only=True):
    """What a network is: its id is the BLAKE3 hash of this record's bytes."""

    MAX_BYTES = GENESIS_LIMIT

    label: Annotated[str, Meta(max_length=64)]
    nonce: Key
    founders: Annotated[tuple[Key, ...], Meta(min_length=1, max_length=16)]
    threshold: Annotated[int, Meta(ge=1, le=16)]
    """How many founders together revoke (later)."""
    recovery: Key
    """BLAKE3 hash of the public recovery key, whose private half is kept offline."""


class AdmissionLink(Message, frozen=True, kw_only=True):
    """One admission: `by` admits `key` under a name."""

    MAX_BYTES = LINK_LIMIT

    key: Key
    name: Name
    by: Key
    may_invite: bool = True


class Admission(Message, frozen=True, kw_only=True):
    """A link as its signer encoded it, with the signature of `by` (kind `admission`) over those bytes."""

    link: Annotated[bytes, Meta(max_length=LINK_LIMIT)]
    signature: Signature


class Chain(Message, frozen=True, kw_only=True):
    """Why an island belongs to a network: from a founder to its key, verified alone.

    `genesis` is the record's bytes, whose hash is the network id. The holder is the key of
    the last link, or the founder where there is none.
    """

    MAX_BYTES = CHAIN_LIMIT

    genesis: Annotated[bytes, Meta(max_length=GENESIS_LIMIT)]
    founder: Key
    links: Annotated[tuple[Admission, ...], Meta(max_length=MAX_LINKS)] = ()


class Invitation(Message, frozen=True, kw_only=True):
    """What one island hands another, outside the network, so that it may join."""

    MAX_BYTES = INVITATION_LIMIT

    genesis: Annotated[bytes, Meta(max_length=GENESIS_LIMIT)]
    inviter: Key
    name: Name
    """The inviter's name, for people."""
    addresses: Annotated[tuple[Address, ...], Meta(max_length=8)]
    secret: Annotated[bytes, Meta(min_length=16, max_length=32)]
    expires: Annotated[int, Meta(ge=0)]
    """Unix seconds by the inviter's clock; for people, the inviter alone decides."""


class JournalHead(Message, frozen=True, kw_only=True):
    """The newest row of an island's journal, signed by that island for others to keep (kind `journal-head`).

    A higher generation begins where an administrator has accepted that rows are missing.
    """

    MAX_BYTES = HEAD_LIMIT

    generation: Annotated[int, Meta(ge=1, le=2**53)]
    seq: Annotated[int, Meta(ge=1, le=2**53)]
    hash: Key
    signature: Signature


class HeadOffer(Message, frozen=True, kw_only=True):
    """An island gives its journal's head; without one it says that its journal was changed by others."""

    MAX_BYTES = HEAD_LIMIT

    head: JournalHead | None = None
    since: Annotated[int, Meta(ge=0, le=2**53)] = 0
    """The row of the head that the receiver holds, as far as the sender knows; 0 if it does not know."""
    since_hash: Annotated[bytes, Meta(max_length=32)] = b""
    """The hash of that row in the sender's journal now; empty if there is no such row."""


class HeadHeld(Message, frozen=True, kw_only=True):
    """The answer: the newest head of the sender's journal that is held after the offer."""

    MAX_BYTES = HEAD_LIMIT

    head: JournalHead | None = None
