"""The decisions of gossip: batches, heads, what islands lack of each other, and pace."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.errors import BadInput
from island.gossip import core
from island.gossip.core import BatchVerdict, Head, HeadVector, LogBatch
from island.gossip.messages import BATCH_LIMIT, HEADS_A_PAGE, BatchBody, HeadAt, HeadOf, Heads, LogEntry, SignedBatch
from island.kernel import codec
from island.kernel.codec import Malformed
from island.kernel.ids import IslandId, key_bytes

A, B, C = (IslandId(digit * 64) for digit in "abc")


def batches(origin: IslandId, *groups: Sequence[tuple[str, bytes | None]], head: Head | None = None) -> list[LogBatch]:
    """Chained batches, one a group, with signatures that nobody checks."""
    head = head or Head()
    found = []
    for group in groups:
        for body in core.cut_batches(origin, head, group):
            found.append(core.open_batch(codec.encode(SignedBatch(body=body, signature=bytes(64)))))
            head = head.after(found[-1])
    return found


def test_cut_batches_are_chained_and_numbered() -> None:
    one, two = batches(A, [("a/1", b"x"), ("a/2", None)], [("a/1", b"y")])
    assert (one.first, one.last, one.previous) == (1, 2, core.ZERO)
    assert (two.first, two.last, two.previous) == (3, 3, one.hash)
    assert [(e.key, e.value, e.seq) for e in one.entries] == [("a/1", b"x", 1), ("a/2", None, 2)]


@given(st.lists(st.integers(0, 4096), max_size=60))
def test_cut_keeps_every_batch_within_the_limit(sizes: list[int]) -> None:
    changes = [(f"kind/{'k' * 190}{n:03d}", bytes(size)) for n, size in enumerate(sizes)]
    found = batches(A, changes)
    assert all(len(batch.signed) <= BATCH_LIMIT for batch in found)
    assert [(e.key, e.value) for batch in found for e in batch.entries] == changes
    assert [e.seq for batch in found for e in batch.entries] == list(range(1, len(changes) + 1))


def test_a_change_of_the_largest_size_fits_a_batch() -> None:
    (batch,) = batches(A, [("k/" + "x" * 198, bytes(4096))])
    assert len(batch.signed) < BATCH_LIMIT


@pytest.mark.parametrize(
    "key", ["", "a", "a/", "/a", "A/b", "a/b c", "a/é", "a/b\n", "1/a", "a/" + "x" * 199, "a" * 33 + "/b"]
)
def test_bad_keys(key: str) -> None:
    with pytest.raises(BadInput):
        core.check_record(key, b"")
    body = BatchBody(
        origin=key_bytes(A), epoch=1, first=1, previous=core.ZERO, entries=(LogEntry(key=key, value=b"", seq=1),)
    )
    with pytest.raises(Malformed):
        core.open_batch(codec.encode(SignedBatch(body=codec.encode(body), signature=bytes(64))))


def test_a_value_over_the_limit() -> None:
    core.check_record("a/b", bytes(4096))
    with pytest.raises(BadInput, match="4097"):
        core.check_record("a/b", bytes(4097))


@given(st.binary(max_size=300))
def test_random_bytes_are_malformed(noise: bytes) -> None:
    with pytest.raises(Malformed):
        core.open_batch(noise)


def test_verdicts_on_batches() -> None:
    one, two, three = batches(A, [("a/1", b"1")], [("a/1", b"2")], [("a/1", b"3")])
    (fork,) = batches(A, [("a/1", b"other")], head=Head().after(one))
    after_two = Head().after(one).after(two)
    assert core.judge_batch(Head(), one) is BatchVerdict.FITS
    assert core.judge_batch(Head(), two) is BatchVerdict.GAP
    assert core.judge_batch(after_two, three) is BatchVerdict.FITS
    assert core.judge_batch(after_two, one) is BatchVerdict.PAST
    assert core.judge_batch(Head().after(one).after(fork), three) is BatchVerdict.BREAKS
    assert core.judge_batch(Head(frozen=True), one) is BatchVerdict.FROZEN
    assert core.judge_batch(Head(epoch=2), one) is BatchVerdict.OTHER_EPOCH


def test_contradicting_batches() -> None:
    one, two = batches(A, [("a/1", b"1")], [("a/1", b"2")])
    (wide,) = batches(A, [("a/1", b"1"), ("a/1", b"2")])
    (other,) = batches(B, [("a/1", b"other")])
    assert core.contradict(one, wide)
    assert core.contradict(wide, two)
    assert not core.contradict(one, two)
    assert not core.contradict(one, one)
    assert not core.contradict(one, other)


def _heads(count: int, seq: int = 1) -> HeadVector:
    return HeadVector({IslandId(f"{n:064x}"): Head(1, seq, n.to_bytes(32)) for n in range(1, count + 1)})


def test_answer_to_an_equal_digest_has_only_two_hashes() -> None:
    mine, theirs = _heads(5), _heads(5)
    answer = theirs.answer(mine.digest())
    assert (answer.indexed, answer.keyed, answer.more) == ((), (), False)
    assert answer.root == mine.digest().root


def test_heads_are_indexed_if_rosters_are_equal_and_keyed_if_not() -> None:
    mine, theirs = _heads(5), _heads(5)
    theirs.set(IslandId(f"{3:064x}"), Head(1, 9, bytes(32)))
    asked = mine.digest()
    answer = theirs.answer(asked)
    assert len(answer.indexed) == 5
    assert answer.keyed == ()
    heads, until = mine.read(asked, answer)
    assert until is None
    difference = core.compare_heads(mine, heads, b"", until)
    assert [(w.origin, w.after) for w in difference.wants] == [((3).to_bytes(32), 1)]
    theirs.set(IslandId(f"{9:064x}"), Head(1, 1, bytes(32)))
    answer = theirs.answer(mine.digest())
    assert len(answer.keyed) == 6
    assert answer.indexed == ()


def test_many_heads_are_split_into_pages() -> None:
    mine, theirs = _heads(HEADS_A_PAGE * 2), _heads(HEADS_A_PAGE * 2 + 10, seq=2)
    after, wanted, pages = b"", 0, 0
    while True:
        asked = mine.digest(after)
        answer = theirs.answer(asked)
        assert len(codec.encode(answer)) <= codec.CONTROL_LIMIT
        heads, until = mine.read(asked, answer)
        difference = core.compare_heads(mine, heads, after, until)
        wanted += len(difference.wants)
        assert difference.offers == []
        pages += 1
        if until is None:
            break
        after = until
    assert (wanted, pages) == (HEADS_A_PAGE * 2 + 10, 3)


def test_offers_are_the_batches_that_the_peer_lacks() -> None:
    mine, theirs = _heads(6), _heads(3)
    asked = mine.digest()
    heads, until = mine.read(asked, theirs.answer(asked))
    difference = core.compare_heads(mine, heads, b"", until)
    assert difference.wants == []
    assert [int.from_bytes(w.origin) for w in difference.offers] == [4, 5, 6]


def test_last_batch_is_wanted_if_heads_differ_at_one_seq() -> None:
    mine = HeadVector({A: Head(1, 5, b"\1" * 32)})
    theirs = HeadVector({A: Head(1, 5, b"\2" * 32)})
    asked = mine.digest()
    heads, until = mine.read(asked, theirs.answer(asked))
    (want,) = core.compare_heads(mine, heads, b"", until).wants
    assert want.after == 4


def test_frozen_origins_have_equal_digests_at_all_islands() -> None:
    mine = HeadVector({A: Head(1, 5, b"\1" * 32)})
    theirs = HeadVector({A: Head(1, 7, b"\2" * 32)})
    mine.freeze(A)
    assert mine.digest() != theirs.digest()
    asked = theirs.digest()
    heads, until = theirs.read(asked, mine.answer(asked))
    assert len(core.compare_heads(theirs, heads, b"", until).wants) == 1
    theirs.freeze(A)
    assert mine.digest() == theirs.digest()


def test_inconsistent_answers_are_malformed() -> None:
    mine = _heads(3)
    asked = mine.digest()
    other = _heads(4).digest().roster
    roster, root = asked.roster, bytes(32)
    unsorted = tuple(HeadOf(origin=key_bytes(o), epoch=1, seq=1, head=b"x") for o in (B, A))
    for wrong in (
        Heads(roster=other, root=root, indexed=_index(3)),
        Heads(roster=roster, root=root, indexed=_index(4)),
        Heads(roster=other, root=root, keyed=unsorted),
        Heads(roster=other, root=root, keyed=unsorted[:1] * 2),
    ):
        with pytest.raises(Malformed):
            mine.read(asked, wrong)


def _index(count: int) -> tuple[HeadAt, ...]:
    return tuple(HeadAt(epoch=1, seq=1, head=b"x") for _ in range(count))


def test_due_keys() -> None:
    signed = {"a/1": 100.0, "a/2": 95.0}
    assert core.due_keys(["a/1", "a/2", "a/3"], signed, 103.0) == (["a/3"], 105.0)
    assert core.due_keys(["a/1", "a/2"], signed, 105.0) == (["a/2"], 110.0)
    assert core.due_keys([], signed, 105.0) == ([], None)


def test_token_bucket() -> None:
    budget = core.TokenBucket(rate=10, burst=20)
    assert sum(budget.take(1, 5.0) for _ in range(50)) == 20
    assert sum(budget.take(1, 5.5) for _ in range(50)) == 5
    assert sum(budget.take(1, 500.0) for _ in range(50)) == 20


def test_recent_hashes_are_bounded() -> None:
    recent = core.RecentHashes(3)
    for number in range(5):
        recent.add(bytes([number]))
    assert list(recent) == [b"\2", b"\3", b"\4"]
    assert b"\4" in recent
    assert b"\1" not in recent
