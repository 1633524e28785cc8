"""The picture of the README shows commands that exist, loads nothing from elsewhere, and is small."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from tests.contracts import commands

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "pictures" / "demo.svg"


def lines() -> list[str]:
    """The lines of the terminal, from top to bottom."""
    rows: dict[float, list[tuple[float, str]]] = {}
    for element in ElementTree.parse(PICTURE).iter("{http://www.w3.org/2000/svg}text"):
        row = rows.setdefault(float(element.attrib["y"]), [])
        row.append((float(element.attrib["x"]), element.text or ""))
    return ["".join(text for _, text in sorted(rows[y])).replace("\xa0", " ").strip() for y in sorted(rows)]


def test_the_commands_in_the_picture_exist() -> None:
    known = {name for name, _ in commands.leaves(commands.tree())}
    typed = [line.partition("$ island ")[2] for line in lines() if "$ island " in line]
    assert typed, "no command is shown"
    for command in typed:
        assert any(command == name or command.startswith(f"{name} ") for name in known), command


def test_the_picture_shows_a_run_without_differences() -> None:
    shown = "\n".join(lines())
    assert re.search(r"results: +\d+ compared, 0 differ", shown) and "DIFFERS" not in shown


def test_the_picture_is_small_and_stands_alone() -> None:
    text = PICTURE.read_text("utf-8")
    assert len(text.encode()) < 80_000
    assert "@import" not in text and "@font-face" not in text and "<image" not in text and "href" not in text
    assert not re.search(r"/(home|root|tmp|work|usr)\b", text), "a path of the machine on which it was made"
    assert f"]({PICTURE.relative_to(ROOT)})" in (ROOT / "README.md").read_text("utf-8")
