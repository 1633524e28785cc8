"""What others wrote reaches no terminal raw: the function, and the log as the daemon sets it up."""

from __future__ import annotations

import io
import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from island.kernel import telemetry
from island.kernel.terminal import escaped

BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def obeyed(char: str) -> bool:
    """By the Unicode database: controls, separators, halves of pairs, and what sets the direction of text."""
    return (
        unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(char) in BIDI
        or unicodedata.name(char, "") in ("LEFT-TO-RIGHT MARK", "RIGHT-TO-LEFT MARK", "ARABIC LETTER MARK")
    )


def test_exactly_what_a_terminal_obeys_is_escaped() -> None:
    for number in range(0x110000):
        char = chr(number)
        assert (escaped(char) != char) == obeyed(char), hex(number)
        assert (escaped(char, lines=True) != char) == (obeyed(char) and char not in "\n\t"), hex(number)


@given(st.text(st.characters(exclude_characters="\\")))
def test_an_escape_can_be_read_back(text: str) -> None:
    quoted = escaped(text).replace('"', '\\"')
    assert json.loads(f'"{quoted}"') == text


HOSTILE = "a\x1b[2J\x1b]0;owned\x07\x9b\u202e\r\n2026-11-21 forged=line\x7f\udcff.fits"


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "value",
    [HOSTILE, Path(HOSTILE), [HOSTILE], {HOSTILE: HOSTILE}, OSError(2, "no such file", HOSTILE), os.fsencode(HOSTILE)],
)
def test_a_log_line_is_one_line_without_escapes(form: str, value: object) -> None:
    stream = io.StringIO()
    telemetry.configure("info", form, stream)
    log = structlog.get_logger("island")
    log.warning("streams.file", path=value)
    try:
        raise OSError(2, "no such file", HOSTILE)
    except OSError:
        log.exception("streams.failed")
    telemetry.flush()
    lines = stream.getvalue().split("\n")
    assert lines.pop() == "" and all("event" in line for line in lines)
    assert not any(obeyed(char) for line in lines for char in line)
    assert len(lines) == 2 and "owned" in lines[1] and "forged" in lines[1]
    if form == "json":
        for line in lines:
            json.loads(line)
