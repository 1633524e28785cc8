"""How an error reads."""

from __future__ import annotations

import pytest

from island.errors import BadInput


@pytest.mark.parametrize(
    ("message", "hint", "text", "line"),
    [
        ("no such place", "", "no such place", "no such place"),
        ("it is full", "Free some space.", "it is full\nFree some space.", "it is full. Free some space."),
        ("a\nb.", "Do c.", "a\nb.\nDo c.", "a b. Do c."),
    ],
)
def test_two_lines_for_people_and_one_for_records(message: str, hint: str, text: str, line: str) -> None:
    error = BadInput(message, hint=hint)
    assert (str(error), error.line) == (text, line)
