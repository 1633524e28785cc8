"""Prints statements of Spark sessions and their results."""

from __future__ import annotations

from typing import Any

from island.cli import base
from island.kernel.units import format_bytes


def print_statements(statements: list[dict[str, Any]]) -> None:
    """Print all statements of a session: number, state and first line of the code, then the result."""
    for statement in statements:
        first, *rest = str(statement["code"]).strip().splitlines() or [""]
        base.print_line("")
        base.print_line(f"statement {statement['id']}, {statement['state']}: {first}" + (" ..." if rest else ""))
        if statement.get("result") and statement["output"] is None:
            size = format_bytes(statement["result"]["size"])
            base.print_line(f"[a result of {size}: island session result {statement['job']} {statement['id']}]")
        print_result(statement)


def print_result(statement: dict[str, Any]) -> None:
    """Print a statement's result: text and tables on stdout, errors on stderr."""
    output = statement["output"]
    if statement["state"] == "cancelled" and not output:
        base.say("the statement was cancelled")
    elif output is None:
        return
    elif output["status"] == "error":
        base.say(error_text(output))
    else:
        _print_data(output.get("data", {}))


def error_text(output: dict[str, Any]) -> str:
    """Return the traceback of a Python error; of an SQL error only the message, without Spark's stack frames.

    The two are distinguished by the line ends: only the lines of a Python traceback end with a newline.
    """
    lines = output.get("traceback") or []
    message = str(output.get("evalue", ""))
    if not lines or not all(line.endswith("\n") for line in lines[:-1]):
        return f"{output.get('ename')}: {message}".rstrip()
    text = "".join(lines).rstrip()
    last = message.splitlines()[-1:]
    return "\n".join([text, *(line for line in last if line.startswith("island: ") and line not in text)])


def _print_data(data: dict[str, Any]) -> None:
    for kind, content in data.items():
        if isinstance(content, dict) and "schema" in content and "data" in content:
            names = [field["name"] for field in content["schema"]["fields"]]
            base.show_table(names, [[base.format_cell(value) for value in row] for row in content["data"]])
        elif kind == "text/plain":
            if content:
                base.print_line(str(content))
        elif isinstance(content, str):
            base.say(f"[{kind}, {len(content)} characters; --json shows it]")
        else:
            base.show_json(content)
