"""How the result of a statement is shown to a person."""

from __future__ import annotations

from typing import Any

import pytest

from island.cli.statement_output import error_text


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ({"traceback": ["Traceback:\n", "ValueError: boom\n"]}, "Traceback:\nValueError: boom"),
        (
            {"evalue": "no table\nisland: add a line", "traceback": ["Traceback:\n", "E\n", "island: add a line\n"]},
            "Traceback:\nE\nisland: add a line",
        ),
        ({"evalue": "no\nisland: add", "traceback": ["Traceback:\n", "E\n"]}, "Traceback:\nE\nisland: add"),
        ({"evalue": "no table `x`", "traceback": ["org.apache.A.a(A.scala:1)", "org.B(B.scala:2)"]}, "E: no table `x`"),
        ({"evalue": "gone", "traceback": []}, "E: gone"),
    ],
)
def test_an_error_is_shown_once_and_without_the_frames_of_spark(output: dict[str, Any], text: str) -> None:
    assert error_text({"status": "error", "ename": "E", **output}) == text
