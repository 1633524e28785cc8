"""The decisions of membership: states, names, servers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.errors import Ambiguous, BadInput, NotFound
from island.kernel.ids import IslandId
from island.membership import core
from island.membership.core import Contact, IslandNames

A, B, C = IslandId("a" * 64), IslandId("b" * 64), IslandId("ab" + "c" * 62)


@pytest.mark.parametrize(
    ("contact", "now", "expected"),
    [
        (Contact(linked=True, since=0, heard=0), 1000, ("up", None)),
        (Contact(linked=False, since=100, heard=50, was_linked=True), 101, ("up", 101.5)),
        (Contact(linked=False, since=100, heard=50, was_linked=True), 101.5, ("suspect", 115)),
        (Contact(linked=False, since=100, heard=50, was_linked=True), 115, ("down", None)),
        (Contact(linked=False, since=100, heard=100), 100, ("suspect", 115)),
        (Contact(linked=False, since=100, heard=110), 112, ("up", 125)),
        (Contact(linked=False, since=100, heard=110), 126, ("down", None)),
    ],
)
def test_state_of_a_contact(contact: Contact, now: float, expected: tuple[str, float | None]) -> None:
    assert core.opinion(contact, now) == expected


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.booleans(), st.booleans())
def test_state_that_changes_with_time_has_the_time_of_the_change(
    since: float, heard: float, later: float, linked: bool, was_linked: bool
) -> None:
    contact = Contact(linked, since, heard, was_linked)
    now = max(since, heard) + later
    state, until = core.opinion(contact, now)
    if until is None:
        assert state in ("up", "down")
    else:
        assert until > now
        assert core.opinion(contact, until)[0] != state or core.opinion(contact, until)[1] != until


def test_unique_name_is_displayed_without_key_prefix() -> None:
    names = IslandNames({A: "alpha", B: "beta"})
    assert names.display(A) == "alpha"
    assert names.resolve("alpha") == A
    assert names.resolve(A) == A
    assert names.resolve("aaaa") == A
    assert names.resolve("alpha.aaaaaaaaaa") == A


def test_name_used_by_two_islands_is_ambiguous() -> None:
    names = IslandNames({A: "alpha", B: "alpha"})
    assert names.display(A) == "alpha.aaaaaaaaaa"
    with pytest.raises(Ambiguous) as caught:
        names.resolve("alpha")
    assert caught.value.hint == "Write alpha.aaaaaaaaaa or alpha.bbbbbbbbbb."
    assert names.resolve("alpha.bbbb") == B


def test_a_name_never_moves_silently_to_another_key() -> None:
    names = IslandNames({A: "renamed", B: "alpha"}, {"alpha": frozenset({A, B})})
    with pytest.raises(Ambiguous, match="was used by another"):
        names.resolve("alpha")
    assert names.display(B) == "alpha.bbbbbbbbbb"
    gone = IslandNames({A: "renamed"}, {"alpha": frozenset({A})})
    with pytest.raises(NotFound) as caught:
        gone.resolve("alpha")
    assert "renamed" in caught.value.hint


class CountedName(str):
    """A name that counts its comparisons."""

    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        CountedName.comparisons += 1
        return str.__eq__(self, other)


def test_displaying_a_name_does_not_compare_it_with_all_others() -> None:
    islands = [IslandId(f"{number:064x}") for number in range(500)]
    names = IslandNames({island: CountedName(f"name-{place}") for place, island in enumerate(islands)})
    for place, island in enumerate(islands):
        names.remember(island, CountedName(f"name-{place}"))
    CountedName.comparisons = 0
    assert [names.display(island) for island in islands] == [f"name-{place}" for place in range(500)]
    assert CountedName.comparisons < 10 * len(islands)


def test_changed_names() -> None:
    names = IslandNames({A: "alpha", B: "beta"})
    names.use(B, "alpha")
    assert names.display(A) == "alpha.aaaaaaaaaa"
    names.use(B, "gamma")
    assert names.display(A) == "alpha"
    names.remember(B, "alpha")
    assert names.display(A) == "alpha.aaaaaaaaaa"
    names.use(A, None)
    assert names.display(A) == "aaaaaaaaaa"
    assert names.claimants("alpha") == [B]


def test_a_bounded_number_of_names_is_remembered() -> None:
    names = IslandNames({A: "alpha"})
    for number in range(core.NAMES_KEPT):
        names.use(A, f"name-{number}")
        assert names.is_to_remember(A)
        names.remember(A, f"name-{number}")
        assert not names.is_to_remember(A)
    names.use(A, "one-more")
    assert not names.is_to_remember(A)


def test_error_for_an_unknown_name_suggests_similar_names() -> None:
    with pytest.raises(NotFound) as caught:
        IslandNames({A: "observatory", B: "broker"}).resolve("observatori")
    assert "observatory" in caught.value.hint
    with pytest.raises(NotFound):
        IslandNames({}).resolve("")


def test_prefix_of_two_keys_is_ambiguous() -> None:
    names = IslandNames({A: "one", IslandId("aaaa" + "b" * 60): "two"})
    with pytest.raises(Ambiguous, match="matches 2"):
        names.resolve("aaaa")


def test_a_name_that_looks_like_a_key_prefix_wins() -> None:
    assert IslandNames({A: "beef", IslandId("beef" + "0" * 60): "other"}).resolve("beef") == A


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("livy", "http://livy.example.org:8998"),
        ("livy", "https://[2001:db8::1]:8998/path?x=1#y"),
        ("hdfs", "hdfs://namenode:8020/data"),
        ("other", "ssh://host"),
    ],
)
def test_valid_servers(kind: str, url: str) -> None:
    assert core.check_server(kind, url, "a comment, with ünïcode") == kind


@pytest.mark.parametrize(
    ("kind", "url", "comment"),
    [
        ("livi", "http://host", ""),
        ("livy", "host:8998", ""),
        ("livy", "hdfs://host", ""),
        ("livy", "javascript:alert(1)", ""),
        ("other", "file:///etc/passwd", ""),
        ("livy", "http://user:secret@host", ""),
        ("livy", "http://user@host", ""),
        ("livy", "http://", ""),
        ("livy", "http:///path", ""),
        ("livy", "http://host:99999", ""),
        ("livy", "http://host:port", ""),
        ("livy", "http://[::1", ""),
        ("livy", "http://host/a b", ""),
        ("livy", "http://host/\n", ""),
        ("livy", "http://hö.st", ""),
        ("livy", "http://host/" + "x" * 512, ""),
        ("livy", "http://host", "x" * 501),
        ("livy", "http://host", "two\nlines"),
        ("livy", "http://host", "bell\a"),
    ],
)
def test_invalid_servers(kind: str, url: str, comment: str) -> None:
    with pytest.raises(BadInput) as caught:
        core.check_server(kind, url, comment)
    assert "secret" not in str(caught.value)


def test_server_ids() -> None:
    one = core.server_id("livy", "http://host")
    assert one == core.server_id("livy", "http://host")
    assert one != core.server_id("other", "http://host")
    assert core.find_server(one[:3], [one, "livy"]) == one
    with pytest.raises(NotFound):
        core.find_server("zz", [one])
    with pytest.raises(NotFound):
        core.find_server("", [one])
    with pytest.raises(Ambiguous):
        core.find_server("a", ["a1", "a2"])
