"""The output of the demo, and the list of results that differ from the expected ones."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from island.kernel.terminal import escaped


class Stage:
    """Prints acts and tables, and counts requests, moved bytes and comparisons."""

    def __init__(self) -> None:
        wide = None if sys.stdout.isatty() else 110
        self._console = Console(file=sys.stdout, highlight=False, width=wide)
        self._started = time.monotonic()
        self.differences: list[str] = []
        self.compared = 0
        self.asked = 0
        self.moved: list[tuple[int, int]] = []

    def act(self, number: int, title: str) -> None:
        """Print the heading of an act."""
        elapsed = time.monotonic() - self._started
        self._console.print(f"\n[bold]{number}. {_shown(title)}[/bold]  [dim]({elapsed:.0f} s)[/dim]")

    def say(self, text: str) -> None:
        """Print one line of text."""
        self._console.print(f"   {_shown(text)}", soft_wrap=not sys.stdout.isatty())

    def typed(self, place: str, *words: str) -> None:
        """Print a command with the island at which it is run."""
        shown = words[0] if len(words) == 1 else " ".join(_quoted(word) for word in words)
        self._console.print(f"   [dim]{_shown(place)}$[/dim] {_shown(shown)}", soft_wrap=True)

    def table(self, columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
        """Print a table."""
        sheet = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for column in columns:
            sheet.add_column(column)
        for line in lines:
            sheet.add_row(*(_shown(str(value)) for value in line))
        grid = Table.grid(padding=(0, 0, 0, 3))
        grid.add_column()
        grid.add_column()
        grid.add_row("", sheet)
        self._console.print(grid)

    def data_moved(self, moved: int, total: int, where: str, why: str) -> None:
        """Print and record how many bytes of a dataset were transferred, between which islands, and why."""
        self.moved.append((moved, total))
        share = f" ({100 * moved / total:.1f} %)" if total else ""
        self.say(f"moved: {moved:,} of {total:,} bytes{share}, {where}; {why}")

    def same(self, what: str, expected: Any, found: Any, *, tolerance: float = 0.0) -> bool:
        """Compare a result with the expected one, numbers within `tolerance` (absolute); return whether they agree."""
        self.compared += 1
        if isinstance(expected, (int, float)) and isinstance(found, (int, float)):
            agree = math.isclose(expected, found, abs_tol=tolerance, rel_tol=0.0)
        else:
            agree = expected == found
        if not agree:
            line = f"{what}: expected {_short(expected)}, found {_short(found)}"
            self.differences.append(line)
            self.say(f"DIFFERS  {line}")
        return agree

    def same_rows(self, what: str, expected: Iterable[Any], found: Iterable[Any]) -> None:
        """Compare delivered rows with the expected ones; the order does not matter, duplicates count."""
        want, got = Counter(expected), Counter(found)
        missing, extra = want - got, got - want
        self.compared += 1
        if missing or extra:
            line = f"{what}: {missing.total()} of {want.total()} rows missing, {extra.total()} rows too many"
            self.differences.append(line)
            self.say(f"DIFFERS  {line}")
        else:
            self.say(f"{what}: {want.total()} rows, the same as when the condition is applied to the files directly")


def _shown(text: str) -> str:
    """Escape text for rich: its markup and control characters of the terminal have no effect."""
    return escape(escaped(text, lines=True))


def _quoted(word: str) -> str:
    if "'" in word and not set(word) & set('"$`\\!'):
        return f'"{word}"'
    return shlex.quote(word)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else text[:297] + "..."
