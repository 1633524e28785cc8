"""Ed25519 signatures with domain separation: the signed bytes and their verification. Pure functions.

Every signature is over `island/1/<kind>\\0 || network id (32 bytes) || payload`, so that a
signature for one purpose or one archipelago is not valid for another.
"""

from __future__ import annotations

from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from island.kernel.ids import IslandId, NetworkId, key_bytes

SIGNATURE_BYTES = 64

# The encodings of the points of small order, with the sign bit cleared. With such a key one signature
# is valid for many messages, so these keys are refused. A test recomputes the list from the curve.
SMALL_ORDER = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


class SigningKey(Protocol):
    """A private key that signs; `trust.keys.Identity` is one."""

    id: IslandId

    def sign(self, kind: str, network: NetworkId, payload: bytes) -> bytes:
        """Sign `payload` for one purpose (`kind`) and one network; returns 64 bytes."""
        ...


def signed_bytes(kind: str, network: NetworkId, payload: bytes) -> bytes:
    """The bytes that a signature of `kind` is over. `kind` has only letters and hyphens."""
    return b"island/1/" + kind.encode("ascii") + b"\0" + bytes.fromhex(network) + payload


def verify(island: IslandId, kind: str, network: NetworkId, payload: bytes, signature: bytes) -> bool:
    """Whether `island` made `signature` for this kind, network and payload. Never raises on bad input."""
    public = key_bytes(island)
    if public[:31] + bytes([public[31] & 0x7F]) in SMALL_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed_bytes(kind, network, payload))
    except (InvalidSignature, ValueError):
        return False
    return True
