"""`island session results` and `island session result`: the results of the statements of a session."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from island.cli import base
from island.cli.job_progress import path
from island.cli.statement_output import print_result
from island.errors import IslandError
from island.private_files import sync_folder

Session = Annotated[str, typer.Argument(metavar="ID", help="The local id, the public id, or a unique prefix of it.")]
Number = Annotated[int, typer.Argument(metavar="N", min=0, help="Number of the statement.")]
ResultFile = Annotated[
    Path | None, typer.Option("--to", metavar="FILE", help="Write the result to this file, as Livy's JSON.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the group `session`."""
    app.command("results")(results)
    app.command("result")(result)


def results(session: Session, as_json: base.Json = False) -> None:
    """List the results of a session, also of one that has ended."""
    rows = [_row(each) for each in base.api().get(path(session, "statements"), kind="session")]
    base.show_rows(rows, ("id", "state", "size", "completed", "code"), as_json, empty="no statements")


def result(session: Session, number: Number, to: ResultFile = None, as_json: base.Json = False) -> None:
    """Print the result of a statement, or write it to a file: whole, whatever its size."""
    api = base.api(timeout=600.0)
    if to is not None:
        where = path(session, "statements", str(number), "result") + "?kind=session"
        data = api.read(where)[2]
        _write(to, data)
        base.say(f"{to}: {len(data)} bytes")
        return
    statement = api.get(path(session, "statements", str(number)), kind="session")
    if as_json:
        base.show_json(statement)
    elif statement["output"] is None:
        base.say(f"statement {number} has no result: it is {statement['state']}")
    else:
        print_result(statement)


def _row(statement: dict[str, Any]) -> dict[str, Any]:
    kept, output = statement["result"], statement["output"]
    size = kept["size"] if kept else 0 if output is None else len(_compact(output))
    hashed = kept["sha256"] if kept else ""
    keys = ("job", "id", "state", "started", "completed", "code")
    return {**{key: statement[key] for key in keys}, "size": size, "sha256": hashed}


def _compact(output: Any) -> bytes:
    return json.dumps(output, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _write(target: Path, data: bytes) -> None:
    """Write a file, or replace it, so that it is complete or not there. Raises `IslandError`."""
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        try:
            with new.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one that is reported
                new.unlink()
            raise
        sync_folder(target.parent)
    except OSError as error:
        raise IslandError(
            f"{target} cannot be written: {error.strerror or error}",
            hint="Check the folder, its permissions and the space on its disk. The result is still at the island.",
        ) from error
