"""`island config check` finds everything that is wrong, with its line; `show` prints no secret."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path

import pytest

from island import config
from island.cli import base, main
from island.doctor import config_file
from island.errors import ConfigError

GOOD = '[island]\nname = "kiso"\n'


def checked(folder: Path, text: str) -> list[tuple[int | None, str, str]]:
    path = folder / "island.toml"
    path.write_text(text)
    return [(each.line, each.severity, each.key) for each in config_file.check(path).findings]


def test_every_problem_has_its_line(tmp_path: Path) -> None:
    text = """\
[island]
archipelago = '''
name = "not a key"
'''
[listen]   # a comment
user = "0.0.0.0:8990"
advertise = [
    "one.example:8991",
    "two.example",
]
[jobs]
acept_from = []
max_foreign = 0
[jbos]
"""
    assert checked(tmp_path, text) == [
        (1, "problem", "island.name"),
        (6, "problem", "listen.user"),
        (7, "problem", "listen.advertise"),
        (12, "problem", "jobs.acept_from"),
        (13, "problem", "jobs.max_foreign"),
        (14, "problem", "jbos"),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('island.name = "kiso"\nlisten.user = "x"\n', 2),
        ('[island]\nname = "kiso"\n["listen"]\n"user" = "x"\n', 4),
        ('island = {name = "kiso"}\nlisten = {user = "x"}\n', 2),
    ],
    ids=["dotted", "quoted", "inline"],
)
def test_lines_of_other_ways_to_write_a_key(tmp_path: Path, text: str, line: int) -> None:
    assert checked(tmp_path, text) == [(line, "problem", "listen.user")]


def test_the_line_of_a_table_is_its_heading(tmp_path: Path) -> None:
    text = '[island]\nname = "kiso"\n[jobs]\nmax_foreign = 1\n[jobs.accounts]\nalice = "not an account"\n'
    assert checked(tmp_path, text) == [(5, "problem", "jobs.accounts")]


@pytest.mark.parametrize("text", ['[island]\nname = "kiso\n', '[island]\nname = ["kiso"'])
def test_a_syntax_error_has_its_line_and_no_second_path(tmp_path: Path, text: str) -> None:
    assert checked(tmp_path, text) == [(2, "problem", "")]
    (found,) = config_file.check(tmp_path / "island.toml").findings
    assert found.found.startswith("the file is not valid TOML: ") and str(tmp_path) not in found.found


FIRST = """[[engine]]
name = "one"
url = "http://127.0.0.1:1"
[[engine]]
name = "two"
url = "https://127.0.0.1:2"
"""


def test_engines_on_other_machines_need_https_and_pyspnego(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spnego", None)
    (tmp_path / "pw").write_text("pa55\n")
    (tmp_path / "pw").chmod(0o600)
    engine = '[[engine]]\nname = "a"\nurl = "http://livy.example.org:1"\nuser = "me"\npassword_file = "pw"\n'
    assert checked(tmp_path, GOOD + engine) == [(5, "warning", "engine[0].url")]
    engine = '[[engine]]\nname = "a"\nurl = "https://livy.example.org"\nkerberos = true\n'
    assert checked(tmp_path, GOOD + engine) == [(6, "problem", "engine[0].kerberos")]


@pytest.mark.parametrize(
    ("extra", "severity", "key", "words"),
    [
        ('[listen]\npeer = "127.0.0.1:8990"', "problem", "listen.peer", ["127.0.0.1:8990", "different ports"]),
        ('[listen]\npeer = "0.0.0.0:8990"', "problem", "listen.peer", ["listen.user", "different ports"]),
        ('[listen]\npeer = ""\nadvertise = ["a:1"]', "warning", "listen.advertise", ["no effect", "listen.peer"]),
        ('[livy]\nuser = "me"', "warning", "livy.user", ["the password is empty"]),
        ('[jobs]\naccounts = {alice = "a1"}', "warning", "jobs.accounts", ["no effect", "livy.url"]),
        ('[livy]\nuser = "me"\npassword_file = "no"', "problem", "livy.password_file", ["No such file", "0600"]),
        ('[livy]\nuser = "me"\npassword_file = "open"', "problem", "livy.password_file", ["0644", "chmod 600"]),
        ('[livy]\npassword_file = "closed"', "warning", "livy.password_file", ["no effect", "livy.user"]),
        ('[livy]\nurl = "http://me:pa55@h"', "problem", "livy.url", ["user name or password", "password_file"]),
        (r"[livy]" "\n" r'url = "http://me:pa55\"cret@h"', "problem", "livy.url", ["user name or password"]),
        ('[jobs]\naccept_from = ["members"]', "warning", "jobs.accept_from", ['foreign_code = "none"', "three keys"]),
        ('[jobs]\nallow_files = ["/nowhere"]', "warning", "jobs.allow_files", ["/nowhere", "create the folder"]),
        (FIRST + 'user = "me"', "warning", "engine[1].user", ["the password is empty"]),
        (FIRST + 'user = "me"\npassword_file = "no"', "problem", "engine[1].password_file", ["No such file", "0600"]),
        (FIRST + 'password_file = "closed"', "warning", "engine[1].password_file", ["no effect", "engine[1].user"]),
        (FIRST + 'ca_file = "closed"', "problem", "engine[1].ca_file", ["closed", "PEM"]),
        (FIRST + 'ca_file = "no"', "problem", "engine[1].ca_file", ["No such file"]),
        (FIRST + 'shared_folder = "/nowhere"', "problem", "engine[1].shared_folder", ["/nowhere"]),
        ('[decoding]\nmemory = "1MiB"', "warning", "decoding.memory", ["256MiB"]),
    ],
)
def test_contradictions_and_missing_files(
    tmp_path: Path, extra: str, severity: str, key: str, words: list[str]
) -> None:
    for name, mode in (("open", 0o644), ("closed", 0o600)):
        (tmp_path / name).write_text("pa55\n")
        (tmp_path / name).chmod(mode)
    path = tmp_path / "island.toml"
    path.write_text(GOOD + extra + "\n")
    (found,) = config_file.check(path).findings
    assert (found.severity, found.key) == (severity, key)
    assert found.line is not None
    assert path.read_text().splitlines()[found.line - 1].startswith(key.partition(".")[2])
    assert all(word in f"{found.found} {found.advice}" for word in words), found
    assert "pa55" not in str(found)


def test_what_init_writes_has_no_findings(tmp_path: Path) -> None:
    assert checked(tmp_path, config.render({"island": {"name": "kiso"}})) == []


def island(*arguments: str) -> int:
    """Run the command in this process; return its exit code."""
    try:
        with pytest.raises(SystemExit) as stop:
            main.run(list(arguments))
    finally:
        base.TARGET.home = None
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_config_check_prints_places_and_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.toml"
    path.write_text('[island]\nname = "a/b"\n[jbos]\n')
    assert island("config", "check", str(path)) == 1
    out, err = capsys.readouterr()
    assert f"{path}:2: problem: island.name: " in out and f"{path}:3: problem: unknown key 'jbos'" in out
    assert "    The most similar known key is 'jobs'." in out and err == f"{path}: 2 problems\n"
    assert island("config", "check", str(path), "--json") == 1
    assert [each["line"] for each in json.loads(capsys.readouterr().out)] == [2, 3]
    path.write_text(GOOD)
    assert island("config", "check", str(path)) == 0
    assert island("--home", str(tmp_path / "none"), "config", "check") == 1
    assert "island init" in capsys.readouterr().out


def test_config_show_says_where_each_value_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GOOD + '[livy]\nurl = "http://livy.example.org:8998"\nuser = "me"\n'
    text += '[[engine]]\nname = "cluster"\nurl = "http://a.example"\nmax_sessions = 7\n'
    (tmp_path / "island.toml").write_text(text)
    monkeypatch.setenv("ISLAND_HOME", str(tmp_path))
    monkeypatch.setenv("ISLAND_TOKEN", "isl_a_secret_of_this_island")
    assert island("config", "show") == 0
    assert capsys.readouterr().out == text
    assert island("config", "show", "--effective") == 0
    out = capsys.readouterr().out
    assert "secret_of" not in out
    assert f'# home = "{tmp_path}"  (ISLAND_HOME)' in out and "(ISLAND_TOKEN)" in out
    lines = {line.partition(" =")[0]: line.rpartition("# ")[2] for line in out.splitlines() if " = " in line}
    assert (lines["archipelago"], lines["url"], lines["ca_file"]) == ("default", "island.toml", "default")
    shown = tomllib.loads(out)
    (engine,) = shown.pop("engine")
    assert engine.pop("max_sessions") == 7 and set(engine) | {"max_sessions"} == set(
        config.EngineSection.__struct_fields__
    )
    assert {(s, k) for s in shown for k in shown[s]} == {(s, k) for s, k, *_ in config.describe()}
    assert island("config", "show", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(each["section"], each["key"]): each["source"] for each in rows}["livy", "user"] == "file"


def test_config_show_leaves_out_a_java_home_that_is_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "island.toml").write_text(GOOD)
    java = tmp_path / "java"
    (java / "bin").mkdir(parents=True)
    (java / "bin" / "java").touch()
    for version, shown in (("17.0.1", True), ("21.0.1", False)):
        (java / "release").write_text(f'JAVA_VERSION="{version}"\n')
        monkeypatch.setenv("JAVA_HOME", str(java))
        assert island("--home", str(tmp_path), "config", "show", "--effective") == 0
        out, err = capsys.readouterr()
        assert (f'# java = "{java}"  (JAVA_HOME)' in out) == shown
        assert ("has no Java 17 and is ignored" in err) == (not shown)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('url = "http://me:pa55word@127.0.0.1:9"', 'url = "http://***@127.0.0.1:9"'),
        (r'url = "http://me:se\"pa55word@127.0.0.1:9"', 'url = "http://***@127.0.0.1:9"'),
        ('url = "http://me:se pa55word@127.0.0.1:9"', 'url = "http://***@127.0.0.1:9"'),
        ("url = 'http://me:pa55@word@h'  # or h2", "url = 'http://***@h'  # or h2"),
        ('url = "me:pa55word@127.0.0.1:9"', 'url = "***@127.0.0.1:9"'),
        ('"url" = "me:pa55word@127.0.0.1:9', '"url" = "***@127.0.0.1:9'),  # not valid TOML
        ('url = """http://me:se\npa55word@h"""', ""),
        (r'"\u0075rl" = "http\u003a//me:pa55word@h"', ""),
    ],
)
@pytest.mark.parametrize("options", [(), ("--effective",), ("--json",)])
def test_config_show_prints_no_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, shown: str, options: tuple[str, ...]
) -> None:
    (tmp_path / "island.toml").write_text(f"{GOOD}[livy]\n{line}\n")
    code = island("--home", str(tmp_path), "config", "show", *options)
    out, err = capsys.readouterr()
    assert "pa55" not in out + err and "word@" not in out + err
    if shown and not options:
        assert out == f"{GOOD}[livy]\n{shown}\n"
    else:  # nothing is shown, and the command fails
        assert code == 1 and out == "" and err


