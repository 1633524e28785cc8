"""`docs/commands.md`, made from the commands themselves and from `protocols/openapi.yaml`.

Run as a program (`python -m tests.contracts.commands`) it writes the file; a test compares.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from island.cli.main import build
from island.engine.main import parser
from tests.contracts import document

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"

SCHEMAS = {
    "status": "Island",
    "user add": "UserWithToken",
    "user ls": "User",
    "user show": "User",
    "user rotate": "UserWithToken",
    "peer ls": "Peer",
    "peer nearby": "Nearby",
    "server ls": "Server",
    "dataset ls": "Dataset",
    "dataset search": "Dataset",
    "dataset show": "DatasetDetails",
    "dataset publish": "DatasetPublished",
    "dataset fetch": "Fetched",
    "dataset drop": "Dropped",
    "session ls": "Job",
    "session exec": "JobStatement",
    "session result": "JobStatement",
    "job ls": "Job",
    "job show": "Job",
    "job explain": "Consideration",
    "job accuracy": "TermAccuracy",
    "job wait": "Job",
    "source ls": "Source",
    "source show": "Source",
    "source add folder": "Source",
    "subscription ls": "Subscription",
    "subscription add": "Subscription",
    "channel ls": "Channel",
    "journal": "JournalRow",
}
"""The schema of what each command with `--json` prints; a list of it where `LISTS` has the command."""

LOCAL: dict[str, tuple[tuple[str, str], ...]] = {
    "doctor": (
        ("check", "What was checked"),
        ("severity", "ok, unchecked, warning, problem"),
        ("found", "What was found"),
        ("advice", "What to do; may be empty if the severity is ok"),
    ),
    "session results": (
        ("job", "Public id of the session"),
        ("id", "Number of the statement"),
        ("state", "waiting, running, cancelling, available, cancelled, error"),
        ("started", "Start of the statement"),
        ("completed", "End of the statement"),
        ("code", "Its code"),
        ("size", "Size of its result as JSON; 0 if there is none"),
        ("sha256", "SHA-256 of a result of more than 256 KiB; else empty"),
    ),
    "config check": (
        ("line", "Line of the file; null if the finding is not about one line"),
        ("severity", "warning, problem"),
        ("key", "SECTION.KEY or SECTION; empty for the whole file"),
        ("found", "What was found"),
        ("advice", "What to do"),
    ),
    "config show": (
        ("section", "Section of island.toml; empty for what is set outside of the file"),
        ("key", "Key of the section; or home, url, token, java"),
        ("value", "The value in force; *** for a secret"),
        ("source", "file, default, or the option or environment variable"),
    ),
}
"""The keys of the objects that the commands print and that are not objects of the operator API, and what they mean."""

LISTS = (
    set(LOCAL)
    | {"journal", "dataset search", "job explain", "job accuracy"}
    | {name for name in SCHEMAS if name.endswith(" ls")}
)

HEAD = """# Commands

All commands with their options and the keys of their JSON output. This page is generated from the program;
`island COMMAND --help` prints the same information.

- Output that may be copied or parsed goes to stdout and is not wrapped. Messages go to stderr.
- Exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted by Ctrl-C. `session exec`, `job wait`,
  `journal --verify`, `status`, `doctor`, `config check` and `demo --once` also exit with 1 if the statement, job or
  check failed, and `peer nearby` if discovery is off or does not work.
- Ctrl-C, SIGTERM or a closed terminal cancels the operation that `session exec`, `dataset publish` or `dataset fetch`
  started (exit code 130, 143 or 129). A second signal ends the command at once. If such a command is killed with
  SIGKILL, an incomplete publication is removed as well, but a statement continues to run; `island session close`
  ends it.
- `--json` prints one object, or for a list an array of flat objects, always with the same keys. Within `/api/v1`, keys
  may be added, but no key is removed or changes its meaning. Every row of a list of the API has `island`, the display
  name of the island to which the row belongs. It is unique: if two islands claim one name, it is `NAME.KEYPREFIX`.
  `key` is the public key of that island. Unknown values are null or empty. Times are ISO 8601 in UTC. Sizes are in
  bytes, as stored. In `dataset show`, `columns` and `holders` are arrays of flat objects, and `details` is an object of
  strings; in `peer nearby`, `islands` is an array of flat objects.
