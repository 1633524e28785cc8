"""How an error reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

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


def strings() -> Iterator[tuple[str, str]]:
    """Every string in the package that is not a docstring, with its place."""
    for path in sorted((Path(__file__).parents[1] / "island").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        alone = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
        for each in ast.walk(tree):
            if isinstance(each, ast.Constant) and isinstance(each.value, str) and id(each) not in alone:
                yield f"{path.name}:{each.lineno}", each.value


def test_advice_can_be_followed() -> None:
    """The package is in no index of packages, and the documentation is not in the wheel."""
    found = list(strings())
    assert any("pip install '.[spark]'" in text for _, text in found)
    assert [place for place, text in found if re.search(r"pip install 'astrolab-island\[", text)] == []
    named = [(place, text) for place, text in found if re.search(r"docs/[a-z]+\.md", text)]
    assert [place for place, text in named if "of the repository" not in text] == []