def test_config_reference_prints_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert island("--home", str(tmp_path / "none"), "config", "reference") == 0
    assert capsys.readouterr().out == config.reference()


def test_config_show_of_a_comment_with_an_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GOOD + '[livy]\nurl = "http://h:9"  # ask bob@site.example\n'
    (tmp_path / "island.toml").write_text(text)
    assert island("--home", str(tmp_path), "config", "show") == 0
    assert capsys.readouterr().out == text


def test_config_show_of_a_broken_file_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "island.toml").write_text('[island]\nname = "a/b"\n')
    assert island("--home", str(tmp_path), "config", "show", "--effective") == 1
    assert "island.name" in capsys.readouterr().err


def test_what_is_no_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_text("#" * config.FILE_LIMIT + "\n")
    for name, reason in (("fifo", "regular file"), ("/dev/zero", "regular file"), ("large", "larger")):
        path = tmp_path / name
        (found,) = config_file.check(path).findings
        assert found.severity == "problem" and reason in found.found
        with pytest.raises(ConfigError, match=reason):
            config.load(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 5_000 + "]" * 5_000, "nested too deeply"),
        (GOOD + "[livy]\nmax_sessions = " + "9" * 5_000, "Exceeds the limit"),
    ],
    ids=["deep", "digits"],
)
def test_what_the_parser_cannot_hold_is_a_problem(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "island.toml"
    path.write_text(text)
    (found,) = config_file.check(path).findings
    assert found.severity == "problem" and reason in found.found
    with pytest.raises(ConfigError, match=reason):
        config.load(path)
    assert config_file.text_of(path) == text


def test_the_line_of_a_key_in_a_file_with_long_lines() -> None:
    """With a regular expression that tries every way to divide the spaces, this takes hours."""
    text = "[island]\n" + " " * 200_000 + "\n" + " " * 200_000 + "x" * 200_000 + "\nname = 7\n"
    assert config_file.line_of(text, "island", "name") == 4


def test_a_key_with_a_line_feed_prints_no_line_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "island.toml").write_text(GOOD + '"a\\n/etc/x: problem: forged" = 1\n')
    with pytest.raises(SystemExit):
        main.run(["config", "check", str(tmp_path / "island.toml")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{tmp_path}/island.toml:")
