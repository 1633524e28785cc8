"""`island config`: checks and shows the configuration without starting the daemon."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from island.cli import base
from island.config import as_toml, without_password

app = typer.Typer(help="The configuration file of an island.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to the command."""
    root.add_typer(app, name="config")


@app.command("check")
def check(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="File to check. Default: island.toml of the home folder.")
    ] = None,
    as_json: base.Json = False,
) -> None:
    """Check a configuration file completely, without starting the daemon. Exit code 1 if `island run` would refuse it.

    All problems are listed, with their lines. A warning is about a key that has no effect, or not the one that one
    would expect. Files that the configuration names are checked too; relative paths are relative to its folder.
    """
    from island.doctor import config_file

    path = (file or base.home().toml).expanduser().absolute()
    findings = config_file.check(path).findings
    if as_json:
        base.show_json([dataclasses.asdict(each) for each in findings])
    else:
        for each in findings:
            place = f"{path}:{each.line}" if each.line else str(path)
            base.print_line(f"{place}: {each.severity}: {each.found}\n    {each.advice}")
    problems = sum(each.severity == "problem" for each in findings)
    base.say(f"{path}: {problems or 'no'} problem{'' if problems == 1 else 's'}")
    if problems:
        raise typer.Exit(1)


@app.command("show")
def show(
    effective: Annotated[
        bool, typer.Option("--effective", help="Show the value of every key, and whether it is a default.")
    ] = False,
    as_json: base.Json = False,
) -> None:
    """Print the configuration file, or with --effective all values in force after a restart. Secrets are not shown.

    `--json` always prints all values. A file with a password in `livy.url`, which `island run` refuses, is shown with
    `***` instead.
    """
    from island.doctor import config_file

    path = base.home().toml
    if not effective and not as_json:
        base.print_line(config_file.text_of(path))
        return
    rows = [*_environment(), *(dataclasses.asdict(each) for each in config_file.values(path))]
    if as_json:
        base.show_json(rows)
        return
    base.print_line("\n".join(_lines(path, rows)))


@app.command("reference")
def reference() -> None:
    """Print the reference of all keys with types, defaults and meaning, in Markdown."""
    from island import config

    base.print_line(config.reference())


def _environment() -> list[dict[str, Any]]:
    """Return what commands and the daemon take from global options and the environment, without secrets."""
    name = "--home" if base.TARGET.home else "ISLAND_HOME" if os.environ.get("ISLAND_HOME") else ""
    rows: list[dict[str, Any]] = [
        {"section": "", "key": "home", "value": str(base.home().path), "source": name or "default"}
    ]
    if url := os.environ.get("ISLAND_URL"):
        rows.append({"section": "", "key": "url", "value": without_password(url), "source": "ISLAND_URL"})
    for name in ("ISLAND_TOKEN", "ISLAND_TOKEN_FILE"):
        if os.environ.get(name):
            rows.append({"section": "", "key": "token", "value": "***", "source": name})
            break
    from island.engine.jvm import ignored_java_home

    if ignored := ignored_java_home(os.environ):
        base.say(f"warning: JAVA_HOME={ignored} has no Java 17 and is ignored")
    elif java := os.environ.get("JAVA_HOME"):
        rows.append({"section": "", "key": "java", "value": java, "source": "JAVA_HOME"})
    return rows


def _lines(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Return rows as TOML, with the source of each value in a comment."""
    lines, section = [], ""
    for row in rows:
        text = f"{row['key']} = {as_toml(row['value'])}"
        source = path.name if row["source"] == "file" else row["source"]
        if row["section"] != section:
            section = row["section"]
            header = f"[[{section.partition('[')[0]}]]" if "[" in section else f"[{section}]"
            lines += ["", header]
        lines.append(f"{text:<48}  # {source}" if section else f"# {text}  ({source})")
    return lines
