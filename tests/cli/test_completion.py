"""Completion in real shells: keys are pressed in bash and zsh, and fish is asked what it would complete."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from island.cli import completion_scripts, main
from island.cli.completion import Shell
from island.membership.messages import SERVER_KINDS
from tests.contracts import commands
from tests.missing import missing

TYPED = [
    ("island pee\t", "<peer>"),
    ("island peer inv\t", "<peer invite>"),
    ("island source add fo\t", "<source add folder>"),
    ("island --token-file to\t doc\t", "<--token-file token doctor>"),
    ("island --token-file=to\t stat\t", "<--token-file=token status>"),
    ("island dataset publish tab\t --lic\t X", "<dataset publish table.parquet --licence X>"),
    ("island session open --kind pys\t", "<session open --kind pyspark>"),
    ("island session open --kind=pys\t", "<session open --kind=pyspark>"),
    ("island server add jup\t", "<server add jupyterhub>"),
    ("island completion fi\t", "<completion fish>"),
    ("island engine --parent\t", "<engine --parent-pipe>"),
    ("island dataset show tab\t", "<dataset show tab>"),  # a name of a dataset, and no file
    ("island peer ls --js\t --tok\t se\t", "<peer ls --json --token-file secret file>"),
]
"""What is typed, with the tab key, and the arguments that the command then gets."""

START = {
    "bash": (
        ["--norc", "--noprofile", "-i"],
        "bind 'set bell-style none'; bind 'set enable-bracketed-paste off'; source ./script.bash",
    ),
    "zsh": (["-f", "-i"], "unsetopt beep; fpath=($PWD $fpath); autoload -U compinit; compinit -u -D"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files to complete, and the script of each shell."""
    made = tmp_path_factory.mktemp("completion")
    (made / "token").touch()
    (made / "table.parquet").touch()
    (made / "secret file").touch()
    for shell in Shell:
        (made / f"script.{shell}").write_text(completion_scripts.script(shell, commands.tree()))
    shutil.copy(made / "script.zsh", made / "_island")  # zsh finds it by its name
    return made


def program(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        missing(f"{shell} is absent: install {shell} to run this test")
    return found


def test_the_commands_of_the_help_can_be_copied(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main.run(["completion", "--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    bash = [line for line in lines if "bash-completion/completions" in line]
    fish = [line for line in lines if "fish/completions" in line]
    assert "package bash-completion" in " ".join(lines)
    for script, made in (
        (bash, ".local/share/bash-completion/completions/island"),
        (fish, ".config/fish/completions/island.fish"),
    ):
        assert [line.split()[0] for line in script] == ["mkdir", "island"]
        subprocess.run(
            ["sh", "-euc", "\n".join(script)],
            env={"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}, check=True, timeout=60,
        )  # fmt: skip
        assert "island" in (tmp_path / made).read_text()


class Terminal:
    """A shell at a terminal, in which `island` prints its arguments."""

    def __init__(self, shell: str, folder: Path) -> None:
        arguments, prepare = START[shell]
        self._own, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [program(shell), *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, start_new_session=True,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "vt100", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        os.close(theirs)
        self._seen = b""
        self.type(f"{prepare}; island() {{ echo \"<$*>\"; }}; echo rea''dy\n")
        self.until("ready")

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def until(self, words: str) -> None:
        """Read until the terminal shows `words`; fails if it shows nothing more for 20 seconds."""
        while words.encode() not in self._seen:
            assert select.select([self._own], [], [], 20)[0], self._seen.decode("utf-8", "replace")
            self._seen += os.read(self._own, 4096)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._own)


@pytest.fixture(scope="module", params=["bash", "zsh"])
def terminal(request: pytest.FixtureRequest, folder: Path) -> Iterator[Terminal]:
    made = Terminal(request.param, folder)
    yield made
    made.close()


@pytest.mark.parametrize(("typed", "arguments"), TYPED, ids=[typed for typed, _ in TYPED])
def test_the_tab_key(terminal: Terminal, typed: str, arguments: str) -> None:
    terminal.type(typed + "\n")
    terminal.until(arguments)


def test_fish(folder: Path) -> None:
    fish = program("fish")
    for line, candidates in (
        ("island pee", ["peer"]),
        ("island source add ", ["folder"]),
        ("island --token-file token doc", ["doctor"]),
        ("island dataset publish tab", ["table.parquet"]),
        ("island session open --kind ", ["pyspark", "sql"]),
        ("island completion ", ["bash", "fish", "zsh"]),
        ("island dataset show tab", []),
        ("island peer ls --js", ["--json"]),
        ("island peer ls --token-file se", ["secret file"]),
        ("island --ver", ["--version"]),
    ):
        done = subprocess.run(
            [fish, "--no-config", "-c", f"source script.fish; complete -C '{line}'"],
            cwd=folder, env={**os.environ, "HOME": str(folder)}, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        found = [each.partition("\t")[0].replace("\\ ", " ") for each in done.stdout.splitlines()]
        assert found == candidates, line


@pytest.mark.parametrize("shell", list(Shell))
def test_every_command_and_option_is_in_the_script(folder: Path, shell: Shell) -> None:
    script = (folder / f"script.{shell}").read_text()
    for name, command in commands.leaves(commands.tree()):
        assert f'"{name}"' in script
        for parameter in command.params:
            for option in (each for each in parameter.opts if each.startswith("--")):
                assert (option if shell != Shell.fish else f"-l {option[2:]}") in script
    assert script.isascii() and "Traceback" not in script


def test_an_option_takes_a_value_everywhere_or_nowhere() -> None:
    """The script for fish relies on it."""
    kinds: dict[str, set[bool]] = {}
    for place in completion_scripts.places(commands.tree()):
        for option in place.options:
            kinds.setdefault(option.flag, set()).add(option.value.kind == "none")
    assert {flag for flag, both in kinds.items() if len(both) > 1} == set()


def test_the_choices_are_those_of_the_commands() -> None:
    assert completion_scripts.CHOICES["server add", ""] == SERVER_KINDS
    assert completion_scripts.CHOICES["completion", ""] == tuple(Shell)
    places = {place.words: place for place in completion_scripts.places(commands.tree())}
    for command, flag in completion_scripts.CHOICES:
        assert not flag or flag in {option.flag for option in places[command].options}
