"""Lines that strangers cause: some of each, and a count of the rest."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import structlog

from island.kernel.stranger_log import PER_ADDRESS, PER_EVENT, WINDOW_S, StrangerLog
from tests.sim.virtual import VirtualLoop


def logged(*bursts: list[tuple[str, str]]) -> list[list[dict[str, Any]]]:
    """What is logged in each of the windows that begin with these (event, address)."""
    found: list[list[dict[str, Any]]] = []

    async def main() -> None:
        strangers = StrangerLog()
        for burst in bursts:
            with structlog.testing.capture_logs() as lines:
                for event, address in burst:
                    strangers.info(event, address, error="x")
                await asyncio.sleep(WINDOW_S + 1)
            found.append([dict(line) for line in lines])

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    return found


def test_a_few_lines_are_written_as_they_are() -> None:
    (lines,) = logged([("a", "1"), ("a", "2"), ("b", "1")])
    assert [(line["event"], line["address"], line["error"]) for line in lines] == [
        ("a", "1", "x"),
        ("a", "2", "x"),
        ("b", "1", "x"),
    ]


def test_one_address_is_limited_and_the_rest_counted() -> None:
    (lines,) = logged([("a", "1")] * 1322 + [("a", "2"), ("b", "1")])
    assert Counter((line["event"], line["address"]) for line in lines) == {
        ("a", "1"): PER_ADDRESS,
        ("a", "2"): 1,
        ("b", "1"): 1,
        ("log.suppressed", "1"): 1,
    }
    assert lines[-1]["of"] == "a" and lines[-1]["lines"] == 1322 - PER_ADDRESS


def test_many_addresses_are_limited_together() -> None:
    (lines,) = logged([("a", str(number)) for number in range(5000)])
    assert len(lines) == PER_EVENT + 1
    assert (lines[-1]["address"], lines[-1]["lines"]) == ("others", 5000 - PER_EVENT)


def test_the_next_window_begins_anew() -> None:
    first, second, third = logged([("a", "1")] * 10, [("a", "1")] * 10, [("a", "1")])
    assert len(first) == len(second) == PER_ADDRESS + 1 and len(third) == 1


def test_islands_are_counted_by_their_keys_and_may_have_addresses() -> None:
    async def main() -> list[dict[str, Any]]:
        members = StrangerLog("key")
        with structlog.testing.capture_logs() as lines:
            for _ in range(PER_ADDRESS + 3):
                members.info("linked", "ab", address="127.0.0.1:1")
            await asyncio.sleep(WINDOW_S + 1)
        return [dict(line) for line in lines]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        lines = runner.run(main())
    assert [(line["key"], line.get("address")) for line in lines] == [("ab", "127.0.0.1:1")] * PER_ADDRESS + [
        ("ab", None)
    ]
    assert (lines[-1]["event"], lines[-1]["lines"]) == ("log.suppressed", 3)
