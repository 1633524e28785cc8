"""What is announced, which announcements count, and which addresses are dialled, also when strangers lie."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.discovery import core
from island.discovery.core import Announcement, Heard, Hints, Interface
from island.kernel.ids import IslandId, NetworkId

OURS, THEIRS = NetworkId("a1" * 32), NetworkId("b2" * 32)
ME, KISO, NANTEN = IslandId("01" * 32), IslandId("02" * 32), IslandId("03" * 32)
LAN = IPv4Network("192.168.7.0/24")
ETH, WLAN = Interface("eth0", IPv4Interface("192.168.7.5/24")), Interface("wlan0", IPv4Interface("10.1.2.3/16"))
LO = Interface("lo", IPv4Interface("127.0.0.1/8"))


def text(*pairs: bytes) -> bytes:
    return b"".join(bytes([len(pair)]) + pair for pair in pairs)


def valid_text(network: str = OURS, key: str = KISO[:10]) -> bytes:
    return text(b"txtvers=1", f"network={network}".encode(), f"key={key}".encode())


def heard(
    *addresses: str, port: int = 8991, record: bytes | None = None, age: float = 1.0, packed: tuple[bytes, ...] = ()
) -> Heard:
    all_packed = [IPv4Address(each).packed for each in addresses] + list(packed)
    return Heard(port, all_packed, valid_text() if record is None else record, age)


def announced(island: IslandId, *addresses: str, network: NetworkId = OURS) -> Announcement:
    return Announcement(network, island[:10], addresses)


# --- what is announced


def test_an_announcement_has_network_key_prefix_and_address_and_nothing_else() -> None:
    own = core.own_announcement(ETH, OURS, ME, ("0.0.0.0", 8991))
    assert own is not None and own.shown == "192.168.7.5:8991"
    assert core.parse_text(own.text) == {b"txtvers": b"1", b"network": OURS.encode(), b"key": ME[:10].encode()}


def test_others_read_what_is_announced() -> None:
    own = core.own_announcement(ETH, OURS, ME, ("192.168.7.5", 8991))
    assert own is not None
    assert core.read(Heard(own.port, [own.address.packed], own.text, 0.0), LAN) == announced(ME, "192.168.7.5:8991")


@pytest.mark.parametrize(
    ("network", "bound", "why"),
    [
        (None, ("0.0.0.0", 8991), "does not belong to an archipelago"),
        (OURS, None, "dials out only"),
        (OURS, ("127.0.0.1", 8991), "listens on 127.0.0.1"),
        (OURS, ("10.1.2.3", 8991), "listens on 10.1.2.3"),
    ],
)
def test_nothing_is_announced_that_others_could_not_use(
    network: NetworkId | None, bound: tuple[str, int] | None, why: str
) -> None:
    assert core.own_announcement(ETH, network, ME, bound) is None
    assert why in core.silence(network, bound)


def test_a_wildcard_is_announced_with_the_address_of_each_interface() -> None:
    for interface in (ETH, WLAN, LO):
        own = core.own_announcement(interface, OURS, ME, ("::", 8991))
        assert own is not None and own.address == interface.ip


def test_interfaces_are_chosen_by_name_or_address_and_loopback_only_on_request() -> None:
    every = [WLAN, LO, ETH, ETH]
    assert core.choose(every, []) == ([ETH, WLAN], [])
    assert core.choose(every, ["lo", "10.1.2.3"]) == ([LO, WLAN], [])
    assert core.choose(every, ["eth0", "eth1", "192.0.2.1"]) == ([ETH], ["eth1", "192.0.2.1"])


# --- what is heard


def test_packets_are_read_from_the_network_of_the_interface_and_not_without_limit() -> None:
    gate = core.PacketGate(LAN)
    assert not any(gate.passes(source, 100.0) for source in ("192.168.8.1", "8.8.8.8", "127.0.0.1"))
    passed = sum(gate.passes("192.168.7.9", 100.0 + packet / 1000) for packet in range(3000))
    assert passed == 3 * core.MAX_PACKETS
    assert gate.passes("192.168.7.9", 200.0)


def test_only_addresses_in_the_network_of_the_interface_are_used() -> None:
    addresses = ("192.168.7.9", "8.8.8.8", "127.0.0.1", "224.0.0.251", "0.0.0.0", "192.168.7.255", "192.168.7.0")
    assert core.read(heard(*addresses), LAN) == announced(KISO, "192.168.7.9:8991")
    assert core.read(heard("8.8.8.8", "127.0.0.1"), LAN) is None
    assert core.read(heard("127.0.0.1"), LO.network) == announced(KISO, "127.0.0.1:8991")
    assert core.read(heard("192.0.2.1"), IPv4Network("192.0.2.1/32")) == announced(KISO, "192.0.2.1:8991")


def test_addresses_are_limited_in_number() -> None:
    found = core.read(heard(*(f"192.168.7.{i}" for i in range(1, 200))), LAN)
    assert found is not None and len(found.addresses) == core.MAX_ADDRESSES


@pytest.mark.parametrize(
    "wrong",
    [
        heard("192.168.7.9", port=0),
        heard("192.168.7.9", port=65536),
        heard("192.168.7.9", age=core.MAX_AGE_S + 1),
        heard("192.168.7.9", age=-1),
        heard(),
        heard(packed=(b"", b"\xc0\xa8\x07", bytes(16))),
        heard("192.168.7.9", record=b""),
        heard("192.168.7.9", record=valid_text(network=OURS.upper())),
        heard("192.168.7.9", record=valid_text(network=OURS + "00")),
        heard("192.168.7.9", record=valid_text(network=OURS + "\n")),
        heard("192.168.7.9", record=valid_text(key=KISO)),
        heard("192.168.7.9", record=valid_text(key="\x1b[2J\x1b[31m")),
        heard("192.168.7.9", record=valid_text(key="020202020\n")),
        heard("192.168.7.9", record=valid_text().replace(b"txtvers=1", b"txtvers=2")),
        heard("192.168.7.9", record=text(b"network", b"key", b"txtvers=1")),
        heard("192.168.7.9", record=valid_text()[:-1]),
        heard("192.168.7.9", record=valid_text() + b"\xff"),
        heard("192.168.7.9", record=valid_text() + text(b"x" * 200, b"y" * 200)),
    ],
)
def test_an_invalid_announcement_is_ignored(wrong: Heard) -> None:
    assert core.read(wrong, LAN) is None


def test_unknown_keys_are_ignored_and_the_first_of_equal_keys_counts() -> None:
    record = text(b"dataset=secret", b"") + valid_text() + text(b"KEY=ffffffffff")
    assert core.read(heard("192.168.7.9", record=record), LAN) == announced(KISO, "192.168.7.9:8991")


@given(st.integers(), st.lists(st.binary(max_size=20), max_size=30), st.binary(max_size=500), st.floats())
def test_no_record_raises_or_gives_more_than_a_valid_announcement(
    port: int, addresses: list[bytes], record: bytes, age: float
) -> None:
    for content in (record, valid_text() + record, valid_text()):
        found = core.read(Heard(port, addresses, content, age), LAN)
        if found is not None:
            assert 1 <= len(found.addresses) <= core.MAX_ADDRESSES
            for address in found.addresses:
                host, _, shown = address.partition(":")
                assert IPv4Address(host) in LAN and 0 < int(shown) <= 65535
            assert len(found.key_prefix) == 10 and len(found.network) == 64 and found.network.isalnum()


def test_own_announcements_are_left_out_and_those_of_one_island_are_merged() -> None:
    found = core.gather(
        [
            announced(NANTEN, "192.168.7.3:1", network=THEIRS),
            announced(ME, "192.168.7.5:1"),
            announced(KISO, "192.168.7.9:1", "192.168.7.8:1"),
            announced(KISO, "10.1.2.9:1", "192.168.7.9:1"),
        ],
        OURS,
        ME,
    )
    assert found == [
        announced(KISO, "192.168.7.9:1", "192.168.7.8:1", "10.1.2.9:1"),
        announced(NANTEN, "192.168.7.3:1", network=THEIRS),
    ]
    assert core.gather([announced(ME, "192.168.7.5:1")], None, ME) == [announced(ME, "192.168.7.5:1")]


def test_a_flood_of_islands_and_addresses_is_bounded_and_the_first_stay() -> None:
    flood = [Announcement(OURS, f"{i:010x}", ("192.168.7.9:1",)) for i in range(2000)]
    flood += [announced(KISO, f"192.168.7.9:{port}") for port in range(1, 2000)]
    found = core.gather([announced(KISO, "192.168.7.1:1"), *flood], OURS, ME)
    assert len(found) == core.MAX_ANNOUNCEMENTS
    [kiso] = [each for each in found if each.key_prefix == KISO[:10]]
    assert len(kiso.addresses) == core.MAX_ADDRESSES and kiso.addresses[0] == "192.168.7.1:1"


# --- which addresses are dialled


def test_known_islands_of_the_same_network_are_dialled_and_no_others() -> None:
    found = [
        announced(KISO, "192.168.7.9:1", "192.168.7.8:1", "192.168.7.7:1"),
        announced(NANTEN, "192.168.7.3:1", network=THEIRS),
        announced(IslandId("ff" * 32), "192.168.7.4:1"),
        announced(ME, "192.168.7.6:1"),
    ]
    assert core.suggest(found, OURS, ME, [ME, KISO, NANTEN]) == {KISO: ("192.168.7.9:1", "192.168.7.8:1")}
    assert core.suggest(found, None, ME, [ME, KISO, NANTEN]) == {}


def test_addresses_change_at_most_once_in_a_while() -> None:
    hints = Hints()
    assert hints.update({KISO: ("a:1",)}, 100.0) == [KISO]
    changes = 0
    for second in range(1, 60):  # an attacker withdraws and announces another address every second
        hints.update({}, 100.0 + second)
        changes += bool(hints.update({KISO: (f"b:{second}",)}, 100.0 + second + 0.5))
    assert 1 <= changes <= 60 / core.HOLD_S


def test_what_is_no_longer_announced_is_no_longer_dialled() -> None:
    hints = Hints()
    hints.update({KISO: ("a:1",), NANTEN: ("b:1",)}, 100.0)
    assert hints.update({NANTEN: ("b:1",)}, 101.0) == []
    assert hints.addresses() == {NANTEN: ("b:1",)}
    hints.update({NANTEN: ("b:1",)}, 101.0 + core.HOLD_S)
    assert hints.update({KISO: ("c:1",), NANTEN: ("b:1",)}, 102.0 + core.HOLD_S) == [KISO]
    assert hints.addresses() == {KISO: ("c:1",), NANTEN: ("b:1",)}


def test_an_island_that_restarts_at_another_port_is_dialled_there_at_once() -> None:
    hints = Hints()
    hints.update({KISO: ("a:1",)}, 100.0)
    hints.update({}, 1000.0)
    assert hints.update({KISO: ("a:2",)}, 1003.0) == [KISO]


def test_islands_that_are_dialled_at_announced_addresses_are_limited_in_number() -> None:
    hints = Hints()
    first = {IslandId(f"{i:02x}" * 32): ("a:1",) for i in range(core.MAX_HINTED)}
    hints.update(first, 100.0)
    assert hints.update({**first, IslandId("ee" * 32): ("a:1",)}, 1000.0) == []
    assert hints.addresses() == first
