"""Who goes when too many connections have begun and not finished."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from island.net.half_open import HalfOpen, network_of
from island.net.limits import PeerLimits


def test_an_address_at_its_limit_loses_its_own_oldest() -> None:
    table = HalfOpen[int](8, 2)
    assert [table.add(1, "192.0.2.1"), table.add(2, "192.0.2.2"), table.add(3, "192.0.2.1")] == [None, None, None]
    assert table.add(4, "192.0.2.1") == 1
    assert table.add(5, "192.0.2.1") == 3
    table.remove(4)
    assert table.add(6, "192.0.2.1") is None
    assert 2 in table and 5 in table and len(table) == 3


def test_a_newcomer_pushes_out_the_address_with_the_most() -> None:
    table = HalfOpen[int](4, 3)
    for key, address in enumerate(["192.0.2.9", "192.0.2.1", "192.0.2.1", "192.0.2.1"]):
        assert table.add(key, address) is None
    assert table.add(10, "192.0.2.2") == 1
    assert table.add(11, "192.0.2.3") == 2
    assert table.add(12, "192.0.2.4") == 0  # all have one now: the oldest


def test_an_ipv6_network_counts_as_one() -> None:
    table = HalfOpen[int](8, 1)
    assert table.add(1, "2001:db8::1") is None
    assert table.add(2, "2001:db8::ffff:1%eth0") == 1
    assert table.add(3, "2001:db8:0:1::1") is None
    assert network_of("::ffff:192.0.2.1") != network_of("::ffff:192.0.2.2")
    assert network_of("192.0.2.1") == "192.0.2.1"


STEPS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=200)


@given(STEPS, st.integers(1, 6), st.integers(1, 6))
def test_limits_hold_and_an_address_with_one_is_safe_from_those_with_more(
    steps: list[tuple[int, bool]], total: int, per_address: int
) -> None:
    table, alive = HalfOpen[int](total, per_address), dict[int, int]()
    for key, (address, leaves) in enumerate(steps):
        if leaves and alive:
            gone = min(alive)
            del alive[gone]
            table.remove(gone)
            continue
        victim = table.add(key, f"192.0.2.{address}")
        if victim is not None:
            counts = [list(alive.values()).count(each) for each in alive.values()]
            its = list(alive.values()).count(alive[victim])
            assert alive[victim] == address or its == max(counts)
            del alive[victim]
        alive[key] = address
        assert len(table) == len(alive) <= total
        assert all(list(alive.values()).count(each) <= per_address for each in alive.values())


@given(st.integers(2, 10_000))
def test_the_limits_of_the_peer_port_fit_into_its_share(connections: int) -> None:
    limits = PeerLimits.within(connections)
    assert limits.sessions >= 1 and limits.shaking >= 1
    assert limits.sessions + limits.shaking <= connections
    assert limits.sessions <= PeerLimits().sessions and limits.shaking <= PeerLimits().shaking
