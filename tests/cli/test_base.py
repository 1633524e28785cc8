"""What commands print: whole where it is copied, folded where a person reads."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from island.cli import base, job_progress
from island.cli.demo.demo_island import ISLAND
from island.cli.demo.stage import Stage
from island.errors import ConfigError, IslandError, Unauthenticated
from island.home import Endpoint


class Terminal(io.StringIO):
    """A terminal of 60 columns (COLUMNS says so)."""

    def isatty(self) -> bool:
        return True


ROWS = [("a" * 30, "https://livy.example.org:8998/with/a/long/path", "words " * 30)]


@pytest.mark.parametrize("terminal", [False, True])
def test_names_and_addresses_stay_whole_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", out := Terminal() if terminal else io.StringIO())
    base.show_table(("island", "url", "comment"), ROWS)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in out.getvalue().splitlines()]
    assert lines[1].split()[:2] == list(ROWS[0][:2])
    assert len(lines) == 2 if not terminal else len(lines) > 5


def test_a_table_that_fits_is_no_wider_than_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    base.show_table(("island", "title"), [("kiso", "[bold]not markup[/bold]"), ("é", "")])
    assert "[bold]not markup[/bold]" in out.getvalue()
    assert max(len(line) for line in out.getvalue().splitlines()[1:]) <= 60


def test_each_problem_has_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    base.show_pairs({"island": "kiso", "inputs": ["a", "b"], "problems": ["The disk is full.", "No engine."]}, False)
    assert capsys.readouterr().out.splitlines() == [
        "island    kiso",
        "inputs    a, b",
        "problems  The disk is full.",
        "          No engine.",
    ]
    base.show_pairs({"problems": []}, False)
    assert capsys.readouterr().out == "problems  -\n"


HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil\r\x7f\udcff\u2066end"
"""Clears the screen, sets the title, turns text around; with a byte of a file name that is not UTF-8."""


@pytest.mark.parametrize("show", ["out", "say", "table", "pairs", "json", "fail"])
def test_nothing_that_others_wrote_is_obeyed_by_a_terminal(capsys: pytest.CaptureFixture[str], show: str) -> None:
    {
        "out": lambda: base.print_line(HOSTILE),
        "say": lambda: base.say(HOSTILE),
        "table": lambda: base.show_table(("island", "reason"), [(HOSTILE, "[red]" + HOSTILE)]),
        "pairs": lambda: base.show_pairs({"title": HOSTILE}, False),
        "json": lambda: base.show_json([{"title": HOSTILE}]),
        "fail": lambda: base.fail(IslandError(HOSTILE, hint=HOSTILE)),
    }[show]()
    said = "".join(capsys.readouterr())
    assert "evil" in said and "end" in said
    assert not set(said) & set("\x1b\x07\x9b\u202e\r\x7f\udcff\u2066")
    assert "\\u001b[2J" in said and "\\u202eevil" in said and "\\udcff" in said
    if show == "json":
        assert json.loads(said) == [{"title": HOSTILE}]


def test_a_file_whose_name_looks_like_markup_has_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", said := Terminal())
    with base.progress_bar("stars\x1b]0;owned\x07") as feed:
        feed({"done": 1, "total": 2, "what": "a[/b]\x1b[2J.parquet"})
    assert "a[/b]" in said.getvalue() and "\x1b[2J" not in said.getvalue() and "\x07" not in said.getvalue()


def test_the_demo_prints_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage()
    stage.act(1, HOSTILE)
    stage.say(HOSTILE)
    stage.typed("kiso", "island", HOSTILE)
    stage.table(("name",), [(HOSTILE,)])
    said = capsys.readouterr().out
    assert said.count("\\u202eevil") == 4
    assert not set(said) & set("\x1b\x07\x9b\u202e\r\x7f\udcff\u2066")


@pytest.mark.parametrize("arguments", [["dataset", "show", HOSTILE], ["peer", "ls", HOSTILE], [f"--{HOSTILE}"]])
@pytest.mark.parametrize("traceback", [False, True])
def test_an_argument_with_escapes_is_not_obeyed_when_the_error_repeats_it(
    tmp_path: Path, arguments: list[str], traceback: bool
) -> None:
    """As with a file name that the shell put in: the whole command, as a program."""
    options = ["--home", str(tmp_path / "home\x1b[31m"), *(["--traceback"] if traceback else [])]
    done = subprocess.run(
        [*ISLAND, *options, *(os.fsencode(each) for each in arguments)], capture_output=True, timeout=60, check=False
    )
    # Some versions of Click write a control character of an argument as \x1b themselves.
    assert done.returncode in (1, 2) and re.search(rb"\\(u00|x)1b\[", done.stderr)
    assert not set(done.stderr.decode() + done.stdout.decode()) & set("\x1b\x07\x9b\u202e\r\x7f\u2066")


def test_a_url_without_a_token_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ISLAND_TOKEN", raising=False)
    monkeypatch.setattr(base, "TARGET", base.Target(home=str(tmp_path), url="http://127.0.0.1:1"))
    with pytest.raises(Unauthenticated, match="no token is given") as error:
        base.api()
    assert "ISLAND_TOKEN_FILE, ISLAND_TOKEN or --token-file" in error.value.hint


@pytest.fixture
def personal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file with a person's token, which is named in the environment, on a machine without a home folder."""
    file = tmp_path / "my-token"
    file.write_text("isl_u_in_the_file\n")
    file.chmod(0o600)
    monkeypatch.delenv("ISLAND_TOKEN", raising=False)
    monkeypatch.setenv("ISLAND_TOKEN_FILE", str(file))
    monkeypatch.setenv("ISLAND_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("ISLAND_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(base, "TARGET", base.Target())
    return file


def test_the_environment_names_the_island_and_the_token(personal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base.api().endpoint == Endpoint("http://127.0.0.1:9000", "isl_u_in_the_file")
    monkeypatch.setenv("ISLAND_TOKEN", "isl_u_in_the_environment")
    assert base.api().endpoint.token == "isl_u_in_the_environment"
    monkeypatch.setattr(base, "TARGET", base.Target(url="http://127.0.0.1:1", token_file=str(personal)))
    assert base.api().endpoint == Endpoint("http://127.0.0.1:1", "isl_u_in_the_file")


def test_a_home_folder_that_is_named_comes_before_the_url_of_the_environment(
    personal: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "running.json").write_text('{"url": "http://127.0.0.1:7777"}')
    monkeypatch.setattr(base, "TARGET", base.Target(home=str(tmp_path / "home")))
    assert base.api().endpoint == Endpoint("http://127.0.0.1:7777", "isl_u_in_the_file")


def test_a_token_file_that_others_can_read_is_refused(personal: Path) -> None:
    personal.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by other accounts") as error:
        base.api()
    assert "chmod 600" in error.value.hint
    personal.unlink()
    with pytest.raises(ConfigError, match="cannot be read") as error:
        base.api()
    assert "ISLAND_TOKEN_FILE" in error.value.hint


@pytest.mark.parametrize(
    ("name", "target", "with_home", "named"),
    [
        ("ISLAND_TOKEN", base.Target(), True, True),
        ("ISLAND_TOKEN_FILE", base.Target(), True, True),
        ("ISLAND_TOKEN", base.Target(token_file="file"), True, False),
        ("ISLAND_TOKEN", base.Target(), False, False),
    ],
)
def test_a_refused_token_of_the_environment_is_named_if_it_overrides_one(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    target: base.Target,
    with_home: bool,
    named: bool,
) -> None:
    if with_home:
        (tmp_path / "island.toml").touch()
    monkeypatch.delenv("ISLAND_TOKEN", raising=False)
    monkeypatch.setenv("ISLAND_HOME", str(tmp_path))
    monkeypatch.setenv(name, "x")
    monkeypatch.setattr(base, "TARGET", target)
    base.fail(Unauthenticated("this island does not know the token", hint="Use another."))
    said = capsys.readouterr().err
    assert (f"{name} is set" in said) is named and ("Use another." in said) is not named


@pytest.mark.parametrize("terminal", [False, True])
def test_a_wait_shows_its_seconds_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr(sys, "stderr", err := Terminal() if terminal else io.StringIO())
    elapsed = job_progress.ElapsedText()
    elapsed.clear()
    assert err.getvalue() == ""
    elapsed.show(HOSTILE)
    elapsed.clear()
    shown = re.fullmatch(r"\r\x1b\[K  ([^\x1b]*owned[^\x1b]*): \d+ s\r\x1b\[K", err.getvalue())
    assert shown if terminal else err.getvalue() == ""