- All commands except `init`, `config`, `doctor`, `run`, `backup`, `restore`, `engine`, `completion` and `demo` are
  clients of the operator API (`protocols/openapi.yaml`).
"""


def tree() -> Any:
    """The whole command, as Click sees it."""
    return typer.main.get_command(build())


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command below, by its words, in the order of the help."""
    children = getattr(command, "commands", None)
    if children is None:
        yield " ".join(path), command
        return
    for name, child in children.items():
        yield from leaves(child, (*path, name))


def is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def flags(parameter: Any) -> str:
    """An option as it is written, with its value."""
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--"))
    if parameter.is_flag:
        return names
    value = parameter.metavar or parameter.name.upper()
    return f"{names} {value}" + (" ..." if parameter.multiple else "")


def usage(name: str, command: Any) -> str:
    """A command with its arguments and the options that it must have."""
    words = [f"island {name}"]
    for parameter in command.params:
        if not is_option(parameter):
            words.append(parameter.metavar or parameter.name.upper())
        elif parameter.required:
            words.append(f"{parameter.opts[0]} {parameter.metavar or parameter.name.upper()}")
    return " ".join(words)


def render() -> str:
    """The whole page."""
    root = tree()
    out = [HEAD, "## Global options\n", "They are accepted before and after the command.\n"]
    out += table(("option", "meaning"), [(flags(p), p.help or "") for p in root.params if is_option(p)])
    group = ""
    for name, command in leaves(root):
        first = name.partition(" ")[0]
        if first != group:
            group = first
            out.append(f"\n## {first}\n")
            if name != first:
                out.append(f"{root.commands[first].help}\n")
        out += _command(name, command)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).rstrip() + "\n"


def _prose(text: str) -> str:
    """The help of a command in Markdown. A paragraph that starts with \\b is not wrapped: lines of a shell."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    shell = [f"```sh\n{each[2:]}\n```" if each.startswith("\b\n") else each for each in paragraphs]
    return "\n\n".join(shell)


def _command(name: str, command: Any) -> list[str]:
    out = [f"\n### `{usage(name, command)}`\n", _prose(command.help or "") + "\n"]
    rows = [(p.metavar or p.name.upper(), p.help or "") for p in command.params if not is_option(p)]
    rows += [(flags(p), p.help or "") for p in command.params if is_option(p) and "--help" not in p.opts]
    if name == "engine":
        # Defaults are left out: some depend on the machine.
        found = [action for action in parser()._actions if "--help" not in action.option_strings]
        rows = [(_flag(action), re.sub(r" \(default .*", "", action.help or "")) for action in found]
    if rows:
        out += table(("option", "meaning"), rows)
    if name in SCHEMAS or name in LOCAL:
        what = "an array of objects with" if name in LISTS else "an object with"
        out.append(f"\n`--json` prints {what}:\n")
        keys = [(f"`{key}`", meaning) for key, meaning in LOCAL[name]] if name in LOCAL else key_rows(SCHEMAS[name])
        out += table(("key", "meaning"), list(keys))
    if name == "journal":
        out.append("\n`--verify --json` prints an object with:\n")
        out += table(("key", "meaning"), list(key_rows("JournalVerified")))
    return out


def _flag(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return ", ".join(f"`{name}`" for name in action.option_strings) + value


def key_rows(schema: str, above: str = "") -> Iterator[tuple[str, str]]:
    """Each key and what it means; those of objects in lists as `list[].key`."""
    for key in document.keys(schema):
        part = _property(schema, key)
        meant = document.resolved(part)
        text = part.get("description") or meant.get("description") or ""
        if "enum" in meant:
            text = f"{text}: {', '.join(meant['enum'])}" if text else ", ".join(meant["enum"])
        yield f"`{above}{key}`", text
        inner = meant.get("items", {}).get("$ref", "")
        if inner:
            yield from key_rows(inner.rpartition("/")[2], f"{above}{key}[].")


def _property(schema: str, key: str) -> dict[str, Any]:
    found = document.document()["components"]["schemas"][schema]
    own: dict[str, Any] | None = found.get("properties", {}).get(key)
    return own if own is not None else _property(found["$ref"].rpartition("/")[2], key)


def table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    """A table in Markdown."""
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return lines + [f"| {_cell(first)} | {_cell(second)} |" for first, second in rows]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
