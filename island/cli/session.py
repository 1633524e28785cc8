"""`island session`: interactive Spark sessions."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer

from island.cli import base, interrupts, session_prompt, session_results
from island.cli.job_progress import path, settle
from island.cli.statement_output import print_result
from island.client import Api, ApiError
from island.errors import IslandError

app = typer.Typer(help="Interactive Spark sessions: open, execute, list, close.", no_args_is_help=True)

CANCEL_S = 5.0
"""Seconds that an interrupted command waits for the answer to its cancellation of a statement."""

Id = Annotated[str, typer.Argument(metavar="ID", help="The local id, the public id, or a unique prefix of it.")]


def register(root: typer.Typer) -> None:
    """Add the group to the command."""
    root.add_typer(app, name="session")


@app.command("open")
def open_session(
    kind: Annotated[str, typer.Option(help="pyspark or sql.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="OWNER/NAME", help="Dataset to use in the session. May be repeated."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--conf", metavar="KEY=VALUE", help="Spark setting. May be repeated.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of Spark's driver, for example 2g.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the session.")] = None,
    at: Annotated[str, typer.Option(metavar="ISLAND", help="Run the session at this island only.")] = "",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the id at once; do not wait for the session to start.")
    ] = False,
) -> None:
    """Open a session, wait until it is ready, and print its id. Reports progress on stderr."""
    if kind not in ("pyspark", "sql", "shared", "spark", "sparkr"):
        raise typer.BadParameter(f"'{kind}' is not a kind of session: use pyspark or sql", param_hint="--kind")
    api = base.api()
    body = {"kind": kind, "inputs": inputs or [], "name": name, "at": at, "memory": memory}
    made = api.post("/api/v1/sessions", {**body, "conf": _pairs(settings or [])})
    base.say(f"session {made['id']} is job {made['job']}")
    if not no_wait:
        row = settle(api, made["job"])
        if row["state"] != "idle":
            failed = "failed" if row["state"] == "error" else f"is {row['state']}"
            raise IslandError(
                f"the session {failed}: {row['reason']}",
                hint=f"`island job explain {made['id']}` shows which islands were considered.",
            )
        base.say(f"ready at {row['island']}")
    base.print_line(str(made["id"]))


@app.command("exec")
def execute(
    session: Id,
    code: Annotated[str, typer.Argument(metavar="CODE", help="Code to run; - reads it from stdin.")],
    kind: Annotated[str | None, typer.Option(help="pyspark or sql. Default: the kind of the session.")] = None,
    as_json: base.Json = False,
) -> None:
    """Run code in a session and print its result. Exit code 1 if it fails. Ctrl-C cancels the statement."""
    text = sys.stdin.read() if code == "-" else code
    posted = _run(base.api(), session, {"code": text, "kind": kind})
    if as_json:
        base.show_json(posted)
    else:
        print_result(posted)
    output = posted["output"] or {}
    if posted["state"] != "available" or output.get("status") == "error":
        raise typer.Exit(1)


@app.command("attach")
def attach(session: Id) -> None:
    """Type code for a session and see the results. Tab completes names if the engine can do it.

    A statement ends with the line, or as in Python's own prompt; SQL ends with a semicolon; an empty line always ends
    it. Ctrl-C cancels the running statement. `exit` or Ctrl-D leaves the session open.
    """
    api = base.api()
    row = api.get(path(session), kind="session")
    language = "pyspark" if row["language"] == "shared" else row["language"]
    base.say(f"session {row['id']} ({language}) at {row['island']}; exit or Ctrl-D leaves it open")

    def run(code: str) -> None:
        try:
            print_result(_run(api, row["job"], {"code": code, "kind": language}))
        except interrupts.Interrupted as stop:
            if stop.number != signal.SIGINT:
                raise
        except ApiError as error:
            base.fail(error)  # for example a session that has ended; its results can still be looked at

    with session_prompt.line_editing(session_prompt.Completer(api, row["id"], language)):
        session_prompt.prompt(f"{row['island']}:{row['id']}", language, run)


@app.command("ls")
def ls(
    everything: Annotated[bool, typer.Option("--all", help="Include sessions that have ended.")] = False,
    as_json: base.Json = False,
) -> None:
    """List your sessions and where they run."""
    rows = base.api().get("/api/v1/jobs", kind="session", live=None if everything else 1)
    base.show_rows(rows, ("id", "job", "state", "island", "owner", "inputs", "name"), as_json, empty="no sessions")


@app.command("close")
def close(session: Id) -> None:
    """Close a session. `island job show ID` still shows the results of its statements."""
    row = base.api().delete(path(session), kind="session")
    base.say(f"session {row['id']} is closed; to see the results of its statements: island job show {row['job']}")


session_results.register(app)


def _pairs(lines: list[str]) -> dict[str, str]:
    """Return the settings of `--conf`. Raises `BadParameter`."""
    found = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"'{line}' is not KEY=VALUE", param_hint="--conf")
        found[key] = value
    return found


def _run(api: Api, session: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post a statement and wait until it has ended; cancel it if the command is interrupted."""
    posted: dict[str, Any] | None = None
    with interrupts.undoable() as signals:
        try:
            with signals.held("interrupted: the statement is cancelled as soon as the island has answered"):
                posted = api.post(path(session, "statements"), body)
            where = path(session, "statements", str(posted["id"]))
            while posted["state"] not in ("available", "error", "cancelled"):
                posted = api.get(where, timeout=30.0)
        except interrupts.Interrupted:
            if posted is not None:
                _cancel(api, session, posted)
            raise
    return posted


def _cancel(api: Api, session: str, statement: dict[str, Any]) -> None:
    """Cancel a statement and report the outcome on stderr; gives up if the island does not answer in `CANCEL_S`."""
    base.say("cancelling the statement; press Ctrl-C again to leave it running")
    name = f"statement {statement['id']} of session {session}"
    try:
        Api(api.endpoint, timeout=CANCEL_S).post(path(session, "statements", str(statement["id"]), "cancel"))
    except IslandError as error:
        base.say(f"{name} could not be cancelled and may still be running: {error.message}")
    else:
        base.say(f"cancelled {name}")
