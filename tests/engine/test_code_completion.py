"""What may follow the code before the cursor."""

from __future__ import annotations

import pytest

from island.engine.code_completion import LONGEST, MOST, python_names, sql_names


class Stars:
    magnitude = 4.5

    @property
    def broken(self) -> int:
        raise RuntimeError("not now")

    def count(self) -> int:
        return 7


NAMES = {"stars": Stars(), "start": 1, "spark": object()}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("star", ["stars", "start"]),
        ("x = star", ["stars", "start"]),
        ("print(stars.ma", ["magnitude"]),
        ("stars.co", ["count"]),
        ("stars.bro", ["broken"]),
        ("stars.magnitude.is_i", ["is_integer"]),
        ("impor", ["import"]),
        ("nothing.here", []),
        ("'star", ["stars", "start"]),
        ("", []),
        ("(", []),
    ],
)
def test_names_of_python(code: str, found: list[str]) -> None:
    assert sorted(python_names(code, NAMES)) == found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("SELECT * FROM vir", ["virgo__galaxies"]),
        ("sel", ["SELECT"]),
        ("SELECT Gal", ["galaxies"]),
        ("SELECT ", []),
    ],
)
def test_names_of_sql(code: str, found: list[str]) -> None:
    assert sql_names(code, ["virgo__galaxies", "galaxies"]) == found


def test_names_are_limited() -> None:
    names = {f"v{number}": 0 for number in range(5000)} | {"v" + "x" * LONGEST: 0}
    found = python_names("v", names)
    assert len(found) == MOST and max(map(len, found)) <= LONGEST
