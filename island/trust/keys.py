"""The Ed25519 private key of an island, and its file."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from island.errors import ConfigError
from island.kernel.ids import IslandId, NetworkId, island_id
from island.kernel.ports import Rng
from island.private_files import read_secret, write_secret
from island.trust.signing import signed_bytes

NO_NETWORK = NetworkId("00" * 32)
"""The network id in signatures that an island makes for itself before it belongs to a network."""


class Identity:
    """An island's private key. `id` is its public key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.id: IslandId = island_id(private.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, rng: Rng) -> Identity:
        """Create a key from 32 random bytes."""
        return cls(Ed25519PrivateKey.from_private_bytes(rng.bytes(32)))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a key from a PEM file (PKCS 8); raises `ConfigError` if it is missing, exposed or not an Ed25519 key."""
        return cls.parse(read_secret(path, "the island's key"), str(path))

    @classmethod
    def parse(cls, pem: bytes, where: str) -> Identity:
        """Read a key in PEM (PKCS 8); `where` is its origin for messages. Raises `ConfigError`."""
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{where} is not a private key: {error}", hint="Restore it from a backup.") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigError(f"{where} is not an Ed25519 key", hint="Restore it from a backup.")
        return cls(private)

    def save(self, path: Path) -> None:
        """Write the key with mode 0600; raises `ConfigError` if the file exists."""
        write_secret(path, self.pem())

    def pem(self) -> bytes:
        """The private key as unencrypted PKCS 8 in PEM."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def private_key(self) -> Ed25519PrivateKey:
        """The raw private key. Use it only for the island's certificate; sign everything else with `sign`."""
        return self._private

    def sign(self, kind: str, network: NetworkId, payload: bytes) -> bytes:
        """Sign `payload` for one purpose (`kind`) and one network; returns 64 bytes."""
        return self._private.sign(signed_bytes(kind, network, payload))
