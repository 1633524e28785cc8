"""Writes demo.svg: the output of a real `island demo --once`, as a picture of a terminal.

Run `python docs/pictures/make.py` in the virtual environment of the checkout, which takes two minutes. `--from FILE`
uses the output of an earlier run. Parts of the output are left out; ids are shortened, and ports and times are removed,
because they differ between runs.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).with_name("demo.svg")
ACTS = (1, 4, 5, 6, 7)
"""The acts that are shown."""
LEFT_OUT = ("island server ls", "island job logs", "island job explain", "island channel ls")
"""Commands that are left out with their output, to keep the picture small."""
WIDTH = 116
_HEADING = re.compile(r"(\d)\. (.*?)  \(\d+ s\)")
_PROMPT = re.compile(r"   (\w+\$) (.*)")


def run() -> str:
    """The output of the demo; raises `CalledProcessError` if a result differs from the expected one."""
    command = [sys.executable, "-m", "island.cli.main", "demo", "--once"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def shown(output: str) -> list[str]:
    """The lines of the output that are shown, without what differs between runs."""
    lines: list[str] = []
    act, omit = 0, False
    for line in output.splitlines():
        line = re.sub(r"http://127\.0\.0\.1:\d+", "http://127.0.0.1:8990", line.rstrip())
        line = re.sub(r"\b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f-]{22}\.[0-9a-f]{10}\b", r"\1", line)
        if heading := _HEADING.fullmatch(line):
            act, omit = int(heading[1]), False
            line = f"{len([each for each in ACTS if each <= act])}. {heading[2]}"
            if act in ACTS and lines and lines[-1]:
                lines.append("")  # the one before it was left out
        elif prompt := _PROMPT.fullmatch(line):
            omit = prompt[2].startswith(LEFT_OUT)
        elif line.startswith("   moved:"):
            omit = False
        if act in ACTS and not omit:
            lines.append(line)
    return lines


def styled(line: str) -> Text:
    """A line in the colours of a terminal."""
    if re.match(r"\d\. ", line):
        return Text(line, "bold cyan")
    if prompt := _PROMPT.fullmatch(line):
        return Text.assemble("   ", (prompt[1], "green"), (f" {prompt[2]}", "bold"))
    if re.match(r"   (moved|delivered|results)", line):
        return Text(line, "yellow")
    return Text(line)


def picture(lines: list[str]) -> str:
    """The lines as SVG, which loads nothing from elsewhere."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(styled(line))
    svg = console.export_svg(title="make demo", unique_id="demo")
    return re.sub(r"\s*@font-face \{[^}]*\}", "", svg)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, help="a file with the output of `island demo --once`")
    source: Path | None = parser.parse_args().source
    output = source.read_text("utf-8") if source else run()
    PICTURE.write_text(picture(shown(output)) + "\n", "utf-8")


if __name__ == "__main__":
    main()
