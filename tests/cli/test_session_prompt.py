"""Where a statement ends at the prompt, what Ctrl-C does there, and which part of a log is new."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from island.cli.job_log import new_lines, split_log
from island.cli.session_prompt import is_complete, prompt


@pytest.mark.parametrize(
    ("lines", "kind", "complete"),
    [
        (["1 + 1"], "pyspark", True),
        (["if x:"], "pyspark", False),
        (["if x:", "    y"], "pyspark", False),
        (["if x:", "    y", ""], "pyspark", True),
        (["x = (1,"], "pyspark", False),
        (["x ="], "pyspark", True),
        (["SELECT 1"], "sql", False),
        (["SELECT 1", "FROM t; "], "sql", True),
        (["SELECT 1", ""], "sql", True),
        (["val x = 1"], "spark", True),
    ],
)
def test_the_end_of_a_statement(lines: list[str], kind: str, complete: bool) -> None:
    assert is_complete(lines, kind) is complete


def test_an_interrupt_discards_what_was_typed() -> None:
    typed: Iterator[str | type[BaseException]] = iter(["if x:", KeyboardInterrupt, "", "1", EOFError])
    ran: list[str] = []

    def read(_: str) -> str:
        line = next(typed)
        if isinstance(line, type):
            raise line
        return line

    prompt("here:0", "pyspark", ran.append, read)
    assert ran == ["1"]


def test_sql_is_sent_without_its_semicolon() -> None:
    typed, ran = iter(["SELECT 1", "  + 1;", "exit"]), list[str]()
    prompt("here:0", "sql", ran.append, lambda _: next(typed))
    assert ran == ["SELECT 1\n  + 1"]


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ([], ["a", "b"], ["a", "b"]),
        (["a", "b"], ["a", "b"], []),
        (["a", "b"], ["a", "b", "c"], ["c"]),
        (["a", "b", "c"], ["c", "d"], ["d"]),
        (["a", "a"], ["a", "a", "a"], ["a"]),
        (["a"], ["x", "y"], ["x", "y"]),
    ],
)
def test_new_lines_of_a_window(before: list[str], now: list[str], new: list[str]) -> None:
    assert new_lines(before, now) == new


def test_a_log_has_two_parts() -> None:
    assert split_log(["stdout: ", "hello", "\nstderr: ", "\nisland: ", "runs"]) == (["hello"], ["runs"])
    assert split_log(["stdout: ", "hello"]) == (["hello"], [])
