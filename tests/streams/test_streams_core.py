"""Decisions of streams: completeness of files, window, commits, texts."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from island.errors import PeerMisbehaved
from island.streams import core
from island.streams.core import FileStat, UnsettledFile, Window

OLD, NEW, OTHER = FileStat(10, 1_000_000_000, 1), FileStat(10, 99_500_000_000, 2), FileStat(11, 99_600_000_000, 2)


def look(
    listing: Mapping[str, FileStat],
    known: Mapping[str, FileStat] | None = None,
    before: Mapping[str, UnsettledFile] | None = None,
    now: float = 50.0,
) -> core.FolderScan:
    return core.scan_folder(
        listing,
        known or {},
        before or {},
        now=now,
        wall=100.0,
        settle=1.0,
        tells_its_end=lambda p: p.endswith(".parquet"),
    )


def test_what_is_known_is_not_read() -> None:
    assert look({"a.parquet": OLD}, {"a.parquet": OLD}) == core.FolderScan((), (), {})


def test_parquet_is_tried_at_once_and_avro_after_a_rest() -> None:
    first = look({"a.parquet": NEW, "b.avro": NEW})
    assert first.read == ("a.parquet",)
    assert look({"b.avro": NEW}, before=first.resting, now=50.5).read == ()
    assert look({"b.avro": NEW}, before=first.resting, now=51.0).read == ("b.avro",)


def test_a_file_that_changes_rests_anew() -> None:
    first = look({"b.avro": NEW})
    assert look({"b.avro": OTHER}, before=first.resting, now=51.0).read == ()


def test_an_old_file_has_rested() -> None:
    assert look({"b.avro": OLD}).read == ("b.avro",)


def test_a_renamed_file_has_rested() -> None:
    found = look({"c.avro": NEW}, {"b.avro": NEW})
    assert (found.read, found.vanished) == (("c.avro",), ("b.avro",))


def test_a_rewritten_file_is_read_again() -> None:
    found = look({"a.parquet": OTHER}, {"a.parquet": OLD})
    assert (found.read, found.vanished) == (("a.parquet",), ())


def test_what_was_tried_in_vain_waits_until_it_changes() -> None:
    young = UnsettledFile(NEW, 50.0)
    assert core.undecodable_file(young, "cut short", 50.5, 1.0) == young
    tried = core.undecodable_file(young, "cut short", 51.0, 1.0)
    assert tried.problem == "cut short"
    assert look({"a.parquet": NEW}, before={"a.parquet": tried}, now=60.0).read == ()
    assert look({"a.parquet": OTHER}, before={"a.parquet": tried}, now=60.0).read == ("a.parquet",)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 5)))
def test_files_are_read_by_time_then_name(times: dict[str, int]) -> None:
    found = look({f"{name}.parquet": FileStat(1, at, 0) for name, at in times.items()})
    assert list(found.read) == [f"{name}.parquet" for name in sorted(times, key=lambda name: (times[name], name))]


def test_a_window_lets_one_delivery_through_whatever_its_size() -> None:
    window = Window(100)
    assert window.open()
    window.send(b"1", 1000)
    assert not window.open()
    window.acknowledge(b"1")
    assert window.open()
    assert window.size == 0


def test_an_acknowledgement_covers_all_before() -> None:
    window = Window(100)
    for to in (b"1", b"2", b"3"):
        window.send(to, 40)
    window.acknowledge(b"2")
    assert window.size == 40
    for false in (b"1", b"4"):
        with pytest.raises(PeerMisbehaved):
            window.acknowledge(false)
    window.acknowledge(b"3")


def test_commits_are_at_once_when_idle_and_apart_under_load() -> None:
    every = core.commit_every(1)
    assert core.commit_in(now=10, last=1, pending_bytes=1, window=100, every=every) == 0
    assert core.commit_in(now=10, last=9.95, pending_bytes=1, window=100, every=every) == pytest.approx(0.05)
    assert core.commit_in(now=10, last=9.95, pending_bytes=50, window=100, every=every) == 0
    assert core.commit_every(20_000) == 2.0
    assert core.commit_every(10**9) == 10.0


def test_a_meter_forgets() -> None:
    meter = core.RateMeter(span=10)
    meter.add(1.0, 100, 1000)
    meter.add(1.5, 100, 1000)
    assert meter.rate(2.0) == (20.0, 200.0)
    assert meter.rate(30.0) == (0.0, 0.0)


@given(st.lists(st.text(max_size=700), max_size=20))
def test_texts_fit(texts: list[str]) -> None:
    assert len(core.shorten(texts)) <= 480


@pytest.mark.parametrize("state", ["waiting", "error", "gap"])
def test_one_tries_again_for_ever_and_not_too_often(state: core.ChannelState) -> None:
    waits = [core.retry_after(state, failures) for failures in range(1, 50)]
    assert waits == sorted(waits)
    assert waits[0] > 0
    assert waits[-1] in (15.0, 60.0)


def test_a_file_that_could_not_be_read_is_read_again_after_growing_pauses() -> None:
    rest, now, pauses = UnsettledFile(NEW, 40.0), 50.0, []
    for _ in range(20):
        rest = core.failed_file(rest, "killed", now, crashed=False)
        assert look({"a.parquet": NEW}, before={"a.parquet": rest}, now=rest.again - 0.1).read == ()
        assert look({"a.parquet": NEW}, before={"a.parquet": rest}, now=rest.again).read == ("a.parquet",)
        pauses.append(rest.again - now)
        now = rest.again
    assert pauses == sorted(pauses) and pauses[0] == 2.0 and pauses[-1] == 60.0
    assert look({"a.parquet": OTHER}, before={"a.parquet": rest}, now=now - 1).read == ("a.parquet",)


def test_a_file_that_crashes_its_reader_is_set_aside_after_some_times() -> None:
    rest = core.failed_file(UnsettledFile(NEW, 40.0), "killed", 50.0, crashed=False)
    for _ in range(core.MAX_CRASHES):
        assert not rest.tried
        rest = core.failed_file(rest, "crashed", 50.0, crashed=True)
    assert rest.tried and rest.problem == "crashed"
