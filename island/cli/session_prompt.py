"""An interactive prompt for a Spark session: reads code, runs it, prints results; Tab completes names."""

from __future__ import annotations

import codeop
import contextlib
import re
import readline
from collections.abc import Callable, Iterator, Sequence

from island.cli import base
from island.client import Api, quote
from island.errors import IslandError

WORD = re.compile(r"[\w.]*\Z")
"""The part of a line before the cursor that a completion replaces."""


def is_complete(lines: Sequence[str], kind: str) -> bool:
    """Whether the lines are a whole statement: SQL ends with a semicolon, Python as in Python's own prompt.

    An empty line ends a statement of any kind. Code that is wrong is complete, so that the engine reports its error.
    """
    if not lines[-1].strip():
        return True
    if kind == "sql":
        return lines[-1].rstrip().endswith(";")
    if kind not in ("pyspark", "python"):
        return True
    try:
        return codeop.compile_command("\n".join(lines), symbol="single") is not None
    except (SyntaxError, ValueError, OverflowError):
        return True


class Completer:
    """Completion of names by the engine, for `readline`."""

    def __init__(self, api: Api, session: int, kind: str) -> None:
        self._api, self._where, self._kind = api, f"/sessions/{quote(str(session))}/completion", kind
        self._found: list[str] = []

    def complete(self, word: str, state: int) -> str | None:
        """Return the candidate number `state` for `word`, the text before the cursor, or None after the last one."""
        if state == 0:
            self._found = self.candidates(readline.get_line_buffer()[: readline.get_endidx()], word)
        return self._found[state] if state < len(self._found) else None

    def candidates(self, code: str, word: str) -> list[str]:
        """The completions of `word` at the end of `code`; empty if the engine has none or does not answer."""
        body = {"code": code, "kind": self._kind, "cursor": len(code)}
        try:
            names = self._api.post(self._where, body)["candidates"]
        except IslandError:
            return []  # a prompt must not be disturbed by a completion that fails
        head = word.rpartition(".")[0]
        whole = [name if name.startswith(word) else f"{head}.{name}" if head else name for name in names]
        return [name for name in whole if name.startswith(word)]


@contextlib.contextmanager
def line_editing(completer: Completer) -> Iterator[None]:
    """Use the completer at the prompt, in this block."""
    before, delimiters = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer(completer.complete)
    readline.set_completer_delims(" \t\n`~!@#$%^&*()-=+[{]}\\|;:'\",<>/?")
    # The library that macOS has instead of GNU readline has other names for its settings.
    editline = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if editline else "tab: complete")
    try:
        yield
    finally:
        readline.set_completer(before)
        readline.set_completer_delims(delimiters)


def prompt(name: str, kind: str, run: Callable[[str], None], read: Callable[[str], str] = input) -> None:
    """Read statements with `read(prompt)` until the end of input or `exit`, and pass each to `run`."""
    lines: list[str] = []
    while True:
        try:
            line = read(f"{name}> " if not lines else "." * len(name) + "> ")
        except EOFError:
            base.say("")
            return
        except KeyboardInterrupt:
            base.say("")
            lines = []  # Ctrl-C discards what was typed, as in Python's prompt
            continue
        if not lines and line.strip() in ("exit", "exit()", "quit", "quit()"):
            return
        if not lines and not line.strip():
            continue
        lines.append(line)
        if is_complete(lines, kind):
            run("\n".join(lines).strip("\n").rstrip(";" if kind == "sql" else ""))
            lines = []
