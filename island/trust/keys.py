"""The key that is an island: Ed25519, with one use a signature.

Every signature is over `island/1/<kind>\\0 || network id (32 bytes) || payload`, so that
what was signed for one purpose or one archipelago says nothing in another.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from island.errors import ConfigError
from island.kernel.ids import IslandId, NetworkId, island_id, key_bytes
from island.kernel.ports import Rng
from island.private_files import read_secret, write_secret

NO_NETWORK = NetworkId("00" * 32)
"""Stands for the network in what an island signs for itself before it belongs to one."""

SIGNATURE_BYTES = 64

# The encodings of the points of small order, sign bit cleared: with such a key one signature
# fits many messages, so it is nobody's identity. Recomputed from the curve by a test.
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


class Identity:
    """An island's private key. `id` is its public key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.id: IslandId = island_id(private.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, rng: Rng) -> Identity:
        """A new key from 32 random bytes."""
        return cls(Ed25519PrivateKey.from_private_bytes(rng.bytes(32)))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """The key in a PEM file (PKCS 8); raises `ConfigError` if missing, exposed or not such a key."""
        content = read_secret(path, "the island's key")
        try:
            private = serialization.load_pem_private_key(content, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is not a private key: {error}", hint="Restore it from a backup.") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigError(f"{path} is not an Ed25519 key", hint="Restore it from a backup.")
        return cls(private)

    def save(self, path: Path) -> None:
        """Write the key with mode 0600; raises `ConfigError` if there is a file already."""
        write_secret(path, self.pem())

    def pem(self) -> bytes:
        """The private key as unencrypted PKCS 8 in PEM."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def private_key(self) -> Ed25519PrivateKey:
        """The key itself, to make the island's certificate; never to sign anything else."""
        return self._private

    def sign(self, kind: str, network: NetworkId, payload: bytes) -> bytes:
        """A signature (64 bytes) for one use, `kind`, within one network."""
        return self._private.sign(signed_bytes(kind, network, payload))


def signed_bytes(kind: str, network: NetworkId, payload: bytes) -> bytes:
    """What a signature of `kind` is over. `kind` has letters and hyphens only."""
    return b"island/1/" + kind.encode("ascii") + b"\0" + bytes.fromhex(network) + payload


def verify(island: IslandId, kind: str, network: NetworkId, payload: bytes, signature: bytes) -> bool:
    """Whether `signature` is `island`'s for this use, network and payload. Never raises on bad input."""
    public = key_bytes(island)
    if public[:31] + bytes([public[31] & 0x7F]) in SMALL_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed_bytes(kind, network, payload))
    except (InvalidSignature, ValueError):
        return False
    return True
