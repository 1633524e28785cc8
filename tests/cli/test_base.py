"""What commands print: whole where it is copied, folded where a person reads."""

from __future__ import annotations

import io
import re
import sys

import pytest

from island.cli import base


class Terminal(io.StringIO):
    """A terminal of 60 columns (COLUMNS says so)."""

    def isatty(self) -> bool:
        return True


ROWS = [("a" * 30, "https://livy.example.org:8998/with/a/long/path", "words " * 30)]


@pytest.mark.parametrize("terminal", [False, True])
def test_names_and_addresses_stay_whole_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", out := Terminal() if terminal else io.StringIO())
    base.table(("island", "url", "comment"), ROWS)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in out.getvalue().splitlines()]
    assert lines[1].split()[:2] == list(ROWS[0][:2])
    assert len(lines) == 2 if not terminal else len(lines) > 5


def test_a_table_that_fits_is_no_wider_than_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    base.table(("island", "title"), [("kiso", "[bold]not markup[/bold]"), ("é", "")])
    assert "[bold]not markup[/bold]" in out.getvalue()
    assert max(len(line) for line in out.getvalue().splitlines()[1:]) <= 60
