"""Keys and signatures."""

from __future__ import annotations

from pathlib import Path

import pytest

from island.errors import ConfigError
from island.kernel.ids import NetworkId, island_id
from island.kernel.ports import SeededRng, SystemRng
from island.trust import signing
from island.trust.keys import Identity
from island.trust.signing import verify

NETWORK = NetworkId("ab" * 32)


def test_a_signature_has_one_use_one_network_one_key_and_one_payload() -> None:
    one, other = Identity.generate(SeededRng(1)), Identity.generate(SeededRng(2))
    signature = one.sign("session", NETWORK, b"payload")
    assert verify(one.id, "session", NETWORK, b"payload", signature)
    assert not verify(other.id, "session", NETWORK, b"payload", signature)
    assert not verify(one.id, "admission", NETWORK, b"payload", signature)
    assert not verify(one.id, "session", NetworkId("00" * 32), b"payload", signature)
    assert not verify(one.id, "session", NETWORK, b"payloaD", signature)
    assert not verify(one.id, "session", NETWORK, b"payload", signature[:-1])
    assert not verify(one.id, "session", NETWORK, b"payload", b"")


def test_a_kind_and_a_payload_cannot_be_shifted_into_each_other() -> None:
    one = Identity.generate(SeededRng(1))
    assert not verify(one.id, "se", NETWORK, b"ssion", one.sign("session", NETWORK, b""))


def test_a_key_survives_its_file_with_mode_0600(tmp_path: Path) -> None:
    identity = Identity.generate(SystemRng())
    path = tmp_path / "key"
    identity.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.load(path).id == identity.id
    with pytest.raises(ConfigError, match="already exists"):
        identity.save(path)


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="is not a private key"):
        Identity.load(path)


def test_an_exposed_missing_or_huge_key_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(ConfigError, match="missing"):
        Identity.load(path)
    Identity.generate(SystemRng()).save(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Identity.load(path)
    path.chmod(0o600)
    path.write_bytes(b"x" * 20_000)
    with pytest.raises(ConfigError, match="larger than"):
        Identity.load(path)


P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def _small_order_encodings() -> set[bytes]:
    """The y of every point whose order divides 8, from the curve equation, in all encodings below 2^255."""
    root = pow(2, (P - 1) // 4, P)

    def x_of(y: int) -> int | None:
        square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
        x = pow(square, (P + 3) // 8, P)
        if x * x % P != square:
            x = x * root % P
        return x if x * x % P == square else None

    def double(x: int, y: int) -> tuple[int, int]:
        product = D * x * x * y * y
        return 2 * x * y * pow(1 + product, -1, P) % P, (y * y + x * x) * pow(1 - product, -1, P) % P

    # y of order 8: doubling gives a point of order 4, whose y is 0: y² = -x² (and on the curve).
    # Then -2x² ... = 1 + d x⁴ ... in y: d y⁴ + 2 y² - 1 = 0.
    eighth = []
    sqrt = pow(1 + D, (P + 3) // 8, P)
    sqrt = sqrt if sqrt * sqrt % P == (1 + D) % P else sqrt * root % P
    for sign in (1, -1):
        y2 = (-1 + sign * sqrt) * pow(D, -1, P) % P
        y = pow(y2, (P + 3) // 8, P)
        y = y if y * y % P == y2 else y * root % P
        if y * y % P == y2:
            eighth += [y, P - y]
    ys = [0, 1, P - 1, *eighth]
    for y in ys:
        x = x_of(y)
        assert x is not None
        point = (x, y)
        for _ in range(3):
            point = double(*point)
        assert point == (0, 1)
    return {value.to_bytes(32, "little") for y in ys for value in (y, y + P) if value < 2**255}


def test_keys_of_small_order_are_nobody() -> None:
    assert _small_order_encodings() == signing.SMALL_ORDER
    for point in signing.SMALL_ORDER:
        # R = A = the neutral element, S = 0 verifies over every message where it is not refused.
        assert not verify(island_id(point), "session", NETWORK, b"any", point + bytes(32))
